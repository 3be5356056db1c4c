"""The providers' own SDKs as an app uses them: nothing is set but the base URL and the key."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import anthropic
import openai
from google import genai
from google.genai import types as genai_types
from openai.types.responses import ResponseTextDeltaEvent


@dataclass(frozen=True)
class Sdk:
    """One way to call a provider.

    `ask(url, key, prompt, stream)` returns the text of the answer; `prefix` is where the sidecar has the upstream,
    `base` what the provider's own base URL ends with; `provider` and `model` are their names in prices and records.
    """

    ask: Callable[[str, str, str, bool], str]
    prefix: str
    base: str
    provider: str
    model: str

    def through(self, sidecar_url: str, key: str, prompt: str, stream: bool = False) -> str:
        """Ask through the sidecar."""
        return self.ask(f"{sidecar_url}{self.prefix}{self.base}", key, prompt, stream)

    def directly(self, provider_url: str, prompt: str, stream: bool = False) -> str:
        """Ask the provider itself."""
        return self.ask(f"{provider_url}{self.base}", "sk-its-own", prompt, stream)


def _openai_chat(url: str, key: str, prompt: str, stream: bool) -> str:
    with openai.OpenAI(base_url=url, api_key=key) as client:
        if not stream:
            answer = client.chat.completions.create(
                model="gpt-4o", messages=[{"role": "user", "content": prompt}]
            )
            return answer.choices[0].message.content or ""
        chunks = client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": prompt}], stream=True
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def _openai_responses(url: str, key: str, prompt: str, stream: bool) -> str:
    with openai.OpenAI(base_url=url, api_key=key) as client:
        if not stream:
            return client.responses.create(model="gpt-5", input=prompt).output_text
        events = client.responses.create(model="gpt-5", input=prompt, stream=True)
        return "".join(event.delta for event in events if isinstance(event, ResponseTextDeltaEvent))


def _openai_embeddings(url: str, key: str, prompt: str, stream: bool) -> str:
    with openai.OpenAI(base_url=url, api_key=key) as client:
        answer = client.embeddings.create(model="text-embedding-3-small", input=prompt)
        return json.dumps(answer.data[0].embedding)


def _anthropic_messages(url: str, key: str, prompt: str, stream: bool) -> str:
    message: anthropic.types.MessageParam = {
        "role": "user",
        "content": [{"type": "text", "text": prompt, "cache_control": {"type": "ephemeral"}}],
    }
    with anthropic.Anthropic(base_url=url, api_key=key) as client:
        if stream:
            with client.messages.stream(
                model="claude-sonnet-5", max_tokens=300, messages=[message]
            ) as events:
                return "".join(events.text_stream)
        answer = client.messages.create(model="claude-sonnet-5", max_tokens=300, messages=[message])
        return "".join(block.text for block in answer.content if block.type == "text")


def _gemini_content(url: str, key: str, prompt: str, stream: bool) -> str:
    client = genai.Client(api_key=key, http_options=genai_types.HttpOptions(base_url=url))
    try:
        if stream:
            chunks = client.models.generate_content_stream(model="gemini-2.5-flash", contents=prompt)
            return "".join(chunk.text or "" for chunk in chunks)
        return client.models.generate_content(model="gemini-2.5-flash", contents=prompt).text or ""
    finally:
        client.close()


SDKS: Mapping[str, Sdk] = {
    "openai chat": Sdk(_openai_chat, "", "/v1", "openai", "gpt-4o"),
    "openai responses": Sdk(_openai_responses, "/openai", "/v1", "openai", "gpt-5"),
    "openai embeddings": Sdk(_openai_embeddings, "/openai", "/v1", "openai", "text-embedding-3-small"),
    "anthropic messages": Sdk(_anthropic_messages, "/anthropic", "", "anthropic", "claude-sonnet-5"),
    "gemini content": Sdk(_gemini_content, "/gemini", "", "gemini", "gemini-2.5-flash"),
}
