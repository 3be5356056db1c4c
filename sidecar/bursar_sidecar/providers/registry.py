"""Which dialect a name stands for, and which one is spoken at a path."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bursar_sidecar.providers.anthropic import Anthropic
from bursar_sidecar.providers.base import Dialect
from bursar_sidecar.providers.bedrock import Bedrock
from bursar_sidecar.providers.cohere import Cohere
from bursar_sidecar.providers.gemini import Gemini
from bursar_sidecar.providers.ollama import Ollama
from bursar_sidecar.providers.openai import OpenAI
from bursar_sidecar.providers.vertex import Vertex

REGISTRY: Mapping[str, Dialect] = MappingProxyType(
    {
        "openai": OpenAI(),
        "anthropic": Anthropic(),
        "gemini": Gemini(),
        "vertex": Vertex(),
        "bedrock": Bedrock(),
        "cohere": Cohere(),
        "ollama": Ollama(),
    }
)


def dialect_at(own: Dialect, compatible: Dialect, path: str) -> Dialect:
    """Return what is spoken at `path` of an upstream whose own dialect is `own`.

    Many upstreams offer another vendor's API beside their own (OpenAI's on Bedrock and on Gemini, Anthropic's on
    DeepSeek). `compatible` is OpenAI's dialect as this upstream speaks it. What nobody knows is the upstream's own.
    """
    if own.speaks(path):
        return own
    others = (compatible, *(dialect for name, dialect in REGISTRY.items() if name != "openai"))
    return next((dialect for dialect in others if dialect.speaks(path)), own)
