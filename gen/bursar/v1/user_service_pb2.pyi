import datetime

from bursar.v1 import audit_pb2 as _audit_pb2
from bursar.v1 import budget_pb2 as _budget_pb2
from bursar.v1 import grant_pb2 as _grant_pb2
from bursar.v1 import user_pb2 as _user_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateUserRequest(_message.Message):
    __slots__ = ("tenant_id", "email", "display_name", "role", "daily_budget_usd", "service_account")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    EMAIL_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    DAILY_BUDGET_USD_FIELD_NUMBER: _ClassVar[int]
    SERVICE_ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    email: str
    display_name: str
    role: _user_pb2.Role
    daily_budget_usd: float
    service_account: bool
    def __init__(self, tenant_id: _Optional[str] = ..., email: _Optional[str] = ..., display_name: _Optional[str] = ..., role: _Optional[_Union[_user_pb2.Role, str]] = ..., daily_budget_usd: _Optional[float] = ..., service_account: _Optional[bool] = ...) -> None: ...

class CreateUserResponse(_message.Message):
    __slots__ = ("user",)
    USER_FIELD_NUMBER: _ClassVar[int]
    user: _user_pb2.User
    def __init__(self, user: _Optional[_Union[_user_pb2.User, _Mapping]] = ...) -> None: ...

class GetUserRequest(_message.Message):
    __slots__ = ("user_id", "tenant_id")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    tenant_id: str
    def __init__(self, user_id: _Optional[str] = ..., tenant_id: _Optional[str] = ...) -> None: ...

class GetUserResponse(_message.Message):
    __slots__ = ("user",)
    USER_FIELD_NUMBER: _ClassVar[int]
    user: _user_pb2.User
    def __init__(self, user: _Optional[_Union[_user_pb2.User, _Mapping]] = ...) -> None: ...

