"""The codecs of the Connect door, and the one binary reader of both doors: what they return holds nothing unreadable."""

from typing import Any, TypeVar

import orjson
from connectrpc.code import Code
from connectrpc.codec import Codec
from connectrpc.errors import ConnectError
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message

from bursar_server.rpc.checks import check_message
from bursar_server.rpc.strict_json import malformed, parse_json

M = TypeVar("M", bound=Message)

# A message of this size is read; a larger one is RESOURCE_EXHAUSTED, also when it only grows so large unpacked.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024


def parse_binary(data: bytes | bytearray, message_class: type[M]) -> M:
    """Return a message from protobuf's binary format.

    Fields that it does not have are ignored, so that newer clients can talk to older servers; everything else is as
    strict as JSON. Raises MALFORMED_REQUEST, or INVALID_ARGUMENT naming the field.
    """
    data = bytes(data)
    try:
        message = message_class.FromString(data)
    except DecodeError as error:
        raise malformed(f"the body is not a {message_class.DESCRIPTOR.full_name} in protobuf") from error
    check_message(message, data)
    return message


def json_of(message: Message) -> bytes:
    """Return a message as compact proto3 JSON with its standard names (lowerCamelCase)."""
    return orjson.dumps(MessageToDict(message))


class BinaryCodec:
    """`application/proto`, `application/grpc`, `application/grpc-web`."""

    def name(self) -> str:
        """Return the name that content types carry."""
        return "proto"

    def encode(self, message: Message) -> bytes:
        """Return an answer's bytes."""
        return message.SerializeToString()

    def decode(self, data: bytes | bytearray, message_class: type[M]) -> M:
        """Return the request, or raise a BursarError that names what is wrong."""
        return parse_binary(data, message_class)


class JsonCodec:
    """`application/json` and the JSON variants of the other protocols."""

    def name(self) -> str:
        """Return the name that content types carry."""
        return "json"

    def encode(self, message: Message) -> bytes:
        """Return an answer's JSON."""
        try:
            return json_of(message)
        except Exception as error:
            # Encoding comes after the pipeline has ended: connectrpc would send the exception's text.
            raise ConnectError(
                Code.INTERNAL, "internal error: the answer cannot be written as JSON"
            ) from error

    def decode(self, data: bytes | bytearray, message_class: type[M]) -> M:
        """Return the request, or raise a BursarError that names what is wrong."""
        return parse_json(data, message_class)


def codecs() -> list[Codec[Any, Any]]:
    """Return the codecs of the Connect door."""
    return [BinaryCodec(), JsonCodec()]
