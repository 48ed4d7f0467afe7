"""The dialects of the simulated server besides completions and chats: embeddings, responses, audio."""

from __future__ import annotations

import base64
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import aiohttp
import orjson
import pytest

from cloud.engines.metrics_text import read_samples

pytestmark = pytest.mark.slow

FAST = ("--tokens-per-second", "500", "--time-to-first-token", "0")
STORE = "--responses-store"
TOOL = {"type": "function", "name": "f", "parameters": {}}
PARSERS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


class Simulated(Protocol):
    @property
    def url(self) -> str: ...


Launch = Callable[..., Awaitable[Simulated]]


class Client:
    """One server and a client of it."""

    def __init__(self, http: aiohttp.ClientSession, server: Simulated) -> None:
        self.http = http
        self.server = server

    async def post(self, path: str, body: Any = None, **how: Any) -> tuple[int, Any]:
        given = how or {"json": body}
        async with self.http.post(self.server.url + path, **given) as response:
            return response.status, orjson.loads(await response.read())

    async def ok(self, path: str, body: Any = None, **how: Any) -> Any:
        status, answer = await self.post(path, body, **how)
        assert status == 200, answer
        return answer

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.http.get(self.server.url + path) as response:
            return response.status, await response.json()

    async def events(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of a streamed response; their names are checked against their types."""
        async with self.http.post(
            f"{self.server.url}/v1/responses", json={**body, "stream": True}
        ) as response:
            assert response.status == 200
            blocks = (await response.read()).decode().split("\n\n")
        assert blocks.pop() == ""
        found = []
        for block in blocks:
            name, data = block.split("\n")
            found.append(orjson.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
        assert [event["sequence_number"] for event in found] == list(range(len(found)))
        return found


@pytest.fixture
async def client(launch: Launch, http: aiohttp.ClientSession) -> Client:
    return Client(http, await launch(*FAST, STORE, *PARSERS, "--faults"))


async def test_embeddings(client: Client) -> None:
    body = {"model": "tiny", "input": ["one", "two", "one"]}
    answer = await client.ok("/v1/embeddings", body)
    one, two, again = (item["embedding"] for item in answer["data"])
    assert one == again != two
    assert [item["index"] for item in answer["data"]] == [0, 1, 2]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    packed = await client.ok("/v1/embeddings", {**body, "encoding_format": "base64", "dimensions": 3})
    data = base64.b64decode(packed["data"][0]["embedding"])
    assert list(struct.unpack("<3f", data)) == one[:3]
    ids = await client.ok("/v1/embeddings", {"input": [[1, 2], [1, 2, 3]]})
    assert len(ids["data"]) == 2
    assert len((await client.ok("/v1/embeddings", {"input": [5, 6]}))["data"]) == 1


async def test_pooling_and_classes(client: Client) -> None:
    answer = await client.ok("/pooling", {"input": "one"})
    assert answer["data"][0]["object"] == "pooling"
    answer = await client.ok("/classify", {"input": ["one", "two"]})
    assert [item["num_classes"] for item in answer["data"]] == [2, 2]
    assert all(sum(item["probs"]) == pytest.approx(1) for item in answer["data"])
    assert len((await client.ok("/pooling", {"messages": [{"role": "user", "content": "hi"}]}))["data"]) == 1


async def test_rerank_and_score_in_all_spellings(client: Client) -> None:
    body = {"query": "q", "documents": ["a", "b", "c"], "top_n": 2}
    results = [(await client.ok(path, body))["results"] for path in ("/rerank", "/v1/rerank", "/v2/rerank")]
    assert results[0] == results[1] == results[2]
    scores = [result["relevance_score"] for result in results[0]]
    assert scores == sorted(scores, reverse=True)
    assert [body["documents"][one["index"]] == one["document"]["text"] for one in results[0]] == [True, True]
    for path in ("/score", "/v1/score"):
        answer = await client.ok(path, {"text_1": "q", "text_2": ["a", "b"]})
        assert [item["index"] for item in answer["data"]] == [0, 1]
    assert (await client.post("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}))[0] == 400


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/embeddings", {}, 400),
        ("/v1/embeddings", {"input": []}, 400),
        ("/v1/embeddings", {"input": "a", "encoding_format": "text"}, 400),
        ("/v1/embeddings", {"input": "a", "model": "other"}, 404),
        ("/rerank", {"query": "a"}, 400),
        ("/classify", {"input": ["a", 1]}, 400),
        ("/v1/responses", {}, 400),
        ("/v1/responses", {"input": "a", "model": "other"}, 404),
        ("/v1/responses", {"input": "a", "background": True}, 400),
        ("/v1/responses", {"input": "a", "previous_response_id": "resp_x"}, 404),
        ("/v1/audio/speech", {"input": ""}, 400),
        ("/v1/audio/transcriptions", {"file": "a"}, 400),
    ],
)
async def test_what_is_refused(client: Client, path: str, body: dict[str, Any], status: int) -> None:
    got, answer = await client.post(path, body)
    assert got == status
    assert answer["error"]["code"] == status


async def test_a_response_plain_and_streamed(client: Client) -> None:
    body = {"model": "tiny", "input": "hi", "max_output_tokens": 5}
    plain = await client.ok("/v1/responses", body)
    text = plain["output"][0]["content"][0]["text"]
    assert (plain["status"], plain["usage"]["output_tokens"]) == ("incomplete", 5)
    events = await client.events(body)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert "".join(event["delta"] for event in events[4:-4]) == text == events[-4]["text"]
    final = events[-1]["response"]
    assert final["output"][0]["content"] == plain["output"][0]["content"]
    assert final["usage"] == plain["usage"]


async def test_a_response_that_calls_a_tool(client: Client) -> None:
    body = {"input": "!say 2\n!call f [1,2]\n!call f {}", "tools": [TOOL]}
    plain = await client.ok("/v1/responses", body)
    assert [item["type"] for item in plain["output"]] == ["message", "function_call", "function_call"]
    assert plain["output"][1]["arguments"] == "[1,2]"
    assert plain["status"] == "completed"
    events = await client.events(body)
    deltas = [event for event in events if event["type"] == "response.function_call_arguments.delta"]
    parts = ["".join(event["delta"] for event in deltas if event["output_index"] == at) for at in (1, 2)]
    assert parts == ["[1,2]", "{}"]
    output = events[-1]["response"]["output"]
    assert [item.get("arguments") for item in output] == [None, "[1,2]", "{}"]


async def test_a_stored_response_is_found_and_gone_on_from(client: Client) -> None:
    first = await client.ok("/v1/responses", {"input": "hi", "max_output_tokens": 4})
    assert await client.get(f"/v1/responses/{first['id']}") == (200, first)
    streamed = (await client.events({"input": "ho", "max_output_tokens": 4}))[-1]["response"]
    assert await client.get(f"/v1/responses/{streamed['id']}") == (200, streamed)
    body = {"input": "more", "max_output_tokens": 4}
    alone = await client.ok("/v1/responses", body)
    after = await client.ok("/v1/responses", {**body, "previous_response_id": first["id"]})
    assert after["usage"]["input_tokens"] > alone["usage"]["input_tokens"]
    assert after["previous_response_id"] == first["id"]
    hidden = await client.ok("/v1/responses", {**body, "store": False})
    assert (await client.get(f"/v1/responses/{hidden['id']}"))[0] == 404


async def test_without_a_store_nothing_is_found(launch: Launch, http: aiohttp.ClientSession) -> None:
    client = Client(http, await launch(*FAST))
    made = await client.ok("/v1/responses", {"input": "hi", "max_output_tokens": 1, "store": True})
    assert (await client.get(f"/v1/responses/{made['id']}"))[0] == 404


async def test_a_response_whose_engine_dies_just_ends(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch("--tokens-per-second", "20", "--time-to-first-token", "0", "--faults")
    body = {"input": "hi", "max_output_tokens": 4000, "stream": True}
    async with http.post(f"{server.url}/v1/responses", json=body) as response:
        await response.content.readline()
        async with http.post(f"{server.url}/faults/crash-engine"):
            pass
        rest = await response.content.read()
    assert b"response.completed" not in rest
    assert b"error" not in rest


async def test_a_recording_becomes_text(client: Client) -> None:
    def form(sound: bytes, **fields: str) -> aiohttp.FormData:
        data = aiohttp.FormData(fields)
        data.add_field("file", sound, filename="a.wav", content_type="audio/wav")
        return data

    path = "/v1/audio/transcriptions"
    answer = await client.ok(path, data=form(b"\1\2" * 40_000, model="tiny"))
    assert answer["usage"] == {"type": "duration", "seconds": 2}
    assert answer["text"]
    assert answer == await client.ok("/v1/audio/translations", data=form(b"\1\2" * 40_000, model="tiny"))
    assert (await client.ok(path, data=form(b"other")))["text"] != answer["text"]
    assert (await client.post(path, data=form(b"\1", model="other")))[0] == 404
    async with client.http.post(
        client.server.url + path, data=form(b"\1", response_format="text")
    ) as response:
        assert response.content_type == "text/plain"
    assert (await client.post(path, data=aiohttp.FormData({"model": "tiny"})))[0] == 400


async def test_a_text_becomes_sound_of_unknown_length(client: Client) -> None:
    body = {"model": "tiny", "input": "twelve bytes", "voice": "v"}
    async with client.http.post(f"{client.server.url}/v1/audio/speech", json=body) as response:
        assert response.status == 200
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert len(await response.read()) == 24_000


async def test_an_engine_that_pools_serves_and_counts_no_texts(
    launch: Launch, http: aiohttp.ClientSession
) -> None:
    client = Client(http, await launch(*FAST, "--runner", "pooling"))
    told = await client.ok("/v1/embeddings", {"input": ["a", "b c d"]})
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/inference/v1/generate"):
        assert await client.post(path, {}) == (404, {"detail": "Not Found"})
    async with http.get(f"{client.server.url}/metrics") as response:
        names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
        counted = read_samples(await response.text(), names)
    assert counted == dict(zip(names, (told["usage"]["prompt_tokens"], 0.0), strict=True))


async def test_a_dead_engine_answers_no_dialect(launch: Launch, http: aiohttp.ClientSession) -> None:
    client = Client(http, await launch(*FAST, "--faults"))
    async with http.post(f"{client.server.url}/faults/crash-engine"):
        pass
    try:
        status, answer = await client.post("/v1/embeddings", {"input": "a"})
    except aiohttp.ClientConnectionError:
        return  # it exits a moment after its engine
    assert (status, answer["error"]["code"]) == (500, 500)
