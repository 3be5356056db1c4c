"""Who may call what: one table for both doors, and the call that handlers receive."""

from collections.abc import Mapping
from typing import Any, Protocol

from connectrpc.method import MethodInfo
from connectrpc.request import Headers, RequestContext

from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import BursarError, Reason

# Tokens and keys are 47 characters; an operator may choose a longer one.
MAX_BEARER_LENGTH = 512

_PLATFORM = frozenset({Role.PLATFORM_ADMIN})
_PLATFORM_AND_TENANT = frozenset({Role.PLATFORM_ADMIN, Role.TENANT_ADMIN})
_ADMINS = frozenset({Role.PLATFORM_ADMIN, Role.BILLING_ADMIN, Role.TENANT_ADMIN})
_EDITORS = _ADMINS | {Role.TENANT_DEVELOPER}
_MAKERS = _PLATFORM_AND_TENANT | {Role.TENANT_DEVELOPER}
_READERS_OF_BUDGETS = _EDITORS | {Role.GROUP_LEAD}
_METERING = frozenset({Role.PLATFORM_ADMIN, Role.SIDECAR})
_PEOPLE = frozenset(Role) - {Role.SIDECAR}

# Which roles may call which RPC (C11); what a role sees of it (its tenant, its groups) is the handler's to narrow.
# The comments of the RPCs in proto/ say the same, and a test compares the two.
ROLES: Mapping[str, frozenset[Role]] = {
    "/bursar.v1.UserService/CreateUser": _PLATFORM_AND_TENANT,
    "/bursar.v1.UserService/GetUser": _EDITORS,
    "/bursar.v1.UserService/ListUsers": _EDITORS,
    "/bursar.v1.UserService/UpdateUser": _PLATFORM_AND_TENANT,
    "/bursar.v1.UserService/DeactivateUser": _PLATFORM_AND_TENANT,
    "/bursar.v1.UserService/ReactivateUser": _PLATFORM_AND_TENANT,
    "/bursar.v1.UserService/DeleteUser": _PLATFORM_AND_TENANT,
    "/bursar.v1.UserService/SetBudget": _EDITORS,
    "/bursar.v1.UserService/GetBudget": _EDITORS,
    "/bursar.v1.UserService/GetMyBudget": _PEOPLE,
    "/bursar.v1.UserService/ResetSpend": _ADMINS,
    "/bursar.v1.UserService/CreateGrant": _ADMINS,
    "/bursar.v1.UserService/ListGrants": _EDITORS,
    "/bursar.v1.UserService/RevokeGrant": _ADMINS,
    "/bursar.v1.UserService/ListAuditLog": _ADMINS,
    "/bursar.v1.TenantService/CreateTenant": _PLATFORM,
    "/bursar.v1.TenantService/GetTenant": _EDITORS,
    "/bursar.v1.TenantService/ListTenants": _EDITORS,
    "/bursar.v1.TenantService/UpdateTenant": _PLATFORM_AND_TENANT,
    "/bursar.v1.TenantService/CreateApiKey": _MAKERS,
    "/bursar.v1.TenantService/ListApiKeys": _EDITORS,
    "/bursar.v1.TenantService/RevokeApiKey": _PLATFORM_AND_TENANT,
    "/bursar.v1.TenantService/CreateGroup": _MAKERS,
    "/bursar.v1.TenantService/ListGroups": _EDITORS,
    "/bursar.v1.TenantService/UpdateGroup": _MAKERS,
    "/bursar.v1.TenantService/DeleteGroup": _PLATFORM_AND_TENANT,
    "/bursar.v1.TenantService/SetGroupMembers": _MAKERS,
    "/bursar.v1.BudgetService/CreateBudget": _EDITORS,
    "/bursar.v1.BudgetService/GetBudget": _READERS_OF_BUDGETS,
    "/bursar.v1.BudgetService/ListBudgets": _READERS_OF_BUDGETS,
    "/bursar.v1.BudgetService/UpdateBudget": _EDITORS,
    "/bursar.v1.BudgetService/DeleteBudget": _ADMINS,
    "/bursar.v1.BudgetService/GetBudgetStatus": _READERS_OF_BUDGETS,
    "/bursar.v1.BudgetService/ListBudgetStatuses": _READERS_OF_BUDGETS,
    "/bursar.v1.MeteringService/Check": _METERING,
    "/bursar.v1.MeteringService/BatchCheck": _METERING,
    "/bursar.v1.MeteringService/RenewHolds": _METERING,
    "/bursar.v1.MeteringService/Deduct": _METERING,
    "/bursar.v1.MeteringService/BatchDeduct": _METERING,
    "/bursar.v1.MeteringService/ReleaseHold": _METERING,
    "/bursar.v1.PricingService/CreatePrice": _ADMINS,
    "/bursar.v1.PricingService/ListPrices": _EDITORS,
    "/bursar.v1.PricingService/UpdatePrice": _ADMINS,
    "/bursar.v1.PricingService/DeletePrice": _ADMINS,
    "/bursar.v1.PricingService/LookupPrice": _EDITORS,
    "/bursar.v1.UsageService/ListCostRecords": _EDITORS,
    "/bursar.v1.UsageService/GetCostSummary": _EDITORS,
    "/bursar.v1.ChargebackService/GenerateReport": _EDITORS,
    "/bursar.v1.ChargebackService/GetReport": _EDITORS,
    "/bursar.v1.ChargebackService/ListReports": _EDITORS,
    "/bursar.v1.ChargebackService/DeleteReport": _ADMINS,
    "/bursar.v1.ChargebackService/DownloadReport": _EDITORS,
}

