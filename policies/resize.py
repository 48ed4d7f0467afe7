"""Whether a changed wanted state is so much larger or smaller that it should be confirmed.

What it decides: `unconfirmed` says why a change must not be taken up without being confirmed, or nothing.
Growth is judged by the units that the pool keeps (replicas and standby) and by its replicas alone, by what
they usually cost an hour and by the most that the pool may cost: more than FACTOR times as much as is in
force, and more than SPARE nodes beyond it. Replicas that were never there count for nothing in that, so that
a pool which doubled has to be whole before it doubles again. A smaller number is judged by what the pool has:
the replicas with which it was last whole, or the units that are ready beside standby and surge, whichever is
more. Less than one FACTOR-th of that, and more than SPARE nodes fewer, has to be confirmed, and so has none
at all, however few there were.
Why: one digit too many buys a thousand nodes within a minute, one too few ends those that serve. A program
that doubles a number because its nodes are still starting does so in steps.
Never: taking a change back is harder than making it. The two rules mirror each other, and the replicas with
which the pool was last whole may always be gone back to: what was wanted beyond them was never there. An
unknown price is not taken for zero: where no price is known, a cap is compared with the cap before it.

Example:
    >>> four, many = Pool(name="p", replicas=4), Pool(name="p", replicas=4000)
    >>> has = Has(whole_with=4, ready=60)
    >>> prices = Prices(on_demand=3.0, spot=1.0, dearest=3.0)
    >>> print(unconfirmed(four, many, has, prices))
    the pool would grow to more than twice the size in force
    >>> print(sizes(four, many, prices))
    4 -> 4000 nodes, about $8.00 -> $6,400.00 an hour, at most $18.00 -> $12,006.00
    >>> unconfirmed(many, four, has, prices)
    ''
    >>> print(unconfirmed(many, Pool(name="p", replicas=3), has, prices))
    the pool has 60 nodes ready and was last whole with 4, and less than half of that would be left
"""

from __future__ import annotations

from collections.abc import Iterable

from policies.bill import Prices, most, usual
from policies.events import PoolConfigured
from policies.memory_builder import MemoryBuilder
from policies.model import Instance, InstanceState, Pool, StandbyRules
from policies.records import Memory, StartedWith
from policies.value import replace, value

FACTOR = 2
"""How many times larger or smaller a pool may become by a change that is not confirmed: twice, or half."""

SPARE = 2
"""So many nodes more or fewer are always taken up: a small pool doubles quickly."""

_RUNS = (InstanceState.PENDING, InstanceState.RUNNING)


@value
class Has:
    """What a pool has, in units.

    `whole_with`: the replicas with which it was last whole, 0 for never. `grows_from`: replicas beyond it
    count for nothing when growth is judged, 0 where all that are wanted count.
    """

    whole_with: int
    ready: int
    grows_from: int = 0

    @staticmethod
    def before(pool: Pool) -> Has:
        """What counts before the first look: the pool has what it wants."""
        return Has(whole_with=pool.replicas, ready=0)


def unconfirmed(before: Pool, after: Pool, has: Has, prices: Prices) -> str:
    """Why `after` must not follow `before` unless it is confirmed; empty when it may."""
    spare = SPARE * max(before.largest, after.largest)
    if why := _grows(before, after, has, spare):
        return why
    dollars = spare * prices.dearest if prices.dearest is not None else 0.0
    for price, verb in ((usual, "would"), (most, "may")):
        was, becomes = price(before, prices), price(after, prices)
        if was is None:
            continue
        if becomes is None:
            return "the spend cap would end, and no price is known to say what the pool may cost then"
        if _larger(becomes, was, dollars):
            return f"the pool {verb} cost more than twice what it {verb} cost now"
    return _loses(before, after, has, spare)


def unconfirmed_loss(before: Pool, after: Pool, has: Has) -> str:
    """Why `after` must not follow `before` unconfirmed where only its losses matter; empty when it may."""
    return _loses(before, after, has, SPARE * max(before.largest, after.largest))


def sizes(before: Pool, after: Pool, prices: Prices) -> str:
    """Both sizes and what they cost, in words."""
    parts = [f"{_kept(before)} -> {_kept(after)} {after.noun(_kept(after))}"]
    usually = usual(before, prices), usual(after, prices)
    if None not in usually:
        parts.append(f"about {' -> '.join(map(_money, usually))} an hour")
    mostly = most(before, prices), most(after, prices)
    if mostly != (None, None):
        parts.append(f"at most {' -> '.join(map(_money, mostly))}")
    return ", ".join(parts) + ("" if prices.on_demand is not None else " (prices are not known yet)")


