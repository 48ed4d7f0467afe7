"""What a turn saw and decided comes back from its bytes as it was, and repeated columns cost nothing."""

from __future__ import annotations

import dataclasses
import types
import typing
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.journal.codec import UnknownRecord, encode
from orchestrator.journal.turn_codec import INLINE, Packer, Unpacker, canonical, decode_pool, encode_pool
from policies.actions import Cause, Drain, Plan
from policies.model import (
    AdaptiveRules,
    EngineReading,
    Instance,
    InstanceState,
    Market,
    Observed,
    Placement,
    Pool,
    Target,
    TargetSpec,
    TargetState,
    World,
)

TEXTS = st.sampled_from(["i-1", "i-2", "gw", "", "ünïcode ☃ \x00", "x" * 600])
FLOATS = st.floats(-1e12, 1e12, allow_nan=False)


def values(hint: Any, bound: Mapping[Any, Any] | None = None, **fields: Any) -> st.SearchStrategy[Any]:
    """Values of a type as worlds and plans use them; `fields` of a dataclass are drawn from these instead."""
    if isinstance(hint, TypeVar):
        return values((bound or {})[hint])
    if hint is str:
        return TEXTS
    if hint is float:
        return FLOATS
    if hint is int:
        return st.integers(-(2**53), 2**53)
    origin, arguments = get_origin(hint), get_args(hint)
    kind = origin or hint
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        parameters = dict(zip(getattr(kind, "__parameters__", ()), arguments, strict=False))
        return st.builds(
            typing.cast(Any, kind),
            **{
                f.name: fields[f.name] if f.name in fields else values(hints[f.name], parameters)
                for f in dataclasses.fields(kind)
            },
        )
    if origin in (types.UnionType, typing.Union):
        return st.one_of([values(each, bound) for each in arguments])
    if origin is tuple:
        return st.lists(values(arguments[0], bound), max_size=5).map(tuple)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=4)
    return st.from_type(hint)


def world(nodes: int, *, at: float = 1.0) -> World:
    place = Placement("sim", "r", "a", "gpu", Market.SPOT)
    machines = tuple(
        Instance(
            id=f"i-{number:04}",
            pool="p",
            token=f"p/1/{number}",
            placement=place,
            state=InstanceState.RUNNING,
            launched_at=1.0,
            price=1.0,
        )
        for number in range(nodes)
    )
    engines = {m.id: EngineReading(node=m.id, at=at, ready=True, ok=True, progress=at * 7) for m in machines}
    return World(now=at, regions={"": Observed(value=machines, at=at)}, engines=engines)


@settings(max_examples=80, deadline=None)
@given(values(World), values(Plan))
def test_a_turn_comes_back_as_it_was(seen: World, decided: Plan) -> None:
    body, parts = Packer().pack(seen, decided)
    back, plan = Unpacker(parts.get).unpack(body)
    assert back == seen
    assert [*back.engines] == [*seen.engines]
    assert encode(plan) == canonical(decided)


def test_a_turn_of_an_older_journal_has_one_list_and_says_nothing_of_when_its_daemon_woke() -> None:
    body, parts = Packer().pack(replace(world(2), awake_since=0.5, failsafe_since=0.25), Plan())
    stored = orjson.loads(zlib.decompress(body))
    stored["instances"] = stored.pop("regions")[""]
    del stored["failsafe_since"], stored["awake_since"], stored["heard"], stored["instances"]["failing_since"]
    del stored["gpus"], stored["gpu_states"], stored["readings"]["rate"], stored["readings"]["load"]
    back, _ = Unpacker(parts.get).unpack(zlib.compress(orjson.dumps(stored)))
    assert back == world(2)


def test_a_turn_of_an_older_journal_does_not_say_why_machines_ended() -> None:
    body, parts = Packer().pack(world(2), Plan())
    stored = orjson.loads(zlib.decompress(body))
    for column in ("ending", "ending_why"):
        del stored["regions"][""]["rows"][column]
    back, _ = Unpacker(parts.get).unpack(zlib.compress(orjson.dumps(stored)))
    assert back == world(2)


def test_a_turn_of_an_older_journal_knows_no_adapters() -> None:
    target = Target(id="i-1", address="h:1", state=TargetState.HEALTHY)
    seen = replace(world(1), balancers={"gateway": Observed(value=(target,), at=1.0)})
    decided = Plan(targets=(TargetSpec(id="i-1", address="h:1"),))
    body, parts = Packer().pack(seen, decided)
    stored = orjson.loads(zlib.decompress(body))
    del stored["adapter_use"], stored["plan"]["targets"]["adapters"]
    for column in ("adapters", "adapter_in_flight", "adapters_leaving"):
        del stored["balancers"]["gateway"]["rows"][column]
    back, plan = Unpacker(parts.get).unpack(zlib.compress(orjson.dumps(stored)))
    assert back == seen
    assert encode(plan) == canonical(decided)


@settings(max_examples=30, deadline=None)
@given(
    values(Pool, units=st.dictionaries(TEXTS, st.integers(1, 9), max_size=4), adaptive=st.none())
    | values(Pool, units=st.just({}))
)
def test_a_pool_comes_back_as_it_was(pool: Pool) -> None:
    assert decode_pool(encode_pool(pool)) == pool
    assert decode_pool(encode_pool(Pool(name="p", replicas=1, adaptive=AdaptiveRules()))).adaptive


def test_a_column_that_did_not_change_costs_its_name() -> None:
    packer, plan = Packer(), Plan()
    first, parts = packer.pack(world(200), plan)
    again, fresh = packer.pack(world(200, at=2.0), plan)
    assert len(parts) > 5
    assert len(fresh) == 2, "when and how far each engine was read"
    stored = {**parts, **fresh}
    unpacker = Unpacker(stored.get)
    assert unpacker.unpack(first)[0] == world(200)
    assert unpacker.unpack(again)[0] == world(200, at=2.0)
    packer.forget()
    assert set(packer.pack(world(200), plan)[1]) == set(parts)


def test_of_a_small_pool_everything_is_in_the_body() -> None:
    assert len(encode([f"i-{number:04}" for number in range(4)])) < INLINE
    assert Packer().pack(world(4), Plan())[1] == {}


def test_equal_plans_are_the_same_bytes() -> None:
    """An adapter may hand on 5 where another says 5.0."""
    whole = Plan(actions=(Drain(node="i-1", deadline=5, cause=Cause.NOTICE, reason="r"),))
    exact = Plan(actions=(Drain(node="i-1", deadline=5.0, cause=Cause.NOTICE, reason="r"),))
    assert whole == exact
    assert canonical(whole) == canonical(exact)
    body, parts = Packer().pack(world(1), whole)
    assert encode(Unpacker(parts.get).unpack(body)[1]) == canonical(exact)


def test_damage_is_said() -> None:
    body, parts = Packer().pack(world(200), Plan())
    with pytest.raises(UnknownRecord, match=r"the recorded turn cannot be read.*part .* is missing"):
        Unpacker(lambda _: None).unpack(body)
    with pytest.raises(UnknownRecord, match="the recorded turn cannot be read"):
        Unpacker(parts.get).unpack(body[:-5])
    with pytest.raises(UnknownRecord, match="the recorded pool cannot be read"):
        decode_pool(b'{"name": "p"}')
