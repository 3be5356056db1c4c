"""What a process remembers of the configuration: principals, budgets and prices, each with the version it was read at.

Nothing here is trusted on its own: a batch compares versions with the database first, and reads again what is older.
Counters are never here.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from bursar_server.budgets.model import Budget, ScopeKind
from bursar_server.db.lane import LaneConnection
from bursar_server.kit import ids
from bursar_server.metering import store
from bursar_server.metering.memory import NotRememberedError
from bursar_server.metering.model import PrincipalRef, Problem, Subject
from bursar_server.pricing.model import Price
from bursar_server.pricing.rules import PriceIndex

MAX_SUBJECTS = 50_000
MAX_BUDGETS = 100_000
MAX_PRICE_LISTS = 1_000

_NO_SUBJECT_TENANT = ids.DEFAULT_TENANT_ID


class Directory:
    """A bounded memory of principals, budgets and prices. Belongs to one lane; not shared between threads."""

    def __init__(self) -> None:
        self._subjects: OrderedDict[PrincipalRef, Subject] = OrderedDict()
        self._budgets: OrderedDict[UUID, tuple[Budget, int]] = OrderedDict()
        self._prices: OrderedDict[UUID, tuple[PriceIndex, int]] = OrderedDict()

    def forget(self) -> None:
        """Read every principal again: what was remembered of them was so by a clock that was set back since."""
        self._subjects.clear()

    def subjects(
        self, connection: LaneConnection, refs: Iterable[PrincipalRef], *, reload: bool = False
    ) -> dict[PrincipalRef, Subject]:
        """Return the principals that the references name, reading those that are not remembered (or all)."""
        wanted = set(refs)
        missing = [ref for ref in wanted if reload or ref not in self._subjects]
        unknown: dict[PrincipalRef, Subject] = {}
        if missing:
            for ref, subject in _load(connection, missing).items():
                if subject.problem is Problem.KEY_UNKNOWN:
                    # No version tells when its key or tenant is made.
                    self._subjects.pop(ref, None)
                    unknown[ref] = subject
                    continue
                self._subjects[ref] = subject
                self._subjects.move_to_end(ref)
                for budget in subject.budgets:
                    self._remember_budget(budget, subject)
            if len(self._subjects) > MAX_SUBJECTS:
                for ref in wanted & self._subjects.keys():
                    self._subjects.move_to_end(ref)
            while len(self._subjects) > max(MAX_SUBJECTS, len(wanted)):
                self._subjects.popitem(last=False)
        return {ref: unknown.get(ref) or self._subjects[ref] for ref in wanted}

    def remembered(self, refs: Iterable[PrincipalRef]) -> dict[PrincipalRef, Subject]:
        """Return the principals that the references name; raises NotRememberedError unless all are remembered."""
        try:
            return {ref: self._subjects[ref] for ref in refs}
        except KeyError as error:
            raise NotRememberedError from error

    def remembered_budget(self, budget_id: UUID, versions: Mapping[UUID, int]) -> Budget:
        """Return a budget's definition; raises NotRememberedError unless it is remembered at these versions."""
        entry = self._budgets.get(budget_id)
        if entry is None or entry[1] != versions.get(entry[0].tenant_id):
            raise NotRememberedError
        return entry[0]

    def tenant_of(self, ref: PrincipalRef) -> UUID | None:
        """Return the tenant of a principal that is remembered."""
        subject = self._subjects.get(ref)
        return subject.tenant_id if subject is not None else None

    def _remember_budget(self, budget: Budget, subject: Subject) -> None:
        of_platform = budget.scope.kind is ScopeKind.GLOBAL
        version = subject.platform_version if of_platform else subject.tenant_version
        self._budgets[budget.budget_id] = (budget, version)
        self._budgets.move_to_end(budget.budget_id)
        while len(self._budgets) > MAX_BUDGETS:
            self._budgets.popitem(last=False)

    def budgets(
        self, connection: LaneConnection, keys: Iterable[tuple[UUID, UUID]], versions: Mapping[UUID, int]
    ) -> Callable[[UUID], Budget | None]:
        """Return the definitions behind some balances, by budget; those not remembered at these versions are read."""
        found: dict[UUID, Budget] = {}
        missing = []
        for tenant_id, budget_id in keys:
            entry = self._budgets.get(budget_id)
            if entry is not None and entry[1] == versions.get(tenant_id):
                found[budget_id] = entry[0]
            else:
                missing.append((tenant_id, budget_id))
        if missing:
            for budget in store.budgets_by_id(connection, missing):
                found[budget.budget_id] = budget
                if budget.tenant_id in versions:
                    self._budgets[budget.budget_id] = (budget, versions[budget.tenant_id])
        return found.get

    def price(
        self,
        connection: LaneConnection | None,
        versions: Mapping[UUID, int],
        tenant_id: UUID,
        provider: str,
        model: str,
        service_tier: str,
        at: datetime,
        reported: bool,
    ) -> Price | None:
        """Return the price in effect: the tenant's row, then the platform's, then the catalogue's (S15).

        Without a connection it raises NotRememberedError where the prices are not remembered at these versions.
        """
        for owner in (tenant_id, ids.PLATFORM_TENANT_ID):
            price = self._price_list(connection, owner, versions.get(owner, -1)).pick(
                provider, model, service_tier, at, reported
            )
            if price is not None:
                return price
        return None

    def _price_list(self, connection: LaneConnection | None, owner: UUID, version: int) -> PriceIndex:
        entry = self._prices.get(owner)
        if entry is None or entry[1] != version:
            if connection is None:
                raise NotRememberedError
            entry = (PriceIndex(store.prices_of(connection, owner)), version)
            self._prices[owner] = entry
            while len(self._prices) > MAX_PRICE_LISTS:
                self._prices.popitem(last=False)
        return entry[0]


