"""Who is asked of a node's GPUs: its agent while that speaks, else an exporter, which may be late or gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hand_clock import HandClock

from cloud.errors import Uncertain
from cloud.ports import Clock
from orchestrator.loop.gpu_watch import EVERY, GpuWatch
from policies.gpu_readings import FRESH, GpuReading, NodeGpus, Xid
from policies.value import replace

Play = Callable[[Callable[[Any], Awaitable[Any]]], Any]
pytestmark = pytest.mark.usefixtures("quiet")


ONE = (GpuReading(index=0),)


@dataclass
class Exporter:
    """Answers with an error of a GPU, unless a node is gone or hangs."""

    clock: Clock
    codes: dict[str, int] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    slow: dict[str, float] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def read(self, node: str, address: str) -> NodeGpus:
        assert address == f"{node}:1"
        self.asked.append(node)
        await self.clock.sleep(self.slow.get(node, 0.1))
        if node in self.gone:
            raise Uncertain("no answer")
        xids = (Xid(pci="", code=self.codes[node], text=""),) if node in self.codes else ()
        return NodeGpus(node=node, at=self.clock.now(), source="dcgm", gpus=ONE, xids=xids)

    async def close(self) -> None:
        return


def watched(
    play: Play, work: Callable[[GpuWatch, Exporter, dict[str, NodeGpus], Clock], Awaitable[None]]
) -> None:
    async def whole(clock: Clock) -> None:
        told: dict[str, NodeGpus] = {}
        exporter = Exporter(clock)
        watch = GpuWatch(clock, reported=told.get, exporter=exporter)
        watch.follow({"a": "a:1", "b": "b:1", "": ""})
        tasks = [asyncio.ensure_future(task) for task in watch.tasks().values()]
        try:
            await work(watch, exporter, told, clock)
        finally:
            for task in tasks:
                task.cancel()

    play(whole)


def test_an_exporter_is_asked_only_where_no_agent_speaks(play: Play) -> None:
    async def work(watch: GpuWatch, exporter: Exporter, told: dict[str, NodeGpus], clock: Clock) -> None:
        told["a"] = NodeGpus(node="a", at=clock.now(), source="agent", gpus=ONE)
        await clock.sleep(1.0)
        assert exporter.asked == ["b"]
        assert {n: looked.source for n, looked in watch.looked().items()} == {"a": "agent", "b": "dcgm"}
        await clock.sleep(FRESH + 2 * EVERY)
        assert "a" in exporter.asked
        assert watch.looked()["a"].source == "dcgm"
        told["a"] = NodeGpus(node="a", at=clock.now(), source="agent", gpus=ONE)
        assert watch.looked()["a"].source == "agent", "it speaks again"

    watched(play, work)


def test_an_exporter_is_asked_where_an_agent_cannot_read_the_gpus(play: Play) -> None:
    """And the kernel log that the agent reads counts all the same."""

    async def work(watch: GpuWatch, exporter: Exporter, told: dict[str, NodeGpus], clock: Clock) -> None:
        xid = Xid(pci="0000:1b:00", code=79, text="")
        told["a"] = NodeGpus(node="a", at=clock.now(), source="agent", xids=(xid,), error="nvidia-smi: no")
        assert watch.looked()["a"].source == "agent"
        await clock.sleep(1.0)
        assert sorted(exporter.asked) == ["a", "b"]
        assert (watch.looked()["a"].source, watch.looked()["a"].xids) == ("dcgm", (xid,))
        assert watch.states({}, {})["a"].fault == "Xid 79: the GPU has fallen off the bus"
        assert watch.unread() == set()

    watched(play, work)


def test_a_node_whose_agent_speaks_again_wants_no_exporter(play: Play) -> None:
    """It was asked in vain while the agent still began."""

    async def work(watch: GpuWatch, exporter: Exporter, told: dict[str, NodeGpus], clock: Clock) -> None:
        exporter.gone = {"a", "b"}
        await clock.sleep(1.0)
        assert watch.unread() == {"a", "b"}
        told["a"] = NodeGpus(node="a", at=clock.now(), source="agent", gpus=ONE)
        await clock.sleep(EVERY)
        assert (watch.unread(), set(watch.errors)) == ({"b"}, {"b"})

    watched(play, work)


def test_gpus_that_an_agent_could_read_before_are_told_as_unread(play: Play) -> None:
    """A driver that hangs, or whose package was updated under it; not a machine that has none."""

    async def work(clock: Clock) -> None:
        told = {"a": NodeGpus(node="a", at=clock.now(), source="agent", error="nvidia-smi: No such file")}
        watch = GpuWatch(clock, reported=told.get)
        watch.follow({"a": "a:1"})
        watch.states({}, {})
        assert watch.unread() == set(), "nobody knows that it has any"
        ecc = (GpuReading(index=0, ecc_uncorrected=2.0),)
        await clock.sleep(15.0)
        told["a"] = NodeGpus(node="a", at=clock.now(), source="agent", gpus=ecc)
        fault = watch.states({}, {})["a"].fault
        assert (fault, watch.unread()) == ("GPU 0: 2 uncorrected memory errors", set())
        await clock.sleep(15.0)
        told["a"] = NodeGpus(node="a", at=clock.now(), source="agent", error="NVML: still hangs")
        assert watch.states({}, {})["a"].fault == fault, "nobody saw that it went away"
        assert watch.unread() == {"a"}
        await clock.sleep(15.0)
        told["a"] = NodeGpus(node="a", at=clock.now(), source="agent", gpus=ONE)
        assert (watch.states({}, {})["a"].fault, watch.unread()) == ("", set())
        watch.follow({})
        assert watch.unread() == set()

    play(work)


def test_an_exporter_that_is_gone_is_said_and_holds_up_no_other(play: Play) -> None:
    async def work(watch: GpuWatch, exporter: Exporter, told: dict[str, NodeGpus], clock: Clock) -> None:
        exporter.gone = {"a"}
        await clock.sleep(1.0)
        assert watch.errors == {"a": "no answer"}
        assert set(watch.looked()) == {"b"}
        exporter.gone = set()
        await clock.sleep(EVERY)
        assert watch.errors == {}
        assert set(watch.looked()) == {"a", "b"}
        exporter.gone = {"a"}
        await clock.sleep(EVERY)
        watch.follow({"b": "b:1"})
        assert watch.errors == {}, "nobody looks at it any more"

    watched(play, work)


def test_an_error_that_a_later_one_hides_is_remembered(play: Play) -> None:
    async def work(watch: GpuWatch, exporter: Exporter, told: dict[str, NodeGpus], clock: Clock) -> None:
        exporter.codes["a"] = 48
        await clock.sleep(1.0)
        exporter.codes["a"] = 43
        await clock.sleep(2 * EVERY)
        assert [x.code for x in watch.looked()["a"].xids] == [48, 43]
        assert watch.states({}, {})["a"].fault == "Xid 48: a double-bit error in GPU memory"

    watched(play, work)


def test_without_an_exporter_there_is_no_task(play: Play) -> None:
    async def work(clock: Clock) -> None:
        watch = GpuWatch(clock)
        watch.follow({"a": "a:1"})
        assert watch.tasks() == {}
        assert watch.states({}, {}) == {}

    play(work)


def test_a_node_that_is_followed_no_more_is_forgotten_and_its_neighbours_are_not(play: Play) -> None:
    async def work(watch: GpuWatch, exporter: Exporter, told: dict[str, NodeGpus], clock: Clock) -> None:
        exporter.gone = {"b"}
        await clock.sleep(1.0)
        assert (set(watch.looked()), set(watch.errors)) == ({"a"}, {"b"})
        watch.follow({"a": "a:1", "b": "b:1", "c": "c:1"})
        assert (set(watch.looked()), set(watch.errors)) == ({"a"}, {"b"})
        watch.follow({"b": "b:1"})
        assert (watch.looked(), set(watch.errors)) == ({}, {"b"})
        watch.follow({"a": "a:1"})
        assert (watch.looked(), watch.errors) == ({}, {}), "what was read before is not taken up again"

    watched(play, work)


@pytest.mark.parametrize(("silent", "read_later", "source"), [
    (FRESH, True, "agent"), (FRESH + 0.1, True, "dcgm"), (FRESH + 0.1, False, "agent"),
])  # fmt: skip
def test_an_agent_is_believed_until_it_is_silent_for_too_long_and_another_source_is_newer(
    silent: float, *, read_later: bool, source: str
) -> None:
    clock = HandClock()
    told = NodeGpus(node="a", at=clock.now(), source="agent", gpus=ONE)
    watch = GpuWatch(clock, reported={"a": told}.get)
    watch._read["a"] = replace(told, source="dcgm", at=told.at + (1.0 if read_later else -1.0))
    clock.at += silent
    newest = watch._newest("a")
    assert newest is not None
    assert newest.source == source
