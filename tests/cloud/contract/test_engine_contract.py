"""What every `Engine` adapter keeps for every task, as the row of its engine says: shown on the simulated
engine, on real llama.cpp and vLLM where they are installed, and on the others as they are played.

See engine_bench.py for the servers, and test_engine_dialect_contract.py for what is vLLM's alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from engine_bench import (
    BOUNDED,
    EMBEDDING,
    EVERY_KIND,
    GENERATING,
    MEASURED,
    PATIENCE,
    SERVED_NAME,
    SLOTS,
    Server,
    Subject,
    available,
    start,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session", params=EVERY_KIND)
def kind(request: pytest.FixtureRequest) -> str:
    return available(request.param)


generating = pytest.mark.parametrize("kind", GENERATING, indirect=True, scope="session")
"""Only where requests go on for a while: an embedding is over before anybody looks."""


measured = pytest.mark.parametrize("kind", MEASURED, indirect=True, scope="session")
"""Only where the engine shows what it does."""


embedding = pytest.mark.parametrize("kind", EMBEDDING, indirect=True, scope="session")
"""Only where a batch takes its time."""


BATCH = {"model": SERVED_NAME, "input": [f"{number} a b c " * 40 for number in range(400)]}
"""A batch that takes a real engine a second or more."""


def work(server: Server, amount: int) -> tuple[str, dict[str, Any]]:
    """Path and body of a request for so many tokens, or for the embeddings of so many short texts."""
    if server.subject.task == "embed":
        return "/v1/embeddings", {"model": SERVED_NAME, "input": ["a b c"] * amount}
    if server.subject.task == "rerank":
        ranking = server.subject.row.ranking
        texts = [f"a b {number}" for number in range(amount)]
        return ranking.path, {"model": SERVED_NAME, "query": "a", ranking.texts: texts}
    return "/v1/completions", {
        "model": SERVED_NAME,
        "prompt": "Once upon a time",
        "max_tokens": amount,
        "temperature": 0,
        "ignore_eos": True,
    }


async def ask(http: aiohttp.ClientSession, server: Server, amount: int) -> Any:
    path, body = work(server, amount)
    async with http.post(f"{server.url}{path}", json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def stream(http: aiohttp.ClientSession, server: Server, began: asyncio.Event) -> list[Any]:
    """Ask for the longest stream; its events, also where it breaks off."""
    path, body = work(server, server.subject.longest)
    events: list[Any] = []
    with contextlib.suppress(aiohttp.ClientError):
        async with http.post(f"{server.url}{path}", json={**body, "stream": True}) as response:
            async for line in response.content:
                data = line.removeprefix(b"data: ").strip()
                if data.startswith(b"{"):
                    events.append(json.loads(data))
                    began.set()
    return events


@contextlib.asynccontextmanager
async def streaming(http: aiohttp.ClientSession, server: Server, count: int) -> AsyncIterator[None]:
    """Requests in flight, in both queue and slots; their clients go away at the end."""
    tasks = [asyncio.create_task(stream(http, server, asyncio.Event())) for _ in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def numbers(http: aiohttp.ClientSession, server: Server) -> list[list[float]]:
    """The numbers of the batch. Raises aiohttp.ClientError where they do not come."""
    async with http.post(f"{server.url}/v1/embeddings", json=BATCH, raise_for_status=True) as response:
        return [row["embedding"] for row in (await response.json())["data"]]


async def test_nothing_is_ready_before_it_proved_that_it_works(shared: Server) -> None:
    before = [reading for reading in shared.readings if not reading.ready]
    assert before
    assert all(not reading.ok for reading in before)
    early = ("refused", shared.subject.row.unready, "loaded, but gave no")
    assert all(any(word in r.failure for word in early) for r in before[:1])
    assert len({reading.failing_since for reading in before}) == 1, "one unbroken run of failures"
    last = shared.readings[-1]
    assert last.ready
    assert last.ok
    assert last.failing_since is None
    assert last.failure == ""


async def test_it_does_what_it_is_for(server: Server, http: aiohttp.ClientSession) -> None:
    answer = await ask(http, server, 12)
    if server.subject.task == "rerank":
        ranking = server.subject.row.ranking
        rows = answer if ranking.bare else answer["results"]
        scores = [row[ranking.score] for row in rows]
        assert sorted(row["index"] for row in rows) == list(range(12))
        assert all(isinstance(score, float | int) for score in scores)
        assert scores == sorted(scores, reverse=True)
        return
    assert answer["model"] == SERVED_NAME
    if server.subject.task == "embed":
        vectors = [tuple(found["embedding"]) for found in answer["data"]]
        assert len(vectors) == 12
        assert all(isinstance(number, float) for vector in vectors for number in vector)
        return
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["text"]
    assert answer["usage"]["completion_tokens"] == 12


@generating
async def test_a_stream_says_the_same_as_a_plain_answer(server: Server, http: aiohttp.ClientSession) -> None:
    plain = await ask(http, server, 24)
    path, body = work(server, 24)
    text, done = "", False
    async with http.post(f"{server.url}{path}", json={**body, "stream": True}) as response:
        assert response.content_type == "text/event-stream"
        async for line in response.content:
            data = line.removeprefix(b"data: ").strip()
            done = data == b"[DONE]" or done
            if data.startswith(b"{"):
                text += "".join(choice["text"] for choice in json.loads(data)["choices"])
    assert text == plain["choices"][0]["text"]
    assert done


async def test_another_model_is_not_taken_for_the_one_that_is_asked_for(server: Server) -> None:
    other = Subject.of(server.subject.kind, served_name="another").engine
    try:
        reading = await other.probe("node-1", server.address, None)
    finally:
        await other.close()
    assert not reading.ready
    assert f"does not serve another, only {SERVED_NAME}" in reading.failure


@measured
async def test_work_shows_as_progress(server: Server, http: aiohttp.ClientSession) -> None:
    before = await server.until("ready", lambda r: r.ready and r.in_flight == 0)
    await ask(http, server, 30)
    after = await server.until("further", lambda r: r.in_flight == 0 and r.progress > before.progress)
    assert after.ok
    row = server.subject.row
    if row.tokens_in:
        told = await server.until("counted", lambda r: (r.tokens_in or 0) > (before.tokens_in or 0))
        assert told.tokens_out is not None or not row.tokens_out or server.subject.task != "generate"


@generating
async def test_requests_in_flight_are_running_and_waiting_until_their_clients_leave(
    server: Server, http: aiohttp.ClientSession
) -> None:
    await server.until("ready", lambda r: r.ready)  # later looks need no token, so none queues
    async with streaming(http, server, SLOTS + 3):
        reading = await server.until("full", lambda r: (r.running, r.waiting) == (SLOTS, 3))
        assert reading.ok
        assert reading.in_flight == SLOTS + 3
    await server.until("empty", lambda r: r.in_flight == 0)


@generating
async def test_a_busy_engine_shows_progress_before_its_requests_end(
    server: Server, http: aiohttp.ClientSession
) -> None:
    await server.until("ready", lambda r: r.ready and r.in_flight == 0)
    async with streaming(http, server, 1):
        first = await server.until("running", lambda r: r.running == 1)
        await server.until("further", lambda r: r.running == 1 and r.progress > first.progress)
    await server.until("empty", lambda r: r.in_flight == 0)


async def test_a_frozen_idle_engine_is_found_and_comes_back(server: Server) -> None:
    await server.until("idle", lambda r: r.ready and r.in_flight == 0)
    await server.hurt("freeze")
    try:
        reading = await server.until("failing", lambda r: not r.ok)
        assert reading.ready, "a failed look takes nothing back that was seen"
    finally:
        await server.hurt("thaw")
    await server.until("sound again", lambda r: r.ok and r.failing_since is None)


@generating
async def test_a_frozen_busy_engine_is_found_by_its_silence(
    server: Server, http: aiohttp.ClientSession
) -> None:
    async with streaming(http, server, 1):
        busy = await server.until("running", lambda r: r.ok and r.running >= 1)
        await server.hurt("freeze")
        try:
            reading = await server.until("failing", lambda r: not r.ok, reading=busy)
            assert reading.in_flight >= 1, "what it holds is still owed"
        finally:
            await server.hurt("thaw")
        await server.until("sound again", lambda r: r.ok)
    await server.until("empty", lambda r: r.in_flight == 0)


async def test_what_it_tells_of_its_model(server: Server) -> None:
    reading = await server.until("ready", lambda r: r.ready and r.ok)
    assert bool(reading.revision) == (server.subject.row.listing == "/info")
    assert reading.adapters == ()


async def test_a_model_that_it_does_not_have(server: Server, http: aiohttp.ClientSession) -> None:
    path, body = work(server, 1)
    async with http.post(f"{server.url}{path}", json={**body, "model": "another"}) as response:
        refused = response.status == 404
    assert refused == server.subject.row.capabilities.checks_names


async def test_an_input_that_is_too_long_is_the_clients_fault_or_cut(
    server: Server, http: aiohttp.ClientSession
) -> None:
    path, body = work(server, 1)
    name = next(name for name in ("prompt", "input", "documents", "texts") if name in body)
    text = "a b c " * 20_000
    body[name] = text if name == "prompt" else [text]
    async with http.post(f"{server.url}{path}", json=body) as response:
        said = await response.text()
        assert response.status == server.subject.row.too_long[server.subject.task], said[:500]
    assert (await server.until("sound", lambda r: r.ok)).ready


@pytest.mark.parametrize("kind", BOUNDED, indirect=True, scope="session")
async def test_what_finds_no_place_is_told_so(victim: Server, http: aiohttp.ClientSession) -> None:
    """Of the engines that are played with a bound on their queue."""
    row = victim.subject.row
    await victim.hurt("freeze")
    path, body = work(victim, 1)

    async def send() -> int:
        async with http.post(f"{victim.url}{path}", json=body) as response:
            return response.status

    tasks = {asyncio.create_task(send()) for _ in range(SLOTS + 8 + 5)}
    done, waiting = await asyncio.wait(tasks, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    assert {task.result() for task in done} == {row.full}
    await victim.hurt("thaw")
    assert {await task for task in waiting} <= {200, row.full}


@generating
async def test_a_stop_lets_streams_end_where_the_row_says_so(
    victim: Server, http: aiohttp.ClientSession
) -> None:
    began = asyncio.Event()
    drains = victim.subject.row.capabilities.drains
    path, body = work(victim, 150 if drains else victim.subject.longest)
    finishes: list[Any] = []

    async def read() -> None:
        with contextlib.suppress(aiohttp.ClientError):
            async with http.post(f"{victim.url}{path}", json={**body, "stream": True}) as response:
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        began.set()
                        finishes.extend(c.get("finish_reason") for c in json.loads(line[6:])["choices"])

    reading = asyncio.create_task(read())
    await asyncio.wait_for(began.wait(), PATIENCE)
    victim.stop()
    if drains:
        await asyncio.wait_for(reading, PATIENCE)
        assert finishes[-1] == "length"
        await asyncio.to_thread(victim.process.wait, PATIENCE)
        return
    await asyncio.wait({reading}, timeout=1.0)
    assert not any(finishes)
    reading.cancel()


@embedding
async def test_a_stop_gives_right_embeddings_or_none(victim: Server, http: aiohttp.ClientSession) -> None:
    """What comes while vLLM drains, here the rest of the batch itself, breaks all that it embeds: a 500."""
    expected = await numbers(http, victim)
    running = asyncio.create_task(numbers(http, victim))
    await victim.until("running", lambda r: r.in_flight > 0)
    victim.stop()
    (found,) = await asyncio.gather(asyncio.wait_for(running, PATIENCE), return_exceptions=True)
    if isinstance(found, BaseException):
        assert isinstance(found, aiohttp.ClientResponseError)
        assert found.status == 500
    else:
        assert all(row == pytest.approx(same, abs=1e-5) for row, same in zip(found, expected, strict=True))
    await asyncio.to_thread(victim.process.wait, PATIENCE)


@generating
async def test_a_crash_takes_readiness_back_and_finishes_no_stream(
    victim: Server, http: aiohttp.ClientSession
) -> None:
    began = asyncio.Event()
    reading = asyncio.create_task(stream(http, victim, began))
    await asyncio.wait_for(began.wait(), PATIENCE)
    await victim.hurt("crash-engine")
    ends = [choice for event in await reading for choice in event.get("choices", ())]
    assert not any(choice.get("finish_reason") for choice in ends)
    await asyncio.to_thread(victim.process.wait, PATIENCE)
    found = await victim.probe()
    assert not found.ok
    assert not found.ready
    assert "connection refused" in found.failure


@pytest.mark.parametrize("kind", ["tei-embed", "tei-rerank", "ollama"], indirect=True, scope="session")
async def test_a_server_that_outlives_its_model_fails_its_looks(victim: Server) -> None:
    await victim.hurt("crash-engine")
    found = await victim.until("failing", lambda r: not r.ok)
    assert "503" in found.failure or "500" in found.failure
    assert victim.process.poll() is None


async def test_an_idle_engine_ends_when_it_is_told_to(victim: Server) -> None:
    victim.stop()
    await asyncio.to_thread(victim.process.wait, victim.command.stop_grace)
    await victim.all_gone()


async def test_a_cancelled_start_leaves_no_process(kind: str, tmp_path: Path) -> None:
    subject = Subject.of(kind)
    loading = start(subject, tmp_path)
    try:
        async with asyncio.timeout(subject.start_timeout):
            while kind.startswith("vllm") and loading.core() is None:  # its second process
                assert loading.process.poll() is None, loading.log.read_text(errors="replace")[-2000:]
                await asyncio.sleep(0.1)
        found = await loading.probe()
        assert not found.ready
        assert not found.ok
        assert loading.members()
    finally:
        await subject.engine.close()
        loading.kill_group()
    await loading.all_gone()
