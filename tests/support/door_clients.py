"""Plain clients of both doors that show what is on the wire: HTTP without a library's opinions, and grpc."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

CODES = {
    "invalid_argument": 3,
    "deadline_exceeded": 4,
    "not_found": 5,
    "permission_denied": 7,
    "resource_exhausted": 8,
    "unimplemented": 12,
    "internal": 13,
    "unauthenticated": 16,
}


@dataclass(frozen=True)
class Failure:
    """An error as a client of either door sees it."""

    code: int
    message: str
    reason: str = ""
    domain: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    violations: tuple[tuple[str, str], ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.violations)


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    @property
    def failure(self) -> Failure:
        """The Connect error in the body."""
        found = self.json
        details = {
            entry["type"]: base64.b64decode(entry["value"] + "===") for entry in found.get("details", [])
        }
        return _failure(CODES[found["code"]], found["message"], details)


def _failure(code: int, message: str, details: Mapping[str, bytes]) -> Failure:
    info = ErrorInfo.FromString(details.get("google.rpc.ErrorInfo", b""))
    bad = BadRequest.FromString(details.get("google.rpc.BadRequest", b""))
    violations = tuple((entry.field, entry.description) for entry in bad.field_violations)
    return Failure(code, message, info.reason, info.domain, dict(info.metadata), violations)


def request(
    url: str,
    path: str,
    body: bytes | None = None,
    *,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    authority: Path | None = None,
) -> Reply:
    """Send one HTTP/1.1 request."""
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=str(authority))
        connection = http.client.HTTPSConnection(parts.netloc, timeout=20, context=context)
    else:
        connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, names, answer.read())
    finally:
        connection.close()


def post(
    url: str,
    rpc: str,
    body: object,
    *,
    token: str | None = "platform-admin-token",
    headers: Mapping[str, str] | None = None,
    authority: Path | None = None,
) -> Reply:
    """Call an RPC as plain `curl` with JSON does; bytes and text go as they are."""
    data = (
        body
        if isinstance(body, bytes)
        else body.encode()
        if isinstance(body, str)
        else json.dumps(body).encode()
    )
    sent = {"content-type": "application/json"}
    if token is not None:
        sent["authorization"] = f"Bearer {token}"
    return request(url, f"/bursar.v1.{rpc}", data, headers=sent | dict(headers or {}), authority=authority)


def post_binary(
    url: str, rpc: str, message: Message | bytes, *, token: str = "platform-admin-token"
) -> Reply:
    """Call an RPC in protobuf's binary format."""
    data = message if isinstance(message, bytes) else message.SerializeToString()
    headers = {"content-type": "application/proto", "authorization": f"Bearer {token}"}
    return request(url, f"/bursar.v1.{rpc}", data, headers=headers)


@dataclass(frozen=True)
class GrpcReply:
    """What gRPC answered: the bytes, or the failure; and the trailers."""

    body: bytes
    failure: Failure | None
    trailers: dict[str, Any]


def call_grpc(
    address: str,
    rpc: str,
    message: Message | bytes,
    *,
    token: str | None = "platform-admin-token",
    metadata: tuple[tuple[str, str], ...] = (),
    timeout: float | None = 20,
    compression: grpc.Compression | None = None,
) -> GrpcReply:
    """Call a unary RPC through grpc."""
    if token is not None:
        metadata = (*metadata, ("authorization", f"Bearer {token}"))
    options = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
    with grpc.insecure_channel(address, options=options) as channel:
        method = channel.unary_unary(f"/bursar.v1.{rpc}")
        data = message if isinstance(message, bytes) else message.SerializeToString()
        try:
            answer, call = method.with_call(data, metadata=metadata, timeout=timeout, compression=compression)
        except grpc.RpcError as error:
            trailers = dict(error.trailing_metadata() or ())
            return GrpcReply(b"", failure_of(error), trailers)
        return GrpcReply(answer, None, dict(call.trailing_metadata() or ()))


def failure_of(error: Any) -> Failure:
    """Return what a grpc error says."""
    status = Status.FromString(dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b""))
    details = {entry.type_url.rpartition("/")[2]: entry.value for entry in status.details}
    return _failure(error.code().value[0], error.details(), details)