def configured(pool: Pool, *, at: float) -> PoolConfigured:
    """The event that the journal keeps of a wanted state."""
    return PoolConfigured(
        at=at,
        replicas=pool.replicas,
        hot=pool.standby.hot,
        stopped=pool.standby.stopped,
        adapters=pool.adapters.started_with,
    )


def note(builder: MemoryBuilder, event: PoolConfigured) -> None:
    """Take a wanted state into memory."""
    if event.replicas != builder.get("replicas"):
        whole = builder.get("whole_at") is not None
        builder.set("reached", min(event.replicas, builder.get("replicas" if whole else "reached")))
        if whole:
            builder.set("whole_before", builder.get("replicas"))
        builder.set("replicas", event.replicas)
        builder.set("whole_at", None)
    builder.set("hot", event.hot)
    builder.set("stopped", event.stopped)
    if event.adapters != builder.get("started_with").adapters:
        since = builder.get("epoch"), builder.get("serial")
        builder.set("started_with", StartedWith(adapters=event.adapters, since=since))


def in_force(pool: Pool, memory: Memory) -> Pool | None:
    """The pool with the size that the journal remembers; None where it remembers none.

    An older journal knows nothing of standbys: they are left as they are. The adaptive mix has no hot ones.
    """
    if not memory.replicas and memory.hot is None:
        return None
    standby = pool.standby
    if memory.hot is not None and memory.stopped is not None:
        hot = memory.hot if pool.adaptive is None else 0
        standby = replace(standby, hot=hot, stopped=memory.stopped)
    return replace(pool, replicas=memory.replicas, standby=standby)


def unconfirmed_at_start(pool: Pool, memory: Memory, machines: Iterable[Instance] | None) -> str:
    """Why a daemon that starts must not take up the size of its file; empty when it may.

    `machines` is a list of the cloud, None where it cannot be read. The journal may be an old one that was
    restored, and units may count differently than before: where more runs than the pool of the journal may
    have, growth to that launches nothing, and what does not run any more cannot be lost.
    """
    before = in_force(pool, memory)
    if before is None:
        return ""
    if memory.hot is None or memory.stopped is None:
        before, pool = (replace(one, standby=StandbyRules()) for one in (before, pool))
    whole = memory.whole_with
    has = Has(whole_with=whole, ready=0 if whole else before.replicas, grows_from=whole)
    if machines is not None:
        running = sum(pool.units_of(one.placement) for one in machines if one.state in _RUNS)
        has = Has(whole_with=min(whole, running), ready=running, grows_from=whole)
        if running > before.most_units:
            has = replace(has, grows_from=0)
            before = replace(before, replicas=max(before.replicas, min(running, pool.replicas)))
    return unconfirmed(before, pool, has, Prices())


def _kept(pool: Pool) -> int:
    """The units that the pool keeps while all is well."""
    return pool.replicas + pool.standby.hot + pool.standby.stopped


def _multiplies(after: Pool, before: Pool, spare: int) -> bool:
    return _larger(_kept(after), _kept(before), spare) or _larger(after.replicas, before.replicas, spare)


def _larger(after: float, before: float, spare: float) -> bool:
    return after > FACTOR * before and after - before > spare


def _grows(before: Pool, after: Pool, has: Has, spare: int) -> str:
    if _multiplies(after, before, spare):
        return "the pool would grow to more than twice the size in force"
    if not has.grows_from or not after.replicas > before.replicas > has.grows_from:
        return ""
    if not _multiplies(after, replace(before, replicas=has.grows_from), spare):
        return ""
    return f"the pool would grow to more than twice the {has.grows_from} replicas it was last whole with"


def _loses(before: Pool, after: Pool, has: Has, spare: int) -> str:
    if after.replicas >= before.replicas or (has.whole_with and after.replicas >= has.whole_with):
        return ""
    beside = before.standby.hot + before.limits.surge
    empties = not after.replicas and max(has.whole_with, has.ready) > 0
    if not empties and not _larger(max(has.whole_with, has.ready - beside), after.replicas, spare):
        return ""
    ready = f"has {has.ready} {before.noun(has.ready)} ready"
    whole = f"was last whole with {has.whole_with}" if has.whole_with else ""
    what = " and ".join(part for part in (ready if has.ready else "", whole) if part)
    return f"the pool {what}, and {'none' if empties else 'less than half'} of that would be left"


def _money(dollars: float | None) -> str:
    return "no cap" if dollars is None else f"${dollars:,.2f}"
