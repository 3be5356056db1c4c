"""Access tokens: who a bearer is, and until when."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncEngine

from bursar.v1 import tenant_service_pb2, user_pb2, user_service_pb2
from bursar_server.db.tables import access_tokens
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.ids import DEFAULT_TENANT_ID, PLATFORM_TENANT_ID, sha256_hex
from bursar_server.tokens.service import CACHE_SECONDS, READ_AHEAD_SECONDS
from support.admin import ADMIN, OPERATOR, AdminSide, admin_side
from support.called import called_by
from support.clock import FakeClock


@pytest.fixture
def admin(unit_of_work: UnitOfWork, clock: FakeClock) -> AdminSide:
    return admin_side(unit_of_work, clock=clock)


@asynccontextmanager
async def statements(engine: AsyncEngine) -> AsyncIterator[list[str]]:
    """Collect the statements that the engine runs."""
    seen: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine.sync_engine, "before_cursor_execute", note)


async def user(admin: AdminSide, email: str, role: user_pb2.Role = user_pb2.ROLE_MEMBER) -> UUID:
    request = user_service_pb2.CreateUserRequest(email=email, role=role)
    return UUID((await admin.user_rpc.create_user(request, called_by(OPERATOR))).user.user_id)


async def test_only_the_hash_of_a_token_is_kept(admin: AdminSide, unit_of_work: UnitOfWork) -> None:
    token, secret = await admin.tokens.create(OPERATOR, role=Role.SIDECAR, name="edge")
    assert secret.startswith("bat_")
    async with unit_of_work.begin() as conn:
        row = (await conn.execute(select(access_tokens))).one()
        events, _ = await admin.audit.list(conn, {PLATFORM_TENANT_ID})
    assert row.token_sha256 == sha256_hex(secret)
    assert secret not in str(tuple(row))
    assert [one.event.action for one in events] == ["create_token"]
    assert secret not in str(events)
    assert sha256_hex(secret) not in str(events)
    assert [one.token_id for one in await admin.tokens.list()] == [token.token_id]


@pytest.mark.parametrize("role", [Role.PLATFORM_ADMIN, Role.BILLING_ADMIN, Role.SIDECAR])
async def test_a_programs_token_has_its_role(admin: AdminSide, role: Role) -> None:
    """C11, F006: a token of an operator or a sidecar is for every tenant unless it names some."""
    _, secret = await admin.tokens.create(OPERATOR, role=role, name="it")
    assert await admin.tokens.authenticate(secret) == Caller(role, "it")
    _, bound = await admin.tokens.create(OPERATOR, role=role, tenants=["default"])
    assert await admin.tokens.authenticate(bound) == Caller(
        role, role.lower(), frozenset({DEFAULT_TENANT_ID})
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"role": Role.TENANT_ADMIN},
        {"role": Role.TENANT_DEVELOPER},
        {"role": Role.MEMBER},
        {"role": Role.GROUP_LEAD, "tenants": ["default"]},
        {},
        {"user": "alice@example.com", "role": Role.PLATFORM_ADMIN},
        {"user": "not an e-mail"},
    ],
)
async def test_what_does_not_fit_together_is_refused(admin: AdminSide, fields: dict[str, Any]) -> None:
    with pytest.raises(BursarError) as caught:
        await admin.tokens.create(OPERATOR, **fields)
    assert caught.value.reason is Reason.INVALID_FIELD


async def test_a_persons_token_has_the_persons_role_of_the_moment(admin: AdminSide, clock: FakeClock) -> None:
    """F008, C11: a self-service token follows its person."""
    alice = await user(admin, "alice@example.com")
    _, secret = await admin.tokens.create(OPERATOR, user="alice@example.com")
    here = frozenset({DEFAULT_TENANT_ID})
    expected = Caller(Role.MEMBER, "alice@example.com", here, alice, DEFAULT_TENANT_ID)
    assert await admin.tokens.authenticate(secret) == expected
    request = user_service_pb2.UpdateUserRequest(id=str(alice), role=user_pb2.ROLE_TENANT_ADMIN)
    await admin.user_rpc.update_user(request, called_by(OPERATOR))
    clock.advance(CACHE_SECONDS)
    assert (await admin.tokens.authenticate(secret) or ADMIN).role is Role.TENANT_ADMIN
    request = user_service_pb2.UpdateUserRequest(id=str(alice), role=user_pb2.ROLE_BILLING_ADMIN)
    await admin.user_rpc.update_user(request, called_by(OPERATOR))
    clock.advance(CACHE_SECONDS)
    operator = await admin.tokens.authenticate(secret)
    assert operator == Caller(Role.BILLING_ADMIN, "alice@example.com", None, alice, DEFAULT_TENANT_ID)


async def test_a_token_for_an_e_mail_not_seen_before_makes_the_user(admin: AdminSide) -> None:
    _, secret = await admin.tokens.create(OPERATOR, user="new@example.com")
    caller = await admin.tokens.authenticate(secret)
    assert caller is not None
    assert caller.user_id is not None


async def test_a_lead_leads_its_groups_and_those_below(admin: AdminSide) -> None:
    """F013, C11."""
    await user(admin, "lead@example.com", user_pb2.ROLE_GROUP_LEAD)
    ids: list[str] = []
    for number, members in enumerate(([], ["lead@example.com"], [])):
        request = tenant_service_pb2.CreateGroupRequest(
            name=f"group {number}", parent_group_id=ids[-1] if ids else "", user_ids=members
        )
        ids.append((await admin.tenant_rpc.create_group(request, called_by(OPERATOR))).group.group_id)
    _, secret = await admin.tokens.create(OPERATOR, user="lead@example.com")
    caller = await admin.tokens.authenticate(secret)
    assert caller is not None
    assert caller.group_ids == {UUID(ids[1]), UUID(ids[2])}


async def test_a_users_own_key_reads_as_a_member(admin: AdminSide) -> None:
    """Contract: a user's `bur_` key may call GetMyBudget; it never has more than a member's rights."""
    alice = await user(admin, "alice@example.com", user_pb2.ROLE_PLATFORM_ADMIN)
    request = tenant_service_pb2.CreateApiKeyRequest(name="app", user_id="alice@example.com")
    made = await admin.tenant_rpc.create_api_key(request, called_by(OPERATOR))
    here = frozenset({DEFAULT_TENANT_ID})
    expected = Caller(Role.MEMBER, "alice@example.com", here, alice, DEFAULT_TENANT_ID)
    assert await admin.tokens.authenticate(made.secret) == expected
    without_user = tenant_service_pb2.CreateApiKeyRequest(name="app")
    made = await admin.tenant_rpc.create_api_key(without_user, called_by(OPERATOR))
    assert await admin.tokens.authenticate(made.secret) is None


@pytest.mark.parametrize("bearer", ["", "bat_", "bur_nothing", "bat_" + "x" * 43, "Grüße", "a" * 10_000])
async def test_any_other_text_is_nobody(admin: AdminSide, bearer: str) -> None:
    assert await admin.tokens.authenticate(bearer) is None


async def test_an_expired_token_is_nobody(admin: AdminSide, clock: FakeClock) -> None:
    _, secret = await admin.tokens.create(
        OPERATOR, role=Role.SIDECAR, expire_time=clock.now() + timedelta(minutes=1)
    )
    assert await admin.tokens.authenticate(secret)
    clock.advance(60)
    assert await admin.tokens.authenticate(secret) is None
    with pytest.raises(BursarError, match="expire_time"):
        await admin.tokens.create(OPERATOR, role=Role.SIDECAR, expire_time=clock.now())


async def test_a_revoked_token_is_nobody(admin: AdminSide) -> None:
    token, secret = await admin.tokens.create(OPERATOR, role=Role.SIDECAR)
    assert await admin.tokens.authenticate(secret)
    await admin.tokens.revoke(OPERATOR, token.token_id)
    assert await admin.tokens.authenticate(secret) is None
    with pytest.raises(BursarError) as caught:
        await admin.tokens.revoke(OPERATOR, token.token_id)
    assert caught.value.reason is Reason.WRONG_STATE


@pytest.mark.parametrize("ending", ["deactivate", "delete", "revoke key"])
async def test_who_may_not_call_may_not_read(admin: AdminSide, clock: FakeClock, ending: str) -> None:
    await user(admin, "alice@example.com")
    _, secret = await admin.tokens.create(OPERATOR, user="alice@example.com")
    request = tenant_service_pb2.CreateApiKeyRequest(name="app", user_id="alice@example.com")
    made = await admin.tenant_rpc.create_api_key(request, called_by(OPERATOR))
    bearers = [secret, made.secret]
    if ending == "deactivate":
        gone = user_service_pb2.DeactivateUserRequest(user_id="alice@example.com")
        await admin.user_rpc.deactivate_user(gone, called_by(ADMIN))
    elif ending == "delete":
        deleted = user_service_pb2.DeleteUserRequest(user_id="alice@example.com")
        await admin.user_rpc.delete_user(deleted, called_by(ADMIN))
    else:
        revoked = tenant_service_pb2.RevokeApiKeyRequest(key_id=made.api_key.key_id)
        await admin.tenant_rpc.revoke_api_key(revoked, called_by(ADMIN))
        bearers = [made.secret]
    clock.advance(CACHE_SECONDS)
    assert [await admin.tokens.authenticate(bearer) for bearer in bearers] == [None] * len(bearers)


async def test_a_known_bearer_is_remembered_for_a_second(
    admin: AdminSide, engine: AsyncEngine, clock: FakeClock
) -> None:
    """A sidecar asks thousands of times a second; one query answers, and what was revoked elsewhere ends in a second."""
    _, secret = await admin.tokens.create(OPERATOR, role=Role.SIDECAR)
    async with statements(engine) as seen:
        for _ in range(5):
            assert await admin.tokens.authenticate(secret)
        assert len(seen) == 1
        clock.advance(CACHE_SECONDS)
        assert await admin.tokens.authenticate(secret)
        assert len(seen) == 2


async def test_who_asks_meanwhile_shares_the_reading(admin: AdminSide, engine: AsyncEngine) -> None:
    _, secret = await admin.tokens.create(OPERATOR, role=Role.SIDECAR)
    async with statements(engine) as seen:
        asking = [asyncio.create_task(admin.tokens.authenticate(secret)) for _ in range(20)]
        await asyncio.sleep(0)
        asking[0].cancel()
        callers = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(callers[0], asyncio.CancelledError)
        assert callers[1:] == [Caller(Role.SIDECAR, "sidecar")] * 19
        assert len(seen) == 1


async def test_who_asks_all_the_time_never_waits_for_a_reading(
    admin: AdminSide, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known is read again a little before it ends; where that fails, whoever asks after its end reads."""
    _, secret = await admin.tokens.create(OPERATOR, role=Role.SIDECAR)
    assert await admin.tokens.authenticate(secret)
    read, begun, may_end, works = admin.tokens._read_caller, 0, asyncio.Event(), True

    async def slow(digest: str, *, is_key: bool) -> Caller | None:
        nonlocal begun
        begun += 1
        await may_end.wait()
        if not works:
            raise BursarError(Reason.DATABASE_UNAVAILABLE, "the database does not answer")
        return await read(digest, is_key=is_key)

    monkeypatch.setattr(admin.tokens, "_read_caller", slow)
    clock.advance(CACHE_SECONDS - READ_AHEAD_SECONDS)
    for _ in range(3):
        assert await asyncio.wait_for(admin.tokens.authenticate(secret), 1)
    await asyncio.sleep(0)
    assert begun == 1
    may_end.set()
    [(_, reading)] = admin.tokens._reading.values()
    await reading
    clock.advance(READ_AHEAD_SECONDS)
    works = False
    assert await asyncio.wait_for(admin.tokens.authenticate(secret), 1)
    assert begun == 1
    clock.advance(CACHE_SECONDS - READ_AHEAD_SECONDS)
    with pytest.raises(BursarError):
        await admin.tokens.authenticate(secret)


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_what_was_read_before_a_token_was_revoked_is_not_remembered(
    admin: AdminSide,
    unit_of_work: UnitOfWork,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    elsewhere: bool,
) -> None:
    """It is told to those who waited for it already; where another process revokes, to who asks within a second."""
    token, secret = await admin.tokens.create(OPERATOR, role=Role.SIDECAR)
    read, has_read, go_on = admin.tokens._read_caller, asyncio.Event(), asyncio.Event()

    async def slow(digest: str, *, is_key: bool) -> Caller | None:
        caller = await read(digest, is_key=is_key)
        has_read.set()
        await go_on.wait()
        return caller

    monkeypatch.setattr(admin.tokens, "_read_caller", slow)
    early = asyncio.create_task(admin.tokens.authenticate(secret))
    await has_read.wait()
    if elsewhere:
        await admin_side(unit_of_work, clock=clock).tokens.revoke(OPERATOR, token.token_id)
        clock.advance(CACHE_SECONDS)
    else:
        await admin.tokens.revoke(OPERATOR, token.token_id)
    later = asyncio.create_task(admin.tokens.authenticate(secret))
    await asyncio.sleep(0)
    go_on.set()
    assert await early
    assert await later is None
    assert await admin.tokens.authenticate(secret) is None


