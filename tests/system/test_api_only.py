"""A file without any pool, as people begin: the gateway's own process in front of an API."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

pytestmark = [pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(180)]

KEY = "sk-planted-0815"
USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}


async def answer(request: web.Request) -> web.Response:
    """Plays an API that wants its key and knows one model."""
    if request.headers.get("Authorization") != f"Bearer {KEY}":
        return web.json_response({"error": {"message": "no key"}}, status=401)
    if request.method == "GET":
        return web.json_response({"object": "list", "data": [{"id": "m"}]})
    asked = await request.json()
    message = {"role": "assistant", "content": f"{asked['model']} says hello"}
    return web.json_response(
        {"id": "c1", "object": "chat.completion", "created": 1, "model": asked["model"], "usage": USAGE,
         "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    )  # fmt: skip


@asynccontextmanager
async def played_api() -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def gateway(file: Path) -> AsyncIterator[int]:
    """`orchestrator gateway`, and the port that it says it has."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "orchestrator", "gateway", "--config", str(file),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        said: list[str] = []
        while line := (await process.stdout.readline()).decode():
            said.append(line)
            if '"gateway.started"' in line:
                break
        else:
            pytest.fail("".join(said))
        yield json.loads(line)["port"]
    finally:
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert process.returncode == 0


async def orchestrator(*words: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "orchestrator", *words,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


def configured(directory: Path, port: int) -> Path:
    (directory / "key").write_text(f"{KEY}\n")
    (directory / "key").chmod(0o600)
    file = directory / "api.toml"
    file.write_text(
        '[daemon]\nlisten = "off"\nlog_format = "json"\n'
        '[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "off"\nlinger = "0s"\n'
        'default_route = "assistant"\n'
        f'[provider.api]\nkind = "openai"\nurl = "http://127.0.0.1:{port}"\napi_key_file = "key"\n'
        'usd_per_day = "1"\n[provider.api.price.m]\ninput = "3"\noutput = "15"\nmost_output = 100\n'
        '[[route]]\nmodels = ["assistant", "gpt"]\nto = [{ provider = "api", model = "m" }]\n',
        encoding="utf-8",
    )
    return file


async def chat(port: int, **fields: Any) -> tuple[int, Any]:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body) as response,
    ):
        return response.status, await response.json()


async def test_from_the_file_to_the_answer(tmp_path: Path) -> None:
    async with played_api() as api:
        file = configured(tmp_path, api)
        async with gateway(file) as port:
            for asked in ({"model": "assistant"}, {"model": "gpt"}, {}):
                status, said = await chat(port, **asked)
                assert (status, said["choices"][0]["message"]["content"]) == (200, "m says hello")
            status, said = await chat(port, model="asistant")
            assert status == 404
            assert "did you mean 'assistant'" in said["error"]["message"]
            code, found = await orchestrator("doctor", "-c", str(file), "--only", "providers", "-o", "json")
            assert code == 0, found
            assert {f["state"] for f in json.loads(found)["findings"]} == {"ok"}
            bundle = tmp_path / "bundle.tar.gz"
            code, said = await orchestrator("support-bundle", "-c", str(file), "--to", str(bundle))
            assert code == 0, said
        with tarfile.open(bundle) as archive:
            parts = {Path(m.name).name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    assert not [name for name, text in parts.items() if KEY.encode() in text]
    (today, *_) = json.loads(parts["spend.json"])
    (line,) = today["lines"]
    # three answers of 10 tokens at $3 and 2 at $15 a million, in picodollars
    assert (line["amount"], line["requests"], line["held"]) == (3 * (30_000_000 + 30_000_000), 3, 0)
    assert json.loads(parts["routes.json"])["routes"][0]["models"] == ["assistant", "gpt"]


async def test_a_gateway_starts_without_a_providers_key_and_asks_once_it_is_there(tmp_path: Path) -> None:
    """Somebody who restarts it at night loses the stand-in and not the pools beside it."""
    async with played_api() as api:
        file = configured(tmp_path, api)
        (tmp_path / "key").unlink()
        code, said = await orchestrator("validate", str(file))
        assert code == 1
        assert "provider.api.api_key_file: there is no file" in said
        async with gateway(file) as port:
            status, said_to_client = await chat(port, model="assistant")
            assert status == 503
            assert "its key file" in said_to_client["error"]["message"]
            (tmp_path / "key").write_text(f"{KEY}\n")
            status, _ = await chat(port, model="assistant")
            assert status == 200
