"""The proof of the books: every invariant of the ledger's README, checked against the database while it is used."""

from collections.abc import AsyncIterator, Callable

from bursar_server.db.engine import Engine
from bursar_server.kit.clock import Clock
from bursar_server.kit.errors import BursarError, Reason, not_found
from bursar_server.kit.ids import PLATFORM_TENANT_ID
from bursar_server.verify import statements as sql
from bursar_server.verify.accounts import AccountsCheck
from bursar_server.verify.calls import CallsCheck
from bursar_server.verify.model import FIRST_ID, INVARIANTS, Difference, Outcome, Progress, Scope, Tenant
from bursar_server.verify.proofs import ReportsCheck, TrailCheck
from bursar_server.verify.rollups import RollupsCheck
from bursar_server.verify.store import SNAPSHOT_S, Books, TooLongError, open_books
from bursar_server.verify.work import Check, Sizes, Work

PAGE_OF_TENANTS = 500
# What the engine's statements may take at most.
SNAPSHOT_MS = int(SNAPSHOT_S * 1000)


class VerifyService:
    """Runs the checks of every room, one tenant after the other, on one connection. It repairs nothing."""

    def __init__(self, *, engine: Engine, clock: Clock, sizes: Sizes | None = None) -> None:
        self._engine = engine
        self._clock = clock
        self._sizes = sizes or Sizes()
        # A room that keeps books of its own adds its check here, and its invariant to INVARIANTS.
        self._checks: tuple[Check, ...] = (
            AccountsCheck(),
            CallsCheck(),
            RollupsCheck(),
            TrailCheck(),
            ReportsCheck(),
        )

    async def run(
        self,
        scope: Scope,
        on_difference: Callable[[Difference], None],
        on_progress: Callable[[Progress], None],
    ) -> Outcome:
        """Check everything in scope, tell each difference as it is found, and return what it came to.

        Raises NOT_FOUND for a tenant that does not exist, DATABASE_UNAVAILABLE where the database cannot be asked or
        takes too long for a single page.
        """
        started = self._clock.monotonic()
        differences = dict.fromkeys((invariant.number for invariant in INVARIANTS), 0)
        async with open_books(self._engine, self._clock) as books:
            progress, now = Progress(), await books.now()
            kept = await books.records_kept_from()
            work = Work(books, scope, self._sizes, now, now, kept, progress, on_progress)
            try:
                async for difference in self._differences(work):
                    differences[difference.invariant] += 1
                    on_difference(difference)
            except TooLongError as error:
                raise BursarError(Reason.DATABASE_UNAVAILABLE, f"{_place(progress)}: {error}") from error
            except BursarError as error:
                if error.reason is not Reason.DATABASE_UNAVAILABLE:
                    raise
                raise BursarError(error.reason, f"{_place(progress)}: {error.message}") from error
        seconds = self._clock.monotonic() - started
        return Outcome(differences, progress.counts, progress.tenants_done, seconds, tuple(work.left_out))

    async def _differences(self, work: Work) -> AsyncIterator[Difference]:
        if work.all_tenants:
            work.progress.tenants = (await work.books.rows(sql.TENANT_COUNT))[0][0]
            async for difference in self._strangers(work.books):
                yield difference
        else:
            work.progress.tenants = 1
            work.leave_out("budgets for everybody and reports on all tenants: they need every tenant")
        async for tenant in self._tenants(work):
            work.now = await work.books.now()
            work.progress.tenant = tenant.name
            for check in self._checks:
                async for difference in check.of_tenant(work, tenant):
                    yield difference
            work.progress.tenants_done += 1

    async def _tenants(self, work: Work) -> AsyncIterator[Tenant]:
        """Yield the tenants in scope; the platform's own last, because all others post to its budgets."""
        if work.scope.tenant:
            tenant = await work.books.tenant_named(work.scope.tenant)
            if tenant is None:
                raise not_found("tenant", work.scope.tenant)
            yield tenant
            return
        after = FIRST_ID
        while True:
            tenants = await work.books.tenants(after, PAGE_OF_TENANTS)
            for tenant in tenants:
                yield tenant
            if len(tenants) < PAGE_OF_TENANTS:
                break
            after = tenants[-1].tenant_id
        yield Tenant(PLATFORM_TENANT_ID, "platform")

    async def _strangers(self, books: Books) -> AsyncIterator[Difference]:
        """Yield the tenants that rows name and that do not exist (I12)."""
        for table, statement in sql.STRANGERS.items():
            for (tenant_id,) in await books.rows(statement):
                yield Difference(
                    "I12", tenant_id, "tenant", {"table": table}, "tenant", table, "has rows of it", "tenants", "none such"
                )  # fmt: skip


def _place(progress: Progress) -> str:
    """Return where it stopped."""
    return f"{progress.tenant or 'tenants'}, {progress.doing or 'to begin with'}"
