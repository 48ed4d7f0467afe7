"""The gateway in front of simulated engines, which fail and shut down as vLLM was measured to do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sys
from collections import Counter

import aiohttp
import pytest
from yarl import URL

from policies.model import TargetSpec

pytestmark = pytest.mark.slow

PATIENCE = 40.0


@contextlib.asynccontextmanager
async def engine(*flags: str):
    """A simulated engine process and its address."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cloud.engines.simulated_server",
        *("--model", "m", "--port", "0", "--tokens-per-second", "400", "--time-to-first-token", "0.01"),
        *("--max-num-seqs", "64", "--shutdown-timeout", "30", "--faults", *flags),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            while not (found := re.search(rb"ready on (\S+)", await child.stderr.readline())):
                assert child.returncode is None
        yield child, found.group(1).decode()
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


class Clients:
    """Ask without a pause, half of them for streams, and sort what comes back."""

    def __init__(self, url: str, prompt: object) -> None:
        self.url = url
        self.prompt = prompt
        self.got: Counter[str] = Counter()
        self.nodes: Counter[str] = Counter()
        self.going_on = True

    async def __aenter__(self) -> Clients:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE))
        self._tasks = [asyncio.create_task(self._client(number % 2 == 0)) for number in range(12)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.going_on = False
        await asyncio.gather(*self._tasks)
        await self._session.close()

    async def more(self, count: int) -> None:
        goal = self.got.total() + count
        async with asyncio.timeout(PATIENCE):
            while self.got.total() < goal:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def _client(self, stream: bool) -> None:
        body = {"model": "m", "prompt": self.prompt, "max_tokens": 30, "stream": stream}
        while self.going_on:
            async with self._session.post(self.url + "/v1/completions", json=body) as answer:
                text = await answer.text()
            self.nodes[answer.headers.get("X-Orchestrator-Node", "")] += 1
            self.got[self._judge(answer.status, text, stream)] += 1

    @staticmethod
    def _judge(status: int, text: str, stream: bool) -> str:
        if status != 200:
            return f"{status} {text[:100]}"
        if not stream:
            return "plain" if json.loads(text)["choices"][0]["finish_reason"] == "length" else text
        if text.endswith("data: [DONE]\n\n") and '"finish_reason":"length"' in text:
            return "stream"
        return "cut" if "stream_interrupted" in text else text


@pytest.mark.parametrize(("answer", "prompt"), [("abort", [1, 2, 3]), ("error", "hello")])
async def test_an_engine_that_shuts_down_under_load_costs_nothing(gateways, answer, prompt):
    async with engine("--drain-answer", answer) as (leaving, a), engine() as (_, b):
        running = await gateways(TargetSpec(id="a", address=a), TargetSpec(id="b", address=b))
        async with Clients(running.url, prompt) as clients:
            await clients.more(40)
            leaving.send_signal(signal.SIGTERM)
            await clients.more(80)
            await asyncio.wait_for(leaving.wait(), PATIENCE)
            await clients.more(20)
        assert set(clients.got) == {"plain", "stream"}
        assert set(clients.nodes) == {"a", "b"}


async def test_an_engine_that_crashes_cuts_its_streams_and_nothing_else(gateways, client):
    async with engine() as (_, a), engine() as (_, b):
        running = await gateways(TargetSpec(id="a", address=a), TargetSpec(id="b", address=b))
        async with Clients(running.url, "hello") as clients:
            await clients.more(40)
            async with client.post(f"http://{a}/faults/crash-engine") as answer:
                assert answer.status < 300
            await clients.more(80)
        assert set(clients.got) <= {"plain", "stream", "cut"}
        assert clients.got["cut"] <= 6
        totals = (await running.state())["totals"]
        assert totals["streams_cut"] == clients.got["cut"]


async def test_a_full_engine_hands_over_to_another(gateways):
    async with engine("--max-num-queued-reqs", "1") as (_, a), engine() as (_, b):
        running = await gateways(TargetSpec(id="a", address=a), TargetSpec(id="b", address=b))
        async with Clients(running.url, "hello") as clients:
            await clients.more(60)
        assert set(clients.got) == {"plain", "stream"}
        assert set(clients.nodes) == {"a", "b"}


IDS = ("--enable-scale-out", "--enable-tokenizer-info-endpoint")
ID_ROUTES = (
    "/v1/chat/completions/render",
    "/v1/completions/render",
    "/v1/chat/completions/derender",
    "/v1/completions/derender",
    "/inference/v1/generate",
    "/inference/v1/abort_requests",
)
SPELLINGS = (
    "/v1/completions/%72ender",
    "/v1/completions/../completions/render",
    "/v1//completions/render",
    "/v1/completions%2Frender",
    "/v1/completions/render/",
    "/v1/completions/render?x=1",
    "/v1/../inference/v1/generate",
    "/v1/%2e%2e/inference/v1/generate",
    "/v1/../tokenizer_info",
)


async def test_clients_never_reach_the_routes_that_speak_ids(gateways, client):
    async with engine(*IDS) as (_, a):
        running = await gateways(TargetSpec(id="a", address=a))
        for route in ID_ROUTES:
            async with client.post(f"http://{a}{route}", json={}) as answer:
                assert answer.status == 400, "the engine has it"
        async with client.get(f"http://{a}/tokenizer_info") as answer:
            assert answer.status == 200
        for path in (*ID_ROUTES, "/tokenizer_info", "/faults/freeze", *SPELLINGS):
            for method in ("POST", "GET"):
                url = URL(running.url + path, encoded=True)
                async with client.request(method, url, json={} if method == "POST" else None) as answer:
                    assert answer.status == 404, path
                    assert (await answer.json())["error"]["code"] == "not_found"


def _form(**fields: str) -> aiohttp.FormData:
    form = aiohttp.FormData(fields)
    form.add_field("file", b"\1\2" * 50, filename="a.wav", content_type="audio/wav")
    return form


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["one", "two"]}),
        ("/v1/embeddings", {"input": [[1, 2], [3]], "encoding_format": "base64"}),
        ("/pooling", {"input": "one"}),
        ("/classify", {"input": ["one", "two"]}),
        ("/score", {"text_1": "q", "text_2": ["a", "b"]}),
        ("/v1/score", {"text_1": "q", "text_2": "a"}),
        ("/rerank", {"query": "q", "documents": ["a", "b", "c"]}),
        ("/v1/rerank", {"query": "q", "documents": ["a", "b", "c"], "top_n": 2}),
        ("/v2/rerank", {"query": "q", "documents": ["a", "b", "c"]}),
        ("/tokenize", {"prompt": "hi"}),
        ("/detokenize", {"tokens": [104, 105]}),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 4}),
        ("/v1/responses", {"input": "!say 3", "stream": True}),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 4}),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 4, "stream": True}),
        ("/v1/audio/transcriptions", None),
        ("/v1/audio/speech", {"input": "some words", "voice": "v"}),
    ],
)
async def test_every_dialect_passes_whole(gateways, client, path, body):
    """The engine's answer is one that the gateway's rules call whole, and it passes unchanged."""
    async with engine() as (_, a):
        running = await gateways(TargetSpec(id="a", address=a))
        seen = []
        for url in (f"http://{a}", running.url):
            given = {"data": _form(model="m")} if body is None else {"json": {"model": "m", **body}}
            async with client.post(url + path, headers={"X-Request-Id": "one"}, **given) as answer:
                assert answer.status == 200, await answer.text()
                data = re.sub(
                    rb'"(id|created|created_at|item_id|sequence_number)":("[^"]*"|\d+)',
                    b"",
                    await answer.read(),
                )
                events = data.strip().split(b"\n\n")  # how many there are depends on the machine
                seen.append((answer.content_type, events[-1] if body and body.get("stream") else data))
        assert seen[0] == seen[1]
        assert (await running.state())["totals"]["streams_cut"] == 0
