"""What calls have cost lately: how the sidecar prices a call while the control plane cannot be asked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from bursar.v1.metering_service_pb2 import DeductResponse
from bursar_sidecar.providers.base import UsageItem

#: Prices are kept for a million tokens, as prices are written; a call's is rounded up.
_PER_TOKENS = 1_000_000
#: What was dearer this long ago does not count any more once something cheaper is seen.
_RECENT_S = 3600.0
_MODELS_MAX = 1_000


class _Highest:
    """The highest amount seen lately."""

    __slots__ = ("at", "nanos")

    def __init__(self) -> None:
        self.nanos: int | None = None
        self.at = 0.0

    def see(self, nanos: int, now: float) -> None:
        if self.nanos is None or nanos >= self.nanos or now - self.at > _RECENT_S:
            self.nanos, self.at = nanos, now


class _Rate:
    """What a model's calls have cost: for a million tokens of input and of output, and beside the tokens."""

    __slots__ = ("input", "other", "output")

    def __init__(self) -> None:
        self.input = _Highest()
        self.output = _Highest()
        self.other = _Highest()


class Rates:
    """The highest recent price of each model asked for, at most a thousand of them, those used last.

    Learnt from what Deducts cost; instants are the clock's monotonic seconds.
    """

    def __init__(self) -> None:
        self._rates: OrderedDict[tuple[str, str], _Rate] = OrderedDict()

    def learn(
        self, provider: str, model: str, items: Iterable[UsageItem], charged: DeductResponse, now: float
    ) -> None:
        """Note what a call cost. What had no price says nothing: unpriced is not free (S10)."""
        if charged.unpriced or not items:
            return
        rate = self._rates.setdefault((provider, model), _Rate())
        self._rates.move_to_end((provider, model))
        while len(self._rates) > _MODELS_MAX:
            self._rates.popitem(last=False)
        input_tokens, output_tokens = tokens_of(items)
        if input_tokens:
            rate.input.see(_up(charged.input_cost_nanos * _PER_TOKENS, input_tokens), now)
        if output_tokens:
            rate.output.see(_up(charged.output_cost_nanos * _PER_TOKENS, output_tokens), now)
        rate.other.see(charged.other_cost_nanos, now)

    def price(self, provider: str, model: str, input_tokens: int, output_tokens: int) -> int | None:
        """Return what such a call costs at most, in nanos; None where that cannot be told.

        Of a model that was not seen lately: as much as the dearest one that was.
        """
        rate = self._rates.get((provider, model))
        total = 0
        for tokens, part in ((input_tokens, "input"), (output_tokens, "output"), (_PER_TOKENS, "other")):
            if not tokens:
                continue
            nanos = getattr(rate, part).nanos if rate is not None else None
            if nanos is None:
                nanos = self._dearest(part)
            if nanos is None:
                return None
            total += _up(tokens * nanos, _PER_TOKENS)
        return total

    def _dearest(self, part: str) -> int | None:
        known = (getattr(rate, part).nanos for rate in self._rates.values())
        return max((nanos for nanos in known if nanos is not None), default=None)


def tokens_of(items: Iterable[UsageItem]) -> tuple[int, int]:
    """Return the tokens of input and of output that a call's items come to."""
    input_tokens = output_tokens = 0
    for item in items:
        input_tokens += item.usage.input_tokens
        output_tokens += item.usage.output_tokens
    return input_tokens, output_tokens


def _up(amount: int, divisor: int) -> int:
    return -(-amount // divisor)
