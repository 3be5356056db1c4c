"""Who a user may be, who may change one, and what a user has left over every layer."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from bursar_server.budgets.model import Budget, ScopeKind, Standing
from bursar_server.budgets.rules import readable
from bursar_server.grants.model import Grant
from bursar_server.kit.caller import PLATFORM_ROLES, Caller, Role
from bursar_server.kit.errors import BursarError, Reason, invalid
from bursar_server.kit.periods import PeriodKind
from bursar_server.users.model import User, UserStatus

MAX_EMAIL = 254
MAX_RATE_LIMIT = 1_000_000
_EMAIL = re.compile(r"[^\s@\x00-\x1f\x7f]+@[^\s@\x00-\x1f\x7f]+")


def normalized_email(text: str, field: str = "email") -> str:
    """Return an e-mail as it is stored and compared: without surrounding space, in lower case.

    Raises INVALID_FIELD for what is no e-mail.
    """
    email = text.strip().lower()
    if not email:
        raise invalid(field, "is needed")
    if len(email) > MAX_EMAIL or not _EMAIL.fullmatch(email):
        raise invalid(field, "must be a user's id or an e-mail such as alice@example.com")
    return email


def check_may_give(caller: Caller, role: Role, field: str = "role") -> None:
    """Raise unless the caller may make a user of this role: an operator's role is the operator's to give."""
    if role is Role.SIDECAR:
        raise invalid(field, "a user cannot be a sidecar: make a token for it")
    if role in PLATFORM_ROLES and caller.role is not Role.PLATFORM_ADMIN:
        raise BursarError(
            Reason.PERMISSION_DENIED, f"{field}: only a platform_admin makes a {role.lower()}", field=field
        )


def check_may_change(caller: Caller, user: User) -> None:
    """Raise WRONG_STATE for a deleted user, PERMISSION_DENIED where an operator's user is changed by somebody else."""
    if user.status is UserStatus.DELETED:
        raise BursarError(Reason.WRONG_STATE, f"user {user.email} is deleted")
    if user.role in PLATFORM_ROLES and caller.role is not Role.PLATFORM_ADMIN:
        raise BursarError(
            Reason.PERMISSION_DENIED,
            f"{user.email} is a {user.role.lower()}: only a platform_admin changes it",
        )


def check_rate_limit(rate_limit: int) -> None:
    """Raise INVALID_FIELD for a rate that no user can have; in requests per minute, 0 is off (F092)."""
    if not 0 <= rate_limit <= MAX_RATE_LIMIT:
        raise invalid("rate_limit", f"must be between 0 and {MAX_RATE_LIMIT} requests per minute")


@dataclass(frozen=True, slots=True)
class Binding:
    """A budget that binds a user's next call. `readable` says whether its name and figures may be shown (S2)."""

    standing: Standing
    readable: bool
    exhausted: bool


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a user has left (F072). None where nothing limits; a budget in tokens has no amount in nanos."""

    budget: Standing | None
    active_grants: tuple[Grant, ...]
    grants_remaining_nanos: int
    budget_remaining_nanos: int | None
    total_remaining_nanos: int | None
    effective_remaining_nanos: int | None
    binding: tuple[Binding, ...]


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads an outlook. `group_ids` are the groups that a lead leads."""

    role: Role | None
    user_id: UUID | None
    group_ids: Collection[UUID] = ()


def outlook(user: User, standings: Sequence[Standing], grants: Sequence[Grant], reader: Reader) -> Outlook:
    """Return what a user has left, layer by layer.

    `standings` are those of the enabled budgets that count all of the user's calls; `grants` are active, in the order
    they are spent. Grants count for the user's own budgets in US dollars only (S6); a service account has neither
    (S5). SOFT and shadow budgets bind nothing (S3).
    """
    if user.service_account:
        standings = [one for one in standings if one.budget.scope.kind is not ScopeKind.USER]
        grants = []
    of_grants = sum(grant.remaining_nanos for grant in grants)
    own = [one for one in standings if one.budget.scope.kind is ScopeKind.USER]
    budget = min([one for one in own if one.enforced] or own, key=_by_what_is_left, default=None)
    of_budget = None if budget is None or budget.budget.counts_tokens else budget.remaining
    left = {one.budget.budget_id: _left(one, of_grants) for one in standings}
    enforced = [one for one in standings if one.enforced]
    amounts = [
        left[one.budget.budget_id]
        for one in enforced
        if not one.budget.counts_tokens or left[one.budget.budget_id] == 0
    ]
    enforced.sort(key=lambda one: _strictness(one, left[one.budget.budget_id]))
    return Outlook(
        budget=budget,
        active_grants=tuple(grants),
        grants_remaining_nanos=of_grants,
        budget_remaining_nanos=of_budget,
        total_remaining_nanos=None if of_budget is None else of_grants + of_budget,
        effective_remaining_nanos=min(amounts, default=None),
        binding=tuple(
            Binding(one, _readable(one.budget, reader), left[one.budget.budget_id] == 0) for one in enforced
        ),
    )


def _left(standing: Standing, of_grants: int) -> int:
    """Return what a budget leaves in its own unit, the grants that are spent before it included."""
    with_grants = standing.budget.scope.kind is ScopeKind.USER and not standing.budget.counts_tokens
    return standing.remaining + (of_grants if with_grants else 0)


def _by_what_is_left(standing: Standing) -> tuple[bool, int, UUID]:
    return standing.budget.counts_tokens, standing.left, standing.budget.budget_id


def _strictness(standing: Standing, left: int) -> tuple[bool, bool, int, float, UUID]:
    """Order budgets strictest first: exhausted ones, then the smallest amount, then the longest time to reset (S2).

    Tokens and nanos do not compare: what is left in tokens comes after what is left in money.
    """
    reset = -_seconds(standing.balance.period_end)
    return left > 0, standing.budget.counts_tokens, left, reset, standing.budget.budget_id


def _seconds(instant: datetime) -> float:
    return instant.timestamp()


def _readable(budget: Budget, reader: Reader) -> bool:
    return readable(
        budget, user_id=reader.user_id, api_key_id=None, role=reader.role, group_ids=reader.group_ids
    )


def default_daily_nanos(user: User, configured_nanos: int | None, *, sets: PeriodKind | None) -> int | None:
    """Return the daily budget that a new user gets, or None (F043).

    A service account gets none (F061), nor does a user for whom a daily one is being set.
    """
    return None if user.service_account or sets is PeriodKind.DAILY else configured_nanos
