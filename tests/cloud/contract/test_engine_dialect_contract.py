"""What the simulated engine has from vLLM, shown on real processes of both: ids, errors, metrics, ends.

See engine_bench.py for the servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from engine_bench import PATIENCE, SERVED_NAME, Server, Subject, load, start
from raw_http import Connect, Raw, connections

from cloud.engines.keep_alive import ENGINES_OWN
from cloud.engines.vllm_cpu import CONTEXT

pytestmark = pytest.mark.slow


def completion(max_tokens: int, **extra: Any) -> dict[str, Any]:
    return {
        "model": SERVED_NAME,
        "prompt": "Once upon a time",
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **extra,
    }


async def ask(
    http: aiohttp.ClientSession, server: Server, body: dict[str, Any]
) -> tuple[int, dict[str, Any]]:
    async with http.post(f"{server.url}/v1/completions", json=body) as response:
        return response.status, await response.json()


@dataclass
class Stream:
    """What a streamed completion brought."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    usage: dict[str, int] | None = None
    error: dict[str, Any] | None = None
    done: bool = False
    began: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, http: aiohttp.ClientSession, server: Server, body: dict[str, Any]) -> Stream:
        async with http.post(f"{server.url}/v1/completions", json={**body, "stream": True}) as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            async for line in response.content:
                data = line.removeprefix(b"data: ").strip()
                if data == b"[DONE]":
                    self.done = True
                elif data:
                    self.take(json.loads(data))
        return self

    def take(self, event: dict[str, Any]) -> None:
        self.error = event.get("error", self.error)
        self.usage = event.get("usage", self.usage)
        for choice in event.get("choices", []):
            self.tokens += choice["token_ids"] or []
            self.text += choice["text"]
            self.finish = choice["finish_reason"] or self.finish
            self.began.set()


@contextlib.asynccontextmanager
async def streaming(http: aiohttp.ClientSession, server: Server, count: int) -> AsyncIterator[None]:
    """Requests in flight, in both queue and slots; their clients go away at the end."""
    body = completion(CONTEXT - 64)
    tasks = [asyncio.create_task(Stream().read(http, server, body)) for _ in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_plain_request_gets_exactly_the_tokens_it_asked_for(
    server: Server, http: aiohttp.ClientSession
) -> None:
    status, answer = await ask(http, server, completion(12))
    assert status == 200
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "length"
    assert len(choice["token_ids"]) == 12
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["usage"]["prompt_tokens"] == len(choice["prompt_token_ids"])
    assert answer["model"] == SERVED_NAME


async def test_a_stream_brings_the_same_as_a_plain_request(
    server: Server, http: aiohttp.ClientSession
) -> None:
    _, plain = await ask(http, server, completion(24))
    stream = await Stream().read(http, server, completion(24, stream_options={"include_usage": True}))
    assert stream.tokens == plain["choices"][0]["token_ids"]
    assert stream.finish == "length"
    assert stream.usage is not None
    assert stream.usage["completion_tokens"] == 24
    assert stream.done
    assert stream.error is None


async def test_a_text_goes_on_from_its_token_ids_with_the_same_tokens(
    server: Server, http: aiohttp.ClientSession
) -> None:
    _, whole = await ask(http, server, completion(40))
    choice = whole["choices"][0]
    for cut in (1, 17, 39):
        prompt = choice["prompt_token_ids"] + choice["token_ids"][:cut]
        _, rest = await ask(http, server, completion(40 - cut, prompt=prompt))
        assert rest["choices"][0]["token_ids"] == choice["token_ids"][cut:]


async def test_a_request_id_names_the_answer(server: Server, http: aiohttp.ClientSession) -> None:
    headers = {"X-Request-Id": "attempt-7"}
    async with http.post(f"{server.url}/v1/completions", json=completion(1), headers=headers) as response:
        assert (await response.json())["id"] == "cmpl-attempt-7"
    chat = {"model": SERVED_NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    async with http.post(f"{server.url}/v1/chat/completions", json=chat, headers=headers) as response:
        answer = await response.json()
        assert answer["id"] == "chatcmpl-attempt-7"
        assert answer["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": CONTEXT + 1}, 400, "max_tokens"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": [1, 99_999_999]}, 400, None),
    ],
)
async def test_a_wrong_request_gets_an_error_body(
    server: Server, http: aiohttp.ClientSession, change: dict[str, Any], status: int, param: str | None
) -> None:
    got, answer = await ask(http, server, {**completion(4), **change})
    assert got == status
    assert answer["error"]["code"] == status
    assert answer["error"]["param"] == param
    assert answer["error"]["message"]


