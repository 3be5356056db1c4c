"""Reflection on the Connect door (grpc.reflection.v1 and v1alpha): how `buf curl` finds the services without a schema."""

from collections.abc import Iterator, Sequence

from connectrpc.server import ConnectASGIApplication
from connectrpc_grpcreflect import (  # type: ignore[import-untyped]
    ServerReflectionAlphaASGIApplication,
    ServerReflectionAlphaService,
    ServerReflectionASGIApplication,
    ServerReflectionService,
)
from google.protobuf.descriptor import FileDescriptor
from protobuf import DescFile

# What generated code calls to make its descriptors; there is no public way from google.protobuf's to connectrpc's.
from protobuf._codegen import file_desc

NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


def reflection_applications(
    files: Sequence[FileDescriptor], *, read_max_bytes: int
) -> Iterator[tuple[list[str], ConnectASGIApplication[object]]]:
    """Yield the applications of both versions, each with the path of its RPC; neither asks for a token."""
    known: dict[str, DescFile] = {}
    found = [_desc_file(file, known) for file in files]
    v1 = ServerReflectionASGIApplication(ServerReflectionService(*found), read_max_bytes=read_max_bytes)
    alpha = ServerReflectionAlphaASGIApplication(
        ServerReflectionAlphaService(*found), read_max_bytes=read_max_bytes
    )
    for name, application in zip(NAMES, (v1, alpha), strict=True):
        yield [f"/{name}/ServerReflectionInfo"], application


def _desc_file(file: FileDescriptor, known: dict[str, DescFile]) -> DescFile:
    """Return a file's descriptor in the terms of connectrpc's own protobuf library, with all that it imports."""
    found = known.get(file.name)
    if found is None:
        dependencies = [_desc_file(dependency, known) for dependency in file.dependencies]
        found = known[file.name] = file_desc(file.serialized_pb, dependencies, {})
    return found
