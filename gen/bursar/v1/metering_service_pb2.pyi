import datetime

from bursar.v1 import budget_pb2 as _budget_pb2
from bursar.v1 import metering_pb2 as _metering_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CheckRequest(_message.Message):
    __slots__ = ("request_id", "api_key_sha256", "user_id", "tenant_id", "provider", "model", "input_tokens_estimate", "max_output_tokens", "tags", "session_id", "can_fit_output", "body_user", "with_budgets")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    API_KEY_SHA256_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CAN_FIT_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    BODY_USER_FIELD_NUMBER: _ClassVar[int]
    WITH_BUDGETS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    api_key_sha256: str
    user_id: str
    tenant_id: str
    provider: str
    model: str
    input_tokens_estimate: int
    max_output_tokens: int
    tags: _containers.ScalarMap[str, str]
    session_id: str
    can_fit_output: bool
    body_user: str
    with_budgets: bool
    def __init__(self, request_id: _Optional[str] = ..., api_key_sha256: _Optional[str] = ..., user_id: _Optional[str] = ..., tenant_id: _Optional[str] = ..., provider: _Optional[str] = ..., model: _Optional[str] = ..., input_tokens_estimate: _Optional[int] = ..., max_output_tokens: _Optional[int] = ..., tags: _Optional[_Mapping[str, str]] = ..., session_id: _Optional[str] = ..., can_fit_output: _Optional[bool] = ..., body_user: _Optional[str] = ..., with_budgets: _Optional[bool] = ...) -> None: ...

class CheckResponse(_message.Message):
    __slots__ = ("request_id", "decision", "denials", "remaining_usd", "remaining_nanos", "held_nanos", "hold_expire_time", "tenant_id", "user_id", "api_key_id", "duplicate", "retry_after_ms", "fit_output_tokens", "on_unreachable", "budgets", "budgets_by_tags", "guard_output_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    DENIALS_FIELD_NUMBER: _ClassVar[int]
    REMAINING_USD_FIELD_NUMBER: _ClassVar[int]
    REMAINING_NANOS_FIELD_NUMBER: _ClassVar[int]
    HELD_NANOS_FIELD_NUMBER: _ClassVar[int]
    HOLD_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    API_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    FIT_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ON_UNREACHABLE_FIELD_NUMBER: _ClassVar[int]
    BUDGETS_FIELD_NUMBER: _ClassVar[int]
    BUDGETS_BY_TAGS_FIELD_NUMBER: _ClassVar[int]
    GUARD_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    decision: _metering_pb2.Decision
    denials: _containers.RepeatedCompositeFieldContainer[_metering_pb2.Denial]
    remaining_usd: float
    remaining_nanos: int
    held_nanos: int
    hold_expire_time: _timestamp_pb2.Timestamp
    tenant_id: str
    user_id: str
    api_key_id: str
    duplicate: bool
    retry_after_ms: int
    fit_output_tokens: int
    on_unreachable: _budget_pb2.OnUnreachable
    budgets: _containers.RepeatedCompositeFieldContainer[_metering_pb2.BudgetLeft]
    budgets_by_tags: bool
    guard_output_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., decision: _Optional[_Union[_metering_pb2.Decision, str]] = ..., denials: _Optional[_Iterable[_Union[_metering_pb2.Denial, _Mapping]]] = ..., remaining_usd: _Optional[float] = ..., remaining_nanos: _Optional[int] = ..., held_nanos: _Optional[int] = ..., hold_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tenant_id: _Optional[str] = ..., user_id: _Optional[str] = ..., api_key_id: _Optional[str] = ..., duplicate: _Optional[bool] = ..., retry_after_ms: _Optional[int] = ..., fit_output_tokens: _Optional[int] = ..., on_unreachable: _Optional[_Union[_budget_pb2.OnUnreachable, str]] = ..., budgets: _Optional[_Iterable[_Union[_metering_pb2.BudgetLeft, _Mapping]]] = ..., budgets_by_tags: _Optional[bool] = ..., guard_output_tokens: _Optional[int] = ...) -> None: ...

