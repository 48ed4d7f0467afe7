"""The simulated server as a process: how it starts, answers, fails and ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import aiohttp
import orjson
import pytest

pytestmark = pytest.mark.slow

PATIENCE = 60.0
FAST = ("--tokens-per-second", "500", "--time-to-first-token", "0")
SLOW = ("--tokens-per-second", "20", "--time-to-first-token", "0")


class Simulated(Protocol):
    process: asyncio.subprocess.Process
    address: str
    said: list[str]

    @property
    def url(self) -> str: ...
    async def listen_until(self, word: str) -> str: ...
    async def exit_code(self) -> int: ...


Launch = Callable[..., Awaitable[Simulated]]


def body(max_tokens: int = 8, **extra: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "hi", "max_tokens": max_tokens, **extra}


async def ask(http: aiohttp.ClientSession, server: Simulated, **extra: Any) -> tuple[int, Any]:
    async with http.post(f"{server.url}/v1/completions", json=body(**extra)) as response:
        return response.status, await response.json()


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[Any]:
    """The events of a stream; the string "[DONE]" as it is."""
    async for line in response.content:
        data = line.removeprefix(b"data: ").strip()
        if data:
            yield "[DONE]" if data == b"[DONE]" else orjson.loads(data)


@contextlib.asynccontextmanager
async def open_stream(
    http: aiohttp.ClientSession, server: Simulated, path: str = "/v1/completions", **extra: Any
) -> AsyncIterator[aiohttp.ClientResponse]:
    """A stream that has begun: its first token is there."""
    async with http.post(f"{server.url}{path}", json=body(stream=True, **extra)) as response:
        assert response.status == 200
        yield response


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.02)


async def falls_silent(response: aiohttp.ClientResponse) -> None:
    """Read until nothing comes for a while. A stream that goes on, or ends, fails."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                async with asyncio.timeout(0.5):
                    line = await response.content.readline()
            except TimeoutError:
                return
            assert line, "the stream ended"


async def gauges(http: aiohttp.ClientSession, server: Simulated) -> dict[str, float]:
    async with http.get(f"{server.url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return {
        line.split("{")[0].removeprefix("vllm:num_requests_"): float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting"))
    }


async def until_gauges(http: aiohttp.ClientSession, server: Simulated, running: int, waiting: int) -> None:
    async def shown() -> bool:
        return await gauges(http, server) == {"running": running, "waiting": waiting}

    await eventually(shown)


async def connects(address: str) -> bool:
    host, port = address.split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


async def until_draining(server: Simulated) -> None:
    server.process.send_signal(signal.SIGTERM)
    await server.listen_until("draining")


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


async def held(port: int) -> bool:
    """True when somebody holds the port, listening or not."""
    with socket.socket() as other:
        try:
            other.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


async def test_it_holds_its_port_and_refuses_connections_while_it_loads(launch: Launch) -> None:
    port = free_port()
    await launch("--port", str(port), "--load-time", "600", wait=False)
    await eventually(lambda: held(port))
    assert not await connects(f"127.0.0.1:{port}")


async def test_an_early_stop_signal_kills_the_loading_process(launch: Launch) -> None:
    port = free_port()
    server = await launch("--port", str(port), "--load-time", "600", wait=False)
    await eventually(lambda: held(port))
    server.process.terminate()
    assert await server.exit_code() == -signal.SIGTERM


async def test_a_late_stop_signal_is_swallowed_until_it_has_loaded(launch: Launch) -> None:
    server = await launch("--load-time", "1", wait=False)
    await server.listen_until("half loaded")
    server.process.terminate()
    assert await server.exit_code() == 0


