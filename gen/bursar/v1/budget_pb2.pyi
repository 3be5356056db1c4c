import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BudgetPeriod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BUDGET_PERIOD_UNSPECIFIED: _ClassVar[BudgetPeriod]
    BUDGET_PERIOD_DAILY: _ClassVar[BudgetPeriod]
    BUDGET_PERIOD_WEEKLY: _ClassVar[BudgetPeriod]
    BUDGET_PERIOD_MONTHLY: _ClassVar[BudgetPeriod]
    BUDGET_PERIOD_QUARTERLY: _ClassVar[BudgetPeriod]
    BUDGET_PERIOD_YEARLY: _ClassVar[BudgetPeriod]
    BUDGET_PERIOD_TOTAL: _ClassVar[BudgetPeriod]

class Enforcement(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENFORCEMENT_UNSPECIFIED: _ClassVar[Enforcement]
    ENFORCEMENT_HARD: _ClassVar[Enforcement]
    ENFORCEMENT_SOFT: _ClassVar[Enforcement]

class Admission(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADMISSION_UNSPECIFIED: _ClassVar[Admission]
    ADMISSION_ANY_REMAINING: _ClassVar[Admission]
    ADMISSION_EXPECTED: _ClassVar[Admission]
    ADMISSION_UPPER_BOUND: _ClassVar[Admission]

class LeaseExpiry(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEASE_EXPIRY_UNSPECIFIED: _ClassVar[LeaseExpiry]
    LEASE_EXPIRY_CHARGE_ESTIMATE: _ClassVar[LeaseExpiry]
    LEASE_EXPIRY_RELEASE: _ClassVar[LeaseExpiry]

class OnUnreachable(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_UNREACHABLE_UNSPECIFIED: _ClassVar[OnUnreachable]
    ON_UNREACHABLE_SIDECAR: _ClassVar[OnUnreachable]
    ON_UNREACHABLE_CLOSED: _ClassVar[OnUnreachable]
    ON_UNREACHABLE_OPEN: _ClassVar[OnUnreachable]
    ON_UNREACHABLE_LAST_KNOWN_GOOD: _ClassVar[OnUnreachable]

class ManagedBy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MANAGED_BY_UNSPECIFIED: _ClassVar[ManagedBy]
    MANAGED_BY_PLATFORM: _ClassVar[ManagedBy]
    MANAGED_BY_TENANT: _ClassVar[ManagedBy]

class BudgetColor(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BUDGET_COLOR_UNSPECIFIED: _ClassVar[BudgetColor]
    BUDGET_COLOR_GREEN: _ClassVar[BudgetColor]
    BUDGET_COLOR_AMBER: _ClassVar[BudgetColor]
    BUDGET_COLOR_RED: _ClassVar[BudgetColor]
BUDGET_PERIOD_UNSPECIFIED: BudgetPeriod
BUDGET_PERIOD_DAILY: BudgetPeriod
BUDGET_PERIOD_WEEKLY: BudgetPeriod
BUDGET_PERIOD_MONTHLY: BudgetPeriod
BUDGET_PERIOD_QUARTERLY: BudgetPeriod
BUDGET_PERIOD_YEARLY: BudgetPeriod
BUDGET_PERIOD_TOTAL: BudgetPeriod
ENFORCEMENT_UNSPECIFIED: Enforcement
ENFORCEMENT_HARD: Enforcement
ENFORCEMENT_SOFT: Enforcement
ADMISSION_UNSPECIFIED: Admission
ADMISSION_ANY_REMAINING: Admission
ADMISSION_EXPECTED: Admission
ADMISSION_UPPER_BOUND: Admission
LEASE_EXPIRY_UNSPECIFIED: LeaseExpiry
LEASE_EXPIRY_CHARGE_ESTIMATE: LeaseExpiry
LEASE_EXPIRY_RELEASE: LeaseExpiry
ON_UNREACHABLE_UNSPECIFIED: OnUnreachable
ON_UNREACHABLE_SIDECAR: OnUnreachable
ON_UNREACHABLE_CLOSED: OnUnreachable
ON_UNREACHABLE_OPEN: OnUnreachable
ON_UNREACHABLE_LAST_KNOWN_GOOD: OnUnreachable
MANAGED_BY_UNSPECIFIED: ManagedBy
MANAGED_BY_PLATFORM: ManagedBy
MANAGED_BY_TENANT: ManagedBy
BUDGET_COLOR_UNSPECIFIED: BudgetColor
BUDGET_COLOR_GREEN: BudgetColor
BUDGET_COLOR_AMBER: BudgetColor
BUDGET_COLOR_RED: BudgetColor

class BudgetScope(_message.Message):
    __slots__ = ("tenant_id", "group_id", "user_id", "api_key_id", "tag_key", "tag_value")
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    API_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    TAG_KEY_FIELD_NUMBER: _ClassVar[int]
    TAG_VALUE_FIELD_NUMBER: _ClassVar[int]
    tenant_id: str
    group_id: str
    user_id: str
    api_key_id: str
    tag_key: str
    tag_value: str
    def __init__(self, tenant_id: _Optional[str] = ..., group_id: _Optional[str] = ..., user_id: _Optional[str] = ..., api_key_id: _Optional[str] = ..., tag_key: _Optional[str] = ..., tag_value: _Optional[str] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("budget_id", "name", "scope", "period", "anchor_day", "timezone", "limit_usd", "limit_tokens", "soft_limit_pct", "alert_thresholds_pct", "enforcement", "admission", "max_wait_ms", "fit_output", "guard_streams", "shadow", "on_lease_expiry", "enabled", "managed_by", "owners", "reason", "version", "create_time", "update_time", "limit_nanos", "on_unreachable")
    BUDGET_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    ANCHOR_DAY_FIELD_NUMBER: _ClassVar[int]
    TIMEZONE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_USD_FIELD_NUMBER: _ClassVar[int]
    LIMIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SOFT_LIMIT_PCT_FIELD_NUMBER: _ClassVar[int]
    ALERT_THRESHOLDS_PCT_FIELD_NUMBER: _ClassVar[int]
    ENFORCEMENT_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    MAX_WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    FIT_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    GUARD_STREAMS_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    ON_LEASE_EXPIRY_FIELD_NUMBER: _ClassVar[int]
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    MANAGED_BY_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    LIMIT_NANOS_FIELD_NUMBER: _ClassVar[int]
    ON_UNREACHABLE_FIELD_NUMBER: _ClassVar[int]
    budget_id: str
    name: str
    scope: BudgetScope
    period: BudgetPeriod
    anchor_day: int
    timezone: str
    limit_usd: float
    limit_tokens: int
    soft_limit_pct: int
    alert_thresholds_pct: _containers.RepeatedScalarFieldContainer[int]
    enforcement: Enforcement
    admission: Admission
    max_wait_ms: int
    fit_output: bool
    guard_streams: bool
    shadow: bool
    on_lease_expiry: LeaseExpiry
    enabled: bool
    managed_by: ManagedBy
    owners: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    version: int
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    limit_nanos: int
    on_unreachable: OnUnreachable
    def __init__(self, budget_id: _Optional[str] = ..., name: _Optional[str] = ..., scope: _Optional[_Union[BudgetScope, _Mapping]] = ..., period: _Optional[_Union[BudgetPeriod, str]] = ..., anchor_day: _Optional[int] = ..., timezone: _Optional[str] = ..., limit_usd: _Optional[float] = ..., limit_tokens: _Optional[int] = ..., soft_limit_pct: _Optional[int] = ..., alert_thresholds_pct: _Optional[_Iterable[int]] = ..., enforcement: _Optional[_Union[Enforcement, str]] = ..., admission: _Optional[_Union[Admission, str]] = ..., max_wait_ms: _Optional[int] = ..., fit_output: _Optional[bool] = ..., guard_streams: _Optional[bool] = ..., shadow: _Optional[bool] = ..., on_lease_expiry: _Optional[_Union[LeaseExpiry, str]] = ..., enabled: _Optional[bool] = ..., managed_by: _Optional[_Union[ManagedBy, str]] = ..., owners: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ..., version: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., limit_nanos: _Optional[int] = ..., on_unreachable: _Optional[_Union[OnUnreachable, str]] = ...) -> None: ...

class BudgetStatus(_message.Message):
    __slots__ = ("budget", "period_key", "period_start_time", "period_end_time", "spent_usd", "held_usd", "remaining_usd", "spent_nanos", "held_nanos", "limit_nanos", "spent_tokens", "utilization_pct", "color", "limit_tokens", "remaining_tokens", "shadow_denials")
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    PERIOD_KEY_FIELD_NUMBER: _ClassVar[int]
    PERIOD_START_TIME_FIELD_NUMBER: _ClassVar[int]
    PERIOD_END_TIME_FIELD_NUMBER: _ClassVar[int]
    SPENT_USD_FIELD_NUMBER: _ClassVar[int]
    HELD_USD_FIELD_NUMBER: _ClassVar[int]
    REMAINING_USD_FIELD_NUMBER: _ClassVar[int]
    SPENT_NANOS_FIELD_NUMBER: _ClassVar[int]
    HELD_NANOS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_NANOS_FIELD_NUMBER: _ClassVar[int]
    SPENT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_PCT_FIELD_NUMBER: _ClassVar[int]
    COLOR_FIELD_NUMBER: _ClassVar[int]
    LIMIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REMAINING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SHADOW_DENIALS_FIELD_NUMBER: _ClassVar[int]
    budget: Budget
    period_key: str
    period_start_time: _timestamp_pb2.Timestamp
    period_end_time: _timestamp_pb2.Timestamp
    spent_usd: float
    held_usd: float
    remaining_usd: float
    spent_nanos: int
    held_nanos: int
    limit_nanos: int
    spent_tokens: int
    utilization_pct: float
    color: BudgetColor
    limit_tokens: int
    remaining_tokens: int
    shadow_denials: int
    def __init__(self, budget: _Optional[_Union[Budget, _Mapping]] = ..., period_key: _Optional[str] = ..., period_start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., period_end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., spent_usd: _Optional[float] = ..., held_usd: _Optional[float] = ..., remaining_usd: _Optional[float] = ..., spent_nanos: _Optional[int] = ..., held_nanos: _Optional[int] = ..., limit_nanos: _Optional[int] = ..., spent_tokens: _Optional[int] = ..., utilization_pct: _Optional[float] = ..., color: _Optional[_Union[BudgetColor, str]] = ..., limit_tokens: _Optional[int] = ..., remaining_tokens: _Optional[int] = ..., shadow_denials: _Optional[int] = ...) -> None: ...

class BindingBudget(_message.Message):
    __slots__ = ("budget_id", "name", "scope", "limit_usd", "spent_usd", "remaining_usd", "period_reset_time", "exhausted")
    BUDGET_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_USD_FIELD_NUMBER: _ClassVar[int]
    SPENT_USD_FIELD_NUMBER: _ClassVar[int]
    REMAINING_USD_FIELD_NUMBER: _ClassVar[int]
    PERIOD_RESET_TIME_FIELD_NUMBER: _ClassVar[int]
    EXHAUSTED_FIELD_NUMBER: _ClassVar[int]
    budget_id: str
    name: str
    scope: str
    limit_usd: float
    spent_usd: float
    remaining_usd: float
    period_reset_time: _timestamp_pb2.Timestamp
    exhausted: bool
    def __init__(self, budget_id: _Optional[str] = ..., name: _Optional[str] = ..., scope: _Optional[str] = ..., limit_usd: _Optional[float] = ..., spent_usd: _Optional[float] = ..., remaining_usd: _Optional[float] = ..., period_reset_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., exhausted: _Optional[bool] = ...) -> None: ...