async def test_metrics_have_these_names_and_labels(server: Server, http: aiohttp.ClientSession) -> None:
    await ask(http, server, completion(2))
    async with http.get(f"{server.url}/metrics") as response:
        lines = (await response.text()).splitlines()
    series = {line.rsplit(" ", 1)[0] for line in lines if not line.startswith("#")}
    labels = f'engine="0",model_name="{SERVED_NAME}"'
    gauges = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    counters = ("prompt_tokens_total", "generation_tokens_total")
    expected = {f"vllm:{name}{{{labels}}}" for name in gauges + counters}
    for name in ("time_to_first_token", "inter_token_latency", "e2e_request_latency", "request_queue_time"):
        expected |= {f"vllm:{name}_seconds_{part}{{{labels}}}" for part in ("count", "sum")}
        expected.add(f'vllm:{name}_seconds_bucket{{engine="0",le="2.5",model_name="{SERVED_NAME}"}}')
    for reason in ("stop", "length", "abort", "error"):
        ends = f'engine="0",finished_reason="{reason}",model_name="{SERVED_NAME}"'
        expected.add(f"vllm:request_success_total{{{ends}}}")
    assert expected <= series


async def test_the_stop_signal_drains(victim: Server, http: aiohttp.ClientSession) -> None:
    # 30 s, sped up once we have looked; or some seconds of real work
    length = 300 if victim.subject.kind == "simulated" else CONTEXT - 64
    stream = Stream()
    await victim.slow(20)
    reading = asyncio.create_task(stream.read(http, victim, completion(length)))
    await asyncio.wait_for(stream.began.wait(), PATIENCE)
    stop = signal.Signals[victim.command.stop_signal]
    victim.process.send_signal(stop)
    status = 200
    while status == 200 and not reading.done():  # the signal takes a moment to arrive
        status, answer = await ask(http, victim, completion(1))
        if status == 200 and answer["choices"][0]["finish_reason"] == "abort":
            assert answer["choices"][0]["text"] == ""
            break
    else:
        assert status == 500, "new requests get no answer that could be taken for one"
    assert not reading.done(), "the stream was too short for this test"
    async with http.get(f"{victim.url}/health") as response:
        assert response.status == 200, "a draining engine calls itself healthy"
    victim.process.send_signal(stop)  # a second signal changes nothing
    await victim.slow(1)
    await reading
    assert stream.finish == "length"
    assert len(stream.tokens) == length
    assert stream.done
    grace = asyncio.to_thread(victim.process.wait, victim.command.stop_grace)
    assert await grace == 0
    await victim.all_gone()


async def test_a_crashed_engine_ends_its_streams_and_itself(
    victim: Server, http: aiohttp.ClientSession
) -> None:
    stream = Stream()
    reading = asyncio.create_task(stream.read(http, victim, completion(CONTEXT - 64)))
    await asyncio.wait_for(stream.began.wait(), PATIENCE)
    await victim.hurt("crash-engine")
    await reading
    assert stream.error is not None
    assert stream.error["code"] == 500
    assert stream.done, "[DONE] proves nothing"
    assert stream.finish is None
    assert await asyncio.to_thread(victim.process.wait, PATIENCE) == 0, "the exit code does not tell a crash"
    found = await victim.probe()
    assert not found.ok
    assert not found.ready
    assert "connection refused" in found.failure


async def test_an_idle_connection_is_closed_without_a_word_when_its_time_is_over(
    kind: str, tmp_path: Path
) -> None:
    subject = Subject.of(kind)
    subject.spec = replace(subject.spec, keep_alive=1.0)
    server = start(subject, tmp_path)
    try:
        await load(server)
        async with connections() as connect:
            one = await asked(connect, server)
            async with asyncio.timeout(PATIENCE):
                assert await one.reader.read() == b""
    finally:
        server.kill_group()


async def test_an_idle_connection_outlasts_what_engines_take_by_themselves(server: Server) -> None:
    async with connections() as connect:
        one = await asked(connect, server)
        await asyncio.sleep(float(ENGINES_OWN) + 1.0)
        await asked(connect, server, one)


async def asked(connect: Connect, server: Server, one: Raw | None = None) -> Raw:
    """Ask for the models and read the answer, on the given connection or a new one."""
    one = one or await connect(int(server.address.rpartition(":")[2]))
    await one.send(b"GET /v1/models HTTP/1.1\r\nHost: engine\r\n\r\n")
    async with asyncio.timeout(PATIENCE):
        status, _, models = await one.answer()
    assert (status, models["data"][0]["id"]) == (200, SERVED_NAME)
    return one
