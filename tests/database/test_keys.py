"""API keys: a secret shown once, masked ever after, revoked for good."""

from uuid import UUID

import pytest

from bursar.v1 import tenant_service_pb2 as pb
from bursar.v1 import user_service_pb2
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.ids import DEFAULT_TENANT_ID, sha256_hex
from support.admin import ADMIN, DEVELOPER, OPERATOR, AdminSide, admin_side, key_row, version_of
from support.called import called_by

STRANGER = Caller(Role.TENANT_ADMIN, "s", frozenset({UUID(int=7)}))


@pytest.fixture
def admin(unit_of_work: UnitOfWork) -> AdminSide:
    return admin_side(unit_of_work)


async def user(admin: AdminSide, email: str, **fields: object) -> str:
    request = user_service_pb2.CreateUserRequest(email=email, **fields)  # type: ignore[arg-type]
    return (await admin.user_rpc.create_user(request, called_by(OPERATOR))).user.user_id


async def create(
    admin: AdminSide, name: str = "app", caller: Caller = DEVELOPER, **fields: object
) -> pb.CreateApiKeyResponse:
    request = pb.CreateApiKeyRequest(name=name, **fields)  # type: ignore[arg-type]
    return await admin.tenant_rpc.create_api_key(request, called_by(caller))


async def refused(coroutine: object) -> BursarError:
    with pytest.raises(BursarError) as caught:
        await coroutine  # type: ignore[misc]
    return caught.value


async def test_the_secret_is_shown_once_and_only_its_hash_is_kept(
    admin: AdminSide, unit_of_work: UnitOfWork
) -> None:
    """F181, F104: plaintext in the first answer only; afterwards the key is masked."""
    made = await create(admin)
    assert made.secret.startswith("bur_")
    assert len(made.secret) == 47
    assert made.secret not in str(made.api_key)
    assert made.api_key.masked_key == f"{made.secret[:8]}…{made.secret[-4:]}"
    async with unit_of_work.begin() as conn:
        row = await key_row(conn, UUID(made.api_key.key_id))
    assert row.key_sha256 == sha256_hex(made.secret)
    assert made.secret not in str(tuple(row))
    listed = await admin.tenant_rpc.list_api_keys(pb.ListApiKeysRequest(), called_by(ADMIN))
    assert made.secret not in str(listed)
    assert [key.key_id for key in listed.api_keys] == [made.api_key.key_id]


async def test_a_key_counts_for_its_user(admin: AdminSide) -> None:
    """F182, F192: one key for each app, for a user named by e-mail; it says all that was asked."""
    alice = await user(admin, "alice@example.com")
    made = await create(
        admin,
        user_id="Alice@Example.com",
        default_tags={"team": "core"},
        act_for_users=True,
        trust_user_field=True,
    )
    key = made.api_key
    assert (key.user_id, dict(key.default_tags), key.tenant_id) == (
        alice,
        {"team": "core"},
        str(DEFAULT_TENANT_ID),
    )
    assert (key.act_for_users, key.trust_user_field, key.service_account) == (True, True, False)
    other = await create(admin, "second app", user_id=alice)
    listed = await admin.tenant_rpc.list_api_keys(
        pb.ListApiKeysRequest(user_id="alice@example.com"), called_by(ADMIN)
    )
    assert [one.key_id for one in listed.api_keys] == [other.api_key.key_id, key.key_id]


async def test_a_key_of_a_service_account_is_one(admin: AdminSide) -> None:
    """S5, F061: a key stands for a service account by itself, or because its user is one; never for a person."""
    await user(admin, "ci@example.com", service_account=True)
    await user(admin, "alice@example.com")
    assert (await create(admin, user_id="ci@example.com")).api_key.service_account
    assert (await create(admin, service_account=True)).api_key.service_account
    error = await refused(create(admin, user_id="alice@example.com", service_account=True))
    assert error.field == "service_account"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": " "}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"trust_user_field": True}, "trust_user_field"),
        ({"user_id": "nobody@example.com"}, "user_id"),
        ({"default_tags": {str(number): "x" for number in range(33)}}, "default_tags"),
    ],
)
async def test_what_does_not_fit_together_is_refused(
    admin: AdminSide, fields: dict[str, object], field: str
) -> None:
    assert (await refused(create(admin, **{"name": "app", **fields}))).field == field  # type: ignore[arg-type]