async def test_what_the_installation_brings_along_is_a_token(
    admin: AdminSide, unit_of_work: UnitOfWork
) -> None:
    """Contract: BURSAR_ADMIN_TOKEN and BURSAR_SIDECAR_TOKEN; every start makes sure of them, and changes nothing."""
    made = await asyncio.gather(
        *(admin.tokens.ensure_token("chosen by an operator", Role.PLATFORM_ADMIN, "admin") for _ in range(3))
    )
    assert len({token.token_id for token in made}) == 1
    assert await admin.tokens.authenticate("chosen by an operator") == Caller(Role.PLATFORM_ADMIN, "admin")
    async with unit_of_work.begin() as conn:
        events, _ = await admin.audit.list(conn, {PLATFORM_TENANT_ID})
    assert [(one.event.action, one.event.actor) for one in events] == [("create_token", "system")]
    with pytest.raises(BursarError) as caught:
        await admin.tokens.ensure_token("chosen by an operator", Role.SIDECAR, "sidecar")
    assert caught.value.reason is Reason.WRONG_STATE
    with pytest.raises(BursarError):
        await admin.tokens.ensure_token(" ", Role.SIDECAR, "sidecar")


async def test_only_the_operator_makes_tokens(admin: AdminSide) -> None:
    with pytest.raises(BursarError) as caught:
        await admin.tokens.create(ADMIN, role=Role.SIDECAR)
    assert caught.value.reason is Reason.PERMISSION_DENIED
