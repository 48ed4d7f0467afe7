"""Who is asked of a node's GPUs: its agent while that speaks, else an exporter, which may be late or gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from cloud.errors import Uncertain
from cloud.ports import Clock
from orchestrator.loop.gpu_watch import EVERY, GpuWatch
from policies.gpu_readings import FRESH, NodeGpus, Xid

Play = Callable[[Callable[[Any], Awaitable[Any]]], Any]
pytestmark = pytest.mark.usefixtures("quiet")


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
        return NodeGpus(node=node, at=self.clock.now(), source="dcgm", xids=xids)

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
        told["a"] = NodeGpus(node="a", at=clock.now(), source="agent")
        await clock.sleep(1.0)
        assert exporter.asked == ["b"]
        assert {n: looked.source for n, looked in watch.looked().items()} == {"a": "agent", "b": "dcgm"}
        await clock.sleep(FRESH + 2 * EVERY)
        assert "a" in exporter.asked
        assert watch.looked()["a"].source == "dcgm"
        told["a"] = NodeGpus(node="a", at=clock.now(), source="agent")
        assert watch.looked()["a"].source == "agent", "it speaks again"

    watched(play, work)


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
