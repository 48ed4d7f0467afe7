"""What requests used, as the gateway counts it: by the engine's own usage, or as an estimate that says so."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.gateway.accounts.usage_file import read_usage
from orchestrator.gateway.config import ProviderSpec
from orchestrator.gateway.spend_file import read_totals
from policies.cost_rows import UsageHour
from tests.support.paid_provider import NO_USAGE, provider
from tests.support.provider_stand import MODEL, OWN
from tests.support.routed_gateway import PlayedProvider, Routed, api, pool, route
from tests.support.running_gateway import Running
from tests.support.upstreams import Behaviour, Conversation, Upstream

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USED = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 64},
}
WEIRD: list[Any] = [
    {"prompt_tokens": -5, "completion_tokens": 1},
    {"prompt_tokens": "7", "completion_tokens": 1},
    {"prompt_tokens": 10**12, "completion_tokens": 1},
    {"completion_tokens": 3},
    [1, 2],
    "much",
    {},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "usage.db"


@pytest.fixture
def counted(file: Path) -> Callable[[Any], Any]:
    """The rows of a gateway that is stopped: `(row,) = await counted(running)`."""

    async def rows(running: Running | Routed) -> list[UsageHour]:
        await running.stop()
        return read_usage(file, 0, 10**9)

    return rows


def tokens(row: UsageHour) -> tuple[int, int, int, int]:
    return row.fresh, row.cached, row.written, row.output


def plain(usage: Any, **fields: Any) -> Behaviour:
    """A plain answer that tells this usage; None: none."""

    async def behave(talk: Conversation) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": "x" * 40}, "finish_reason": "stop"}
        told = {} if usage is None else {"usage": usage}
        await talk.json({"object": "chat.completion", "choices": [choice], **told, **fields})

    return behave


def streams(count: int, usage: Any = None, *, then: Behaviour | None = None) -> Behaviour:
    """A stream of so many tokens that tells its usage where it is asked for."""

    async def behave(talk: Conversation) -> None:
        asked = json.loads(talk.request.body)
        await talk.start_stream()
        await talk.role()
        for number in range(count):
            await talk.text(f"t{number} ")
        if then is not None:
            return await then(talk)
        await talk.text("", "stop")
        if usage is not None and (asked.get("stream_options") or {}).get("include_usage"):
            await talk.event({"object": "chat.completion.chunk", "choices": [], "usage": usage})
        await talk.done()
        await talk.end_stream()

    return behave


def sent(upstream: Upstream, number: int = -1) -> dict[str, Any]:
    return dict(json.loads(upstream.seen[number].body))


class TestPlain:
    async def test_what_the_engine_tells_is_counted(self, upstreams, gateways, ask, file, counted) -> None:
        running = await gateways(await upstreams("a", plain(USED)), usage_file=file, pool="test")
        began = time.monotonic()
        for _ in range(3):
            await ask(running)
        took = time.monotonic() - began
        (row,) = await counted(running)
        assert (row.key, row.route, row.backend, row.model) == ("", "", "pool/test", "")
        assert (row.requests, row.failed, row.estimated) == (3, 0, 0)
        assert tokens(row) == (108, 192, 0, 60)
        assert 0 < row.first_token_s <= row.seconds < took + 0.1, "one after the other"

    @pytest.mark.parametrize(
        ("path", "answer", "expected"),
        [
            (TEXT, {"choices": [{"finish_reason": "stop"}], "usage": USED}, (36, 64, 0, 20)),
            (
                "/v1/responses",
                {
                    "status": "completed",
                    "usage": {
                        "input_tokens": 9,
                        "output_tokens": 4,
                        "input_tokens_details": {"cached_tokens": 2},
                    },
                },
                (7, 2, 0, 4),
            ),
            (
                "/v1/embeddings",
                {
                    "data": [{"index": 0, "embedding": [0.5]}],
                    "usage": {"prompt_tokens": 6, "total_tokens": 6},
                },
                (6, 0, 0, 0),
            ),
            ("/pooling", {"data": [{"data": [0.5]}], "usage": {"prompt_tokens": 6}}, (6, 0, 0, 0)),
            (
                "/rerank",
                {"results": [{"relevance_score": 0.5}], "usage": {"prompt_tokens": 8, "total_tokens": 8}},
                (8, 0, 0, 0),
            ),
            (
                "/v2/embed",
                {
                    "embeddings": {"float": [[0.5]]},
                    "meta": {"billed_units": {"input_tokens": 3, "image_tokens": 2}},
                },
                (5, 0, 0, 0),
            ),
        ],
    )
    async def test_each_dialect_has_its_place_for_it(
        self, upstreams, gateways, ask, file, counted, path, answer, expected
    ) -> None:
        async def behave(talk: Conversation) -> None:
            await talk.json(answer)

        running = await gateways(await upstreams("a", behave), usage_file=file)
        more = {"input": "hi", "query": "q", "documents": ["d"], "texts": ["hi"]}
        reply = await ask(running, path=path, **more)
        assert reply.status == 200
        (row,) = await counted(running)
        assert (tokens(row), row.estimated) == (expected, 0)

    async def test_messages_count_as_the_chat_inside(self, upstreams, gateways, ask, file, counted) -> None:
        running = await gateways(
            await upstreams("a", plain(USED | {"prompt_tokens_details": {"created_cache_tokens": 30}})),
            usage_file=file,
        )
        assert (await ask(running, path="/v1/messages", max_tokens=9)).status == 200
        (row,) = await counted(running)
        assert (tokens(row), row.estimated) == ((70, 0, 30, 20), 0)

    @pytest.mark.parametrize("usage", [None, *WEIRD])
    async def test_without_a_usage_that_can_be_read_it_is_an_estimate(
        self, upstreams, gateways, ask, file, counted, usage
    ) -> None:
        running = await gateways(await upstreams("a", plain(usage)), usage_file=file)
        await ask(running, messages=[{"role": "user", "content": "word " * 80}])
        (row,) = await counted(running)
        assert (row.requests, row.estimated) == (1, 1)
        assert 100 <= row.fresh <= 110
        assert row.output == 10

    async def test_what_is_no_work_is_not_counted(self, upstreams, gateways, ask, file, counted) -> None:
        async def behave(talk: Conversation) -> None:
            await talk.json({"count": 1, "tokens": [1], "usage": USED})

        running = await gateways(await upstreams("a", behave), usage_file=file)
        for path in ("/tokenize", "/v1/messages/count_tokens", "/v1/files"):
            assert (await ask(running, path=path)).status == 200
        assert (await ask(running, path="/v1/models", method="GET")).status == 200
        assert (await ask(running, path=CHAT, messages="no", prompt=None, method="PUT")).status == 200
        assert await counted(running) == []

    async def test_only_adapters_that_are_known_are_told_apart(
        self, upstreams, gateways, ask, file, counted
    ) -> None:
        up = await upstreams("a", plain(USED))
        running = await gateways(up, usage_file=file, served="base", adapters=("narrow",))
        for model in ("base", "narrow", *(f"made-up-{n}" for n in range(20))):
            await ask(running, model=model)
        assert [(row.model, row.requests) for row in await counted(running)] == [("", 21), ("narrow", 1)]


class TestStreams:
    async def test_the_usage_is_asked_for_and_kept_from_who_did_not(
        self, upstreams, gateways, ask, file, counted
    ) -> None:
        up = await upstreams("a", streams(5, USED))
        running = await gateways(up, usage_file=file)
        reply = await ask(running, stream=True)
        assert sent(up)["stream_options"] == {"include_usage": True}
        assert [event for event in reply.events if "usage" in event] == []
        assert all(event["choices"] for event in reply.events if event != "[DONE]")
        assert reply.text.endswith("data: [DONE]\n\n")
        assert reply.said == "t0 t1 t2 t3 t4 "
        (row,) = await counted(running)
        assert (tokens(row), row.estimated) == ((36, 64, 0, 20), 0)

    async def test_who_asks_for_it_gets_it_once(self, upstreams, gateways, ask, file, counted) -> None:
        up = await upstreams("a", streams(5, USED))
        running = await gateways(up, usage_file=file)
        options = {"include_usage": True}
        reply = await ask(running, stream=True, stream_options=options)
        assert sent(up)["stream_options"] == options
        assert [event["usage"] for event in reply.events if "usage" in event] == [USED]
        (row,) = await counted(running)
        assert (row.requests, tokens(row)) == (1, (36, 64, 0, 20))

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (None, {"include_usage": True}),
            ({"include_usage": False}, {"include_usage": True}),
            (
                {"include_obfuscation": False, "continuous_usage_stats": True},
                {"include_obfuscation": False, "include_usage": True},
            ),
        ],
    )
    async def test_other_options_of_the_client_stay(
        self, upstreams, gateways, ask, options, expected
    ) -> None:
        up = await upstreams("a", streams(2, USED))
        running = await gateways(up)
        reply = await ask(running, stream=True, stream_options=options)
        assert sent(up)["stream_options"] == expected
        assert not [event for event in reply.events if "usage" in event]

    async def test_what_is_no_completion_is_not_asked(self, upstreams, gateways, ask, file, counted) -> None:
        async def behave(talk: Conversation) -> None:
            await talk.start_stream()
            await talk.event({"type": "response.output_text.delta", "delta": "a"})
            used = {"input_tokens": 9, "output_tokens": 4}
            await talk.event(
                {"type": "response.completed", "response": {"status": "completed", "usage": used}}
            )
            await talk.end_stream()

        up = await upstreams("a", behave)
        running = await gateways(up, usage_file=file)
        reply = await ask(running, stream=True, path="/v1/responses", input="hi")
        assert "stream_options" not in sent(up)
        assert '"output_tokens":4' in reply.text
        (row,) = await counted(running)
        assert (tokens(row), row.estimated) == ((9, 0, 0, 4), 0)

    async def test_a_usage_beside_the_last_words_passes(self, upstreams, gateways, ask, file, counted):
        """As llama.cpp tells it for text completions, whether it is asked or not."""

        async def behave(talk: Conversation) -> None:
            await talk.start_stream()
            await talk.event({"choices": [{"index": 0, "text": "a", "finish_reason": None}]})
            await talk.event({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}], "usage": USED})
            await talk.done()
            await talk.end_stream()

        running = await gateways(await upstreams("a", behave), usage_file=file)
        reply = await ask(running, stream=True, path=TEXT, prompt="hi")
        assert [event["usage"] for event in reply.events if "usage" in event] == [USED]
        (row,) = await counted(running)
        assert (tokens(row), row.estimated) == ((36, 64, 0, 20), 0)

    async def test_without_usage_it_is_an_estimate(self, upstreams, gateways, ask, file, counted) -> None:
        running = await gateways(await upstreams("a", streams(50)), usage_file=file)
        await ask(running, stream=True, messages=[{"role": "user", "content": "word " * 80}])
        (row,) = await counted(running)
        assert (row.requests, row.failed, row.estimated) == (1, 0, 1)
        assert 100 <= row.fresh <= 110
        assert 50 <= row.output <= 52  # one for each chunk

    async def test_streamed_messages_count_as_the_chat_inside(
        self, upstreams, gateways, ask, file, counted
    ) -> None:
        running = await gateways(await upstreams("a", streams(5, USED)), usage_file=file)
        reply = await ask(running, stream=True, path="/v1/messages", max_tokens=9)
        assert '"cache_read_input_tokens":64' in reply.text
        (row,) = await counted(running)
        assert (tokens(row), row.estimated) == ((36, 64, 0, 20), 0)

    async def test_of_a_client_that_leaves_what_was_generated_counts(
        self, upstreams, gateways, client, file, counted, eventually
    ) -> None:
        async def then(talk: Conversation) -> None:
            await talk.until_client_leaves()

        up = await upstreams("a", streams(30, then=then))
        running = await gateways(up, usage_file=file)
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "word " * 80}]}
        async with client.post(running.url + CHAT, json=body) as answer:
            got = b""
            while got.count(b"finish_reason") < 31:
                got += await answer.content.readany()
        await eventually(lambda: up.left)
        (row,) = await counted(running)
        assert (row.requests, row.failed, row.estimated) == (1, 0, 1)
        assert 100 <= row.fresh <= 110
        assert 30 <= row.output <= 31

    async def test_of_a_client_that_leaves_before_the_first_token_the_prompt_counts(
        self, upstreams, gateways, client, behave, file, counted, eventually
    ) -> None:
        up = await upstreams("a", behave.silent)
        running = await gateways(up, usage_file=file)
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "word " * 80}]}
        asking = asyncio.create_task(client.post(running.url + CHAT, json=body))
        await eventually(lambda: up.seen)
        asking.cancel()
        await eventually(lambda: up.left)
        (row,) = await counted(running)
        assert (row.requests, row.estimated, row.output, row.seconds) == (1, 1, 0, 0.0)
        assert 100 <= row.fresh <= 110

    async def test_a_stream_that_is_cut_counts_as_far_as_it_came(
        self, upstreams, gateways, ask, behave, file, counted
    ) -> None:
        async def then(talk: Conversation) -> None:
            await talk.upstream.go_on.wait()
            talk.reset()

        up = await upstreams("a", streams(12, then=then))
        running = await gateways(up, usage_file=file, max_retries=0)
        first = asyncio.Event()
        asking = asyncio.create_task(ask(running, stream=True, on_first=first))
        await first.wait()
        up.go_on.set()
        assert (await asking).error["code"] == "stream_interrupted"
        (row,) = await counted(running)
        assert (row.requests, row.failed, row.estimated) == (1, 1, 1)
        assert 12 <= row.output <= 13


class TestRetries:
    async def test_what_a_failed_attempt_told_is_not_the_clients(
        self, upstreams, gateways, ask, file, counted
    ) -> None:
        aborted = {"index": 0, "message": {"content": ""}, "finish_reason": "abort"}

        async def fails(talk: Conversation) -> None:
            await talk.json({"choices": [aborted], "usage": USED})

        bad, good = await upstreams("bad", fails), await upstreams("good", plain(USED))
        running = await gateways(bad, good, usage_file=file, breaker_failures=1000)
        while not bad.seen:
            await ask(running)
        (row,) = await counted(running)
        assert row.requests == len(good.seen)
        assert tokens(row) == (36 * row.requests, 64 * row.requests, 0, 20 * row.requests)

    async def test_a_stream_that_is_asked_again_counts_as_the_second_engine_tells(
        self, upstreams, gateways, ask, file, counted
    ) -> None:
        """A grammar starts anew, and the client has white space alone."""

        async def breaks(talk: Conversation) -> None:
            await talk.start_stream()
            await talk.role()
            await talk.text(" ")
            await talk.upstream.go_on.wait()
            talk.reset()

        bad = await upstreams("bad", breaks)
        running = await gateways(bad, usage_file=file)
        first = asyncio.Event()
        form = {"response_format": {"type": "json_object"}}
        asking = asyncio.create_task(ask(running, stream=True, on_first=first, **form))
        await first.wait()
        good = await upstreams("good", streams(5, USED))
        await running.push(bad, good)
        bad.go_on.set()
        reply = await asking
        assert ": continued\n\n" in reply.text
        assert [reply.text.count(f'"t{n} "') for n in range(5)] == [1] * 5
        assert sent(good)["stream_options"] == {"include_usage": True}
        assert "usage" not in reply.text
        (row,) = await counted(running)
        assert (row.requests, row.failed, row.estimated) == (1, 0, 0)
        assert tokens(row) == (36, 64, 0, 20)

    async def test_a_request_that_nobody_answers_used_nothing(
        self, upstreams, gateways, ask, behave, file, counted
    ) -> None:
        up = await upstreams("a", behave.status("500 Internal Server Error"))
        running = await gateways(up, usage_file=file)
        for stream in (False, True):
            assert (await ask(running, stream=stream)).status == 500
        (row,) = await counted(running)
        assert (row.requests, row.failed, row.estimated) == (2, 2, 0)
        assert tokens(row) == (0, 0, 0, 0)
        assert row.seconds == 0.0

    async def test_a_4xx_is_a_request_that_used_nothing(
        self, upstreams, gateways, ask, behave, file, counted
    ) -> None:
        running = await gateways(await upstreams("a", behave.status("404 Not Found")), usage_file=file)
        assert (await ask(running)).status == 404
        (row,) = await counted(running)
        assert (row.requests, row.failed, tokens(row)) == (1, 0, (0, 0, 0, 0))


class TestRefusals:
    """An engine that does not know `stream_options`."""

    @staticmethod
    def refuses(status: str) -> Behaviour:
        async def behave(talk: Conversation) -> None:
            if b"stream_options" in talk.request.body:
                await talk.json({"error": {"message": "no such field", "code": int(status[:3])}}, status)
            else:
                await streams(5, USED)(talk)

        return behave

    @pytest.mark.parametrize("status", ["400 Bad Request", "422 Unprocessable Entity"])
    async def test_it_is_not_asked_again(self, upstreams, gateways, ask, file, counted, status) -> None:
        up = await upstreams("a", self.refuses(status))
        running = await gateways(up, usage_file=file)
        for _ in range(3):
            reply = await ask(running, stream=True)
            assert (reply.status, reply.said) == (200, "t0 t1 t2 t3 t4 ")
        assert ["stream_options" in sent(up, n) for n in range(len(up.seen))] == [True, False, False, False]
        (row,) = await counted(running)
        assert (row.requests, row.estimated) == (3, 3)

    async def test_a_client_that_asks_for_it_gets_the_refusal(self, upstreams, gateways, ask) -> None:
        up = await upstreams("a", self.refuses("400 Bad Request"))
        running = await gateways(up)
        reply = await ask(running, stream=True, stream_options={"include_usage": True})
        assert reply.status == 400
        assert len(up.seen) == 1

    async def test_a_request_at_fault_teaches_nothing(
        self, upstreams, gateways, ask, behave, file, counted
    ) -> None:
        up = await upstreams("a", behave.status("400 Bad Request"))
        running = await gateways(up, usage_file=file, breaker_failures=1000)
        assert (await ask(running, stream=True)).status == 400
        up.behaviour = streams(5, USED)
        await ask(running, stream=True)
        up.behaviour = behave.status("400 Bad Request")
        assert (await ask(running, stream=True)).status == 400
        assert ["stream_options" in sent(up, n) for n in range(len(up.seen))] == [True, False, True, True]
        (row,) = await counted(running)
        assert (row.requests, row.estimated, row.output) == (3, 0, 20)

    async def test_one_that_was_ill_is_asked_again(self, upstreams, gateways, ask, eventually) -> None:
        """It may be another engine by now."""
        up = await upstreams("a", self.refuses("400 Bad Request"))
        running = await gateways(up, health_fall=1)
        await ask(running, stream=True)

        async def state() -> str:
            return str((await running.targets())["a"]["state"])

        async def is_in(wanted: str) -> bool:
            return await state() == wanted

        up.health = "500 Internal Server Error"
        await eventually(lambda: is_in("unhealthy"))
        up.health, up.behaviour = "200 OK", streams(5, USED)
        await eventually(lambda: is_in("healthy"))
        await ask(running, stream=True)
        assert "stream_options" in sent(up)


class TestRoutes:
    async def test_rows_tell_route_backend_and_model(self, upstreams, tmp_path, file, counted) -> None:
        engine = await upstreams("a", plain(USED))
        running = Routed(
            tmp_path,
            {"chat": [engine]},
            route("assistant", "gpt-4o", to=[pool("chat")]),
            route("narrow", to=[pool("chat", "adapter")]),
            route("big", to=[api("api")]),
            gates={"chat": {"adapters": ("adapter",)}},
            providers={"api": PlayedProvider()},
            usage_file=file,
        )
        await running.start()
        for model in ("assistant", "gpt-4o", "narrow", "chat-model"):
            assert (await running.ask(model))[0] == 200
        assert (await running.ask("nobody"))[0] == 404
        found = [(row.route, row.backend, row.model, row.requests) for row in await counted(running)]
        assert found == [
            ("assistant", "pool/chat", "", 2),
            ("chat-model", "pool/chat", "", 1),
            ("narrow", "pool/chat", "adapter", 1),
        ]

    async def test_who_answers_is_counted_and_not_who_could_not(
        self, upstreams, behave, tmp_path, file, counted
    ) -> None:
        down = await upstreams("a", behave.status("503 Service Unavailable"))
        engine = await upstreams("b", plain(USED))
        running = Routed(
            tmp_path,
            {"first": [down], "second": [engine]},
            route("assistant", to=[pool("first"), pool("second")]),
            usage_file=file,
        )
        await running.start()
        assert (await running.ask("assistant"))[0] == 200
        (row,) = await counted(running)
        assert (row.backend, row.requests, row.failed, tokens(row)) == ("pool/second", 1, 0, (36, 64, 0, 20))


class TestProviders:
    @pytest.mark.parametrize("kind", ["openai", "anthropic"])
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("said", ["hello", "cached hello", NO_USAGE])
    async def test_what_the_provider_bills_is_counted(
        self, tmp_path, file, counted, kind, stream, said
    ) -> None:
        """The same as in the spend file; where it tells nothing, an estimate."""
        async with provider() as paid:
            spec = ProviderSpec(
                name="paid", kind=kind, url=f"http://127.0.0.1:{paid.port}", prices={MODEL: OWN}
            )
            running = Routed(
                tmp_path,
                {},
                route("assistant", to=[api("paid", MODEL)]),
                specs=[spec],
                spend_file=tmp_path / "spend.db",
                usage_file=file,
            )
            await running.start()
            messages = [{"role": "user", "content": said}]
            status, _, _ = await running.ask("assistant", messages=messages, max_tokens=9, stream=stream)
            assert status == 200
            (row,) = await counted(running)
            (line,) = read_totals(tmp_path / "spend.db", time.time())[0].lines
        assert (row.route, row.backend, row.model, row.requests) == ("assistant", "provider/paid", MODEL, 1)
        assert row.estimated == line.estimated == (said == NO_USAGE)
        if row.estimated:
            assert row.fresh > 0
            assert row.output > 0
        else:
            assert tokens(row) == (line.fresh, line.cached, line.written, line.output)
            assert row.output > 0


async def test_what_a_key_used_is_told_by_its_name_alone(upstreams, gateways, ask, file, counted, tmp_path):
    secret = "sk-orch-planted"
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[key.team-a]\nsha256 = "{hashlib.sha256(secret.encode()).hexdigest()}"\n')
    running = await gateways(await upstreams("a", plain(USED)), usage_file=file, keys_file=keys)
    reply = await ask(running, headers={"Authorization": f"Bearer {secret}"})
    assert reply.status == 200
    assert (await ask(running)).status == 401
    text = running.gateway.metrics.exposition().decode()
    assert 'tokens_total{backend="pool",key="team-a",kind="output",model=""} 20.0' in text
    (row,) = await counted(running)
    assert (row.key, row.requests, tokens(row)) == ("team-a", 1, (36, 64, 0, 20))
    assert secret.encode() not in file.read_bytes()


class TestShown:
    async def test_metrics_tell_tokens_and_times(self, upstreams, gateways, ask) -> None:
        up = await upstreams("a", streams(5, USED))
        running = await gateways(up, served="base")
        await ask(running, stream=True)
        up.behaviour = plain(None)
        await ask(running)
        text = running.gateway.metrics.exposition().decode()
        whose = 'backend="pool",key="",'
        assert f'orchestrator_gateway_tokens_total{{{whose}kind="cached",model="base"}} 64.0' in text
        assert f'orchestrator_gateway_estimated_requests_total{{{whose}model="base"}} 1.0' in text
        assert 'orchestrator_gateway_first_token_seconds_count{model="base"} 1.0' in text
        assert 'orchestrator_gateway_inter_token_seconds_count{model="base"} 1.0' in text
        assert "orchestrator_gateway_usage_file_failing 0.0" in text

    async def test_a_file_that_cannot_be_written_is_said_everywhere_and_stops_nothing(
        self, upstreams, gateways, ask, eventually, tmp_path
    ) -> None:
        running = await gateways(
            await upstreams("a", plain(USED)), usage_file=tmp_path / "nowhere" / "usage.db"
        )
        assert (await ask(running)).status == 200
        await eventually(lambda: running.gateway.metrics.usage.book.trouble)
        state = (await running.state())["usage"]
        assert state["waiting"] == 1
        assert "nowhere/usage.db" in state["fault"]
        text = running.gateway.metrics.exposition().decode()
        assert "orchestrator_gateway_usage_file_failing 1.0" in text
        assert "orchestrator_gateway_usage_rows_waiting 1.0" in text
        assert (await ask(running)).status == 200
