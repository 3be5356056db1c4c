"""What an error looks like outside, the same on both doors: a code, a message, an ErrorInfo, and the field that is wrong."""

import logging
from base64 import b64encode
from dataclasses import dataclass

import orjson
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from protobuf.wkt import Any

from bursar_server.kit.errors import BursarError, Reason

DOMAIN = "bursar.dev"

# google.rpc.Code by number; 0 is OK and never an error.
CONNECT_CODES = (
    None,
    Code.CANCELED,
    Code.UNKNOWN,
    Code.INVALID_ARGUMENT,
    Code.DEADLINE_EXCEEDED,
    Code.NOT_FOUND,
    Code.ALREADY_EXISTS,
    Code.PERMISSION_DENIED,
    Code.RESOURCE_EXHAUSTED,
    Code.FAILED_PRECONDITION,
    Code.ABORTED,
    Code.OUT_OF_RANGE,
    Code.UNIMPLEMENTED,
    Code.INTERNAL,
    Code.UNAVAILABLE,
    Code.DATA_LOSS,
    Code.UNAUTHENTICATED,
)
# What each is in HTTP, where a Connect call is unary.
_HTTP_STATUSES = (200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401)
CODE_NUMBERS = {code: number for number, code in enumerate(CONNECT_CODES) if code is not None}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WireError:
    """A failure as a caller sees it: `code` is a google.rpc.Code, `details` are google.rpc messages."""

    code: int
    message: str
    details: tuple[Message, ...] = ()

    @property
    def code_name(self) -> str:
        """The code's name in lower case, as metrics carry it."""
        found = CONNECT_CODES[self.code]
        return "ok" if found is None else found.value

    @property
    def http_status(self) -> int:
        """The status of HTTP that a unary Connect answer has."""
        return _HTTP_STATUSES[self.code]

    def connect_json(self) -> bytes:
        """Return the body that a unary Connect answer has."""
        details = [
            {
                "type": detail.DESCRIPTOR.full_name,
                "value": b64encode(detail.SerializeToString()).decode().rstrip("="),
            }
            for detail in self.details
        ]
        body: dict[str, object] = {"code": self.code_name, "message": self.message}
        return orjson.dumps(body | {"details": details} if details else body)

    def connect_error(self) -> ConnectError:
        """Return what connectrpc sends in each of its protocols."""
        code = CONNECT_CODES[self.code] or Code.UNKNOWN
        return ConnectError(code, self.message, [_packed(detail) for detail in self.details])

    def grpc_status(self) -> bytes:
        """Return the google.rpc.Status that gRPC carries in the trailer `grpc-status-details-bin`."""
        status = Status(code=self.code, message=self.message)
        for detail in self.details:
            status.details.add().Pack(detail)
        return bytes(status.SerializeToString())


def _packed(detail: Message) -> Any:
    # connectrpc has message classes of its own; a google.protobuf message reaches the wire only inside its Any.
    return Any(
        type_url=f"type.googleapis.com/{detail.DESCRIPTOR.full_name}", value=detail.SerializeToString()
    )


def wire_error(error: BaseException, request_id: str) -> WireError:
    """Return what the caller may know of an error.

    A BursarError goes out as it is. Anything unexpected becomes INTERNAL with nothing but the request's id, and is
    logged here, once, with its traceback.
    """
    if isinstance(error, BursarError):
        return _of_bursar_error(error)
    if isinstance(error, ConnectError):
        return _of_connect_error(error, request_id)
    return _unexpected(error, request_id)


def _of_bursar_error(error: BursarError) -> WireError:
    metadata = dict(error.metadata)
    details: list[Message] = []
    if error.field:
        metadata["field"] = error.field
        # The description stands beside the field's name and need not repeat it.
        description = error.message.removeprefix(f"{error.field}: ")
        violation = BadRequest.FieldViolation(field=error.field, description=description)
        details.append(BadRequest(field_violations=[violation]))
    details.insert(0, ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    return WireError(error.code, error.message, tuple(details))


def _of_connect_error(error: ConnectError, request_id: str) -> WireError:
    """Say an error of the protocol library in our words; ours come wrapped in it where decoding failed."""
    if isinstance(error.__cause__, BursarError):
        return _of_bursar_error(error.__cause__)
    if error.code is Code.RESOURCE_EXHAUSTED:
        return _of_bursar_error(too_large())
    if error.code is Code.DEADLINE_EXCEEDED:
        return _of_bursar_error(late())
    if error.code is Code.INVALID_ARGUMENT:
        # "unmarshal message: …" and "decompress: …" carry the text of whatever was raised below.
        text = "the body cannot be read" if error.__cause__ is not None else error.message
        return _of_bursar_error(BursarError(Reason.MALFORMED_REQUEST, text))
    if error.code in (Code.UNKNOWN, Code.DATA_LOSS):
        return _unexpected(error, request_id)
    return WireError(CODE_NUMBERS[error.code], error.message)


def _unexpected(error: BaseException, request_id: str) -> WireError:
    _logger.error("request failed unexpectedly", exc_info=error, extra={"request_id": request_id})
    return _of_bursar_error(
        BursarError(
            Reason.INTERNAL,
            f"internal error; the log has it under request id {request_id}",
            metadata={"request_id": request_id},
        )
    )


def too_large() -> BursarError:
    """Return the error for a request above the limit on its size."""
    return BursarError(Reason.REQUEST_TOO_LARGE, "the request is larger than 4 MiB: send less at a time")


def late() -> BursarError:
    """Return the error for a request whose deadline passed."""
    return BursarError(Reason.DEADLINE_EXCEEDED, "the caller's deadline passed before the answer was ready")


CANCELLED = WireError(1, "the caller went away")
