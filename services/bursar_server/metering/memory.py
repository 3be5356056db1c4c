"""What a lane remembers of the rows that its batches left, so that the next batch need not read them first."""

from collections import OrderedDict

from bursar_server.ledger.model import BalanceKey, BalanceState, CallKey, Hold
from bursar_server.ledger.service import Books

MAX_BALANCES = 50_000
MAX_HOLDS = 20_000
# How long a lane does without its memory after it was wrong: somebody else charges the same budgets. Doubled each time.
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0


class NotRememberedError(Exception):
    """A batch cannot be evaluated on what is remembered: it locks and reads its rows first."""


class Memory:
    """Balances and open holds as the last batch of this lane left them. Bounded; belongs to one lane.

    Nothing here is trusted on its own: a batch that is evaluated on it confirms it in the transaction that it writes.
    """

    def __init__(self) -> None:
        self._balances: OrderedDict[BalanceKey, BalanceState] = OrderedDict()
        self._holds: OrderedDict[CallKey, Hold] = OrderedDict()
        self._pause_s = 0.0
        self._paused_until = 0.0

    def usable(self, monotonic_s: float) -> bool:
        """Whether batches may be evaluated on it."""
        return monotonic_s >= self._paused_until

    def balance(self, key: BalanceKey) -> BalanceState | None:
        """Return a balance as it was left; it is not to be changed."""
        return self._balances.get(key)

    def hold(self, call: CallKey) -> Hold | None:
        """Return an open call's hold; its lease may have been renewed since."""
        return self._holds.get(call)

    def learn(self, books: Books) -> None:
        """Remember what a batch left; what it did not change it has read or confirmed."""
        for key, state in books.balances.items():
            state.changed = False
            self._balances[key] = state
        for call, hold in books.holds.items():
            if call not in books.stored_holds:
                self._holds[call] = hold
        for call in books.gone_holds:
            self._holds.pop(call, None)
        while len(self._balances) > MAX_BALANCES:
            self._balances.popitem(last=False)
        while len(self._holds) > MAX_HOLDS:
            self._holds.popitem(last=False)

    def confirmed(self) -> None:
        """Note that it was right: the pause is quartered, so that it still grows where most batches are refuted."""
        if self._pause_s:
            self._pause_s = self._pause_s / 4 if self._pause_s > FIRST_PAUSE_S / 4 else 0.0

    def refuted(self, books: Books, monotonic_s: float) -> None:
        """Forget what a batch was evaluated on, which was not so, and pause."""
        self._balances.clear()
        for call in (*books.stored_holds, *books.holds, *books.gone_holds):
            self._holds.pop(call, None)
        self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2 or FIRST_PAUSE_S)
        self._paused_until = monotonic_s + self._pause_s
