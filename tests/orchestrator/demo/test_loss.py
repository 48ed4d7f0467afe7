"""The loss of a whole pool: all at once, once, and over only when the pool itself answers again."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from cloud.errors import NotFound
from orchestrator.demo.load import LoadReport
from orchestrator.demo.loss import Fallback, PoolLoss, fallback, summary


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.at = 100.0

    def now(self) -> float:
        return self.at


class PlayedCloud:
    """Counts kills; `gone` are nodes that it does not know."""

    def __init__(self) -> None:
        self.killed: list[str] = []
        self.gone: set[str] = set()

    async def admin(self, call: str, body: bytes) -> None:
        assert call == "kill-engine"
        node = orjson.loads(body)["node"]
        if node in self.gone:
            raise NotFound("no such machine")
        self.killed.append(node)


def pool(*, ready: int = 2, serving: int | None = None) -> Any:
    nodes = [{"id": name, "attached": name != "starting"} for name in ("a", "b", "starting")]
    return {"wanted": 2, "ready": ready, "serving": ready if serving is None else serving, "nodes": nodes}


@pytest.fixture
def cloud() -> PlayedCloud:
    return PlayedCloud()


@pytest.fixture
def loss(cloud: PlayedCloud) -> PoolLoss:
    return PoolLoss(cloud, Hand(), pool="small")  # type: ignore[arg-type]


async def test_every_node_that_serves_is_killed_once_and_only_of_a_whole_pool(
    cloud: PlayedCloud, loss: PoolLoss
) -> None:
    report = LoadReport()
    for progress, view in ((0.1, pool()), (0.5, pool(ready=1)), (0.5, pool(serving=1))):
        await loss.step(progress, view, report)
    assert (cloud.killed, loss.at) == ([], None)
    for progress in (0.5, 0.6, 0.7):
        await loss.step(progress, pool(), report)
    assert sorted(cloud.killed) == ["a", "b"]
    assert (loss.at, loss.nodes) == (100.0, 2)


async def test_a_node_that_has_gone_meanwhile_is_not_counted(cloud: PlayedCloud, loss: PoolLoss) -> None:
    cloud.gone = {"b"}
    await loss.step(0.5, pool(), LoadReport())
    assert (sorted(cloud.killed), loss.nodes) == (["a"], 1)


async def test_an_error_that_is_no_refusal_is_not_swallowed(cloud: PlayedCloud, loss: PoolLoss) -> None:
    async def broken(call: str, body: bytes) -> None:
        raise RuntimeError("a bug")

    cloud.admin = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        await loss.step(0.5, pool(), LoadReport())


async def test_it_is_owed_until_the_whole_pool_answers(loss: PoolLoss) -> None:
    report = LoadReport(began=[(99.0, "small")])
    await loss.step(0.5, pool(), report)
    report.began.append((99.9, "small"))  # begun before, ended after
    await loss.step(0.5, pool(), report)  # nobody has seen the loss yet
    assert loss.owed
    report.began += [(100.1, "api/big-model"), (100.2, "small")]
    await loss.step(0.6, pool(ready=0), report)
    assert loss.owed
    await loss.step(0.7, pool(ready=1), report)
    report.began.append((108.0, "api/big-model"))
    await loss.step(0.8, pool(), report)
    assert loss.owed, "only the provider has answered"
    report.began.append((109.0, "small"))
    await loss.step(0.8, pool(), report)
    assert not loss.owed


def event(kind: str, at: float, name: str = "small") -> Any:
    return {"kind": kind, "at": at, "pool": name}


def test_times_are_of_this_pool_and_after_the_loss() -> None:
    report = LoadReport(
        began=[(95.0, "api/x"), (100.01, "small"), (100.4, "api/x"), (100.3, "api/x"), (108.0, "small")]
    )
    events = [
        event("NodeReady", 99.0),
        event("NodeReady", 101.0, "demo"),
        event("NodeLost", 102.0),
        event("NodeReady", 107.5),
        event("NodeReady", 107.7),
    ]
    seen = fallback("small", 100.0, report, events)
    assert seen == Fallback(provider=pytest.approx(0.3), ready=pytest.approx(7.5), back=pytest.approx(8.0))


def test_what_never_came_is_not_made_up() -> None:
    report = LoadReport(began=[(100.01, "small"), (100.4, "demo")])
    assert fallback("small", 100.0, report, []) == Fallback(provider=None, ready=None, back=None)
    seen = fallback("small", 100.0, report, [event("NodeReady", 107.0)])
    assert seen == Fallback(provider=None, ready=pytest.approx(7.0), back=None)


async def test_its_summary_is_of_the_loss_or_nothing(loss: PoolLoss) -> None:
    report = LoadReport(sent=3, answered=2, streams_cut=1, began=[(100.25, "api/x"), (108.0, "small")])
    assert summary(loss, report, []) is None
    await loss.step(0.5, pool(), report)
    found = summary(loss, report, [event("NodeReady", 107.0)])
    assert found is not None
    assert (found["pool"], found["nodes"], found["by_provider"], found["streams_cut"]) == ("small", 2, 1, 1)
    assert (found["provider_after_s"], found["ready_after_s"], found["back_after_s"]) == (0.25, 7.0, 8.0)
