"""Which dialect a name stands for."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bursar_sidecar.providers.anthropic import Anthropic
from bursar_sidecar.providers.base import Dialect
from bursar_sidecar.providers.gemini import Gemini
from bursar_sidecar.providers.openai import OpenAI

REGISTRY: Mapping[str, Dialect] = MappingProxyType(
    {"openai": OpenAI(), "anthropic": Anthropic(), "gemini": Gemini()}
)
