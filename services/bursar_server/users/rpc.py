"""UserService on the wire: users, what each may spend, and the audit trail."""

from typing import Any

from connectrpc.request import RequestContext

from bursar.v1 import budget_pb2, user_pb2
from bursar.v1 import user_service_pb2 as pb
from bursar_server.audit.rpc import entry_message
from bursar_server.audit.service import AuditService
from bursar_server.budgets.model import Admission, Enforcement
from bursar_server.budgets.rpc import budget_message, reset_time, status_message
from bursar_server.budgets.rules import MAX_REASON
from bursar_server.budgets.service import BudgetService
from bursar_server.db.connection import Connection, database_now
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.grants.rpc import grant_message
from bursar_server.grants.service import GrantService
from bursar_server.groups.service import GroupService
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.money import usd_of_nanos
from bursar_server.kit.periods import PeriodKind
from bursar_server.rpc import fields
from bursar_server.rpc.auth import caller_of
from bursar_server.tenants.service import TenantService
from bursar_server.users.model import User, UserChange, UserDraft, UserStatus
from bursar_server.users.rules import MAX_RATE_LIMIT, Binding, Reader, outlook
from bursar_server.users.service import UserService

Context = RequestContext[Any, Any]

MAX_NAME = 200
MAX_ACTION = 100


