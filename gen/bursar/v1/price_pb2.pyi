import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PriceSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRICE_SOURCE_UNSPECIFIED: _ClassVar[PriceSource]
    PRICE_SOURCE_TENANT: _ClassVar[PriceSource]
    PRICE_SOURCE_PLATFORM: _ClassVar[PriceSource]
    PRICE_SOURCE_CATALOGUE: _ClassVar[PriceSource]
PRICE_SOURCE_UNSPECIFIED: PriceSource
PRICE_SOURCE_TENANT: PriceSource
PRICE_SOURCE_PLATFORM: PriceSource
PRICE_SOURCE_CATALOGUE: PriceSource

class Price(_message.Message):
    __slots__ = ("price_id", "tenant_id", "model_pattern", "provider", "service_tier", "input_usd_per_million", "output_usd_per_million", "cache_read_usd_per_million", "cache_write_usd_per_million", "cache_write_1h_usd_per_million", "input_audio_usd_per_million", "output_audio_usd_per_million", "input_image_usd_per_million", "output_image_usd_per_million", "request_usd", "image_usd", "web_search_usd", "tiers", "max_output_tokens", "effective_time", "source", "create_time", "update_time", "version", "provider_cost_factor")
    PRICE_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_PATTERN_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    SERVICE_TIER_FIELD_NUMBER: _ClassVar[int]
    INPUT_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    CACHE_READ_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_1H_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    INPUT_AUDIO_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_AUDIO_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    INPUT_IMAGE_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_IMAGE_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_USD_FIELD_NUMBER: _ClassVar[int]
    IMAGE_USD_FIELD_NUMBER: _ClassVar[int]
    WEB_SEARCH_USD_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_TIME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_COST_FACTOR_FIELD_NUMBER: _ClassVar[int]
    price_id: str
    tenant_id: str
    model_pattern: str
    provider: str
    service_tier: str
    input_usd_per_million: float
    output_usd_per_million: float
    cache_read_usd_per_million: float
    cache_write_usd_per_million: float
    cache_write_1h_usd_per_million: float
    input_audio_usd_per_million: float
    output_audio_usd_per_million: float
    input_image_usd_per_million: float
    output_image_usd_per_million: float
    request_usd: float
    image_usd: float
    web_search_usd: float
    tiers: _containers.RepeatedCompositeFieldContainer[PriceTier]
    max_output_tokens: int
    effective_time: _timestamp_pb2.Timestamp
    source: PriceSource
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    version: int
    provider_cost_factor: float
    def __init__(self, price_id: _Optional[str] = ..., tenant_id: _Optional[str] = ..., model_pattern: _Optional[str] = ..., provider: _Optional[str] = ..., service_tier: _Optional[str] = ..., input_usd_per_million: _Optional[float] = ..., output_usd_per_million: _Optional[float] = ..., cache_read_usd_per_million: _Optional[float] = ..., cache_write_usd_per_million: _Optional[float] = ..., cache_write_1h_usd_per_million: _Optional[float] = ..., input_audio_usd_per_million: _Optional[float] = ..., output_audio_usd_per_million: _Optional[float] = ..., input_image_usd_per_million: _Optional[float] = ..., output_image_usd_per_million: _Optional[float] = ..., request_usd: _Optional[float] = ..., image_usd: _Optional[float] = ..., web_search_usd: _Optional[float] = ..., tiers: _Optional[_Iterable[_Union[PriceTier, _Mapping]]] = ..., max_output_tokens: _Optional[int] = ..., effective_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., source: _Optional[_Union[PriceSource, str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., version: _Optional[int] = ..., provider_cost_factor: _Optional[float] = ...) -> None: ...

class PriceTier(_message.Message):
    __slots__ = ("from_input_tokens", "input_usd_per_million", "output_usd_per_million", "cache_read_usd_per_million", "cache_write_usd_per_million", "cache_write_1h_usd_per_million", "input_audio_usd_per_million", "output_audio_usd_per_million")
    FROM_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    INPUT_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    CACHE_READ_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_1H_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    INPUT_AUDIO_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_AUDIO_USD_PER_MILLION_FIELD_NUMBER: _ClassVar[int]
    from_input_tokens: int
    input_usd_per_million: float
    output_usd_per_million: float
    cache_read_usd_per_million: float
    cache_write_usd_per_million: float
    cache_write_1h_usd_per_million: float
    input_audio_usd_per_million: float
    output_audio_usd_per_million: float
    def __init__(self, from_input_tokens: _Optional[int] = ..., input_usd_per_million: _Optional[float] = ..., output_usd_per_million: _Optional[float] = ..., cache_read_usd_per_million: _Optional[float] = ..., cache_write_usd_per_million: _Optional[float] = ..., cache_write_1h_usd_per_million: _Optional[float] = ..., input_audio_usd_per_million: _Optional[float] = ..., output_audio_usd_per_million: _Optional[float] = ...) -> None: ...