async def test_the_pages_it_shows(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch("--max-model-len", "333")
    for path in ("/health", "/ping"):
        async with http.get(server.url + path) as response:
            assert response.status == 200
            assert await response.read() == b""
    async with http.get(f"{server.url}/version") as response:
        assert (await response.json())["version"].startswith("0.32")
    async with http.get(f"{server.url}/v1/models") as response:
        model = (await response.json())["data"][0]
        assert (model["id"], model["root"], model["parent"]) == ("tiny", "none", None)
        assert model["max_model_len"] == 333
    for path, status in (("/ready", 404), ("/faults/freeze", 404), ("/v1/completions", 405)):
        async with http.get(server.url + path) as response:
            assert response.status == status
            assert "detail" in await response.json()


async def test_a_chat_stream(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch(*FAST)
    chat = {
        "messages": [{"role": "user", "content": "hi"}],
        "return_token_ids": True,
        "stream_options": {"include_usage": True},
    }
    async with open_stream(http, server, "/v1/chat/completions", max_tokens=5, **chat) as response:
        got = [event async for event in events(response)]
    role, *chunks, usage, done = got
    assert role["object"] == "chat.completion.chunk"
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert role["prompt_token_ids"]
    assert sum(len(chunk["choices"][0]["token_ids"]) for chunk in chunks) == 5
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5
    assert usage["usage"]["prompt_tokens"] == len(role["prompt_token_ids"])
    assert done == "[DONE]"
    async with http.post(f"{server.url}/v1/chat/completions", json={**chat, "max_tokens": 5}) as response:
        plain = await response.json()
    streamed = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    message = plain["choices"][0]["message"]
    assert (message["role"], message["content"], message["reasoning"]) == ("assistant", streamed, None)
    assert plain["prompt_token_ids"] == role["prompt_token_ids"]


async def test_two_servers_of_one_seed_give_the_same_text(
    launch: Launch, http: aiohttp.ClientSession
) -> None:
    servers = [await launch(*FAST, "--seed", seed) for seed in ("4", "4", "5")]
    texts = [(await ask(http, server, max_tokens=20))[1]["choices"][0]["text"] for server in servers]
    assert texts[0] == texts[1] != texts[2]


async def test_a_stop_string_ends_the_text(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch(*FAST)
    _, whole = await ask(http, server, max_tokens=60)
    text = whole["choices"][0]["text"]
    stop = text[60:64]
    _, cut = await ask(http, server, max_tokens=60, stop=stop)
    choice = cut["choices"][0]
    assert choice["text"] == text[: text.find(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    async with open_stream(http, server, max_tokens=60, stop=stop) as response:
        got = [event async for event in events(response)]
    assert "".join(event["choices"][0]["text"] for event in got[:-1]) == choice["text"]
    await until_gauges(http, server, 0, 0)


async def test_the_key_guards_v1_only(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch(*FAST, "--api-key", "secret")
    for path, status in (("/health", 200), ("/metrics", 200), ("/v1/models", 401)):
        async with http.get(server.url + path) as response:
            assert response.status == status
    assert await ask(http, server) == (401, {"error": "Unauthorized"})
    async with http.get(f"{server.url}/v1/models", headers={"Authorization": "Bearer secret"}) as response:
        assert response.status == 200


async def test_a_full_queue_turns_requests_away(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch(*SLOW, "--max-num-seqs", "1", "--max-num-queued-reqs", "2")
    async with open_stream(http, server, max_tokens=4000):
        waiting = asyncio.create_task(ask(http, server))
        await until_gauges(http, server, 1, 1)
        status, answer = await ask(http, server)
        assert status == 503
        assert answer["error"]["type"] == "Service Unavailable"
        async with http.get(f"{server.url}/metrics") as response:
            rejected = 'vllm:admission_rejections_total{model_name="tiny",reason="max_num_queued_reqs"} 1.0'
            assert rejected in await response.text()
    assert (await waiting)[0] == 200, "the slot of a client that left goes to the next"
    await until_gauges(http, server, 0, 0)


async def test_a_drain_lets_requests_finish(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch(*SLOW, "--shutdown-timeout", "60", "--max-num-seqs", "1", "--faults")
    async with open_stream(http, server, max_tokens=40) as response:
        queued = asyncio.create_task(ask(http, server, max_tokens=3))
        await until_gauges(http, server, 1, 1)
        async with http.post(f"{server.url}/faults/freeze") as fault:  # nothing ends before we have looked
            assert fault.status == 200
        await until_draining(server)
        status, aborted = await ask(http, server, return_token_ids=True)
        choice = aborted["choices"][0]
        assert status == 200
        assert (choice["text"], choice["token_ids"], choice["finish_reason"]) == ("", [], "abort")
        async with open_stream(http, server) as late:
            got = [event async for event in events(late)]
            assert got[0]["choices"][0]["finish_reason"] == "abort"
            assert got[1:] == ["[DONE]"]
        async with http.get(f"{server.url}/health") as health:
            assert health.status == 200
        server.process.terminate()
        async with http.post(f"{server.url}/faults/thaw") as fault:
            assert fault.status == 200
        assert [event async for event in events(response)][-2]["choices"][0]["finish_reason"] == "length"
    assert (await queued)[1]["usage"]["completion_tokens"] == 3
    assert await server.exit_code() == 0


async def test_a_drain_can_answer_with_errors(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch(*SLOW, "--shutdown-timeout", "60", "--drain-answer", "error")
    async with open_stream(http, server, max_tokens=4000):
        await until_draining(server)
        status, answer = await ask(http, server)
        assert status == 500
        assert answer["error"]["code"] == 500
    assert await server.exit_code() == 0, "the last client left"


async def test_a_drain_can_answer_as_vllm_does(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch(*SLOW, "--shutdown-timeout", "60", "--drain-answer", "by-prompt")
    async with open_stream(http, server, max_tokens=4000):
        await until_draining(server)
        assert (await ask(http, server))[0] == 500
        status, answer = await ask(http, server, prompt=[3, 4])
        assert status == 200
        assert answer["choices"][0]["finish_reason"] == "abort"
    assert await server.exit_code() == 0


async def test_after_the_drain_time_the_engine_is_killed(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch(*SLOW, "--shutdown-timeout", "0.3")
    async with open_stream(http, server, max_tokens=4000) as response:
        plain = asyncio.create_task(ask(http, server, max_tokens=4000))
        await until_gauges(http, server, 2, 0)
        server.process.terminate()
        *_, error, done = [event async for event in events(response)]
    assert error["error"]["code"] == 500
    assert done == "[DONE]"
    status, answer = await plain
    assert status == 500
    assert answer == error
    assert await server.exit_code() == 0


async def test_a_plain_stop_signal_leaves_streams_hanging(
    launch: Launch, http: aiohttp.ClientSession
) -> None:
    server = await launch(*SLOW)

    async def refuses() -> bool:
        return not await connects(server.address)

    async with open_stream(http, server, max_tokens=4000) as response:
        assert await anext(events(response))
        server.process.terminate()
        await server.listen_until("closing")
        await eventually(refuses)
        server.process.terminate()
        server.process.send_signal(signal.SIGINT)
        await falls_silent(response)
        assert server.process.returncode is None
    assert await server.exit_code() == 0, "its last client gave up"


async def test_idle_connections_do_not_hold_it_back(launch: Launch, http: aiohttp.ClientSession) -> None:
    for flags in ((), ("--shutdown-timeout", "60")):
        server = await launch(*FAST, *flags)
        assert (await ask(http, server))[0] == 200  # the session keeps the connection
        server.process.terminate()
        assert await server.exit_code() == 0


async def test_a_crash(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch(*SLOW, "--faults", "--max-num-seqs", "1")
    async with open_stream(http, server, max_tokens=4000) as response:
        queued_stream = http.post(f"{server.url}/v1/completions", json=body(stream=True))
        queued = asyncio.create_task(_collect(queued_stream))
        plain = asyncio.create_task(ask(http, server))
        await until_gauges(http, server, 1, 2)
        async with http.post(f"{server.url}/faults/crash-engine") as fault:
            assert fault.status == 200
        *_, error, done = [event async for event in events(response)]
    assert error["error"]["message"].startswith("EngineCore encountered an issue")
    assert done == "[DONE]"
    assert await queued == [error, done], "a stream that had not begun"
    assert await plain == (500, error)
    assert await server.exit_code() == 0


async def _collect(request: Any) -> list[Any]:
    async with request as response:
        assert response.status == 200
        return [event async for event in events(response)]


async def test_a_freeze_and_a_thaw(launch: Launch, http: aiohttp.ClientSession) -> None:
    server = await launch(*SLOW, "--faults")
    async with open_stream(http, server, max_tokens=4000) as response:
        await anext(events(response))
        async with http.post(f"{server.url}/faults/freeze") as fault:
            assert fault.status == 200
        await falls_silent(response)
        stream = events(response)
        for path in ("/health", "/metrics", "/v1/models"):
            async with http.get(server.url + path) as page:
                assert page.status == 200
        assert await gauges(http, server) == {"running": 1, "waiting": 0}
        async with http.post(f"{server.url}/faults/thaw"):
            assert (await anext(stream))["choices"][0]["text"] is not None
        async with http.post(f"{server.url}/faults/slow", json={"factor": 0}) as fault:
            assert fault.status == 400
        async with http.post(f"{server.url}/faults/slow", json={"factor": 0.01}) as fault:
            assert fault.status == 200
        async with asyncio.timeout(PATIENCE):
            assert [event async for event in stream][-1] == "[DONE]"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--tokens-per-second", "0"), "'0' is not a rate"),
        (("--load-time", "-1"), "'-1' is not a number of seconds"),
        (("--load-time", "nan"), "'nan' is not a number of seconds"),
        (("--max-num-seqs", "many"), "'many' is not a whole number"),
        (("--drain-answer", "maybe"), "--drain-answer"),
        (("--no-such-flag",), "--no-such-flag"),
        (("--max-num", "3"), "--max-num"),
    ],
)
async def test_a_wrong_flag_is_a_usage_error(launch: Launch, flags: tuple[str, ...], words: str) -> None:
    server = await launch(*flags, wait=False)
    await server.listen_until(words)
    assert await server.exit_code() == 2


async def test_a_port_in_use_is_one_clear_line(launch: Launch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = await launch("--port", str(port), wait=False)
        line = await server.listen_until("cannot listen")
        assert str(port) in line
        assert await server.exit_code() == 1


async def test_help_names_every_flag(launch: Launch) -> None:
    server = await launch("--help", wait=False)
    assert await server.exit_code() == 0
    assert server.process.stdout is not None
    text = (await server.process.stdout.read()).decode()
    for flag in ("--seed", "--faults", "--drain-answer", "--max-num-queued-reqs", "--shutdown-timeout"):
        assert flag in text
