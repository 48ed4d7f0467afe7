"""The tries of one request, with attempts that end as a test says: who gets it next, and how it ends."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from hand_clock import HandClock
from multidict import CIMultiDict

from cloud.balancers.targets import TargetSet
from orchestrator.gateway.admission import Admission
from orchestrator.gateway.attempt import AttemptFailed
from orchestrator.gateway.blame import RetryBudget
from orchestrator.gateway.config import PoolGate
from orchestrator.gateway.endings import Answer, Turned, Unserved
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.metrics import Outcome
from orchestrator.gateway.request import MOST_STALE, Exchange, Stage
from orchestrator.gateway.retry_policy import RetryPolicy
from orchestrator.gateway.targets import TargetTable
from orchestrator.gateway.tries import Tries
from policies.model import TargetSpec
from policies.routing import Trouble

OK = "ok"


class Job:
    """A request as its tries see it. `stops`: why its stream cannot go on elsewhere."""

    sought = False
    use = judge = plan = None
    kind = "exact"
    revision = ""
    broke_at = 0.0

    def __init__(
        self, now: float, *, repeatable: bool = True, stops: str = "", stored: str | None = None
    ) -> None:
        self.exchange = Exchange("r", now)
        self.asked = SimpleNamespace(repeatable=repeatable, stored=stored, stream=True)
        self.repeatable, self.stops = repeatable, stops
        self.response: web.StreamResponse | None = None

    @property
    def wish(self) -> Any:
        return self.exchange.wish

    def obstacle(self) -> str:
        return self.stops

    def fits(self, entry: Any) -> bool:
        return True

    def told_tokens(self) -> int | None:
        return 3

    def began(self, now: float) -> float:
        return now - self.exchange.started


class Noted:
    """Takes every call, and knows its name and what came with it."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *values, **named: self.told.append((name, *values, *named.values()))

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [tuple(values) for told, *values in self.told if told == name]


class Endings:
    """Last answers by their status."""

    def turned(
        self, job: Any, status: int, code: str, message: str, *, node: str = "", param: str = ""
    ) -> Turned:
        answer = web.Response(status=status, text=message, headers={"code": code, "node": node})
        return Turned(answer, Outcome.FAILED)

    def said(self, job: Any, answer: Answer) -> Turned:
        return Turned(web.Response(status=answer.status, headers={"code": "said"}), Outcome.UPSTREAM_ERROR)

    async def cut(self, job: Any, failure: Failure, detail: str) -> web.StreamResponse:
        return web.Response(status=200, headers={"cut": failure.value, "detail": detail})


class Pool:
    """Targets `a`, `b`, `c`, all healthy, whose attempts end as `ends` says, one after the other."""

    def __init__(self, *ends: Any, targets: str = "abc", takes: float = 0.0, **settings: Any) -> None:
        self.clock, self.takes = HandClock(), takes
        gate = PoolGate(targets_file=Path("t"), **settings)
        self.table = TargetTable(now=self.clock.now, rng=random.Random(1), gate=gate)
        specs = tuple(TargetSpec(id=name, address=f"{name}:1") for name in targets)
        self.table.apply(TargetSet(generation=1, pool="p", written_at=1.0, targets=specs))
        for entry in self.table:
            self.table.checked(entry, "", 1)
        self.admission = Admission(self.table, limit=10, deadline=30.0, hopeless=1.0)
        self.ends, self.tried, self.metrics = list(ends), list[str](), Noted()
        budget = RetryBudget(gate.retry_budget, gate.retry_reserve)
        parts: Any = {
            "table": self.table,
            "admission": self.admission,
            "attempts": self,
            "policy": RetryPolicy(self.table, budget, gate.max_retries),
            "endings": Endings(),
            "metrics": self.metrics,
            "clock": self.clock,
        }
        self.tries = Tries(**parts)

    def entry(self, name: str) -> Any:
        return next(entry for entry in self.table if entry.spec.id == name)

    async def run(self, job: Any, entry: Any) -> web.StreamResponse:
        """An attempt."""
        self.tried.append(entry.spec.id)
        assert entry.in_flight
        self.clock.at += self.takes
        end = self.ends.pop(0)
        if end == OK:
            return web.Response(status=200)
        if isinstance(end, Begun):
            job.exchange.move(Stage.STREAMING)
            job.response = web.StreamResponse()
            end = end.then
        raise end if isinstance(end, Exception) else AttemptFailed(end, "detail")

    async def resume(self, job: Any, entry: Any) -> web.StreamResponse:
        """An attempt to bring the rest."""
        self.tried.append(f"rest at {entry.spec.id}")
        end = self.ends.pop(0)
        if end == OK:
            return web.Response(status=200)
        if isinstance(end, Begun):
            job.exchange.move(Stage.STREAMING)
            end = end.then
        raise AttemptFailed(end, "detail")

    async def ended(self, job: Any) -> tuple[Any, ...]:
        """How the request ends: who ends it, with which status and code or trouble."""
        try:
            response = await self.tries.run(job)
        except Unserved as error:
            turned = error.turned.response
            found: tuple[Any, ...] = error.trouble, turned.status, turned.headers["code"], error.said
        except Turned as error:
            found = "turned", error.response.status, error.response.headers["code"]
        else:
            found = response.status, response.headers.get("cut", "")
        assert all(entry.in_flight == 0 for entry in self.table), "every take is given back"
        assert not self.ends
        return found