class UserRpc:
    """Answers bursar.v1.UserService."""

    def __init__(
        self,
        *,
        unit_of_work: UnitOfWork,
        tenants: TenantService,
        users: UserService,
        budgets: BudgetService,
        grants: GrantService,
        groups: GroupService,
        audit: AuditService,
    ) -> None:
        self._unit_of_work = unit_of_work
        self._tenants = tenants
        self._users = users
        self._budgets = budgets
        self._grants = grants
        self._groups = groups
        self._audit = audit

    async def create_user(self, request: pb.CreateUserRequest, ctx: Context) -> pb.CreateUserResponse:
        """Make a user."""
        draft = UserDraft(
            email=request.email,
            display_name=fields.text(request.display_name, "display_name", max_length=MAX_NAME),
            role=fields.choice(request.role, user_pb2.Role, Role, "role") or Role.MEMBER,
            service_account=request.service_account,
            daily_budget_nanos=fields.usd(request, "daily_budget_usd"),
        )
        async with self._unit_of_work.begin() as conn:
            user = await self._users.create(conn, caller_of(ctx), request.tenant_id, draft)
        return pb.CreateUserResponse(user=user_message(user))

    async def get_user(self, request: pb.GetUserRequest, ctx: Context) -> pb.GetUserResponse:
        """Read a user."""
        async with self._unit_of_work.begin() as conn:
            user = await self._users.resolve(conn, caller_of(ctx), request.user_id, request.tenant_id)
        return pb.GetUserResponse(user=user_message(user))

    async def list_users(self, request: pb.ListUsersRequest, ctx: Context) -> pb.ListUsersResponse:
        """List users."""
        async with self._unit_of_work.begin() as conn:
            page, token = await self._users.list(
                conn,
                caller_of(ctx),
                request.tenant_id,
                status=fields.choice(request.status, user_pb2.UserStatus, UserStatus, "status"),
                page_size=request.page_size,
                page_token=request.page_token,
            )
        return pb.ListUsersResponse(users=[user_message(user) for user in page], next_page_token=token)

    async def update_user(self, request: pb.UpdateUserRequest, ctx: Context) -> pb.UpdateUserResponse:
        """Change a user."""
        change = UserChange(
            email=request.email if request.HasField("email") else None,
            display_name=fields.optional_text(request, "display_name", max_length=MAX_NAME),
            role=fields.choice(request.role, user_pb2.Role, Role, "role"),
            rate_limit=fields.optional_integer(request, "rate_limit", maximum=MAX_RATE_LIMIT),
        )
        async with self._unit_of_work.begin() as conn:
            user = await self._users.update(conn, caller_of(ctx), request.id, request.tenant_id, change)
        return pb.UpdateUserResponse(user=user_message(user))

    async def deactivate_user(
        self, request: pb.DeactivateUserRequest, ctx: Context
    ) -> pb.DeactivateUserResponse:
        """Deny a user's calls."""
        async with self._unit_of_work.begin() as conn:
            user = await self._users.deactivate(conn, caller_of(ctx), request.user_id, request.tenant_id)
        return pb.DeactivateUserResponse(user=user_message(user))

    async def reactivate_user(
        self, request: pb.ReactivateUserRequest, ctx: Context
    ) -> pb.ReactivateUserResponse:
        """Allow a user's calls again."""
        async with self._unit_of_work.begin() as conn:
            user = await self._users.reactivate(conn, caller_of(ctx), request.user_id, request.tenant_id)
        return pb.ReactivateUserResponse(user=user_message(user))

    async def delete_user(self, request: pb.DeleteUserRequest, ctx: Context) -> pb.DeleteUserResponse:
        """Delete a user."""
        async with self._unit_of_work.begin() as conn:
            await self._users.delete(conn, caller_of(ctx), request.user_id, request.tenant_id)
        return pb.DeleteUserResponse()

    async def set_budget(self, request: pb.SetBudgetRequest, ctx: Context) -> pb.SetBudgetResponse:
        """Set a user's budget of a period."""
        caller = caller_of(ctx)
        limit_nanos = fields.required_usd(request, "limit_usd")
        period = fields.choice(request.period, budget_pb2.BudgetPeriod, PeriodKind, "period")
        enforcement = fields.choice(request.enforcement, budget_pb2.Enforcement, Enforcement, "enforcement")
        admission = fields.choice(request.admission, budget_pb2.Admission, Admission, "admission")
        reason = fields.text(request.reason, "reason", max_length=MAX_REASON)
        period = period or PeriodKind.DAILY
        async with self._unit_of_work.begin() as conn:
            user = await self._users.resolve_or_make(
                conn, caller, request.user_id, request.tenant_id, sets=period
            )
            budget = await self._budgets.set_for_user(
                conn,
                caller,
                user,
                limit_nanos=limit_nanos,
                period=period,
                enforcement=enforcement,
                admission=admission,
                reason=reason or None,
            )
        return pb.SetBudgetResponse(budget=budget_message(budget))

    async def get_budget(
        self, request: pb.UserServiceGetBudgetRequest, ctx: Context
    ) -> pb.UserServiceGetBudgetResponse:
        """Read what a user has left."""
        caller = caller_of(ctx)
        async with self._unit_of_work.snapshot() as conn:
            user = await self._users.resolve(conn, caller, request.user_id, request.tenant_id)
            return pb.UserServiceGetBudgetResponse(**await self._left(conn, caller, user))

    async def get_my_budget(self, _request: pb.GetMyBudgetRequest, ctx: Context) -> pb.GetMyBudgetResponse:
        """Read what the caller has left."""
        caller = caller_of(ctx)
        if caller.user_id is None:
            raise BursarError(Reason.PERMISSION_DENIED, "GetMyBudget needs the token of a person")
        async with self._unit_of_work.snapshot() as conn:
            user = await self._users.resolve(
                conn, caller, str(caller.user_id), str(caller.user_tenant_id or "")
            )
            return pb.GetMyBudgetResponse(**await self._left(conn, caller, user))

    async def reset_spend(self, request: pb.ResetSpendRequest, ctx: Context) -> pb.ResetSpendResponse:
        """Bring what a user's budgets spent to 0."""
        caller = caller_of(ctx)
        budget_id = fields.optional_uuid(request.budget_id, "budget_id")
        reason = fields.text(request.reason, "reason", max_length=MAX_REASON)
        async with self._unit_of_work.begin() as conn:
            user = await self._users.resolve(conn, caller, request.user_id, request.tenant_id)
            standings = await self._budgets.reset(conn, caller, user, budget_id=budget_id, reason=reason)
        return pb.ResetSpendResponse(statuses=[status_message(standing) for standing in standings])

    async def create_grant(self, request: pb.CreateGrantRequest, ctx: Context) -> pb.CreateGrantResponse:
        """Give a user money."""
        caller = caller_of(ctx)
        amount_nanos = fields.required_usd(request, "amount_usd", positive=True)
        reason = fields.text(request.reason, "reason", max_length=MAX_REASON)
        starts_at = fields.instant(request, "starts_at")
        expires_at = fields.required_instant(request, "expires_at")
        async with self._unit_of_work.begin() as conn:
            user = await self._users.resolve_or_make(conn, caller, request.user_id, request.tenant_id)
            grant = await self._grants.create(
                conn,
                caller,
                user,
                amount_nanos=amount_nanos,
                starts_at=starts_at,
                expires_at=expires_at,
                reason=reason,
            )
            now = await database_now(conn)
        return pb.CreateGrantResponse(grant=grant_message(grant, now))

    async def list_grants(self, request: pb.ListGrantsRequest, ctx: Context) -> pb.ListGrantsResponse:
        """List grants."""
        caller = caller_of(ctx)
        async with self._unit_of_work.begin() as conn:
            tenant_ids = await self._tenants.visible(conn, caller, request.tenant_id)
            user_id = None
            if request.user_id:
                user = await self._users.resolve(conn, caller, request.user_id, request.tenant_id)
                user_id, tenant_ids = user.user_id, frozenset({user.tenant_id})
            page, token = await self._grants.list(
                conn,
                tenant_ids,
                user_id=user_id,
                active_only=request.active_only,
                page_size=request.page_size,
                page_token=request.page_token,
            )
            now = await database_now(conn)
        return pb.ListGrantsResponse(
            grants=[grant_message(grant, now) for grant in page], next_page_token=token
        )

    async def revoke_grant(self, request: pb.RevokeGrantRequest, ctx: Context) -> pb.RevokeGrantResponse:
        """End a grant."""
        grant_id = fields.uuid(request.grant_id, "grant_id")
        reason = fields.text(request.reason, "reason", max_length=MAX_REASON)
        async with self._unit_of_work.begin() as conn:
            grant = await self._grants.revoke(conn, caller_of(ctx), grant_id, reason=reason)
            now = await database_now(conn)
        return pb.RevokeGrantResponse(grant=grant_message(grant, now))

    async def list_audit_log(self, request: pb.ListAuditLogRequest, ctx: Context) -> pb.ListAuditLogResponse:
        """List the audit trail."""
        caller = caller_of(ctx)
        action = fields.text(request.action, "action", max_length=MAX_ACTION)
        async with self._unit_of_work.begin() as conn:
            tenant_ids = await self._tenants.visible(conn, caller, request.tenant_id)
            user_id = None
            if request.user_id:
                user = await self._users.resolve(conn, caller, request.user_id, request.tenant_id)
                user_id, tenant_ids = user.user_id, frozenset({user.tenant_id})
            page, token = await self._audit.list(
                conn,
                tenant_ids,
                user_id=user_id,
                action=action,
                limit=request.limit,
                page_token=request.page_token,
            )
        return pb.ListAuditLogResponse(
            entries=[entry_message(chained) for chained in page], next_page_token=token
        )

    async def _left(self, conn: Connection, caller: Caller, user: User) -> dict[str, Any]:
        """Return the fields of an answer that says what a user has left, as far as the caller may read it."""
        if user.status is UserStatus.DELETED:
            raise BursarError(Reason.WRONG_STATE, f"user {user.email} is deleted")
        now = await database_now(conn)
        group_ids = await self._groups.counting(conn, user.tenant_id, user.user_id)
        standings = await self._budgets.applicable(conn, user.tenant_id, user.user_id, group_ids, now)
        grants = await self._grants.active(conn, user.tenant_id, user.user_id, now)
        left = outlook(user, standings, grants, Reader(caller.role, caller.user_id, caller.group_ids))
        answer: dict[str, Any] = {
            "active_grants": [grant_message(grant, now) for grant in left.active_grants],
            "total_remaining_usd": _usd(left.total_remaining_nanos),
            "budget_remaining_usd": _usd(left.budget_remaining_nanos),
            "grants_remaining_usd": _usd(left.grants_remaining_nanos),
            "effective_remaining_usd": _usd(left.effective_remaining_nanos),
            "binding_budgets": [_binding_message(binding) for binding in left.binding],
            "user": user_message(user),
        }
        if left.budget is not None:
            answer["budget"] = status_message(left.budget)
            answer["period_key"] = left.budget.balance.period_key
            answer["period_reset_time"] = fields.optional_timestamp(reset_time(left.budget))
        return answer


