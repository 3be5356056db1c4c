"""What every dialect reads of a request's JSON body, and the changes it makes to it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from bursar_sidecar.providers.base import InvalidTags, token_estimate
from bursar_sidecar.providers.json_edit import Edit, Member, applied, members, removal
from bursar_sidecar.providers.readers import plain_document
from bursar_sidecar.usage import count

#: An image, a sound or a file inside a request is taken for this many input tokens, whatever its size: what
#: Anthropic's documentation gives for the largest image it does not scale down, more than OpenAI's and Gemini's tiles.
BINARY_TOKENS = 1600

#: Text this long without a space or an escape is binary data in base64.
_BINARY = re.compile(rb'"(?:data:[^"\\,]{0,200},)?[A-Za-z0-9+/=_-]{2048,}+"')
_BINARY_MARKS = (b"base64", b'"data"', b'"file_data"')

_INCLUDE_USAGE = b'"include_usage":true'


class Request:
    """A request's body, read once.

    `document` is the parsed body, empty where there is no JSON object. `tags` are those of `metadata.tags`, which are
    taken out. Raises InvalidTags where that is an object with anything but text in it.
    """

    def __init__(self, body: bytes) -> None:
        self.body = body
        found = plain_document(body) if body.lstrip()[:1] == b"{" else None
        self.document: Mapping[str, object] = found if found is not None else {}
        self._edits: list[Edit] = []
        self.tags = self._take_tags()

    def edited(self) -> bytes:
        """Return the body with every change made; without one, the very bytes that came."""
        return applied(self.body, self._edits) if self._edits else self.body

    @property
    def input_tokens_estimate(self) -> int:
        """The request's text by its bytes, and a flat figure for each binary in it; the same figure for a form."""
        if not self.document and self.body.lstrip()[:1] not in (b"{", b"["):
            return BINARY_TOKENS if self.body else 0
        size, binaries = len(self.body), 0
        if size > 2048 and any(mark in self.body for mark in _BINARY_MARKS):
            for found in _BINARY.finditer(self.body):
                size -= found.end() - found.start()
                binaries += 1
        return token_estimate(size) + binaries * BINARY_TOKENS

    def form_field(self, name: str) -> str:
        """Return a short text field of a form (`multipart/form-data`), empty where the body is no form or has none."""
        if not self.body.startswith(b"--"):
            return ""
        found = re.search(
            rb'name="?%b"?[^\r\n]*\r?\n(?:[^\r\n]+\r?\n)*\r?\n([^\r\n]{1,200})' % name.encode(), self.body
        )
        return found.group(1).decode(errors="replace") if found is not None else ""

    def include_usage(self) -> bool:
        """Ask for usage in the stream unless the app did; return whether that changed the body.

        Every spelling of the member is seen to (`null`, `false`, twice), since which of two a server heeds is its own
        affair. What is neither an object nor null is left for the provider to refuse.
        """
        options = self.document.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage") is True:
            return False
        if "stream_options" not in self.document:
            at = self.body.index(b"{") + 1
            self._edits.append(Edit(at, at, b'"stream_options":{%b},' % _INCLUDE_USAGE))
            return True
        present = [member for member in members(self.body) if member.key == "stream_options"]
        edits = [edit for member in present for edit in self._usage_edits(member)]
        self._edits += edits
        return bool(edits)

    def _usage_edits(self, options: Member) -> list[Edit]:
        value = self.body[options.value_start : options.end]
        if value == b"null":
            return [Edit(options.value_start, options.end, b"{%b}" % _INCLUDE_USAGE)]
        if value[:1] != b"{":
            return []
        inner = members(self.body, options.value_start)
        asked = [member for member in inner if member.key == "include_usage"]
        if asked:
            return [
                Edit(member.value_start, member.end, b"true")
                for member in asked
                if self.body[member.value_start : member.end] in (b"false", b"null", b"true")
            ]
        at = options.value_start + 1
        return [Edit(at, at, _INCLUDE_USAGE + (b"," if inner else b""))]

    def _take_tags(self) -> dict[str, str]:
        metadata = self.document.get("metadata")
        tags = metadata.get("tags") if isinstance(metadata, dict) else None
        if not isinstance(tags, dict):
            return {}
        for key, value in tags.items():
            if not _is_unicode(key) or (isinstance(value, str) and not _is_unicode(value)):
                raise InvalidTags("metadata.tags", "a tag must be valid Unicode text")
            if not isinstance(value, str):
                raise InvalidTags(f"metadata.tags.{key}", "a tag's value must be text")
        self._edits += self._tag_edits()
        return dict(tags)

    def _tag_edits(self) -> list[Edit]:
        """Return the edits that take out every `metadata.tags` that is an object, and `metadata` if that empties it."""
        present = members(self.body)
        emptied: set[int] = set()
        edits: list[Edit] = []
        for index, member in enumerate(present):
            if member.key != "metadata" or not self._is_object(member):
                continue
            inner = members(self.body, member.value_start)
            gone = {at for at, one in enumerate(inner) if one.key == "tags" and self._is_object(one)}
            if gone and len(gone) == len(inner):
                emptied.add(index)
            elif gone:
                edits += removal(inner, gone)
        return edits + (removal(present, emptied) if emptied else [])

    def _is_object(self, member: Member) -> bool:
        return self.body[member.value_start : member.value_start + 1] == b"{"


def positive(value: object) -> int | None:
    """Return a limit that a request sets, or None where it sets none."""
    return count(value) or None


def _is_unicode(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= one <= "\udfff" for one in value)