class Begun:
    """The client got a part before the attempt ended so."""

    def __init__(self, then: Failure) -> None:
        self.then = then


def said(failure: Failure, status: int) -> AttemptFailed:
    return AttemptFailed(failure, f"it answered {status}", Answer(status, CIMultiDict(), b""))


BUSY, OWN, DEAD = (
    said(Failure.UNAVAILABLE, 503),
    said(Failure.REFUSED_HERE, 400),
    said(Failure.ENGINE_ERROR, 500),
)


@pytest.mark.parametrize(
    ("ends", "found"),
    [
        ([OK], (200, "")),
        ([Failure.DISCONNECTED, OK], (200, "")),
        ([Failure.DISCONNECTED] * 3, (Trouble.DOWN, 502, "upstream_failed", False)),
        ([Failure.LOST] * 3, (Trouble.DOWN, 504, "upstream_timeout", False)),
        ([Failure.STALLED] * 3, (Trouble.DOWN, 504, "upstream_timeout", False)),
        ([Failure.FIRST_TOKEN_TIMEOUT] * 3, (Trouble.DOWN, 504, "upstream_timeout", False)),
        ([Failure.DEADLINE], ("turned", 504, "upstream_timeout")),  # nobody else has time for it either
        ([DEAD] * 3, (Trouble.DOWN, 500, "said", True)),
        ([DEAD, DEAD, Failure.DISCONNECTED], (Trouble.DOWN, 502, "upstream_failed", False)),
        ([Failure.DISCONNECTED, Failure.DISCONNECTED, DEAD], (Trouble.DOWN, 500, "said", True)),
        ([OWN] * 3, (Trouble.FAILED, 400, "said", True)),
        ([DEAD, OWN, DEAD], (Trouble.DOWN, 400, "said", True)),  # what may be its own fault says most
        ([OWN, DEAD, DEAD], (Trouble.DOWN, 400, "said", True)),
        ([BUSY, BUSY, BUSY], (Trouble.SATURATED, 503, "said", True)),
        ([BUSY, OWN, OK], (200, "")),
    ],
)
async def test_how_a_request_ends_that_may_run_twice(ends: list[Any], found: tuple[Any, ...]) -> None:
    pool = Pool(*ends, max_retries=2)
    job = Job(pool.clock.at)
    assert await pool.ended(job) == found
    assert len(set(pool.tried)) == len(ends), "each at another target"
    again = [retried for _, retried in pool.metrics.of("attempt_failed")]
    assert again == [True] * (len(ends) - 1) + [False] * (ends[-1] != OK)
    assert pool.metrics.of("left_queue") == [(0.0,)] * len(ends)
    assert pool.metrics.of("first_byte") == []
    assert pool.metrics.of("stream_cut") == []


