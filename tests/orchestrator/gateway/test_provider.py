"""A provider behind the gateway: what it gets, what its failures become, and what is booked for each."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import json
import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from orchestrator.gateway import provider_call
from orchestrator.gateway.accounts import shared_file
from orchestrator.gateway.provider_key import KeyFile, NoKey
from policies.routing import Trouble
from policies.spend import Usage, cost, most
from policies.spend_bound import bound, ceiling
from tests.support.paid_provider import (
    CUT,
    HANG,
    Behaviour,
    Line,
    PaidProvider,
    Seen,
    answers,
    anthropic_usage,
    events,
    openai_usage,
    plain_body,
    provider,
)
from tests.support.provider_stand import MODEL, PRICE, Stand, client, due, stand

CHAT = {"model": "assistant", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}
KINDS = ["anthropic", "openai"]
Answer = tuple[int, bytes]


async def post(
    one: Stand, fields: dict[str, Any] | None = None, path: str = "/v1/chat/completions", **headers: str
) -> Answer:
    async with (
        client() as session,
        session.post(one.url + path, json=fields or CHAT, headers=headers) as answer,
    ):
        return answer.status, await answer.read()


async def until(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - of another's making
            await asyncio.sleep(0.005)


def named(body: bytes) -> bytes:
    """What the provider said, with the model's name that the client knows."""
    return body.replace(b'"model": "m"', b'"model":"assistant"')


def most_of(seen: Seen) -> int:
    """What is booked where the provider tells no usage."""
    return ceiling(PRICE, bound(seen.fields)).amount


def usage_in(body: bytes) -> dict[str, Any]:
    """The usage that a client reads, of a plain answer or a stream."""
    if not body.startswith((b"data", b"event")):
        found: dict[str, Any] = json.loads(body)["usage"]
        return found
    last: dict[str, Any] = {}
    for line in body.decode().splitlines():
        if line.startswith("data: {"):
            last = json.loads(line[6:]).get("usage") or last
    return last


