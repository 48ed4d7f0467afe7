"""What launches that fail for another reason than capacity hold back, and for how long.

What it decides: which market of a region is paused, when it is tried again, and when nothing is launched at
all. A call that is not allowed, or that asks for what cannot be, pauses its market at once. Machines that a
fault ends before they are ready pause it when `health.boot_failures` of them did so in a row and none was
ready between. A pause lasts PAUSE_FIRST and each one after it twice as long, up to PAUSE_MOST; then one
launch tries. A pool of which no node was ever ready is not launched further after `health.give_up_after`
failed boots; until one of its machines is seen running no more launches than that are open or failed.
Why: a role that is missing, an image that may not be decrypted, or a wrong flag is fixed by a person and
nothing else. Another zone has the same fault, as a rule: where it has not, the place alone is refused, and
what tries a market after a pause goes where nothing failed. What was refused for want of capacity is
remembered apart (`policies.placement`), and so is what was taken (`policies.hazard`).
Never: a pool that had a ready node stops as a whole: where every market that is sold is paused, each is tried
again every PAUSE_FIRST. A paused market keeps no standby from being started, and keeps no node from being
covered that was lost; only the spot that was never there is not built on demand (docs/decisions/0022). An
operator's `resume` ends all of it at once.

Example:
    >>> from policies.model import HealthRules
    >>> bar = Bar(at=100.0, count=2, why="not authorised")
    >>> until(bar), holds(bar, HealthRules())
    (700.0, True)
    >>> holds(Bar(at=100.0, count=1, why="key", denied=False, boots=2), HealthRules())
    False
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set

from policies.actions import ActionKind, Alarm, Cause
from policies.events import Resumed
from policies.memory_builder import MemoryBuilder
from policies.model import HealthRules, Market, Offering, Placement, Pool
from policies.records import Bar, FailedBoot, Intent, Memory, NodeRecord
from policies.remedies import remedy
from policies.value import replace

PAUSE_FIRST, PAUSE_MOST = 300.0, 3600.0
"""Seconds for which a market is paused first, and at most."""

_DOUBLINGS = 10

Key = tuple[str, Market]
"""A market of a region."""


def key_of(placement: Placement) -> Key:
    """The market of a region that a placement is in."""
    return placement.region, placement.market


def words(key: Key) -> str:
    """A market of a region in words."""
    return f"{key[1]} in {key[0]}"


# -- what memory learns ------------------------------------------------------------------------------


def denied(
    builder: MemoryBuilder, placement: Placement, at: float, why: str, *, since: float, token: str
) -> None:
    """The launch of a token was not allowed, or asked for what cannot be: there, where others were accepted
    `since` it was asked for, else in the whole market."""
    if _works_elsewhere(builder, placement, since, token):
        builder.bad_news("refusals", placement, at)
    else:
        _news(builder, placement, at, why, denied=True)


def _works_elsewhere(builder: MemoryBuilder, placement: Placement, since: float, token: str) -> bool:
    """Another place of the market took a launch that was asked for no earlier than this one.

    That of an earlier daemon was, whatever its date: the provider has another clock.
    """
    open_ones = (i for i in builder.get("intents").values() if i.accepted_at is not None)
    taken = [(i.placement, i.asked_at) for i in open_ones if i.placement is not None]
    nodes, epoch = builder.get("nodes").values(), _epoch(token)
    taken += [(n.placement, n.launched_at) for n in nodes if _epoch(n.token) >= epoch]
    return any(
        place != placement and key_of(place) == key_of(placement) and at >= since for place, at in taken
    )


def _epoch(token: str) -> int:
    """Of the daemon that made the token of a launch (see `Turn.launch`); 0 where none of ours did."""
    _, *words = token.rsplit("/", 2)
    return int(words[0]) if len(words) == 2 and words[0].isdecimal() else 0


def faulted(builder: MemoryBuilder, placement: Placement, at: float, why: str) -> None:
    """A fault ended a machine before it was ready."""
    _news(builder, placement, at, why, denied=False)


def _news(builder: MemoryBuilder, placement: Placement, at: float, why: str, *, denied: bool) -> None:
    """What fails while a pause lasts belongs to it: a wave of launches is one pause."""
    bars, key = builder.mapping("bars"), key_of(placement)
    known: Bar | None = bars.get(key)
    if known is None:
        places = (placement,) if denied else ()
        bars[key] = Bar(at=at, count=1, why=why, denied=denied, boots=0 if denied else 1, places=places)
        return
    new = denied and placement not in known.places
    bars[key] = replace(
        known,
        at=at,
        count=known.count + (at >= until(known)),
        why=why or known.why,
        denied=known.denied or denied,
        boots=known.boots + (not denied),
        places=(*known.places, placement) if new else known.places,
    )


def accepted(builder: MemoryBuilder, intent: Intent, placement: Placement, at: float) -> None:
    """A launch was taken: it is allowed. Whether its machine starts is another matter.

    What was not allowed elsewhere in the market after this was asked for was a fault of that place: it counts
    as refused there. One that tries the market after a pause tells only that it is open again.
    """
    key = key_of(placement)
    bar: Bar | None = builder.get("bars").get(key)
    if bar is None or not bar.denied:
        return
    for place in bar.places:
        if place != placement and intent.at <= bar.at:
            builder.bad_news("refusals", place, at)
    if bar.boots:
        builder.mapping("bars")[key] = replace(bar, denied=False, places=())
    else:
        builder.mapping("bars").pop(key)


def ready(builder: MemoryBuilder, record: NodeRecord) -> None:
    """A node became ready there. That of one launched before says nothing of what is allowed since."""
    key = key_of(record.placement)
    bar: Bar | None = builder.get("bars").get(key)
    if bar is not None and (not bar.denied or record.launched_at >= bar.at):
        builder.mapping("bars").pop(key)


def resumed(builder: MemoryBuilder, event: Resumed) -> None:
    """An operator says that the fault is fixed, or wants it tried.

    A boot that began before says nothing about that, however it ends.
    """
    builder.set("resumed_at", event.at)
    builder.set("pause", None)
    builder.set("failed_starts", 0)
    builder.set("bars", {})
    builder.set("boot_failures", {})
    for node, record in [*builder.get("nodes").items()]:
        if record.denied_at is not None:
            builder.node(node, denied_at=None)


# -- what follows from it ----------------------------------------------------------------------------


def holds(bar: Bar, rules: HealthRules) -> bool:
    """The market is paused, or tried after a pause."""
    return bar.denied or bar.boots >= rules.boot_failures


def until(bar: Bar) -> float:
    """When its pause is over."""
    length: float = min(PAUSE_MOST, PAUSE_FIRST * 2.0 ** min(bar.count - 1, _DOUBLINGS))
    return bar.at + length


def paused(pool: Pool, memory: Memory) -> dict[Key, Bar]:
    """The markets that are paused, or tried after a pause."""
    return {key: bar for key, bar in memory.bars.items() if holds(bar, pool.health)}


def pauses(pool: Pool, memory: Memory, sold: Set[Key]) -> Mapping[Key, float]:
    """The markets that are paused, and until when; then each is tried. `sold`: all that are for sale."""
    barred = paused(pool, memory)
    nothing_else = memory.ready_once and bool(sold) and sold <= barred.keys()
    longest = PAUSE_FIRST if nothing_else else PAUSE_MOST
    return {key: min(until(bar), bar.at + longest) for key, bar in barred.items()}


def on_sale(offerings: Iterable[Offering]) -> set[Key]:
    """The markets where anything is for sale."""
    return {key_of(o.placement) for o in offerings if o.available}


def spot_paused(pool: Pool, memory: Memory, sold: Set[Key]) -> bool:
    """True when spot is paused wherever it is sold."""
    spot = {key for key in sold if key[1] is Market.SPOT}
    return bool(spot) and spot <= paused(pool, memory).keys()


def failed_starts(memory: Memory, given_up: Set[str] = frozenset()) -> int:
    """Boots that failed while the pool never had a ready node, those included whose end is asked for.

    `given_up`: nodes of which that is decided and not remembered yet.
    """
    ending = {
        intent.node
        for intent in memory.intents.values()
        if intent.kind is ActionKind.TERMINATE and intent.cause is Cause.BOOT
    }
    began = (memory.nodes[node].started_at for node in ending | given_up if node in memory.nodes)
    resumed_at = memory.resumed_at
    return memory.failed_starts + sum(resumed_at is None or at >= resumed_at for at in began)


def never_started(pool: Pool, memory: Memory, given_up: Set[str] = frozenset()) -> str:
    """Why nothing is launched until somebody resumes; empty while there is hope."""
    if memory.ready_once or failed_starts(memory, given_up) < pool.health.give_up_after:
        return ""
    return "this configuration has not started once: nothing more is launched until `orchestrator resume`"


def alarms(pool: Pool, memory: Memory) -> Iterator[Alarm]:
    """What a person has to fix."""
    if never_started(pool, memory):
        yield Alarm(name="never-started", reason=stopped_words(pool, memory))
    for key in to_mend(pool, memory):
        yield Alarm(name="market-paused", about=words(key), reason=pause_words(key, memory.bars[key]))


def to_mend(pool: Pool, memory: Memory) -> Iterator[Key]:
    """Paused markets that are a trouble of their own: where the pool never started, its faults are one."""
    stopped = never_started(pool, memory)
    for key, bar in sorted(paused(pool, memory).items()):
        if bar.denied or not stopped:
            yield key


def stopped_words(pool: Pool, memory: Memory) -> str:
    """That a pool never started, how its last boot failed, and what to do."""
    faults = sorted((bar.at, bar.why) for bar in memory.bars.values() if bar.boots)
    told = [boot.why for boot in memory.failed_boots] or [why for _, why in faults]
    last = f", the last one: {told[-1]}" if told and told[-1] else ""
    last += "".join(_todo(boot) for boot in memory.failed_boots[-1:])
    return f"{never_started(pool, memory)} ({failed_starts(memory)} boots failed{last})"


def _todo(boot: FailedBoot) -> str:
    """What can be done about a failed boot, and where to read on."""
    found = remedy(boot.why, *key_of(boot.placement), boot.console)
    return f"{f'; {found.text}' if found is not None else ''}; see `orchestrator node {boot.node}`"


def pause_words(key: Key, bar: Bar) -> str:
    """What is paused, by which words of the provider, and what to do."""
    what = (
        "launches are not allowed or not possible"
        if bar.denied
        else "a fault ends machines before they start"
    )
    todo = remedy(bar.why, *key)
    spot = ", and what was not there before is not bought on demand" if key[1] is Market.SPOT else ""
    return (
        f"{words(key)} is paused{spot}: {what}: {bar.why or 'the provider does not say why'}"
        f"{f'; {todo.text}' if todo is not None else ''}. Correct that, "
        "then run `orchestrator resume`; a launch tries now and then"
    )