@pytest.mark.parametrize(
    ("ends", "found"),
    [
        ([Failure.DISCONNECTED], ("turned", 502, "upstream_failed")),
        ([Failure.LOST], ("turned", 504, "upstream_timeout")),
        ([DEAD], ("turned", 500, "said")),
        ([Failure.CONNECT, OK], (200, "")),  # refused: it surely did not run
        ([BUSY, OK], (200, "")),
        ([BUSY, DEAD], ("turned", 503, "said")),  # the first answer is kept
        ([Failure.CONNECT] * 3, (Trouble.DOWN, 503, "no_target", False)),
        ([BUSY] * 3, (Trouble.SATURATED, 503, "said", True)),
    ],
)
async def test_what_may_have_run_goes_nowhere_else(ends: list[Any], found: tuple[Any, ...]) -> None:
    pool = Pool(*ends)
    job = Job(pool.clock.at, repeatable=False)
    task = asyncio.create_task(pool.ended(job))
    for _ in range(20):
        await asyncio.sleep(0)
    if not task.done():  # it waits where every target refuses connections
        for _ in range(2):
            pool.admission.look(pool.clock.at)
            pool.clock.at += 1.0
    assert await task == found


async def test_the_last_words_say_how_often_it_was_tried_and_where_last() -> None:
    pool = Pool(*[Failure.DISCONNECTED] * 3, max_retries=2)
    with pytest.raises(Unserved, match="failed: detail") as ended:
        await pool.tries.run(Job(pool.clock.at))  # type: ignore[arg-type]
    turned = ended.value.turned.response
    assert turned.text == "attempt 3, the last one, failed with disconnected: detail"
    assert turned.headers["node"] == pool.tried[-1]
    pool = Pool(Failure.DISCONNECTED)
    with pytest.raises(Turned) as once:
        await pool.tries.run(Job(pool.clock.at, repeatable=False))  # type: ignore[arg-type]
    assert str(once.value.response.text).endswith("; it may have run, so it was not sent again")


@pytest.mark.parametrize(
    ("ends", "stops", "found", "metrics"),
    [
        ([Begun(Failure.DISCONNECTED)], "choices", (200, "disconnected"), ["continuation_refused"]),
        ([Begun(Failure.DISCONNECTED), OK], "", (200, ""), []),
        (
            [Begun(Failure.DISCONNECTED), Failure.DISCONNECTED, Failure.DISCONNECTED],
            "",
            (200, "disconnected"),
            ["continuation_failed"],
        ),
        ([Begun(Failure.DISCONNECTED), Begun(Failure.ABORTED), OK], "", (200, ""), []),
        ([Begun(Failure.DEADLINE)], "", (200, "deadline"), []),
        ([Begun(Failure.GATEWAY_STOPPING)], "", (200, "gateway_stopping"), []),
    ],
)
async def test_a_stream_that_broke_goes_on_elsewhere_or_is_cut(
    ends: list[Any], stops: str, found: tuple[Any, ...], metrics: list[str]
) -> None:
    pool = Pool(*ends)
    job = Job(pool.clock.at, stops=stops)
    task = asyncio.create_task(pool.ended(job))
    for _ in range(20):
        await asyncio.sleep(0)
    while not task.done():  # nobody is left who could bring the rest
        pool.clock.at += 10.0
        pool.admission.look(pool.clock.at)
        await asyncio.sleep(0)
    assert await task == found
    assert [
        name for name in ("continuation_refused", "continuation_failed") if pool.metrics.of(name)
    ] == metrics
    assert len(pool.metrics.of("stream_cut")) == (found[1] != "")
    assert len(set(pool.tried)) == len(pool.tried)