class ListUsersRequest(_message.Message):
    __slots__ = ("tenant_id", "status", "page_size", "page_token")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    status: _user_pb2.UserStatus
    page_size: int
    page_token: str
    def __init__(self, tenant_id: _Optional[str] = ..., status: _Optional[_Union[_user_pb2.UserStatus, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListUsersResponse(_message.Message):
    __slots__ = ("users", "next_page_token")
    USERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    users: _containers.RepeatedCompositeFieldContainer[_user_pb2.User]
    next_page_token: str
    def __init__(self, users: _Optional[_Iterable[_Union[_user_pb2.User, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateUserRequest(_message.Message):
    __slots__ = ("id", "tenant_id", "rate_limit", "display_name", "role", "email")
    ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    RATE_LIMIT_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    EMAIL_FIELD_NUMBER: _ClassVar[int]
    id: str
    tenant_id: str
    rate_limit: int
    display_name: str
    role: _user_pb2.Role
    email: str
    def __init__(self, id: _Optional[str] = ..., tenant_id: _Optional[str] = ..., rate_limit: _Optional[int] = ..., display_name: _Optional[str] = ..., role: _Optional[_Union[_user_pb2.Role, str]] = ..., email: _Optional[str] = ...) -> None: ...

class UpdateUserResponse(_message.Message):
    __slots__ = ("user",)
    USER_FIELD_NUMBER: _ClassVar[int]
    user: _user_pb2.User
    def __init__(self, user: _Optional[_Union[_user_pb2.User, _Mapping]] = ...) -> None: ...

class DeactivateUserRequest(_message.Message):
    __slots__ = ("user_id", "tenant_id")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    tenant_id: str
    def __init__(self, user_id: _Optional[str] = ..., tenant_id: _Optional[str] = ...) -> None: ...

class DeactivateUserResponse(_message.Message):
    __slots__ = ("user",)
    USER_FIELD_NUMBER: _ClassVar[int]
    user: _user_pb2.User
    def __init__(self, user: _Optional[_Union[_user_pb2.User, _Mapping]] = ...) -> None: ...

class ReactivateUserRequest(_message.Message):
    __slots__ = ("user_id", "tenant_id")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    tenant_id: str
    def __init__(self, user_id: _Optional[str] = ..., tenant_id: _Optional[str] = ...) -> None: ...

class ReactivateUserResponse(_message.Message):
    __slots__ = ("user",)
    USER_FIELD_NUMBER: _ClassVar[int]
    user: _user_pb2.User
    def __init__(self, user: _Optional[_Union[_user_pb2.User, _Mapping]] = ...) -> None: ...

class DeleteUserRequest(_message.Message):
    __slots__ = ("user_id", "tenant_id")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    tenant_id: str
    def __init__(self, user_id: _Optional[str] = ..., tenant_id: _Optional[str] = ...) -> None: ...

class DeleteUserResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetBudgetRequest(_message.Message):
    __slots__ = ("user_id", "limit_usd", "period", "enforcement", "admission", "tenant_id", "reason")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_USD_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    ENFORCEMENT_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    limit_usd: float
    period: _budget_pb2.BudgetPeriod
    enforcement: _budget_pb2.Enforcement
    admission: _budget_pb2.Admission
    tenant_id: str
    reason: str
    def __init__(self, user_id: _Optional[str] = ..., limit_usd: _Optional[float] = ..., period: _Optional[_Union[_budget_pb2.BudgetPeriod, str]] = ..., enforcement: _Optional[_Union[_budget_pb2.Enforcement, str]] = ..., admission: _Optional[_Union[_budget_pb2.Admission, str]] = ..., tenant_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class SetBudgetResponse(_message.Message):
    __slots__ = ("budget",)
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    budget: _budget_pb2.Budget
    def __init__(self, budget: _Optional[_Union[_budget_pb2.Budget, _Mapping]] = ...) -> None: ...

class UserServiceGetBudgetRequest(_message.Message):
    __slots__ = ("user_id", "tenant_id")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    tenant_id: str
    def __init__(self, user_id: _Optional[str] = ..., tenant_id: _Optional[str] = ...) -> None: ...

class UserServiceGetBudgetResponse(_message.Message):
    __slots__ = ("budget", "active_grants", "total_remaining_usd", "budget_remaining_usd", "grants_remaining_usd", "effective_remaining_usd", "binding_budgets", "period_key", "period_reset_time", "user")
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_GRANTS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_REMAINING_USD_FIELD_NUMBER: _ClassVar[int]
    BUDGET_REMAINING_USD_FIELD_NUMBER: _ClassVar[int]
    GRANTS_REMAINING_USD_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_REMAINING_USD_FIELD_NUMBER: _ClassVar[int]
    BINDING_BUDGETS_FIELD_NUMBER: _ClassVar[int]
    PERIOD_KEY_FIELD_NUMBER: _ClassVar[int]
    PERIOD_RESET_TIME_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    budget: _budget_pb2.BudgetStatus
    active_grants: _containers.RepeatedCompositeFieldContainer[_grant_pb2.Grant]
    total_remaining_usd: float
    budget_remaining_usd: float
    grants_remaining_usd: float
    effective_remaining_usd: float
    binding_budgets: _containers.RepeatedCompositeFieldContainer[_budget_pb2.BindingBudget]
    period_key: str
    period_reset_time: _timestamp_pb2.Timestamp
    user: _user_pb2.User
    def __init__(self, budget: _Optional[_Union[_budget_pb2.BudgetStatus, _Mapping]] = ..., active_grants: _Optional[_Iterable[_Union[_grant_pb2.Grant, _Mapping]]] = ..., total_remaining_usd: _Optional[float] = ..., budget_remaining_usd: _Optional[float] = ..., grants_remaining_usd: _Optional[float] = ..., effective_remaining_usd: _Optional[float] = ..., binding_budgets: _Optional[_Iterable[_Union[_budget_pb2.BindingBudget, _Mapping]]] = ..., period_key: _Optional[str] = ..., period_reset_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., user: _Optional[_Union[_user_pb2.User, _Mapping]] = ...) -> None: ...

class GetMyBudgetRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetMyBudgetResponse(_message.Message):
    __slots__ = ("budget", "active_grants", "total_remaining_usd", "budget_remaining_usd", "grants_remaining_usd", "effective_remaining_usd", "binding_budgets", "period_key", "period_reset_time", "user")
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_GRANTS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_REMAINING_USD_FIELD_NUMBER: _ClassVar[int]
    BUDGET_REMAINING_USD_FIELD_NUMBER: _ClassVar[int]
    GRANTS_REMAINING_USD_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_REMAINING_USD_FIELD_NUMBER: _ClassVar[int]
    BINDING_BUDGETS_FIELD_NUMBER: _ClassVar[int]
    PERIOD_KEY_FIELD_NUMBER: _ClassVar[int]
    PERIOD_RESET_TIME_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    budget: _budget_pb2.BudgetStatus
    active_grants: _containers.RepeatedCompositeFieldContainer[_grant_pb2.Grant]
    total_remaining_usd: float
    budget_remaining_usd: float
    grants_remaining_usd: float
    effective_remaining_usd: float
    binding_budgets: _containers.RepeatedCompositeFieldContainer[_budget_pb2.BindingBudget]
    period_key: str
    period_reset_time: _timestamp_pb2.Timestamp
    user: _user_pb2.User
    def __init__(self, budget: _Optional[_Union[_budget_pb2.BudgetStatus, _Mapping]] = ..., active_grants: _Optional[_Iterable[_Union[_grant_pb2.Grant, _Mapping]]] = ..., total_remaining_usd: _Optional[float] = ..., budget_remaining_usd: _Optional[float] = ..., grants_remaining_usd: _Optional[float] = ..., effective_remaining_usd: _Optional[float] = ..., binding_budgets: _Optional[_Iterable[_Union[_budget_pb2.BindingBudget, _Mapping]]] = ..., period_key: _Optional[str] = ..., period_reset_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., user: _Optional[_Union[_user_pb2.User, _Mapping]] = ...) -> None: ...

class ResetSpendRequest(_message.Message):
    __slots__ = ("user_id", "tenant_id", "budget_id", "reason")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    BUDGET_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    tenant_id: str
    budget_id: str
    reason: str
    def __init__(self, user_id: _Optional[str] = ..., tenant_id: _Optional[str] = ..., budget_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ResetSpendResponse(_message.Message):
    __slots__ = ("statuses",)
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    statuses: _containers.RepeatedCompositeFieldContainer[_budget_pb2.BudgetStatus]
    def __init__(self, statuses: _Optional[_Iterable[_Union[_budget_pb2.BudgetStatus, _Mapping]]] = ...) -> None: ...

class CreateGrantRequest(_message.Message):
    __slots__ = ("user_id", "amount_usd", "reason", "starts_at", "expires_at", "tenant_id")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_USD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STARTS_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    amount_usd: float
    reason: str
    starts_at: _timestamp_pb2.Timestamp
    expires_at: _timestamp_pb2.Timestamp
    tenant_id: str
    def __init__(self, user_id: _Optional[str] = ..., amount_usd: _Optional[float] = ..., reason: _Optional[str] = ..., starts_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tenant_id: _Optional[str] = ...) -> None: ...

class CreateGrantResponse(_message.Message):
    __slots__ = ("grant",)
    GRANT_FIELD_NUMBER: _ClassVar[int]
    grant: _grant_pb2.Grant
    def __init__(self, grant: _Optional[_Union[_grant_pb2.Grant, _Mapping]] = ...) -> None: ...

class ListGrantsRequest(_message.Message):
    __slots__ = ("user_id", "tenant_id", "active_only", "page_size", "page_token")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_ONLY_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    tenant_id: str
    active_only: bool
    page_size: int
    page_token: str
    def __init__(self, user_id: _Optional[str] = ..., tenant_id: _Optional[str] = ..., active_only: _Optional[bool] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListGrantsResponse(_message.Message):
    __slots__ = ("grants", "next_page_token")
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    grants: _containers.RepeatedCompositeFieldContainer[_grant_pb2.Grant]
    next_page_token: str
    def __init__(self, grants: _Optional[_Iterable[_Union[_grant_pb2.Grant, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RevokeGrantRequest(_message.Message):
    __slots__ = ("grant_id", "reason")
    GRANT_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    grant_id: str
    reason: str
    def __init__(self, grant_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RevokeGrantResponse(_message.Message):
    __slots__ = ("grant",)
    GRANT_FIELD_NUMBER: _ClassVar[int]
    grant: _grant_pb2.Grant
    def __init__(self, grant: _Optional[_Union[_grant_pb2.Grant, _Mapping]] = ...) -> None: ...

class ListAuditLogRequest(_message.Message):
    __slots__ = ("user_id", "limit", "page_token", "tenant_id", "action")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    limit: int
    page_token: str
    tenant_id: str
    action: str
    def __init__(self, user_id: _Optional[str] = ..., limit: _Optional[int] = ..., page_token: _Optional[str] = ..., tenant_id: _Optional[str] = ..., action: _Optional[str] = ...) -> None: ...

class ListAuditLogResponse(_message.Message):
    __slots__ = ("entries", "next_page_token")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[_audit_pb2.AuditEntry]
    next_page_token: str
    def __init__(self, entries: _Optional[_Iterable[_Union[_audit_pb2.AuditEntry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
