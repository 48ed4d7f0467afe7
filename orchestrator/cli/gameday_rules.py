"""A game day, judged: one node is drained on purpose, and these rules say whether the pool bore it.

Pure: what the control API shows goes in, a sentence comes out. The command line does the waiting.
"""

from __future__ import annotations

import random

from orchestrator.views.api import DaemonView, NodeView, PoolView

_OUT = ("terminating", "gone", "stopped")


def unfit(pool: PoolView, daemon: DaemonView) -> str:
    """Why no game day can begin on this pool now; empty when one can."""
    if daemon["paused"] is not None:
        return "the daemon is paused; run `orchestrator resume` first"
    if pool["state"] != "ok":
        return f"pool {pool['name']} is {pool['state']}; a game day begins with a whole pool"
    if pool["notices"]:
        return f"{pool['notices'][0]['node']} is under a notice; the cloud holds a game day of its own"
    if not candidates(pool):
        return f"pool {pool['name']} has no ready spot node in its target set"
    return ""


def candidates(pool: PoolView) -> list[NodeView]:
    """The nodes that may be drawn: ready, healthy spot nodes that serve, by id."""
    return sorted(
        (n for n in pool["nodes"] if n["market"] == "spot" and _serves(n)), key=lambda node: node["id"]
    )


def draw(pool: PoolView, seed: int) -> NodeView:
    """One candidate at random; the same pool and seed draw the same. Raises IndexError without any."""
    return random.Random(seed).choice(candidates(pool))  # noqa: S311 - no secret


def breach(pool: PoolView, node: str) -> str:
    """What the pool did not bear while `node` leaves; empty while all is well.

    The node may go only when another took its place, so ready nodes never fall below wanted.
    """
    others = [n for n in pool["notices"] if n["node"] != node]
    if others:
        return f"{others[0]['node']} got a notice meanwhile"
    if pool["state"] == "down":
        return "clients got nothing: the pool was down"
    if pool["state"] == "below-floor":
        return "the pool fell below its floor"
    ready = sum(n["units"] for n in pool["nodes"] if n["phase"] == "ready" and n["healthy"])
    if ready < pool["wanted"]:
        noun = "units" if pool["units"] else "nodes"
        return f"{ready} of {pool['wanted']} wanted {noun} were ready"
    return ""


def over(pool: PoolView, node: str) -> bool:
    """True once the node is out of service and the pool is whole without it."""
    left = [n for n in pool["nodes"] if n["id"] == node and n["phase"] not in _OUT]
    return not left and pool["state"] in ("ok", "all-on-demand")


def _serves(node: NodeView) -> bool:
    return node["phase"] == "ready" and node["healthy"] and node["attached"]
