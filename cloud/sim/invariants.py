"""What the checker and the simulation hold a run against, each in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

INVARIANTS: Final[Mapping[str, str]] = {
    "one-per-token": "one token has one machine, ever",
    "own-only": "nothing that is not ours is ended or stopped",
    "bounded": "no launch makes more living nodes than wanted, standby and surge together",
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
    "no-request-cut": "a reclaim that was told in time cuts no request",
    "disruption": "no more nodes drain by choice at once than the disruption budget allows",
    "launch-rate": "no more launches in a minute than the limit allows",
    "spend": "nodes cost no more per hour than the spend cap",
    "call-budget": "a minute has a bounded number of calls on the cloud",
    "one-writer": "no daemon acts after another took over",
    "journal": "reading the journal gives exactly the memory of the running daemon",
    "replay": "recorded turns that are decided again give the same plans, byte for byte",
    "convergence": "the pool comes to what is wanted, with nothing left over, and stays there",
    "operator-obeyed": "what an operator asked to be drained ends",
    "daemon-lives": "no daemon ends by itself",
    "nothing-unhandled": "no task fails and no exception is lost",
    "same-launches": "a daemon that was killed somewhere launches what one that was not launches",
    "repeatable": "up to where the daemon is killed, a run is the same every time",
}
"""Every invariant by name. The last two compare runs that were killed somewhere with the one that was not."""