class BatchCheckRequest(_message.Message):
    __slots__ = ("checks",)
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    checks: _containers.RepeatedCompositeFieldContainer[CheckRequest]
    def __init__(self, checks: _Optional[_Iterable[_Union[CheckRequest, _Mapping]]] = ...) -> None: ...

class BatchCheckResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[BatchCheckResult]
    def __init__(self, results: _Optional[_Iterable[_Union[BatchCheckResult, _Mapping]]] = ...) -> None: ...

class BatchCheckResult(_message.Message):
    __slots__ = ("check", "error")
    CHECK_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    check: CheckResponse
    error: _metering_pb2.ItemError
    def __init__(self, check: _Optional[_Union[CheckResponse, _Mapping]] = ..., error: _Optional[_Union[_metering_pb2.ItemError, _Mapping]] = ...) -> None: ...

class RenewHoldsRequest(_message.Message):
    __slots__ = ("request_ids",)
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class RenewHoldsResponse(_message.Message):
    __slots__ = ("hold_expire_time", "missing_request_ids")
    HOLD_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    MISSING_REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    hold_expire_time: _timestamp_pb2.Timestamp
    missing_request_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, hold_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., missing_request_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class DeductRequest(_message.Message):
    __slots__ = ("request_id", "provider", "items", "outcome", "estimated", "provider_cost_usd", "start_time", "end_time", "api_key_sha256", "user_id", "tenant_id", "tags", "session_id", "body_user", "degraded")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_COST_USD_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    API_KEY_SHA256_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    BODY_USER_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    provider: str
    items: _containers.RepeatedCompositeFieldContainer[_metering_pb2.UsageItem]
    outcome: _metering_pb2.Outcome
    estimated: bool
    provider_cost_usd: float
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    api_key_sha256: str
    user_id: str
    tenant_id: str
    tags: _containers.ScalarMap[str, str]
    session_id: str
    body_user: str
    degraded: _budget_pb2.OnUnreachable
    def __init__(self, request_id: _Optional[str] = ..., provider: _Optional[str] = ..., items: _Optional[_Iterable[_Union[_metering_pb2.UsageItem, _Mapping]]] = ..., outcome: _Optional[_Union[_metering_pb2.Outcome, str]] = ..., estimated: _Optional[bool] = ..., provider_cost_usd: _Optional[float] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., api_key_sha256: _Optional[str] = ..., user_id: _Optional[str] = ..., tenant_id: _Optional[str] = ..., tags: _Optional[_Mapping[str, str]] = ..., session_id: _Optional[str] = ..., body_user: _Optional[str] = ..., degraded: _Optional[_Union[_budget_pb2.OnUnreachable, str]] = ...) -> None: ...