async def test_a_user_that_cannot_call_gets_no_key(admin: AdminSide) -> None:
    await user(admin, "alice@example.com")
    await admin.user_rpc.deactivate_user(
        user_service_pb2.DeactivateUserRequest(user_id="alice@example.com"), called_by(ADMIN)
    )
    assert (await refused(create(admin, user_id="alice@example.com"))).reason is Reason.WRONG_STATE


async def test_a_revoked_key_stays_revoked(admin: AdminSide, unit_of_work: UnitOfWork) -> None:
    """F182, S13: keys end one by one, at once, and for good."""
    first, second = await create(admin, "a"), await create(admin, "b")
    before = await version_of(unit_of_work)
    request = pb.RevokeApiKeyRequest(key_id=first.api_key.key_id)
    gone = (await admin.tenant_rpc.revoke_api_key(request, called_by(ADMIN))).api_key
    assert gone.HasField("revoke_time")
    assert await version_of(unit_of_work) == before + 1
    assert (
        await refused(admin.tenant_rpc.revoke_api_key(request, called_by(ADMIN)))
    ).reason is Reason.WRONG_STATE
    listed = await admin.tenant_rpc.list_api_keys(pb.ListApiKeysRequest(), called_by(ADMIN))
    assert [key.key_id for key in listed.api_keys] == [second.api_key.key_id]
    everything = pb.ListApiKeysRequest(include_revoked=True)
    listed = await admin.tenant_rpc.list_api_keys(everything, called_by(ADMIN))
    assert len(listed.api_keys) == 2


async def test_a_foreign_key_is_not_found(admin: AdminSide) -> None:
    """F181: a key is of one tenant."""
    made = await create(admin)
    request = pb.RevokeApiKeyRequest(key_id=made.api_key.key_id)
    assert (
        await refused(admin.tenant_rpc.revoke_api_key(request, called_by(STRANGER)))
    ).reason is Reason.NOT_FOUND
    await admin.tenant_rpc.create_tenant(pb.CreateTenantRequest(name="acme"), called_by(OPERATOR))
    await user(admin, "bob@example.com", tenant_id="acme")
    error = await refused(create(admin, user_id="bob@example.com"))
    assert error.reason is Reason.NOT_FOUND
    here = await create(admin, caller=OPERATOR, tenant_id="acme", user_id="bob@example.com")
    assert here.api_key.tenant_id != str(DEFAULT_TENANT_ID)


async def test_keys_are_listed_latest_first_in_pages(admin: AdminSide) -> None:
    made = [(await create(admin, f"app {number}")).api_key.key_id for number in range(5)]
    seen: list[str] = []
    token = ""
    while True:
        request = pb.ListApiKeysRequest(page_size=2, page_token=token)
        answer = await admin.tenant_rpc.list_api_keys(request, called_by(ADMIN))
        seen += [key.key_id for key in answer.api_keys]
        token = answer.next_page_token
        if not token:
            break
    assert seen == made[::-1]


async def test_making_and_revoking_is_audited_without_the_secret(
    admin: AdminSide, unit_of_work: UnitOfWork
) -> None:
    """F173, F177: details name the key, never its secret."""
    alice = await user(admin, "alice@example.com")
    made = await create(admin, user_id=alice)
    await admin.tenant_rpc.revoke_api_key(
        pb.RevokeApiKeyRequest(key_id=made.api_key.key_id), called_by(ADMIN)
    )
    async with unit_of_work.begin() as conn:
        events, _ = await admin.audit.list(conn, {DEFAULT_TENANT_ID}, user_id=UUID(alice))
    assert [one.event.action for one in events] == ["revoke_api_key", "create_api_key", "create_user"]
    assert [one.event.actor for one in events] == ["admin@example.com", "dev@example.com", "operator"]
    assert made.secret not in str(events)
    assert sha256_hex(made.secret) not in str(events)