async def test_all_the_waiting_of_a_request_counts_towards_its_end() -> None:
    """It waits ten seconds, fails, and waits again: for twenty at most."""
    pool = Pool(Failure.DISCONNECTED, targets="a", max_in_flight=1)
    entry = pool.entry("a")
    job = Job(pool.clock.at)
    pool.table.take(entry)
    task = asyncio.create_task(pool.tries.run(job))  # type: ignore[arg-type]

    async def later(seconds: float) -> bool:
        pool.clock.at += seconds
        pool.admission.look(pool.clock.at)
        for _ in range(10):
            await asyncio.sleep(0)
        return task.done()

    assert not await later(0.0)
    assert not await later(10.0)
    entry.clock.moved(pool.clock.at, None)
    pool.table.give(entry)
    assert not await later(0.0)
    assert pool.tried == ["a"]
    assert job.exchange.waited == 10.0
    assert pool.metrics.of("left_queue") == [(10.0,)]
    assert not await later(19.9)
    assert await later(0.1)
    with pytest.raises(Unserved) as ended:
        await task
    assert ended.value.trouble is Trouble.WAITED


async def test_a_request_that_nobody_takes_ends_with_what_was_said_before() -> None:
    for end, found in ((BUSY, (Trouble.SATURATED, "said")), (Failure.CONNECT, (Trouble.DOWN, "no_target"))):
        pool = Pool(end, targets="a")
        task = asyncio.create_task(pool.tries.run(Job(pool.clock.at)))  # type: ignore[arg-type]
        for seconds in (0.0, 0.0, 1.0, 40.0):
            for _ in range(5):
                await asyncio.sleep(0)
            pool.clock.at += seconds
            pool.admission.look(pool.clock.at)
        with pytest.raises(Unserved) as ended:
            await task
        turned = ended.value.turned.response
        assert (ended.value.trouble, turned.headers["code"]) == found


async def test_a_full_queue_is_told_from_a_pool_that_is_down() -> None:
    pool = Pool(max_in_flight=1, targets="a")
    pool.table.take(pool.entry("a"))
    pool.admission._limit = 0
    with pytest.raises(Unserved) as ended:
        await pool.tries.run(Job(pool.clock.at))  # type: ignore[arg-type]
    assert ended.value.turned.response.headers["code"] == "queue_full"
    assert ended.value.trouble is Trouble.SATURATED
    assert not ended.value.said


async def test_tokens_that_were_made_in_vain_are_counted_before_the_client_has_a_part() -> None:
    pool = Pool(Failure.DISCONNECTED, OK)
    await pool.ended(Job(pool.clock.at))
    assert pool.metrics.of("wasted") == [("output", 3)]
    pool = Pool(Begun(Failure.DISCONNECTED), OK)
    await pool.ended(Job(pool.clock.at))
    assert pool.metrics.of("wasted") == []


@pytest.mark.parametrize("stale", [1, MOST_STALE, MOST_STALE + 1])
async def test_connections_that_had_been_closed_cost_nothing_a_few_times(stale: int) -> None:
    """Of several targets, all of whose kept connections ended while nobody looked."""
    good = stale <= MOST_STALE
    pool = Pool(*[Failure.STALE] * stale, *([OK] if good else []), max_retries=1, retry_reserve=0)
    found = await pool.ended(Job(pool.clock.at))
    assert found == ((200, "") if good else (Trouble.DOWN, 502, "upstream_failed", False))


async def test_what_may_not_run_twice_is_not_sent_again_over_another_connection() -> None:
    pool = Pool(Failure.STALE)
    assert (await pool.ended(Job(pool.clock.at, repeatable=False)))[0] == "turned"


async def test_another_backend_begins_with_nothing_held_against_the_request() -> None:
    exchange = Exchange("r", 1.0)
    exchange.wish.key, exchange.wish.tokens = 5, 7
    for stage in (Stage.QUEUED, Stage.SENT):
        if stage is Stage.SENT:
            exchange.move(stage)
        exchange.retries = exchange.sent_again = exchange.stale = 2
        exchange.waited = 9.0
        exchange.wish.again = True
        exchange.anew()
        assert exchange.stage is Stage.QUEUED
        assert (exchange.retries, exchange.sent_again, exchange.stale, exchange.waited) == (0, 0, 0, 0.0)
        assert (exchange.wish.key, exchange.wish.tokens, exchange.wish.again) == (5, 7, False)
