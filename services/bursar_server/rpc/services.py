"""The public services: what the doors are given, and how each is called on either of them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.server import ConnectASGIApplication
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message_factory import GetMessageClass

from bursar.v1 import (
    budget_service_pb2,
    chargeback_service_pb2,
    metering_service_pb2,
    pricing_service_pb2,
    tenant_service_pb2,
    usage_service_pb2,
    user_service_pb2,
)
from bursar.v1.budget_service_connect import BudgetService, BudgetServiceASGIApplication
from bursar.v1.chargeback_service_connect import ChargebackService, ChargebackServiceASGIApplication
from bursar.v1.metering_service_connect import MeteringService, MeteringServiceASGIApplication
from bursar.v1.pricing_service_connect import PricingService, PricingServiceASGIApplication
from bursar.v1.tenant_service_connect import TenantService, TenantServiceASGIApplication
from bursar.v1.usage_service_connect import UsageService, UsageServiceASGIApplication
from bursar.v1.user_service_connect import UserService, UserServiceASGIApplication


@dataclass(frozen=True, slots=True)
class Services:
    """One implementation of each public service; the same objects answer on both doors."""

    users: UserService
    tenants: TenantService
    budgets: BudgetService
    metering: MeteringService
    pricing: PricingService
    usage: UsageService
    chargeback: ChargebackService


# The file that declares each service, and the application that connectrpc generates for it.
_BINDINGS: tuple[tuple[str, Any, Callable[..., ConnectASGIApplication[Any]]], ...] = (
    ("users", user_service_pb2, UserServiceASGIApplication),
    ("tenants", tenant_service_pb2, TenantServiceASGIApplication),
    ("budgets", budget_service_pb2, BudgetServiceASGIApplication),
    ("metering", metering_service_pb2, MeteringServiceASGIApplication),
    ("pricing", pricing_service_pb2, PricingServiceASGIApplication),
    ("usage", usage_service_pb2, UsageServiceASGIApplication),
    ("chargeback", chargeback_service_pb2, ChargebackServiceASGIApplication),
)

Handler = Callable[[Any, Any], Awaitable[Any] | AsyncIterator[Any]]


@dataclass(frozen=True, slots=True)
class Rpc:
    """One RPC: how it is described, and the method of the implementation that answers it."""

    info: MethodInfo[Any, Any]
    handler: Handler


def files() -> list[FileDescriptor]:
    """Return the descriptor of every file that declares a public service."""
    return [module.DESCRIPTOR for _, module, _ in _BINDINGS]


def rpcs(services: Services) -> Iterator[Rpc]:
    """Yield every RPC of the descriptors with its handler."""
    for field, module, _ in _BINDINGS:
        implementation = getattr(services, field)
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield Rpc(
                    _info(service.full_name, method), getattr(implementation, _python_name(method.name))
                )


def applications(
    services: Services, **options: Any
) -> Iterator[tuple[list[str], ConnectASGIApplication[Any]]]:
    """Yield connectrpc's application for each service, with the paths of its RPCs."""
    for field, module, application in _BINDINGS:
        paths = [
            f"/{service.full_name}/{method.name}"
            for service in module.DESCRIPTOR.services_by_name.values()
            for method in service.methods
        ]
        yield paths, application(getattr(services, field), **options)


def _info(service_name: str, method: Any) -> MethodInfo[Any, Any]:
    if method.client_streaming:
        raise NotImplementedError(
            f"{service_name}/{method.name} streams requests: the doors have no way for that"
        )
    side_effects = method.GetOptions().idempotency_level != method.GetOptions().NO_SIDE_EFFECTS
    return MethodInfo(
        name=method.name,
        service_name=service_name,
        input=GetMessageClass(method.input_type),
        output=GetMessageClass(method.output_type),
        idempotency_level=IdempotencyLevel.UNKNOWN if side_effects else IdempotencyLevel.NO_SIDE_EFFECTS,
        stream_type=StreamType.SERVER_STREAM if method.server_streaming else StreamType.UNARY,
    )


def _python_name(name: str) -> str:
    """Return what generated code calls an RPC: `create_api_key` for CreateApiKey."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).removeprefix("_")
