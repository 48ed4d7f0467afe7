"""Decides recorded turns of a journal again and says where the plans differ.

The memory of a turn is the memory that its recording begins with, with the events up to the turn's number
taken in; the world is the recorded one. With the version that recorded it every plan must come out the same,
byte for byte: what a plan depends on is then all in the journal. With another version a difference shows
where that version would have decided otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import orjson

from orchestrator.journal.codec import UnknownRecord, decode_event, decode_memory, encode
from orchestrator.journal.file import JournalFile
from orchestrator.journal.turn_codec import Failure, Unpacker, canonical, decode_pool, failure
from orchestrator.journal.turn_log import Recording
from policies.actions import Plan
from policies.decide import decide_for
from policies.fleet import Fleet
from policies.memory import Memory, reduce
from policies.model import Pool, World

Decide = Callable[[Fleet, World, Memory], Plan]
"""What is tried on the recorded turns: `policies.decide.decide_for`, or a change of it."""

JsonPlan = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which turns to replay: by number of turn, by number of the last event they knew, by time.

    `pool`, `epoch`: only those of one pool, of one daemon. `newest`: at most so many, the last ones.
    """

    pool: str | None = None
    turn: int | None = None
    epoch: int | None = None
    newest: int | None = None
    first_event: int | None = None
    last_event: int | None = None
    since: float | None = None
    until: float | None = None

    def takes(self, number: int, seq: int, at: float) -> bool:
        """True for a turn that is wanted."""
        return (
            (self.turn is None or number == self.turn)
            and (self.first_event is None or seq >= self.first_event)
            and (self.last_event is None or seq <= self.last_event)
            and (self.since is None or at >= self.since)
            and (self.until is None or at <= self.until)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a turn knew and what it decides when it is decided again."""

    pool: Pool
    world: World
    memory: Memory
    fleet: Fleet
    plan: Plan | Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One turn decided again. `differences` in words, empty when both plans are the same bytes.

    `unreadable` says why it could not be decided again; then there is no scene.
    """

    number: int
    seq: int
    at: float
    pool: str
    version: str
    recorded: JsonPlan = field(default_factory=dict)
    differences: tuple[str, ...] = ()
    unreadable: str = ""
    scene: Scene | None = None

    @property
    def identical(self) -> bool:
        """True when the plan is the recorded one, byte for byte."""
        return not self.differences and not self.unreadable


def replay(
    journal: JournalFile, selection: Selection | None = None, *, decide: Decide = decide_for
) -> Iterator[Replayed]:
    """Decide the selected turns again, in their order. Raises JournalError when the file cannot be read."""
    wanted = selection if selection is not None else Selection()
    plans: list[tuple[Recording, set[int]]] = []
    left = wanted.newest
    for recording in reversed(journal.recordings()):
        if wanted.epoch in (None, recording.epoch) and wanted.pool in (None, recording.pool):
            numbers = [mark[0] for mark in journal.marks(recording) if wanted.takes(*mark)]
            if left is not None:
                numbers = numbers[max(0, len(numbers) - left) :]
                left -= len(numbers)
            if numbers:
                plans.append((recording, set(numbers)))
    for recording, chosen in reversed(plans):
        yield from _recording(journal, recording, chosen, decide)


def _recording(
    journal: JournalFile, recording: Recording, wanted: Set[int], decide: Decide
) -> Iterator[Replayed]:
    stored = journal.recorded(recording)
    broken = ""
    pool, memory = Pool(name=recording.pool, replicas=0), Memory()
    try:
        pool, memory = decode_pool(stored.wanted), decode_memory(stored.memory)
    except UnknownRecord as error:
        broken = str(error)
    unpacker = Unpacker(stored.parts.get)
    taken = 0
    for turn in stored.turns:
        upto = taken
        while upto < len(stored.events) and stored.events[upto].seq <= turn.seq:
            upto += 1
        if not broken:
            try:
                memory = reduce(memory, *(decode_event(e.kind, e.body) for e in stored.events[taken:upto]))
            except UnknownRecord as error:
                broken = f"{error}; the memory of this and later turns of the recording is not known"
        taken = upto
        if turn.number not in wanted:
            continue
        head: dict[str, Any] = {
            "number": turn.number,
            "seq": turn.seq,
            "at": turn.at,
            "pool": recording.pool,
            "version": recording.version,
        }
        try:
            if broken:
                raise UnknownRecord(broken)
            world, recorded = unpacker.unpack(turn.body)
        except UnknownRecord as error:
            yield Replayed(**head, unreadable=str(error))
            continue
        yield _again(head, pool, world, memory, recorded, decide)


def _again(
    head: Mapping[str, Any], pool: Pool, world: World, memory: Memory, recorded: JsonPlan, decide: Decide
) -> Replayed:
    plan: Plan | Failure
    try:
        fleet = Fleet.of(pool, world, memory)
    except Exception as error:
        text = f"the fleet cannot be joined: {failure(error).raised}"
        return Replayed(**head, recorded=recorded, differences=(text,))
    try:
        plan = decide(fleet, world, memory)
    except Exception as error:  # what a decision raises is what a replay is to show
        plan = failure(error)
    now = canonical(plan)
    found = () if now == encode(recorded) else differences(recorded, orjson.loads(now))
    scene = Scene(pool=pool, world=world, memory=memory, fleet=fleet, plan=plan)
    return Replayed(**head, recorded=recorded, differences=found, scene=scene)


def differences(recorded: JsonPlan, now: JsonPlan) -> tuple[str, ...]:
    """How two plans differ, in words: one line for each action, target, deferral, balancer and note."""
    if "raised" in recorded or "raised" in now:
        return tuple(
            f"decide {tense} {plan['raised']}"
            for tense, plan in (("raised", recorded), ("raises", now))
            if "raised" in plan
        )
    found = [
        *_keyed("action", recorded.get("actions", ()), now.get("actions", ()), _action),
        *_keyed("target", recorded.get("targets", ()), now.get("targets", ()), lambda t: str(t["id"])),
        *_keyed("held back", recorded.get("deferred", ()), now.get("deferred", ()), _deferred),
        *_said("writes to", recorded.get("write", ()), now.get("write", ())),
        *_said("note", recorded.get("notes", ()), now.get("notes", ())),
    ]
    if not found:
        parts = [name for name in {**recorded, **now} if encode(recorded.get(name)) != encode(now.get(name))]
        found = [
            f"the same {name} in another order"
            if name in recorded and name in now
            # what a version has that another has not
            else f"{name}: only {'now' if name in now else 'recorded'}"
            for name in parts
        ]
    return tuple(found)


def _keyed(
    what: str,
    recorded: Sequence[Mapping[str, Any]],
    now: Sequence[Mapping[str, Any]],
    name: Callable[[Mapping[str, Any]], str],
) -> Iterator[str]:
    """Things of two lists, matched by name; of several with one name, the first goes with the first."""
    before, after = _by_name(recorded, name), _by_name(now, name)
    for key, thing in before.items():
        if key not in after:
            yield f"{what} {key[0]}: only recorded{_reason(thing)}"
        elif thing != after[key]:
            other = after[key]
            changed = ", ".join(
                f"{field} was {_text(thing.get(field))}, is {_text(other.get(field))}"
                for field in {**thing, **other}
                if thing.get(field) != other.get(field)
            )
            yield f"{what} {key[0]}: {changed}"
    for key, thing in after.items():
        if key not in before:
            yield f"{what} {key[0]}: only now{_reason(thing)}"


def _by_name(
    things: Sequence[Mapping[str, Any]], name: Callable[[Mapping[str, Any]], str]
) -> dict[tuple[str, int], Mapping[str, Any]]:
    count: Counter[str] = Counter()
    found = {}
    for thing in things:
        found[name(thing), count[name(thing)]] = thing
        count[name(thing)] += 1
    return found


def _said(what: str, recorded: Sequence[str], now: Sequence[str]) -> Iterator[str]:
    yield from (f"{what} {text}: only recorded" for text in recorded if text not in now)
    yield from (f"{what} {text}: only now" for text in now if text not in recorded)


def _action(action: Mapping[str, Any]) -> str:
    who = action.get("node") or action.get("token") or action.get("name") or ""
    return f"{action['kind']} {who}".strip()


def _deferred(deferred: Mapping[str, Any]) -> str:
    place = deferred["placement"]
    where = "" if place is None else f"{place['market']} {place['instance_type']} in {place['zone']}"
    return " ".join(word for word in (deferred["kind"], deferred["node"], where) if word)


def _reason(thing: Mapping[str, Any]) -> str:
    return f" ({thing['reason']})" if thing.get("reason") else ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else encode(value).decode()