def _load(connection: LaneConnection, refs: list[PrincipalRef]) -> dict[PrincipalRef, Subject]:
    """Read principals, all of them with the same few statements. Versions are read first, so that none is too new."""
    versions = store.read_versions(connection)
    keys = store.keys_by_sha256(connection, [ref.api_key_sha256 for ref in refs if ref.api_key_sha256])
    tenant_refs = {ref.tenant for ref in refs if ref.tenant}
    tenant_ids = [found for text in tenant_refs if (found := ids.parse_uuid(text))]
    tenant_ids += [row[0] for row in keys.values()] + [_NO_SUBJECT_TENANT]
    tenants = store.tenants_named(connection, tenant_ids, sorted(tenant_refs))
    by_id = {row[0]: row for row in tenants}
    by_name = {row[1]: row for row in tenants} | {str(row[0]): row for row in tenants}
    wanted_users: dict[PrincipalRef, tuple[UUID, str]] = {}
    for ref in refs:
        tenant_id = _tenant_of(ref, keys, by_name)
        user = _user_of(ref, keys)
        if tenant_id is not None and user:
            wanted_users[ref] = (tenant_id, user)
    users = store.users_named(connection, list(set(wanted_users.values())))
    people = [(key[0], row[0]) for key, row in users.items()]
    groups = store.groups_of(connection, people) if people else {}
    grants = store.grants_of(connection, people) if people else {}
    budgets = store.budgets_matching(
        connection,
        [*by_id, ids.PLATFORM_TENANT_ID],
        [user_id for _, user_id in people],
        [row[1] for row in keys.values()],
        sorted({group_id for of_user in groups.values() for group_id in of_user}),
    )
    subjects = {}
    for ref in refs:
        tenant_id = _tenant_of(ref, keys, by_name)
        if tenant_id is None:
            subjects[ref] = Subject(
                _NO_SUBJECT_TENANT,
                versions.get(_NO_SUBJECT_TENANT, 0),
                versions.get(ids.PLATFORM_TENANT_ID, 0),
                Problem.KEY_UNKNOWN,
            )
            continue
        user_row = users.get(wanted_users[ref]) if ref in wanted_users else None
        subjects[ref] = _subject(
            ref, tenant_id, by_id[tenant_id][2], keys.get(ref.api_key_sha256), user_row, versions
        )
        subjects[ref] = _with_limits(subjects[ref], groups, grants, budgets)
    return subjects