class TestAnswers:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("words", ["hello", "cached prompt", "Grüße aus Bern " * 50])
    async def test_plain_and_streamed_are_booked_as_billed_and_equal(
        self, tmp_path: Path, kind: str, words: str
    ) -> None:
        fields = {**CHAT, "messages": [{"role": "user", "content": words}]}
        async with provider() as api, stand(api, tmp_path, kind=kind) as one:
            status, plain = await post(one, fields)
            assert status == 200
            first = (await one.line()).amount
            options = {"stream": True, "stream_options": {"include_usage": True}}
            status, streamed = await post(one, {**fields, **options})
            assert status == 200
            line = await one.line()
            assert first * 2 == line.amount == due(api.billed) > 0
            assert (line.requests, line.estimated, line.held) == (2, 0, 0)
            assert (line.fresh, line.cached, line.output) == (
                sum(u.fresh for u in api.billed),
                sum(u.cached for u in api.billed),
                sum(u.output for u in api.billed),
            )
            assert usage_in(plain)["total_tokens"] == usage_in(streamed)["total_tokens"]
            assert streamed.endswith(b"data: [DONE]\n\n")
            assert one.metric("dollars_total") == pytest.approx(line.amount / 1e12)
            assert one.metric("requests_total", outcome="ok") == 2

    async def test_a_stream_is_booked_also_where_the_client_asked_for_no_usage(self, tmp_path: Path) -> None:
        async with provider() as api, stand(api, tmp_path, kind="openai") as one:
            _, body = await post(one, {**CHAT, "stream": True})
            assert usage_in(body) == {}
            line = await one.line()
            assert (line.amount, line.estimated) == (due(api.billed), 0)

    async def test_a_client_of_anthropics_is_passed_untranslated(self, tmp_path: Path) -> None:
        async with provider() as api, stand(api, tmp_path) as one:
            status, body = await post(one, {**CHAT, "stream": True}, "/v1/messages")
            assert status == 200
            assert body == named(b"".join(events(api.seen[0])))
            status, body = await post(one, CHAT, "/v1/messages")
            assert body == named(plain_body(api.seen[1]))
            assert [seen.path for seen in api.seen] == ["/v1/messages"] * 2
            assert (await one.line()).amount == due(api.billed)

    async def test_what_only_anthropics_servers_know_passes_to_them(self, tmp_path: Path) -> None:
        tools = [{"type": "web_search_20250305", "name": "web_search"}]
        async with provider() as api, stand(api, tmp_path, usd_per_day_pico=None) as one:
            assert (await post(one, {**CHAT, "tools": tools}, "/v1/messages"))[0] == 200
            assert api.seen[0].fields["tools"] == tools
            line = await one.line()
            assert (line.amount, line.unpriced) == (0, 1)  # what a search costs no count of tokens tells
        async with provider() as api, stand(api, tmp_path) as one:
            status, body = await post(one, {**CHAT, "tools": tools}, "/v1/messages")
            assert (status, api.seen) == (503, [])
            assert b"web_search" in body
        async with provider() as api, stand(api, tmp_path, kind="openai") as one:
            status, body = await post(one, {**CHAT, "tools": tools}, "/v1/messages")
            assert (status, api.seen) == (400, [])
            assert b"web_search" in body

    async def test_a_client_of_anthropics_is_translated_for_an_openai_provider(self, tmp_path: Path) -> None:
        async with provider() as api, stand(api, tmp_path, kind="openai") as one:
            status, body = await post(one, {**CHAT, "stream": True}, "/v1/messages")
            assert status == 200
            assert b"event: message_stop" in body
            _, plain = await post(one, CHAT, "/v1/messages")
            assert json.loads(plain)["type"] == "message"
            assert (await one.line()).amount == due(api.billed)

    async def test_embeddings_and_tools_are_booked(self, tmp_path: Path) -> None:
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
        async with provider() as api, stand(api, tmp_path, kind="openai") as one:
            assert (await post(one, {"model": "a", "input": "hello"}, "/v1/embeddings"))[0] == 200
            assert (await post(one, {**CHAT, "tools": tools}))[0] == 200
            assert (await one.line()).amount == due(api.billed)

    async def test_counting_tokens_is_free(self, tmp_path: Path) -> None:
        async def counts(_: PaidProvider, __: Seen, line: Line) -> None:
            await line.answer(200, b'{"input_tokens":7}')

        async with provider(counts) as api, stand(api, tmp_path, usd_per_day_pico=0) as one:
            fields = {"model": "assistant", "messages": CHAT["messages"]}
            assert (await post(one, fields, "/v1/messages/count_tokens"))[1] == b'{"input_tokens":7}'
            assert (await one.line()).amount == 0

    async def test_nothing_of_the_clients_head_leaves_and_no_key_comes_back(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        async def tells(api: PaidProvider, _: Seen, line: Line) -> None:
            await line.error(401, "the key sk-secret-1 is not known", x_leak="1", set_cookie="a=b")

        theirs = {
            "Authorization": "Bearer client-secret",
            "x-api-key": "client-secret",
            "Cookie": "session=client-secret",
            "X-Forwarded-For": "10.9.8.7",
            "Forwarded": "for=10.9.8.7",
            "X-Whatever": "client-secret",
            "OpenAI-Organization": "client-secret",
        }
        async with provider() as api, stand(api, tmp_path) as one:
            await post(one, CHAT, **theirs)
            await post(one, CHAT, "/v1/messages", **theirs)
            api.behaviour = tells
            status, body = await post(one, CHAT, **theirs)
            for seen in api.seen:
                assert seen.headers["x-api-key"] == "sk-secret-1"
                told = json.dumps(seen.headers) + json.dumps(seen.fields)
                assert "client-secret" not in told
                assert "10.9.8.7" not in told
                assert "127.0.0.1" not in told.replace(f"127.0.0.1:{api.port}", "")
            assert status == 502
            assert b"sk-secret" not in body
            assert one.unserved[0].trouble is Trouble.DOWN
        out = capsys.readouterr()
        assert "sk-secret" not in out.out + out.err

    async def test_the_answer_says_who_served_and_nothing_of_the_providers_head(self, tmp_path: Path) -> None:
        async def tells(api: PaidProvider, seen: Seen, line: Line) -> None:
            api.bill(seen)
            await line.answer(200, plain_body(seen), Set_Cookie="a=b", X_Secret="1", Server="them")

        async with (
            provider(tells) as api,
            stand(api, tmp_path) as one,
            client() as session,
            session.post(one.url + "/v1/chat/completions", json=CHAT) as answer,
        ):
            assert answer.headers["X-Orchestrator-Backend"] == f"api/{MODEL}"
            assert answer.headers["X-Request-Id"] == "req-0"
            assert not answer.headers.keys() & {"Set-Cookie", "X-Secret"}

    @pytest.mark.parametrize("stream", [False, True])
    async def test_the_answer_says_what_the_provider_was_not_told(self, tmp_path: Path, stream: bool) -> None:
        fields = {**CHAT, "temperature": 0, "seed": 7, "stream": stream}
        async with (
            provider() as api,
            stand(api, tmp_path) as one,
            client() as session,
            session.post(one.url + "/v1/chat/completions", json=fields) as answer,
        ):
            assert answer.headers["X-Orchestrator-Dropped"] == "temperature, seed"
            assert not api.seen[0].fields.keys() & {"temperature", "seed"}
        async with (
            provider() as api,
            stand(api, tmp_path) as one,
            client() as session,
            session.post(one.url + "/v1/chat/completions", json=CHAT) as answer,
        ):
            assert "X-Orchestrator-Dropped" not in answer.headers

    async def test_the_key_is_read_again_when_its_file_changes(self, tmp_path: Path) -> None:
        async with provider() as api, stand(api, tmp_path) as one:
            await post(one)
            (tmp_path / "api.key").write_text("sk-other\n")
            await post(one)
            assert [seen.headers["x-api-key"] for seen in api.seen] == ["sk-secret-1", "sk-other"]


async def refuses(_: PaidProvider, __: Seen, line: Line) -> None:
    await line.error(529, "overloaded")


def says(status: int, **headers: str) -> Behaviour:
    async def behave(_: PaidProvider, __: Seen, line: Line) -> None:
        await line.error(status, "because", **headers)

    return behave


def sends(data: bytes, then: str = "close") -> Behaviour:
    """Bills, writes these bytes, and closes, or is silent."""

    async def behave(api: PaidProvider, seen: Seen, line: Line) -> None:
        api.bill(seen)
        await line.raw(data)
        if then == "hang":
            await line.hang()
        line.writer.close()

    return behave


class TestFailures:
    @pytest.mark.parametrize("status", [429, 500, 503, 529])
    async def test_what_was_not_taken_is_sent_again_and_paid_once(self, tmp_path: Path, status: int) -> None:
        async with provider() as api, stand(api, tmp_path) as one:
            api.plays = [says(status), says(status)]
            assert (await post(one))[0] == 200
            assert len(api.seen) == 3
            line = await one.line()
            assert (line.amount, line.requests, line.held) == (due(api.billed), 1, 0)
            assert len(one.clock.slept) == 2

    async def test_the_provider_says_when_to_come_again(self, tmp_path: Path) -> None:
        async with provider() as api, stand(api, tmp_path) as one:
            api.plays = [says(429, Retry_After="7")]
            assert (await post(one))[0] == 200
            assert one.clock.slept == [7.0]

    async def test_who_asks_for_more_patience_than_there_is_is_left_alone(self, tmp_path: Path) -> None:
        async with provider() as api, stand(api, tmp_path) as one:
            one.patience = 5.0
            api.plays = [says(429, Retry_After="30")]
            async with (
                client() as session,
                session.post(one.url + "/v1/chat/completions", json=CHAT) as answer,
            ):
                assert answer.status == 429
                assert 30 <= int(answer.headers["Retry-After"]) <= 32
            assert one.unserved[0].trouble is Trouble.SATURATED
            assert not one.backend.view().hopeful
            assert (await post(one))[0] == 503
            assert len(api.seen) == 1
            one.clock.slept.append(31.0)
            assert (await post(one))[0] == 200
            assert one.backend.view().sound

    async def test_retries_end(self, tmp_path: Path) -> None:
        async with provider(refuses) as api, stand(api, tmp_path, retries=1) as one:
            status, _ = await post(one)
            assert (status, len(api.seen)) == (529, 2)
            assert (await one.totals()).lines == ()

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
    async def test_the_clients_own_fault_is_told_in_its_form(self, tmp_path: Path, path: str) -> None:
        async with provider(says(400)) as api, stand(api, tmp_path) as one:
            status, body = await post(one, CHAT, path)
            assert (status, len(api.seen)) == (400, 1)
            assert "because" in json.loads(body)["error"]["message"]
            assert ("type" in json.loads(body)) == path.endswith("messages")
            assert one.unserved[0].said
            assert one.backend.view().sound
            assert (await one.totals()).lines == ()

    async def test_a_refused_account_is_left_alone_until_there_is_another_key(self, tmp_path: Path) -> None:
        async with provider(says(401)) as api, stand(api, tmp_path) as one:
            status, body = await post(one)
            assert status == 502
            assert b"refuses the gateway's account (401)" in body
            assert (await post(one))[0] == 503
            assert len(api.seen) == 1
            api.behaviour = answers
            (tmp_path / "api.key").write_text("sk-new")
            assert (await post(one))[0] == 200

    async def test_an_unknown_model_closes_no_other(self, tmp_path: Path) -> None:
        async with provider(says(404)) as api, stand(api, tmp_path) as one:
            status, body = await post(one)
            assert (status, b"does not know claude-x (404)" in body) == (502, True)
            assert (await post(one))[0] == 503
            assert len(api.seen) == 1
            assert one.backend.view().sound

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    async def test_no_redirection_is_followed(self, tmp_path: Path, status: int, kind: str) -> None:
        async with provider() as other, provider() as api, stand(api, tmp_path, kind=kind) as one:
            api.behaviour = says(status, Location=f"http://127.0.0.1:{other.port}/v1/messages")
            assert (await post(one))[0] == 502
            assert (other.connections, len(api.seen)) == (0, 1)
            assert (await one.totals()).lines == ()

    async def test_a_provider_that_is_not_there_costs_nothing_and_is_left_alone(self, tmp_path: Path) -> None:
        async with provider() as api, stand(api, tmp_path, retries=5) as one:
            port = api.port
            await api.stop()
            assert (await post(one))[0] == 502
            assert not one.backend.view().hopeful
            assert (await post(one))[0] == 503
            assert (await one.totals()).lines == ()
            assert one.metric("closed") == 1
            one.clock.slept.append(60.0)
            await api.start(port)
            assert (await post(one))[0] == 200
            assert one.metric("closed") == 0

    @pytest.mark.parametrize(
        ("data", "then"),
        [
            (b"", "close"),
            (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", "close"),
            (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n{", "close"),
            (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 9\r\n\r\n<html>oh!", "close"),
            (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 2\r\n\r\n\n\n", "close"),
            (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]", "close"),
            (b"HTTP/1.1 204 No Content\r\n\r\n", "close"),
            (b"no HTTP at all\r\n\r\n", "close"),
            (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n", "hang"),
            (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000, "hang"),
            (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", "close"),
            (b"HTTP/1.1 502 Bad\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\noops", "close"),
            (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + b" " * 2**21, "hang"),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    async def test_what_may_have_been_worked_on_is_booked_at_its_most_and_not_sent_again(
        self, tmp_path: Path, data: bytes, then: str, stream: bool
    ) -> None:
        async with provider(sends(data, then)) as api, stand(api, tmp_path) as one:
            status, _ = await post(one, {**CHAT, "stream": stream})
            if data.startswith(b"HTTP/1.1 204"):  # said that there is nothing
                assert (status, (await one.totals()).lines) == (502, ())
                return
            assert (status, len(api.seen)) == (502, 1)
            line = await one.line()
            assert (line.amount, line.estimated, line.held) == (most_of(api.seen[0]), 1, 0)
            assert line.amount > due(api.billed)

    @pytest.mark.parametrize("stream", [False, True])
    async def test_an_error_that_calls_itself_200_is_one(self, tmp_path: Path, stream: bool) -> None:
        async with provider() as api, stand(api, tmp_path, kind="openai") as one:
            api.plays = [says(200)]
            status, _ = await post(one, {**CHAT, "stream": stream})
            assert status == 502 or len(api.seen) == 2
            assert (await one.totals()).amount() == due(api.billed)

    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_stream_that_begins_with_an_error_is_sent_elsewhere(
        self, tmp_path: Path, kind: str
    ) -> None:
        async def fails(_: PaidProvider, __: Seen, line: Line) -> None:
            error = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
            await line.stream([b"event: error\ndata: " + json.dumps(error).encode() + b"\n\n"])

        async with provider(fails) as api, stand(api, tmp_path, kind=kind, retries=0) as one:
            status, body = await post(one, {**CHAT, "stream": True})
            assert status == 502
            assert b"busy" in body
            assert (await one.totals()).lines == ()

    async def test_what_may_have_run_and_must_not_twice_goes_nowhere_else(self, tmp_path: Path) -> None:
        fields = {"model": "assistant", "input": "hi", "max_output_tokens": 5, "store": True}
        async with provider(sends(b"")) as api, stand(api, tmp_path, kind="openai") as one:
            assert (await post(one, fields, "/v1/responses"))[0] == 502
            assert (len(api.seen), one.unserved) == (1, [])
            assert (await one.line()).amount == most_of(api.seen[0])

    async def test_a_stream_where_none_was_asked_for_is_no_answer(self, tmp_path: Path) -> None:
        async def streams(api: PaidProvider, seen: Seen, line: Line) -> None:
            api.bill(seen)
            await line.stream(events(seen))

        async with provider(streams) as api, stand(api, tmp_path) as one:
            assert (await post(one))[0] == 502
            assert (await one.line()).amount == most_of(api.seen[0])

    async def test_an_answer_that_is_compressed_all_the_same_is_read(self, tmp_path: Path) -> None:
        async def zips(api: PaidProvider, seen: Seen, line: Line) -> None:
            api.bill(seen)
            await line.answer(200, gzip.compress(plain_body(seen)), Content_Encoding="gzip")

        async with provider(zips) as api, stand(api, tmp_path) as one:
            status, body = await post(one)
            assert (status, json.loads(body)["object"]) == (200, "chat.completion")
            assert api.seen[0].headers["accept-encoding"] == "identity"
            assert (await one.line()).amount == due(api.billed)

    async def test_an_answer_that_grows_when_it_is_unpacked_is_stopped(self, tmp_path: Path) -> None:
        async def bombs(api: PaidProvider, seen: Seen, line: Line) -> None:
            api.bill(seen)
            await line.answer(200, gzip.compress(b" " * 2**26), Content_Encoding="gzip")

        async with provider(bombs) as api, stand(api, tmp_path) as one:
            assert (await post(one))[0] == 502

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_stream_that_breaks_ends_typed_and_is_booked_at_its_most(
        self, tmp_path: Path, kind: str, path: str
    ) -> None:
        fields = {**CHAT, "stream": True, "messages": [{"role": "user", "content": CUT}]}
        async with provider() as api, stand(api, tmp_path, kind=kind) as one:
            status, body = await post(one, fields, path)
            assert status == 200
            tail = body[-600:]
            assert b"event: error" in tail if path.endswith("messages") else b'data: {"error"' in tail
            assert b"[DONE]" not in body
            assert b"message_stop" not in body
            line = await one.line()
            assert (line.amount, line.estimated) == (most_of(api.seen[0]), 1)
            assert one.metric("requests_total", outcome="cut") == 1


class TestTime:
    async def test_silence_before_the_first_token_ends(self, tmp_path: Path) -> None:
        async with provider(sends(b"", "hang")) as api, stand(api, tmp_path, first_token_timeout=0.2) as one:
            status, body = await post(one, {**CHAT, "stream": True})
            assert status == 504
            assert b"nothing in time" in body
            assert (await one.line()).amount == most_of(api.seen[0])

    async def test_marks_of_life_are_no_tokens(self, tmp_path: Path) -> None:
        async def pings(api: PaidProvider, seen: Seen, line: Line) -> None:
            api.bill(seen)
            await line.begin()
            while True:
                await line.chunk(b": processing\n\n")
                await line.chunk(b'event: ping\ndata: {"type":"ping"}\n\n')
                await asyncio.sleep(0.01)

        async with provider(pings) as api, stand(api, tmp_path, first_token_timeout=0.3) as one:
            assert (await post(one, {**CHAT, "stream": True}))[0] == 504

    async def test_a_stream_that_falls_silent_ends_typed(self, tmp_path: Path) -> None:
        fields = {**CHAT, "stream": True, "messages": [{"role": "user", "content": HANG}]}
        async with provider() as api, stand(api, tmp_path, first_token_timeout=0.3) as one:
            status, body = await post(one, fields)
            assert status == 200
            assert b"stalled" in body
            assert (await one.line()).amount == most_of(api.seen[0])

    async def test_an_answer_that_dribbles_ends(self, tmp_path: Path) -> None:
        async def dribbles(api: PaidProvider, seen: Seen, line: Line) -> None:
            api.bill(seen)
            await line.raw(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"
            )
            while True:
                await line.raw(b" ")
                await asyncio.sleep(0.01)

        async with provider(dribbles) as api, stand(api, tmp_path, answer_timeout=0.4) as one:
            assert (await post(one))[0] == 504
            assert one.backend.view().sound  # how long an answer takes is nobody's fault

    async def test_an_endless_stream_ends_typed(self, tmp_path: Path) -> None:
        async def goes_on(api: PaidProvider, seen: Seen, line: Line) -> None:
            api.bill(seen)
            await line.begin()
            blocks = events(seen)
            for block in blocks[:3]:
                await line.chunk(block)
            while True:
                await line.chunk(blocks[3])
                await asyncio.sleep(0.01)

        async with provider(goes_on) as api, stand(api, tmp_path, answer_timeout=0.5) as one:
            status, body = await post(one, {**CHAT, "stream": True})
            assert status == 200
            assert b"deadline" in body

    async def test_a_server_that_never_ends_its_connection_is_not_waited_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(provider_call, "_LAST_WORDS", 0.1)

        async def stays(api: PaidProvider, seen: Seen, line: Line) -> None:
            api.bill(seen)
            await line.begin()
            for block in events(seen):
                await line.chunk(block)
            await line.hang()

        async with provider(stays) as api, stand(api, tmp_path, answer_timeout=50.0) as one:
            _, body = await post(one, {**CHAT, "stream": True})
            assert body.endswith(b"data: [DONE]\n\n")
            line = await one.line()
            assert (line.amount, line.estimated) == (due(api.billed), 0)

    async def test_a_tls_handshake_that_never_ends_is_no_connection(self, tmp_path: Path) -> None:
        async with provider() as api:  # speaks no TLS, and waits for more
            url = f"https://127.0.0.1:{api.port}"
            async with stand(api, tmp_path, url=url, connect_timeout=0.3, retries=0) as one:
                assert (await post(one))[0] == 502
                assert (await one.totals()).lines == ()


class TestUsage:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("lie", [None, "null", {}, "text", [1], -1, 1.5, "7", True, 10**12])
    async def test_a_usage_that_is_none_is_booked_at_the_most(
        self, tmp_path: Path, kind: str, stream: bool, lie: Any
    ) -> None:
        async def lies(api: PaidProvider, seen: Seen, line: Line) -> None:
            api.bill(seen)
            told = lie
            if not isinstance(lie, list | dict | None) and lie not in ("null", "text"):
                usage = anthropic_usage(seen.usage) if seen.messages else openai_usage(seen.usage)
                name = "output_tokens" if seen.messages else "completion_tokens"
                told = {**usage, name: lie}
            elif lie == "null" and not (stream and seen.messages):
                told = {"input_tokens": None, "prompt_tokens": None}
            elif not isinstance(lie, dict | None):
                told = {"output_tokens": lie, "input_tokens": lie, "prompt_tokens": lie}
            if stream:
                await line.stream(events(seen, told))
            else:
                await line.answer(200, plain_body(seen, told))

        async with provider(lies) as api, stand(api, tmp_path, kind=kind) as one:
            await post(one, {**CHAT, "stream": stream})
            line = await one.line()
            assert (line.amount, line.estimated) == (most_of(api.seen[0]), 1)
            assert one.metric("estimated_total") == 1

    async def test_a_usage_beyond_the_bound_is_booked_as_told_and_shown(self, tmp_path: Path) -> None:
        told = {"input_tokens": 10, "output_tokens": 500_000}

        async def lies(_: PaidProvider, seen: Seen, line: Line) -> None:
            await line.answer(200, plain_body(seen, told))

        async with provider(lies) as api, stand(api, tmp_path) as one:
            await post(one)
            assert (await one.line()).amount == cost(PRICE, Usage(10, 0, 0, 500_000))
            assert one.metric("over_bound_total") == 1
            assert (await post(one))[0] == 503  # which leaves nothing of the cap of $1

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_client_that_leaves_is_booked_at_the_most(self, tmp_path: Path, stream: bool) -> None:
        fields = {**CHAT, "stream": stream, "messages": [{"role": "user", "content": HANG}]}
        async with provider() as api, stand(api, tmp_path) as one:
            async with client() as session:
                asked = asyncio.create_task(read_first(session, one.url, fields))
                await until(lambda: api.seen and (not stream or one.jobs[0].response))
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)
            await until(lambda: not (one.backend.in_flight or api.open))
            line = await one.line()
            assert (line.amount, line.held) == (most_of(api.seen[0]), 0)
            assert one.metric("requests_total", outcome="cancelled") == 1


async def read_first(session: aiohttp.ClientSession, url: str, fields: dict[str, Any]) -> None:
    async with session.post(url + "/v1/chat/completions", json=fields) as answer:
        await answer.content.readany()
        await asyncio.sleep(60)


class TestCaps:
    async def test_a_hundred_at_once_never_go_over_a_cap(self, tmp_path: Path) -> None:
        each = most(PRICE, prompt=bound({**CHAT, "model": MODEL, "stream": False}).prompt, output=20)
        cap = each * 5
        async with provider() as api, stand(api, tmp_path, usd_per_day_pico=cap, in_flight=100) as one:
            release = asyncio.Event()

            async def waits(api: PaidProvider, seen: Seen, line: Line) -> None:
                await release.wait()
                await answers(api, seen, line)

            api.behaviour = waits
            asked = [asyncio.create_task(post(one)) for _ in range(100)]
            await until(lambda: sum(task.done() for task in asked) + len(api.seen) == 100)
            assert 4 <= len(api.seen) <= 6
            totals = await one.totals()
            assert totals.amount() + totals.held() <= cap
            release.set()
            statuses = [(await task)[0] for task in asked]
            assert statuses.count(503) == 100 - len(api.seen)
            assert one.metric("cap_reached_total") == 100 - len(api.seen)
            assert "of $" in one.unserved[0].why
            line = await one.line()
            assert (line.amount, line.held) == (due(api.billed), 0)

    async def test_a_route_has_a_cap_too(self, tmp_path: Path) -> None:
        async with provider() as api, stand(api, tmp_path, usd_per_day_pico=None, route_cap=1) as one:
            status, body = await post(one)
            assert (status, api.seen) == (503, [])
            assert b"route assistant: of $" in body

    async def test_an_unknown_price_is_refused_under_a_cap_and_never_zero(self, tmp_path: Path) -> None:
        async with provider() as api, stand(api, tmp_path, prices={}) as one:
            status, body = await post(one)
            assert (status, api.seen) == (503, [])
            assert f"no price of {MODEL} is known".encode() in body

    async def test_without_a_cap_an_unknown_price_is_shown_as_such(self, tmp_path: Path) -> None:
        async with provider() as api, stand(api, tmp_path, prices={}, usd_per_day_pico=None) as one:
            assert (await post(one))[0] == 200
            line = await one.line()
            assert (line.amount, line.requests, line.unpriced) == (0, 1, 1)
            assert line.output == api.billed[0].output

    async def test_what_costs_more_than_tokens_is_refused_under_a_cap(self, tmp_path: Path) -> None:
        fields = {**CHAT, "web_search_options": {"search_context_size": "high"}}
        async with provider() as api, stand(api, tmp_path, kind="openai") as one:
            status, body = await post(one, fields)
            assert (status, api.seen) == (503, [])
            assert b"web_search_options" in body
        async with provider() as api, stand(api, tmp_path, kind="openai", usd_per_day_pico=None) as one:
            assert (await post(one, fields))[0] == 200
            assert (await one.line()).unpriced == 1

    async def test_a_file_that_cannot_be_written_refuses_what_has_a_cap(self, tmp_path: Path) -> None:
        (tmp_path / "spend.db").write_bytes(b"not a database" * 100)
        async with provider() as api, stand(api, tmp_path) as one:
            status, body = await post(one)
            assert (status, api.seen) == (503, [])
            assert b"file is not a database; without it no cap could be kept" in body
            assert one.metric("spend_file_failing") == 1

    async def test_without_a_cap_it_is_served_and_booked_once_it_can_be(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shared_file, "BUSY_WAIT", 0.01)
        path = tmp_path / "spend.db"
        path.mkdir()
        async with provider() as api, stand(api, tmp_path, usd_per_day_pico=None) as one:
            assert (await post(one))[0] == 200
            path.rmdir()
            assert (await post(one))[0] == 200
            assert (await one.line()).amount == due(api.billed)

    async def test_as_many_are_in_flight_as_may_be(self, tmp_path: Path) -> None:
        async def slow(api: PaidProvider, seen: Seen, line: Line) -> None:
            await asyncio.sleep(0.02)
            await answers(api, seen, line)

        async with provider(slow) as api, stand(api, tmp_path, in_flight=3) as one:
            found = await asyncio.gather(*(post(one) for _ in range(12)))
            assert [status for status, _ in found] == [200] * 12
            assert api.most_at_once == 3

    async def test_who_finds_no_place_goes_elsewhere(self, tmp_path: Path) -> None:
        async with provider(sends(b"", "hang")) as api, stand(api, tmp_path, in_flight=1) as one:
            one.patience = 0.05
            first = asyncio.create_task(post(one))
            await until(lambda: api.seen)
            assert one.backend.view().saturated
            assert (await post(one))[0] == 503
            assert one.unserved[0].trouble is Trouble.SATURATED
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)

    @pytest.mark.parametrize(
        ("path", "fields", "word"),
        [
            ("/v1/chat/completions", {**CHAT, "n": 2}, "n"),
            ("/v1/embeddings", {"model": "a", "input": "x"}, "/v1/embeddings"),
            ("/v1/rerank", {"model": "a", "query": "x", "documents": []}, "/v1/rerank"),
        ],
    )
    async def test_what_cannot_be_asked_is_refused_by_name(
        self, tmp_path: Path, path: str, fields: dict[str, Any], word: str
    ) -> None:
        async with provider() as api, stand(api, tmp_path) as one:
            status, body = await post(one, fields, path)
            assert (status, api.seen) == (400, [])
            assert word in json.loads(body)["error"]["message"]
            assert one.unserved[0].trouble is Trouble.FAILED
            assert (await one.totals()).lines == ()


class TestTrust:
    async def test_a_certificate_of_the_own_authority_is_trusted(self, tmp_path: Path) -> None:
        pem, trust = certificate(tmp_path)
        async with provider(trust=trust) as api:
            url = f"https://127.0.0.1:{api.port}"
            async with stand(api, tmp_path, url=url, ca_file=pem) as one:
                assert (await post(one))[0] == 200
                assert (await one.line()).amount == due(api.billed)

    async def test_who_cannot_prove_who_it_is_gets_no_key_and_no_money(self, tmp_path: Path) -> None:
        _, trust = certificate(tmp_path)
        async with provider(trust=trust) as api:
            url = f"https://127.0.0.1:{api.port}"
            async with stand(api, tmp_path, url=url, retries=0) as one:
                status, body = await post(one)
                assert (status, api.seen) == (502, [])
                assert b"certificate" in body.lower()
                assert (await one.totals()).lines == ()


def certificate(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate that signs itself, for 127.0.0.1, and a server's side with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, secret = directory / "cert.pem", directory / "cert.key"
    pem.write_bytes(made.public_bytes(Encoding.PEM))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.load_cert_chain(pem, secret)
    return pem, trust


class TestKeys:
    @pytest.mark.parametrize(
        ("data", "word"),
        [(b"", "empty"), (b" \n", "empty"), (b"a\nb\n", "more than a key"), (b"\xff", "plain")],
    )
    async def test_a_file_without_a_key_is_no_backend(self, tmp_path: Path, data: bytes, word: str) -> None:
        (tmp_path / "api.key").write_bytes(data)
        async with provider() as api, stand(api, tmp_path) as one:
            assert word in one.backend.view().why
            status, body = await post(one)
            assert (status, api.connections) == (503, 0)
            assert word.encode() in body
            (tmp_path / "api.key").write_bytes(b"sk-1\r\n")
            assert (await post(one))[0] == 200
            assert api.seen[0].headers["x-api-key"] == "sk-1"

    def test_credentials_of_systemd_come_first(self, tmp_path: Path) -> None:
        (tmp_path / "claude.key").write_text("sk-1")
        found = KeyFile(Path("claude.key"), {"CREDENTIALS_DIRECTORY": str(tmp_path)})
        assert found.read() == "sk-1"
        assert KeyFile(None, {}).read() == ""
        os.unlink(tmp_path / "claude.key")
        with pytest.raises(NoKey, match=r"claude\.key cannot be read: No such file"):
            found.read()

    def test_a_key_is_hidden_in_what_is_shown(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("sk-1")
        key = KeyFile(tmp_path / "a", {})
        key.read()
        assert key.hide("Incorrect key sk-1 given") == "Incorrect key [key] given"

    def test_what_is_no_file_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", tmp_path):
            with pytest.raises(NoKey, match="is no file"):
                KeyFile(path, {}).read()
