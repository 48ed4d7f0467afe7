"""Launches that try whether machines start: the first ones of a pool, and those in a market that was paused.

What it decides: whether one more launch may be open while it is not known whether its machine will start.
Why: an image that may not be decrypted ends every machine that is launched from it, and a missing permission
is missing for each: the first few tell as much as two hundred.
Never: launches that nobody can see, in a region that answers nothing, keep another region waiting; a machine
that runs, or a pool that had a ready node, waits for nothing here.

Example: 40 nodes are wanted of a new pool and `health.give_up_after` is 3: three are launched, and the others
as soon as one machine is seen running. If the three end before that, nothing more is launched.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from policies.bars import Key, failed_starts, key_of, never_started, paused
from policies.fleet import Fleet
from policies.model import InstanceState, Phase, World
from policies.records import Intent, Memory


def under_way(fleet: Fleet, memory: Memory) -> set[Key]:
    """Paused markets where a launch is open, or a machine launched since is not ready yet."""
    barred = paused(fleet.pool, memory)
    found = {key_of(i.placement) for i in fleet.launching if i.placement is not None} & barred.keys()
    for node in fleet.nodes:
        bar = barred.get(key_of(node.placement))
        if bar is not None and node.launched_at >= bar.at and node.phase in (Phase.PENDING, Phase.STARTING):
            found.add(key_of(node.placement))
    return found


def asking(launching: Iterable[Intent]) -> set[Key]:
    """Markets where a launch was asked for and has no answer yet."""
    return {
        key_of(i.placement)
        for i in launching
        if i.placement is not None and i.accepted_at is None and not i.unanswered
    }


def first_starts(fleet: Fleet, world: World, memory: Memory, planned: int, given_up: Set[str]) -> str:
    """Why a pool of which no node was ever ready gets no further launch now; empty when it may.

    `planned`: launches of this turn; `given_up`: nodes whose boot it gives up. What is on its way where
    nobody can see it keeps no other waiting.
    """
    pool = fleet.pool
    if memory.ready_once:
        return ""
    if stopped := never_started(pool, memory, given_up):
        return stopped
    if any(i.state is InstanceState.RUNNING and i.id in memory.nodes for i in world.instances):
        return ""
    seen = fleet.sight.waited_for
    on_their_way = planned + sum(
        i.placement is not None and seen(i.placement.region) for i in fleet.launching
    )
    on_their_way += sum(n.phase is Phase.PENDING and not n.out_of_sight for n in fleet.nodes)
    failed_so_far = failed_starts(memory, given_up)
    if on_their_way + failed_so_far < pool.health.give_up_after:
        return ""
    failed = f", {failed_so_far} failed" if failed_so_far else ""
    return f"no machine of this pool was seen running yet: {on_their_way} are on their way{failed}"
