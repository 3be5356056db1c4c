"""What is done to the installation, and when: the same seed makes the same plan."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass, field


class Do(enum.StrEnum):
    """One thing that is done. ON_…: the kill waits for an event, so that it hits the narrow window behind it."""

    SIDECAR = "sidecar"
    SIDECAR_ON_ANSWER = "sidecar, the provider's answer being out"
    SIDECAR_ON_REPLY = "sidecar, the reply to its Deduct being out"
    SIDECAR_AND_OUTBOX = "sidecar and its outbox"
    SIDECAR_STARTING = "sidecar, twice, the second time as it starts"
    PLANE = "control plane"
    PLANE_ON_COMMIT = "control plane, its commit being done"
    PLANE_ON_REPLY = "both control planes, the reply to a Deduct being out"
    PLANE_STARTING = "control plane, twice, the second time as it starts"
    DATABASE = "database"
    DATABASE_ON_COMMIT = "database, a commit being done"
    BACKEND = "one backend of the database"
    PROVIDER = "provider"
    EVERYTHING = "everything at once"
    FREEZE = "(the database stands still)"
    TERMINATE = "(the database ends all connections)"
    CUT = "(the sidecar is cut off)"
    DISK_FULL = "(the outbox's disk is full)"
    CLOCK = "(the sidecar's clock jumps)"


#: How many processes each kills; the rest are faults.
KILLS = {
    **dict.fromkeys(Do, 1),
    Do.SIDECAR_STARTING: 2,
    Do.PLANE_STARTING: 2,
    Do.PLANE_ON_REPLY: 2,
    Do.EVERYTHING: 5,
    **dict.fromkeys((Do.FREEZE, Do.TERMINATE, Do.CUT, Do.DISK_FULL, Do.CLOCK), 0),
}

_WEIGHTS = {
    Do.SIDECAR: 10,
    Do.SIDECAR_ON_ANSWER: 20,
    Do.SIDECAR_ON_REPLY: 8,
    Do.SIDECAR_AND_OUTBOX: 6,
    Do.SIDECAR_STARTING: 2,
    Do.PLANE: 8,
    Do.PLANE_ON_COMMIT: 12,
    Do.PLANE_ON_REPLY: 8,
    Do.PLANE_STARTING: 2,
    Do.DATABASE: 6,
    Do.DATABASE_ON_COMMIT: 6,
    Do.BACKEND: 4,
    Do.PROVIDER: 6,
    Do.EVERYTHING: 2,
    Do.FREEZE: 3,
    Do.TERMINATE: 4,
    Do.CUT: 5,
    Do.DISK_FULL: 3,
    Do.CLOCK: 4,
}
_SHORT = (
    Do.SIDECAR_ON_ANSWER,
    Do.PLANE_ON_COMMIT,
    Do.CUT,
    Do.SIDECAR_ON_REPLY,
    Do.DATABASE_ON_COMMIT,
    Do.DISK_FULL,
    Do.SIDECAR_AND_OUTBOX,
    Do.CLOCK,
    Do.TERMINATE,
    Do.EVERYTHING,
)
# Clocks that are a little off, that are off by more than an id may be (5 minutes ahead, a day behind), and right ones.
_CLOCKS_S = (0, 0, 40, -40, 290, -3_000, 7_200, -100_000)


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do, `pause_s` after the one before, or after calls are `answered` again.

    `delay_s` is between the event that is waited for and the kill; `down_s` how long what was killed stays away or a
    fault lasts; `which` picks among processes of one kind; `open_gate` is how the sidecar is started again;
    `clock_s` is what the sidecar's clock is then off by.
    """

    what: Do
    pause_s: float
    delay_s: float
    down_s: float
    which: int
    open_gate: bool
    clock_s: int
    answered: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is done in one run, in order."""

    seed: int
    actions: tuple[Action, ...] = field(repr=False)

    @property
    def kills(self) -> int:
        """How many processes are killed."""
        return sum(KILLS[action.what] for action in self.actions)


def long_plan(seed: int, kills: int, outage_s: float) -> Plan:
    """Return a plan of at least so many kills; once, in the middle, the database stands still for `outage_s`."""
    rng = random.Random(seed)
    whats = list(Do)
    rng.shuffle(whats)
    while sum(KILLS[what] for what in whats) < kills:
        whats += rng.choices(tuple(_WEIGHTS), tuple(_WEIGHTS.values()))
    actions = [_action(rng, what) for what in whats]
    outage = Action(Do.FREEZE, 1.0, 0.0, outage_s, 0, False, 0, 20)
    actions.insert(len(actions) // 2, outage)
    return Plan(seed, tuple(actions))


def short_plan(seed: int) -> Plan:
    """Return a plan of a handful of kills and faults, each once, that a test suite has the time for."""
    rng = random.Random(seed)
    actions = [_action(rng, what, longest_s=0.3) for what in _SHORT]
    actions.append(Action(Do.FREEZE, 0.1, 0.0, 1.5, 0, False, 0, 8))
    return Plan(seed, tuple(actions))


def _action(rng: random.Random, what: Do, longest_s: float = 3.0) -> Action:
    return Action(
        what=what,
        pause_s=rng.uniform(0.1, min(0.9, longest_s)),
        delay_s=rng.choice((0.0, 0.0, rng.uniform(0, 0.002), rng.uniform(0, 0.02))),
        down_s=rng.choice((0.0, rng.uniform(0, 0.5), rng.uniform(0, longest_s))),
        which=rng.randrange(1000),
        open_gate=rng.random() < 0.2,
        clock_s=rng.choice(_CLOCKS_S),
        answered=rng.choice((0, 8, 8, 30 if longest_s > 1 else 8)),
    )
