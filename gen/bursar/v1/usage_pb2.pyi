import datetime

from bursar.v1 import metering_pb2 as _metering_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CostDimension(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COST_DIMENSION_UNSPECIFIED: _ClassVar[CostDimension]
    COST_DIMENSION_TENANT: _ClassVar[CostDimension]
    COST_DIMENSION_USER: _ClassVar[CostDimension]
    COST_DIMENSION_API_KEY: _ClassVar[CostDimension]
    COST_DIMENSION_PROVIDER: _ClassVar[CostDimension]
    COST_DIMENSION_MODEL: _ClassVar[CostDimension]
    COST_DIMENSION_DAY: _ClassVar[CostDimension]
COST_DIMENSION_UNSPECIFIED: CostDimension
COST_DIMENSION_TENANT: CostDimension
COST_DIMENSION_USER: CostDimension
COST_DIMENSION_API_KEY: CostDimension
COST_DIMENSION_PROVIDER: CostDimension
COST_DIMENSION_MODEL: CostDimension
COST_DIMENSION_DAY: CostDimension

class CostRecord(_message.Message):
    __slots__ = ("request_id", "usage_time", "tenant_id", "user_id", "api_key_id", "masked_key", "group_ids", "tags", "provider", "model", "service_tier", "usage", "input_cost_usd", "output_cost_usd", "other_cost_usd", "cost_usd", "provider_cost_usd", "cost_nanos", "price_id", "estimated", "unpriced", "outcome", "create_time", "lease_expired", "unchecked", "session_id", "items", "revision", "input_cost_nanos", "output_cost_nanos", "other_cost_nanos")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    USAGE_TIME_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    API_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    MASKED_KEY_FIELD_NUMBER: _ClassVar[int]
    GROUP_IDS_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SERVICE_TIER_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    INPUT_COST_USD_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_COST_USD_FIELD_NUMBER: _ClassVar[int]
    OTHER_COST_USD_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_COST_USD_FIELD_NUMBER: _ClassVar[int]
    COST_NANOS_FIELD_NUMBER: _ClassVar[int]
    PRICE_ID_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_FIELD_NUMBER: _ClassVar[int]
    UNPRICED_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    LEASE_EXPIRED_FIELD_NUMBER: _ClassVar[int]
    UNCHECKED_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    INPUT_COST_NANOS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_COST_NANOS_FIELD_NUMBER: _ClassVar[int]
    OTHER_COST_NANOS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    usage_time: _timestamp_pb2.Timestamp
    tenant_id: str
    user_id: str
    api_key_id: str
    masked_key: str
    group_ids: _containers.RepeatedScalarFieldContainer[str]
    tags: _containers.ScalarMap[str, str]
    provider: str
    model: str
    service_tier: str
    usage: _metering_pb2.Usage
    input_cost_usd: float
    output_cost_usd: float
    other_cost_usd: float
    cost_usd: float
    provider_cost_usd: float
    cost_nanos: int
    price_id: str
    estimated: bool
    unpriced: bool
    outcome: _metering_pb2.Outcome
    create_time: _timestamp_pb2.Timestamp
    lease_expired: bool
    unchecked: bool
    session_id: str
    items: _containers.RepeatedCompositeFieldContainer[_metering_pb2.UsageItem]
    revision: int
    input_cost_nanos: int
    output_cost_nanos: int
    other_cost_nanos: int
    def __init__(self, request_id: _Optional[str] = ..., usage_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tenant_id: _Optional[str] = ..., user_id: _Optional[str] = ..., api_key_id: _Optional[str] = ..., masked_key: _Optional[str] = ..., group_ids: _Optional[_Iterable[str]] = ..., tags: _Optional[_Mapping[str, str]] = ..., provider: _Optional[str] = ..., model: _Optional[str] = ..., service_tier: _Optional[str] = ..., usage: _Optional[_Union[_metering_pb2.Usage, _Mapping]] = ..., input_cost_usd: _Optional[float] = ..., output_cost_usd: _Optional[float] = ..., other_cost_usd: _Optional[float] = ..., cost_usd: _Optional[float] = ..., provider_cost_usd: _Optional[float] = ..., cost_nanos: _Optional[int] = ..., price_id: _Optional[str] = ..., estimated: _Optional[bool] = ..., unpriced: _Optional[bool] = ..., outcome: _Optional[_Union[_metering_pb2.Outcome, str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., lease_expired: _Optional[bool] = ..., unchecked: _Optional[bool] = ..., session_id: _Optional[str] = ..., items: _Optional[_Iterable[_Union[_metering_pb2.UsageItem, _Mapping]]] = ..., revision: _Optional[int] = ..., input_cost_nanos: _Optional[int] = ..., output_cost_nanos: _Optional[int] = ..., other_cost_nanos: _Optional[int] = ...) -> None: ...

class CostTotals(_message.Message):
    __slots__ = ("requests", "input_tokens", "output_tokens", "cost_usd", "cost_nanos", "cache_read_tokens", "estimated_requests", "unpriced_requests")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    COST_NANOS_FIELD_NUMBER: _ClassVar[int]
    CACHE_READ_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    UNPRICED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: int
    input_tokens: int
    output_tokens: int
    cost_usd: float
    cost_nanos: int
    cache_read_tokens: int
    estimated_requests: int
    unpriced_requests: int
    def __init__(self, requests: _Optional[int] = ..., input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., cost_usd: _Optional[float] = ..., cost_nanos: _Optional[int] = ..., cache_read_tokens: _Optional[int] = ..., estimated_requests: _Optional[int] = ..., unpriced_requests: _Optional[int] = ...) -> None: ...

class CostGroup(_message.Message):
    __slots__ = ("key", "totals")
    class KeyEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    KEY_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    key: _containers.ScalarMap[str, str]
    totals: CostTotals
    def __init__(self, key: _Optional[_Mapping[str, str]] = ..., totals: _Optional[_Union[CostTotals, _Mapping]] = ...) -> None: ...
