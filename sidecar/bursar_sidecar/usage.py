"""Turns what a provider reports into usage that can be billed: numbers read with care, gaps estimated and flagged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation

from bursar_sidecar.providers.base import ApiCall, Metered, Outcome, Usage, UsageItem
from bursar_sidecar.tokens import SAMPLE_MAX_BYTES, asked_tokens, said_tokens

#: No answer consumes more units than this; a larger figure is a defect of the provider and reads as not reported.
COUNT_MAX = 10**12

#: A JSON answer that was cut off is taken for at most this many output tokens where the request set no limit.
CUT_ANSWER_TOKENS_MAX = 4096


@dataclass(slots=True)
class Findings:
    """What has been read from one answer so far; a reader writes it, `settle` turns it into `Metered`.

    `usage` is the main model's, `others` are further models billed by the same answer. `final` says that the figures
    cover the whole answer (streams report interim ones too); `input_unknown`, that they say nothing of the input.
    `work_id` is what the provider calls the answer; `deferred`: it has only queued the work.
    """

    model: str = ""
    service_tier: str = ""
    usage: Usage | None = None
    others: tuple[UsageItem, ...] = ()
    final: bool = False
    input_unknown: bool = False
    provider_cost_usd: str | None = None
    text_bytes: int = 0
    web_searches: int = 0
    failed: bool = False
    cancelled: bool = False
    finished: bool = False
    deferred: bool = False
    work_id: str = ""
    sample: list[str] = field(default_factory=list)

    def say(self, *texts: str) -> None:
        """Note text that the model generated, for an estimate should usage never come."""
        for said in texts:
            if said:
                if self.text_bytes < SAMPLE_MAX_BYTES:
                    self.sample.append(said[:SAMPLE_MAX_BYTES])
                self.text_bytes += len(said) if said.isascii() else len(said.encode(errors="replace"))


def count(value: object) -> int:
    """Return `value` as a number of units: a whole number from 0 to COUNT_MAX, else 0 (not reported)."""
    if value is None:
        return 0
    if type(value) is int:  # nearly always; `bool` is another type
        return value if 0 <= value <= COUNT_MAX else 0
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return 0
    if not 0 <= value <= COUNT_MAX:  # NaN is in no range
        return 0
    whole = int(value)
    return whole if whole == value else 0


def part(value: object) -> Mapping[str, object]:
    """Return `value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def parts(value: object) -> list[Mapping[str, object]]:
    """Return the JSON objects in `value` if it is an array, else none."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def text(value: object) -> str:
    """Return `value` if it is text, else the empty text."""
    return value if isinstance(value, str) else ""


def clamped(usage: Usage) -> Usage:
    """Return `usage` with no part larger than its whole (some answers report more cached than prompt tokens).

    Reasoning stays as it is: nothing is priced by it, and some gateways count it beside the output.
    """
    whole_in, whole_out = usage.input_tokens, usage.output_tokens
    read = min(usage.cache_read_tokens, whole_in)
    write_5m = min(usage.cache_write_5m_tokens, whole_in - read)
    return Usage(
        input_tokens=whole_in,
        output_tokens=whole_out,
        cache_read_tokens=read,
        cache_write_5m_tokens=write_5m,
        cache_write_1h_tokens=min(usage.cache_write_1h_tokens, whole_in - read - write_5m),
        reasoning_tokens=usage.reasoning_tokens,
        input_audio_tokens=min(usage.input_audio_tokens, whole_in),
        output_audio_tokens=min(usage.output_audio_tokens, whole_out),
        input_image_tokens=min(usage.input_image_tokens, whole_in),
        output_image_tokens=min(usage.output_image_tokens, whole_out),
        images=usage.images,
        web_searches=usage.web_searches,
        requests=usage.requests,
    )


def decimal_text(value: object) -> str | None:
    """Return an amount as plain decimal text without an exponent; None for what is not a finite amount >= 0."""
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        return None
    try:
        amount = Decimal(value)
    except InvalidOperation:
        return None
    if not amount.is_finite() or amount < 0 or amount.adjusted() > 12:
        return None
    return format(amount, "f")


def settle(call: ApiCall, status: int, found: Findings, complete: bool, outcome: Outcome | None) -> Metered:
    """Return what the answer consumed, estimated and flagged where it did not say (F103).

    A failed answer without usage or text consumed nothing (S17). Work that is only queued is not billed yet.
    """
    outcome = outcome or _outcome(status, found, complete)
    if not call.metered or found.deferred:
        work_id = found.work_id if found.deferred else ""
        return Metered((), False, found.provider_cost_usd, outcome, work_id)
    answered = 200 <= status < 300 and outcome is not Outcome.FAILED
    if found.usage is None and not answered and not found.text_bytes:
        return Metered((), False, found.provider_cost_usd, outcome)
    estimated = found.usage is None or not found.final or found.input_unknown
    usage = _estimated(call, found) if estimated else found.usage
    assert usage is not None  # noqa: S101  (either branch made one)
    main = UsageItem(found.model or call.model, found.service_tier, usage)
    work_id = found.work_id if estimated else ""
    return Metered((main, *found.others), estimated, found.provider_cost_usd, outcome, work_id)


def _outcome(status: int, found: Findings, complete: bool) -> Outcome:
    if not 200 <= status < 300 or found.failed:
        return Outcome.FAILED
    if found.cancelled:
        return Outcome.CANCELLED
    return Outcome.SUCCESS if complete else Outcome.PARTIAL


def _estimated(call: ApiCall, found: Findings) -> Usage:
    """Return the larger of what was reported so far and what the text that came is taken for."""
    models = (found.model, call.model)
    output = said_tokens(models, found.sample, found.text_bytes)
    if call.max_output_tokens is not None:
        output = min(output, call.max_output_tokens)
    if found.usage is None:
        return Usage(input_tokens=_asked(call, models), output_tokens=output, requests=1)
    usage = found.usage
    if not found.final:
        usage = usage._replace(output_tokens=max(usage.output_tokens, output))
    if found.input_unknown:
        usage = usage._replace(input_tokens=_asked(call, models))
    return usage


def _asked(call: ApiCall, models: tuple[str, str]) -> int:
    """Return what the input is taken for: as a vocabulary counts it, else as it was for the Check."""
    counted = asked_tokens(models, call.body)
    return call.input_tokens_estimate if counted is None else counted
