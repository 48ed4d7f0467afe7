"""What the checker and the simulation hold a run against: each in one sentence, and the bounds in time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Final

from policies.model import Placement
from policies.value import value

INVARIANTS: Final[Mapping[str, str]] = {
    "one-per-token": "one token has one machine, ever",
    "own-only": "nothing that is not ours is ended or stopped",
    "bounded": "no launch makes more live than wanted, standby and surge, but for the rest of its node",
    "tracked": "every live machine of ours is known to the daemon",
    "floor": "no action of ours takes on-demand nodes below the floor",
    "no-self-harm": "a healthy node leaves the target set only when enough ready nodes stay",
    "last-target": "the target set is never emptied while somebody in it can answer",
    "detach-first": "a node leaves the target set before it ends",
    "drain-first": "the requests of a node finish before it ends",
    "ready-first": "no node gets requests before its engine gave a token",
    "no-way-back": "a node that drains gets no new requests",
    "dead-target": "no target points at an ended machine for long",
    "prompt-detach": "a noticed node leaves the target set at once, where enough others serve",
    "one-source": "a notice that one source alone tells of takes its node out as well",
    "acknowledged": "no source forgets a notice before it is in the journal",
    "serves-on": "a noticed node whose time is not up leaves only where enough others serve",
    "unserved": "no request finds nobody while a node is ready that should be a target",
    "no-request-cut": "a reclaim that was told in time cuts no request",
    "pause": "while the pool is paused only noticed nodes drain, and nothing is launched or ended",
    "clear-sight": "nothing is launched or ended on a list that is too old",
    "disruption": "no more nodes drain by choice at once than the disruption budget allows",
    "launch-rate": "no more launches in a minute than the limit allows",
    "spend": "nodes cost no more per hour than the spend cap",
    "budget": "no launch makes what all pools have together more than the budget that they share",
    "in-vain": "what a person has to fix first is tried once a pause, and never after a start that failed",
    "regions": "one region's silence holds back nothing elsewhere",
    "prices": "prices that cannot be read hold back no launch",
    "call-budget": "a minute has a bounded number of calls on the cloud",
    "failsafe": "while no database answers, noticed nodes leave the target set and nothing else is done",
    "one-writer": "no daemon acts after another took over",
    "journal": "reading the journal gives exactly the memory of the running daemon",
    "replay": "recorded turns that are decided again give the same plans, byte for byte",
    "convergence": "the pool comes to what is wanted, with nothing left over, and stays there",
    "reload": "a configuration that is faulty, or takes most nodes away unasked, changes nothing",
    "adapter-held": "no request for an adapter goes to a node that does not hold it",
    "adapter-unrouted": "no adapter is unloaded from a node that is sent requests for it",
    "operator-obeyed": "what an operator asked to be drained ends",
    "daemon-lives": "no daemon ends by itself",
    "nothing-unhandled": "no task fails and no exception is lost",
    "same-launches": "a daemon that was killed somewhere launches what one that was not launches",
    "repeatable": "up to where the daemon is killed, a run is the same every time",
}
"""Every invariant by name. The last two compare runs that were killed somewhere with the one that was not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """An invariant that did not hold."""

    name: str
    at: float
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How long a daemon that is up may take, seconds."""

    track: float = 15.0  # to know a machine that lists show
    forget_target: float = 15.0  # to take an ended machine out of a target set
    detach: float = 3.0  # to take a noticed node out of the target set, once enough others serve
    see_loss: float = 10.0  # to see that a node answers no more, or answers again
    enter: float = 15.0  # for a ready node to become a target
    settle_calls: float = 60.0  # to have an outcome of every launch that was asked for
    finish: float = 10.0  # for requests to finish once their node has left the target set
    look_anew: float = 8.0  # to find out, after it was frozen, that no database answers
    told_early: float = 30.0  # a reclaim told at least so long before cuts no request


@value
class DaemonState:
    """What the checker needs to know of the daemon that runs: since when, and which nodes it knows.

    `woke_at`: when it was last thawed. `ahead`: seconds by which its host's clock is ahead of the world's.
    `failsafe`: the database does not answer it, and its lease has run out. `doubtful`: where it asked for
    launches whose outcome it cannot know.
    """

    up_since: float
    known: Set[str]
    woke_at: float = -math.inf
    ahead: float = 0.0
    failsafe: bool = False
    doubtful: tuple[Placement, ...] = ()