class DeductResponse(_message.Message):
    __slots__ = ("request_id", "cost_usd", "cost_nanos", "input_cost_nanos", "output_cost_nanos", "other_cost_nanos", "postings", "remaining_usd", "overage_nanos", "duplicate", "alerts", "remaining_nanos", "hold_shortfall_nanos", "unpriced", "unchecked")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    COST_NANOS_FIELD_NUMBER: _ClassVar[int]
    INPUT_COST_NANOS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_COST_NANOS_FIELD_NUMBER: _ClassVar[int]
    OTHER_COST_NANOS_FIELD_NUMBER: _ClassVar[int]
    POSTINGS_FIELD_NUMBER: _ClassVar[int]
    REMAINING_USD_FIELD_NUMBER: _ClassVar[int]
    OVERAGE_NANOS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    ALERTS_FIELD_NUMBER: _ClassVar[int]
    REMAINING_NANOS_FIELD_NUMBER: _ClassVar[int]
    HOLD_SHORTFALL_NANOS_FIELD_NUMBER: _ClassVar[int]
    UNPRICED_FIELD_NUMBER: _ClassVar[int]
    UNCHECKED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    cost_usd: float
    cost_nanos: int
    input_cost_nanos: int
    output_cost_nanos: int
    other_cost_nanos: int
    postings: _containers.RepeatedCompositeFieldContainer[_metering_pb2.Posting]
    remaining_usd: float
    overage_nanos: int
    duplicate: bool
    alerts: _containers.RepeatedCompositeFieldContainer[_metering_pb2.FiredAlert]
    remaining_nanos: int
    hold_shortfall_nanos: int
    unpriced: bool
    unchecked: bool
    def __init__(self, request_id: _Optional[str] = ..., cost_usd: _Optional[float] = ..., cost_nanos: _Optional[int] = ..., input_cost_nanos: _Optional[int] = ..., output_cost_nanos: _Optional[int] = ..., other_cost_nanos: _Optional[int] = ..., postings: _Optional[_Iterable[_Union[_metering_pb2.Posting, _Mapping]]] = ..., remaining_usd: _Optional[float] = ..., overage_nanos: _Optional[int] = ..., duplicate: _Optional[bool] = ..., alerts: _Optional[_Iterable[_Union[_metering_pb2.FiredAlert, _Mapping]]] = ..., remaining_nanos: _Optional[int] = ..., hold_shortfall_nanos: _Optional[int] = ..., unpriced: _Optional[bool] = ..., unchecked: _Optional[bool] = ...) -> None: ...

class BatchDeductRequest(_message.Message):
    __slots__ = ("deducts",)
    DEDUCTS_FIELD_NUMBER: _ClassVar[int]
    deducts: _containers.RepeatedCompositeFieldContainer[DeductRequest]
    def __init__(self, deducts: _Optional[_Iterable[_Union[DeductRequest, _Mapping]]] = ...) -> None: ...

class BatchDeductResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[BatchDeductResult]
    def __init__(self, results: _Optional[_Iterable[_Union[BatchDeductResult, _Mapping]]] = ...) -> None: ...

class BatchDeductResult(_message.Message):
    __slots__ = ("deduct", "error")
    DEDUCT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    deduct: DeductResponse
    error: _metering_pb2.ItemError
    def __init__(self, deduct: _Optional[_Union[DeductResponse, _Mapping]] = ..., error: _Optional[_Union[_metering_pb2.ItemError, _Mapping]] = ...) -> None: ...

class ReleaseHoldRequest(_message.Message):
    __slots__ = ("request_id", "api_key_sha256", "tenant_id", "refused")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    API_KEY_SHA256_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    api_key_sha256: str
    tenant_id: str
    refused: RefusedCalls
    def __init__(self, request_id: _Optional[str] = ..., api_key_sha256: _Optional[str] = ..., tenant_id: _Optional[str] = ..., refused: _Optional[_Union[RefusedCalls, _Mapping]] = ...) -> None: ...

class RefusedCalls(_message.Message):
    __slots__ = ("calls", "policy", "user_id", "body_user", "first_time", "last_time")
    CALLS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    BODY_USER_FIELD_NUMBER: _ClassVar[int]
    FIRST_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_TIME_FIELD_NUMBER: _ClassVar[int]
    calls: int
    policy: _budget_pb2.OnUnreachable
    user_id: str
    body_user: str
    first_time: _timestamp_pb2.Timestamp
    last_time: _timestamp_pb2.Timestamp
    def __init__(self, calls: _Optional[int] = ..., policy: _Optional[_Union[_budget_pb2.OnUnreachable, str]] = ..., user_id: _Optional[str] = ..., body_user: _Optional[str] = ..., first_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ReleaseHoldResponse(_message.Message):
    __slots__ = ("released",)
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    released: bool
    def __init__(self, released: _Optional[bool] = ...) -> None: ...