def _usd(nanos: int | None) -> float | None:
    return None if nanos is None else usd_of_nanos(nanos)


def _binding_message(binding: Binding) -> budget_pb2.BindingBudget:
    """Return a budget that binds; of one that the reader may not read, only its kind and when it starts anew (C08)."""
    standing = binding.standing
    budget = standing.budget
    message = budget_pb2.BindingBudget(
        scope=budget.scope.kind.lower(),
        period_reset_time=fields.optional_timestamp(reset_time(standing)),
        exhausted=binding.exhausted,
    )
    if binding.readable:
        message.budget_id = str(budget.budget_id)
        message.name = budget.name
        if not budget.counts_tokens:
            message.limit_usd = usd_of_nanos(budget.limit)
            message.spent_usd = usd_of_nanos(standing.spent)
            message.remaining_usd = usd_of_nanos(standing.remaining)
    return message


def user_message(user: User) -> user_pb2.User:
    """Return a user as the wire has it."""
    return user_pb2.User(
        user_id=str(user.user_id),
        email=user.email,
        tenant_id=str(user.tenant_id),
        display_name=user.display_name,
        role=f"ROLE_{user.role}",
        status=f"USER_STATUS_{user.status}",
        service_account=user.service_account,
        rate_limit=user.rate_limit,
        create_time=fields.timestamp_of(user.create_time),
        update_time=fields.timestamp_of(user.update_time),
    )