# RPCs about the caller itself: the token has to be a person's (or its own `bur_` key), whatever the role (F008).
ABOUT_ONESELF = frozenset({"/bursar.v1.UserService/GetMyBudget"})


class Authenticator(Protocol):
    """Says who a bearer token belongs to."""

    async def authenticate(self, bearer: str) -> Caller | None:
        """Return the caller of an access token (`bat_…`) or of a user's own key (`bur_…`), or None for any other text.

        A `bur_` key's caller has the role MEMBER: it may read its own budget and nothing else.
        """
        ...


class Call(RequestContext[Any, Any]):
    """A request under way, as handlers receive it: connectrpc's context, and what the pipeline found out.

    `procedure` is the path of the RPC, `request_id` the id that the answer echoes, `door` "connect" or "grpc";
    `started` and `deadline` (by when the caller wants an answer, or None) are seconds of the monotonic clock.
    """

    def __init__(
        self,
        inner: RequestContext[Any, Any],
        *,
        procedure: str,
        request_id: str,
        door: str,
        started: float,
        deadline: float | None,
    ) -> None:
        # The inner context keeps headers and trailers: what a handler sets on this one has to reach the wire.
        self._inner = inner
        self._caller: Caller | None = None
        self.procedure = procedure
        self.request_id = request_id
        self.door = door
        # The span of OpenTelemetry that the pipeline opened for this call, if a collector is there.
        self.span: Any = None
        self.started = started
        self.deadline = deadline

    @property
    def caller(self) -> Caller:
        """Who sent the request; every RPC of ours has one."""
        if self._caller is None:
            raise BursarError(Reason.UNAUTHENTICATED, "this request carries no identity")
        return self._caller

    @caller.setter
    def caller(self, caller: Caller) -> None:
        self._caller = caller

    @property
    def method(self) -> MethodInfo[Any, Any]:
        """The RPC."""
        return self._inner.method

    @property
    def http_method(self) -> str:
        """POST, or GET for an RPC without side effects."""
        return self._inner.http_method

    @property
    def request_headers(self) -> Headers:
        """The request's headers (on gRPC its metadata)."""
        return self._inner.request_headers

    @property
    def response_headers(self) -> Headers:
        """Headers to send with the answer."""
        return self._inner.response_headers

    @property
    def response_trailers(self) -> Headers:
        """Trailers to send after the answer."""
        return self._inner.response_trailers

    @property
    def timeout_ms(self) -> float | None:
        """Milliseconds until the deadline, or None."""
        return self._inner.timeout_ms

    @property
    def server_address(self) -> str | None:
        """The address that the caller used."""
        return self._inner.server_address

    @property
    def client_address(self) -> str | None:
        """The address that the request came from."""
        return self._inner.client_address


def caller_of(ctx: RequestContext[Any, Any]) -> Caller:
    """Return who sent the request that a handler is working on."""
    return call_of(ctx).caller


def call_of(ctx: RequestContext[Any, Any]) -> Call:
    """Return the context of a handler as what the pipeline made of it."""
    if not isinstance(ctx, Call):
        raise TypeError("the handler was not called through the pipeline")
    return ctx


def bearer_of(authorization: str | None) -> str:
    """Return the token in an Authorization header. Raises UNAUTHENTICATED where there is none."""
    if not authorization:
        raise BursarError(
            Reason.UNAUTHENTICATED,
            "no access token: send the header `Authorization: Bearer <token>`; `bursar token create` makes one",
        )
    scheme, _, token = authorization.strip().partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > MAX_BEARER_LENGTH:
        raise BursarError(Reason.UNAUTHENTICATED, "the Authorization header must be `Bearer <token>`")
    return token


async def authorize(authenticator: Authenticator, procedure: str, authorization: str | None) -> Caller:
    """Return the caller of an RPC.

    Raises UNAUTHENTICATED without a token or with one that nobody has (any more), PERMISSION_DENIED where its role
    may not call this RPC.
    """
    caller = await authenticator.authenticate(bearer_of(authorization))
    if caller is None:
        raise BursarError(
            Reason.UNAUTHENTICATED,
            "this access token is unknown, expired or revoked; make one with `bursar token create`",
        )
    allowed = ROLES.get(procedure, frozenset())
    if caller.role not in allowed:
        wanted = ", ".join(sorted(role.lower() for role in allowed))
        raise BursarError(
            Reason.PERMISSION_DENIED,
            f"{procedure.rpartition('/')[2]} needs one of the roles {wanted}; this token is {caller.role.lower()}",
        )
    if procedure in ABOUT_ONESELF and caller.user_id is None:
        raise BursarError(
            Reason.PERMISSION_DENIED,
            f"{procedure.rpartition('/')[2]} needs the token of a person: `bursar token create --user <e-mail>`",
        )
    return caller
