"""Credentials that are made anew for a request or for an hour: Amazon's signatures, Google's and Microsoft's tokens.

What they need beyond the sidecar comes with the extras `bedrock` and `vertex`, and is imported when it is first used.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from bursar_sidecar.clock import Clock

#: A token is replaced when it has less than this left.
_SPARE_S = 120.0
_TOKEN_TIMEOUT_S = 15.0
_GOOGLE_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
#: What an application asks Entra ID for to call Azure's AI services (Azure OpenAI reference, authentication).
_AZURE_SCOPE = "https://cognitiveservices.azure.com/.default"
_ENTRA = "https://login.microsoftonline.com"


class SigningError(Exception):
    """A request cannot be given its credential; the message says why, without anything secret in it."""


class Signer(Protocol):
    """Gives requests their credential."""

    async def headers(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Mapping[str, str]:
        """Return the headers that carry the credential of this request as it is sent. Raises SigningError."""
        ...


class AwsSigner:
    """Signs with Signature Version 4, with the credentials that AWS's own tools would use (extra `bedrock`)."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._credentials: Any = None

    async def headers(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Mapping[str, str]:
        """Return `Authorization` and what belongs to it; the body must be sent as it is here."""
        return await asyncio.to_thread(self._signed, method, url, headers.get("Content-Type", ""), body)

    def _signed(self, method: str, url: str, content_type: str, body: bytes) -> dict[str, str]:
        auth = _module("botocore.auth", "bedrock")
        request = _module("botocore.awsrequest", "bedrock").AWSRequest(
            method=method, url=url, data=body, headers={"Content-Type": content_type} if content_type else {}
        )
        try:
            if self._credentials is None:
                self._credentials = _module("botocore.session", "bedrock").Session().get_credentials()
            frozen = self._credentials and self._credentials.get_frozen_credentials()
        except Exception as error:  # botocore raises its own and what its HTTP client raises
            raise SigningError(f"AWS credentials cannot be had: {type(error).__name__}") from error
        if frozen is None:
            raise SigningError("no AWS credentials were found")
        auth.SigV4Auth(frozen, "bedrock", self._region).add_auth(request)
        return {name: value for name, value in request.headers.items() if name != "Content-Type"}


class TokenSigner:
    """Puts a bearer token on requests and fetches the next one in time; `fetch` blocks, and runs in a thread.

    `fetch` returns the token and for how many seconds it holds.
    """

    def __init__(self, fetch: Callable[[], tuple[str, float]], clock: Clock) -> None:
        self._fetch = fetch
        self._clock = clock
        self._token = ""
        self._holds_until = 0.0
        self._fetching = asyncio.Lock()

    async def headers(
        self,
        method: str,  # noqa: ARG002
        url: str,  # noqa: ARG002
        headers: Mapping[str, str],  # noqa: ARG002
        body: bytes,  # noqa: ARG002
    ) -> Mapping[str, str]:
        """Return `Authorization`."""
        if self._clock.monotonic() >= self._holds_until - _SPARE_S:
            async with self._fetching:
                if self._clock.monotonic() >= self._holds_until - _SPARE_S:
                    self._token, seconds = await asyncio.to_thread(self._fetch)
                    self._holds_until = self._clock.monotonic() + seconds
        return {"Authorization": f"Bearer {self._token}"}


def google_token() -> tuple[str, float]:
    """Return an access token of the application's default credentials. Raises SigningError."""
    auth = _module("google.auth", "vertex")
    try:
        credentials, _ = auth.default(scopes=[_GOOGLE_SCOPE])
        credentials.refresh(_google_transport)
    except Exception as error:  # google-auth raises its own and what its transports raise
        raise SigningError(f"Google credentials cannot be had: {type(error).__name__}") from error
    seconds = 3600.0
    if credentials.expiry is not None:
        now = _module("google.auth._helpers", "vertex").utcnow()
        seconds = (credentials.expiry - now).total_seconds()
    return str(credentials.token), seconds


def entra_token(tenant_id: str, client_id: str, client_secret: str) -> tuple[str, float]:
    """Return an access token of an application registered with Entra ID. Raises SigningError."""
    form = {
        "grant_type": "client_credentials",
        "client_id": client_id,
        "client_secret": client_secret,
        "scope": _AZURE_SCOPE,
    }
    url = f"{_ENTRA}/{urllib.parse.quote(tenant_id, safe='')}/oauth2/v2.0/token"
    status, _, body = _exchange(url, "POST", urllib.parse.urlencode(form).encode(), {}, _TOKEN_TIMEOUT_S)
    try:
        answer = json.loads(body)
        return str(answer["access_token"]), float(answer.get("expires_in", 3600))
    except (ValueError, KeyError, TypeError):
        raise SigningError(f"Entra ID gave no token (status {status})") from None


def _module(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise SigningError(
            f"this credential needs the extra {extra!r}: pip install 'bursar[sidecar,{extra}]'"
        ) from None


def _google_transport(
    url: str,
    method: str = "GET",
    body: bytes | str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float | None = None,
    **_: object,
) -> object:
    """Send a request as google-auth wants it sent (`google.auth.transport.Request`)."""
    data = body.encode() if isinstance(body, str) else body
    status, answered, content = _exchange(url, method, data, dict(headers or {}), timeout or _TOKEN_TIMEOUT_S)
    return _GoogleResponse(status, answered, content)


class _GoogleResponse:
    def __init__(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        self.status = status
        self.headers = headers
        self.data = data


def _exchange(
    url: str, method: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
) -> tuple[int, Mapping[str, str], bytes]:
    """Return status, headers and body of an answer, whatever its status. Raises SigningError where there is none."""
    request = urllib.request.Request(url, data=body, method=method, headers=dict(headers))  # noqa: S310  (our own URLs)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()
    except OSError as error:
        raise SigningError(f"the token server cannot be reached: {type(error).__name__}") from error
