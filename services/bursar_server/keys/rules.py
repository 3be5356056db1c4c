"""What a key may be."""

from bursar_server.keys.model import KeyDraft
from bursar_server.kit.errors import BursarError, Reason, invalid
from bursar_server.users.model import User, UserStatus


def check_draft(draft: KeyDraft, user: User | None) -> bool:
    """Return whether a key to make stands for a service account. Raises INVALID_FIELD for what does not fit together."""
    if not draft.name.strip():
        raise invalid("name", "is needed")
    if draft.trust_user_field and not draft.act_for_users:
        raise invalid("trust_user_field", "needs act_for_users")
    if user is None:
        return draft.service_account
    if user.status is not UserStatus.ACTIVE:
        raise BursarError(Reason.WRONG_STATE, f"user {user.email} is {user.status.lower()}", field="user_id")
    if draft.service_account and not user.service_account:
        raise invalid("service_account", f"{user.email} is a person, not a service account")
    return user.service_account