def _tenant_of(
    ref: PrincipalRef, keys: Mapping[str, tuple[Any, ...]], tenants: Mapping[str, tuple[UUID, str, str]]
) -> UUID | None:
    """Return the tenant that a reference is of; None for a key or tenant that does not exist."""
    if ref.api_key_sha256:
        key = keys.get(ref.api_key_sha256)
        return key[0] if key else None
    if ref.tenant:
        row = tenants.get(ref.tenant)
        return row[0] if row and row[0] != ids.PLATFORM_TENANT_ID else None
    return _NO_SUBJECT_TENANT


def _user_of(ref: PrincipalRef, keys: Mapping[str, tuple[Any, ...]]) -> str:
    """Return the user that a reference counts for: the one named, where its key may act for users, else the key's own."""
    key = keys.get(ref.api_key_sha256)
    if key is None:
        return ref.user
    if ref.user and key[5]:
        return ref.user
    if _names_user(ref, key):
        return ref.body_user
    return str(key[3]) if key[3] else ""


def _names_user(ref: PrincipalRef, key: tuple[Any, ...] | None) -> bool:
    """Whether a reference names the user it acts for, and may."""
    if key is None:
        return bool(ref.user)
    return bool(key[5] and (ref.user or (ref.body_user and key[8])))


def _subject(
    ref: PrincipalRef,
    tenant_id: UUID,
    tenant_status: str,
    key: tuple[Any, ...] | None,
    user: tuple[Any, ...] | None,
    versions: Mapping[UUID, int],
) -> Subject:
    problem: Problem | None = None
    new_email = ""
    names_user = _names_user(ref, key)
    named = ref.user or ref.body_user
    if tenant_status != "ACTIVE":
        problem = Problem.TENANT_SUSPENDED
    elif key is not None and key[7]:
        problem = Problem.KEY_REVOKED
    elif key is not None and ref.user and not key[5]:
        problem = Problem.USER_NOT_ALLOWED
    elif user is None and names_user:
        if "@" in named:
            new_email = named
        else:
            problem = Problem.USER_UNKNOWN
    elif user is not None and user[2] != "ACTIVE":
        problem = Problem.USER_DEACTIVATED
    return Subject(
        tenant_id,
        versions.get(tenant_id, 0),
        versions.get(ids.PLATFORM_TENANT_ID, 0),
        problem,
        new_email,
        api_key_id=key[1] if key else None,
        masked_key=key[2] if key else "",
        user_id=user[0] if user else None,
        email=user[1] if user else "",
        service_account=bool(key and key[4] and not names_user) or bool(user and user[3]),
        rate_limit=user[4] if user else 0,
        default_tags=key[6] if key else None,
    )


def _with_limits(
    subject: Subject,
    groups: Mapping[UUID, list[UUID]],
    grants: Mapping[UUID, list[UUID]],
    budgets: Iterable[Budget],
) -> Subject:
    """Return the subject with its groups, its grants and the budgets that can match its calls (S1, S2, S5)."""
    user_id = subject.user_id
    group_ids = tuple(groups.get(user_id, ())) if user_id else ()
    matching = []
    for budget in budgets:
        scope = budget.scope
        if scope.kind is ScopeKind.GLOBAL:
            matches = True
        elif budget.tenant_id != subject.tenant_id:
            matches = False
        elif scope.kind is ScopeKind.USER:
            matches = scope.user_id == user_id and not subject.service_account
        elif scope.kind is ScopeKind.KEY:
            matches = scope.api_key_id == subject.api_key_id
        elif scope.kind is ScopeKind.GROUP:
            matches = scope.group_id in group_ids
        else:
            matches = True
        if matches:
            matching.append(budget)
    has_grants = user_id is not None and not subject.service_account
    return Subject(
        subject.tenant_id, subject.tenant_version, subject.platform_version, subject.problem, subject.new_email,
        subject.api_key_id, subject.masked_key, user_id, subject.email, subject.service_account,
        0 if subject.service_account else subject.rate_limit, group_ids, subject.default_tags, tuple(matching),
        tuple(grants.get(user_id, ())) if has_grants and user_id else (),
    )  # fmt: skip
