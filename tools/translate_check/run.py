"""Compare what servers answer through our translation to `/v1/messages` with their own OpenAI route.

    tools/translate_check/run.py [--write] [--only SERVER]

Starts vLLM (twice: with and without a parser of thoughts), llama.cpp and LiteLLM's proxy, with tiny models,
and asks each the same four times: plain and streamed, on its own `/v1/chat/completions` and, translated
by `cloud/providers`, on its `/v1/messages`. Prints the table; `--write` puts it on its page. Exit code: 0 all
differences are known ones, 1 something else differs, 2 something could not be started.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import aiohttp
from aiohttp import web

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cases import CASES, NATIVE, REFUSED, Case
from differences import DIFFERENCES
from real_servers import ROOT, VLLM, Failed, free_port, on_page, process, server, vllm

from cloud.engines.vllm_cpu import CPU_ARGS
from cloud.providers.kinds import wire_of
from cloud.providers.wire import Call, Untranslatable

HERE = Path(__file__).resolve().parent
PAGE = ROOT / "docs" / "reference" / "providers.md"
MODEL = Path(os.environ.get("VLLM_MODEL", ROOT / ".cache" / "tiny-model"))
TAUGHT = ROOT / ".cache" / "taught-model"
LLAMACPP = Path(os.environ.get("LLAMACPP_VENV", ROOT / ".venv-llamacpp"))
GGUF = Path(os.environ.get("LLAMACPP_MODEL", ROOT / ".cache" / "tiny-model.gguf"))
LITELLM = Path(os.environ.get("LITELLM_VENV", ROOT / ".venv-litellm"))
VERSION = "2026-10-21"  # keys as Bearer tokens, the only form that vLLM takes
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
THOUGHTS = ("--reasoning-parser", "deepseek_r1")
SERVERS = ("vllm", "vllm-thinks", "llama.cpp", "litellm")
CHAT = "/v1/chat/completions"
KEY = f"sk-{secrets.token_hex(32)}"  # LiteLLM's proxy starts with no less

Found = dict[str, Any]
Row = dict[str, Any]


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[str]:
    """An engine that answers with the messages that reached it."""

    async def answer(request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        text = json.dumps(asked["messages"], sort_keys=True)
        usage = {"prompt_tokens": len(text), "completion_tokens": 1, "total_tokens": len(text) + 1}
        head = {"id": "chatcmpl-1", "created": 0, "model": "echo"}
        choice = {"index": 0, "finish_reason": "stop"}
        if not asked.get("stream"):
            said = {**choice, "message": {"role": "assistant", "content": text}}
            return web.json_response({**head, "object": "chat.completion", "choices": [said], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        said = {**choice, "delta": {"role": "assistant", "content": text}}
        for choices, told in (([said], None), ([], usage)):
            chunk = {**head, "object": "chat.completion.chunk", "choices": choices, "usage": told}
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post(CHAT, answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port := free_port())
    await site.start()
    yield f"http://127.0.0.1:{port}"
    await runner.cleanup()


@contextlib.asynccontextmanager
async def llamacpp() -> AsyncIterator[str]:
    """llama.cpp's server; its URL once it is ready."""
    port = free_port()
    argv = [str(LLAMACPP / "bin" / "llama-server"), "--model", str(GGUF), "--alias", "tiny"]
    async with server(*argv, "--port", str(port), "--threads", "1", port=port) as url:
        yield url


@contextlib.asynccontextmanager
async def litellm() -> AsyncIterator[str]:
    """LiteLLM's proxy in front of llama.cpp and of the echo; its URL once it is ready."""
    async with llamacpp() as engine, echo() as mirror:
        port = free_port()
        models = [
            {
                "model_name": name,
                "litellm_params": {
                    "model": f"hosted_vllm/{name}",
                    "api_base": f"{url}/v1",
                    "api_key": "none",
                },
            }
            for name, url in (("tiny", engine), ("echo", mirror))
        ]
        with tempfile.TemporaryDirectory() as directory:
            config = Path(directory) / "config.json"  # which is YAML, too
            config.write_text(json.dumps({"model_list": models}), encoding="utf-8")
            argv = [str(LITELLM / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1"]
            env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "DO_NOT_TRACK": "1", "LITELLM_MASTER_KEY": KEY}
            path = f"{LITELLM / 'bin'}:{os.environ['PATH']}"
            health = "/health/liveliness"
            argv += ["--port", str(port), "--telemetry", "False"]
            async with server(*argv, port=port, env={**env, "PATH": path}, health=health) as url:
                yield url


@contextlib.asynccontextmanager
async def running(name: str) -> AsyncIterator[str]:
    """The URL of one of the SERVERS. Raises Failed."""
    if name == "vllm":
        started = vllm("tiny", TAUGHT, *CPU_ARGS, *TOOLS)
    elif name == "vllm-thinks":
        started = vllm("tiny", TAUGHT, *CPU_ARGS, *TOOLS, *THOUGHTS)
    else:
        started = llamacpp() if name == "llama.cpp" else litellm()
    async with started as url:
        yield url


async def send(session: aiohttp.ClientSession, url: str, call: Call, *, stream: bool) -> Found:
    """What the client of a call gets: what is said, how it ends, the usage; or whose trouble an error is."""
    async with session.post(url + call.path, data=call.body, headers=call.headers) as answer:
        if answer.status != 200:
            fault = call.reader.fault(answer.status, answer.headers, await answer.read(), 0.0)
            return {"fault": fault.blame.value, "status": fault.status, "words": fault.text}
        if not stream:
            read = call.reader.answer(await answer.read())
            if read.error:
                return {"error": read.error}
            return {**said(json.loads(read.body)), "usage": spent(read.usage)}
        relay = call.reader.relay()
        out = b"".join([relay.feed(data) async for data in answer.content.iter_any()]) + relay.end()
        if relay.error:
            return {"error": relay.error}
        return {**joined(out), "usage": spent(relay.usage)}


def spent(usage: Any) -> list[int] | None:
    """Tokens of the prompt and of the answer."""
    return None if usage is None else [usage.prompt, usage.output]


def said(chat: Any) -> Found:
    """What a plain chat answer says; of other forms nothing but that they came."""
    if "choices" not in chat or "message" not in chat["choices"][0]:
        return {"finish": "whole"}
    choice = chat["choices"][0]
    message = choice["message"]
    return {
        "text": message.get("content") or "",
        "reasoning": message.get("reasoning") or message.get("reasoning_content") or "",
        "calls": [
            [call["function"]["name"], arguments(call["function"]["arguments"])]
            for call in message.get("tool_calls") or []
        ],
        "finish": choice["finish_reason"],
    }


def joined(stream: bytes) -> Found:
    """What a chat stream comes to, in the same form."""
    out: Found = {"text": "", "reasoning": "", "calls": [], "finish": ""}
    for event in stream.split(b"\n\n"):
        data = event.partition(b"data: ")[2]
        if not data or data == b"[DONE]":
            continue
        fields = json.loads(data)
        if "choices" not in fields or (fields["choices"] and "delta" not in fields["choices"][0]):
            return {"finish": "whole"}
        for choice in fields["choices"]:
            delta = choice["delta"]
            out["text"] += delta.get("content") or ""
            out["reasoning"] += delta.get("reasoning") or delta.get("reasoning_content") or ""
            out["finish"] = choice.get("finish_reason") or out["finish"]
            for call in delta.get("tool_calls") or []:
                if call["index"] >= len(out["calls"]):
                    out["calls"].append(["", ""])
                kept = out["calls"][call["index"]]
                kept[0] += call["function"].get("name") or ""
                kept[1] += call["function"].get("arguments") or ""
    out["calls"] = [[name, arguments(text)] for name, text in out["calls"]]
    return out


def arguments(text: str) -> Any:
    """Arguments as JSON where they are."""
    try:
        return json.loads(text)
    except ValueError:
        return text


async def ask(session: aiohttp.ClientSession, url: str, name: str, case: Case) -> Row:
    """One case of one server, the four ways."""
    inner = {"model": "tiny", **case.body()}
    own, outer = wire_of("openai", url), wire_of("anthropic", url, api_version=VERSION, sampling=True)
    row: Row = {"server": name, "asked": case.name}
    for stream in (False, True):
        way = "streamed" if stream else "plain"
        body = {**inner, "stream": stream}
        asked = own.native(
            json.dumps(body).encode(), model=inner["model"], key=KEY, stream=stream, path=CHAT, headers={}
        )
        row[f"own {way}"] = await send(session, url, asked, stream=stream)
        if case.shows and not row[f"own {way}"].get(case.shows):
            raise Failed(f"{name} shows no {case.shows} in: {case.name}")
        told = outer.request(body, model=inner["model"], key=KEY, stream=stream, created=0)
        row[way] = await send(session, url, told, stream=stream)
        kept = outer.native(
            told.body, model=inner["model"], key=KEY, stream=stream, path="/v1/messages", headers={}
        )
        row[f"native {way}"] = await native(session, url, kept, stream=stream)
        for fields in (each.reads_as for each in DIFFERENCES if each.of(name, case.name)):
            if fields is not None:
                raw = json.dumps({**body, **fields}).encode()
                read = own.native(raw, model="tiny", key=KEY, stream=stream, path=CHAT, headers={})
                row[f"read {way}"] = await send(session, url, read, stream=stream)
    return row


async def native(session: aiohttp.ClientSession, url: str, call: Call, *, stream: bool) -> Any:
    """The usage of a call whose answer stays as it is, "changed" where a byte of it did not."""
    async with session.post(url + call.path, data=call.body, headers=call.headers) as answer:
        body = await answer.read()
    if answer.status != 200:
        return None
    if not stream:
        return spent(call.reader.answer(body).usage)
    relay = call.reader.relay()
    return spent(relay.usage) if relay.feed(body) + relay.end() == body else "changed"


async def own_forms(session: aiohttp.ClientSession, url: str, name: str) -> list[Row]:
    """OpenAI's other forms, natively."""
    rows = []
    wire = wire_of("openai", url)
    for asked, path, fields in NATIVE:
        row: Row = {"server": name, "asked": asked}
        for stream in (False, True):
            raw = json.dumps({**fields, "stream": stream}).encode()
            call = wire.native(raw, model="tiny", key=KEY, stream=stream, path=path, headers={})
            found = await send(session, url, call, stream=stream)
            row["streamed" if stream else "plain"] = found
            row["own streamed" if stream else "own plain"] = row["plain"]
        rows.append(row)
    return rows


def compared(row: Row, way: str) -> dict[str, str]:
    """The fields of the answer in which a way differs from the server's own; also from the native way."""
    own, other = row[f"own {way}"], row[way]
    names = [name for name in other if name != "words" and own.get(name) != other[name]]
    found = {name: f"{own.get(name)!r} / {other[name]!r}" for name in names}
    told, kept = other.get("usage"), row.get(f"native {way}", other.get("usage"))
    return found if told == kept else {**found, "native": f"{told!r} / {kept!r}"}


def known(row: Row, way: str, differing: set[str]) -> list[int]:
    """The numbers of the known differences that explain it; none where not all of it is explained.

    What a server reads in another way, its own route answers when it is asked in that other way.
    """
    found = [
        (number, each)
        for number, each in enumerate(DIFFERENCES, 1)
        if each.of(row["server"], row["asked"]) and way in each.ways
        if not each.untold or row[way].get("usage") is None
    ]
    explained = set[str]().union(*(each.fields for _, each in found))
    read = row.get(f"read {way}")
    if read is not None and any(row[way][name] != read[name] for name in ("text", "calls", "finish")):
        return []
    numbers = [number for number, each in found if each.fields & differing]
    return numbers if differing <= explained else []


def refusals() -> list[tuple[str, str, str]]:
    """What is refused, the field that is named, and the words. Raises Failed where something is not."""
    wire = wire_of("anthropic", "http://none", sampling=True)
    rows = []
    for asked, fields in REFUSED:
        try:
            wire.request(
                {"messages": CASES[0].body()["messages"], **fields},
                model="m",
                key="",
                stream=False,
                created=0,
            )
        except Untranslatable as refusal:
            rows.append((asked, refusal.param, refusal.text))
        else:
            raise Failed(f"{asked} is not refused")
    return rows


async def check(names: list[str]) -> list[Row]:
    """Every case of every server."""
    rows: list[Row] = []
    timeout = aiohttp.ClientTimeout(total=120)
    for name in names:
        print(f"translate-check: starting {name}", file=sys.stderr)
        connector = aiohttp.TCPConnector(force_close=True)  # llama.cpp closes kept ones without a word
        async with (
            running(name) as url,
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        ):
            for case in CASES:
                if not case.servers or name in case.servers:
                    rows.append(await ask(session, url, name, case))
            if name != "litellm":
                rows += await own_forms(session, url, name)
    return rows


def table(rows: list[Row]) -> tuple[str, int]:
    """The tables in Markdown, and how many differences nobody knows."""
    lines = ["| server | asked | plain | streamed |", "|---|---|---|---|"]
    used: set[int] = set()
    strange = equal = 0
    for row in rows:
        cells = []
        for way in ("plain", "streamed"):
            differing = compared(row, way)
            numbers = known(row, way, set(differing)) if differing else []
            used.update(numbers)
            equal += not differing
            strange += bool(differing) and not numbers
            words = "; ".join(f"{name}: {told}" for name, told in differing.items())
            if differing and not numbers:
                print(
                    f"{row['server']}, {row['asked']}, {way}: {words} {row[way].get('words')}",
                    file=sys.stderr,
                )
            cells.append(verdict(row[way], words, numbers))
        lines.append(f"| {row['server']} | {row['asked']} | {cells[0]} | {cells[1]} |")
    lines += ["", f"{equal} of {2 * len(rows)} equal. The differences, and whose they are:", ""]
    lines += [
        f"- ({each}) {DIFFERENCES[each - 1].whose}: {DIFFERENCES[each - 1].what}" for each in sorted(used)
    ]
    lines += ["", "Refused before any server is asked:", "", "| asked | named | said |", "|---|---|---|"]
    lines += [f"| {asked} | `{param}` | {text} |" for asked, param, text in refusals()]
    return "\n".join(lines), strange


def verdict(found: Found, words: str, numbers: list[int]) -> str:
    """A cell of the table: equal, differing in a known way, or how it differs."""
    if numbers:
        return f"differs {' '.join(f'({number})' for number in numbers)}"
    if words:
        words = words.replace("|", "¦").replace("`", "'")
        return f"**differs**: `{words if len(words) <= 160 else words[:157] + '...'}`"
    return f"equal (error {found['status']}, {found['fault']})" if "fault" in found else "equal"


async def versions(names: list[str]) -> str:
    """What was asked, in words."""
    found = []
    for name, venv, package in (
        ("vllm", VLLM, "vllm-cpu"),
        ("llama.cpp", LLAMACPP, "xllamacpp"),
        ("litellm", LITELLM, "litellm"),
    ):
        if not any(each.startswith(name) for each in names):
            continue
        code = f"import importlib.metadata as m; print(m.version({package!r}))"
        async with process(str(venv / "bin" / "python"), "-c", code) as child:
            out = await cast("asyncio.StreamReader", child.stdout).read()
        found.append(f"{package} {out.decode().strip()}")
    return f"Servers: {', '.join(found)}."


async def main() -> int:
    """Run all and print or write the table."""
    parser = argparse.ArgumentParser(description=cast("str", __doc__).splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table on its page")
    parser.add_argument("--only", choices=SERVERS, action="append", help="one of the servers")
    options = parser.parse_args()
    names = options.only or list(SERVERS)
    try:
        if names != ["llama.cpp"] and not (TAUGHT / "model.safetensors").exists():  # the others' model
            teach = str(ROOT / "tools" / "vllm" / "teach_tiny_model.py")
            async with process(str(VLLM / "bin" / "python"), teach, str(MODEL), str(TAUGHT)) as made:
                if await made.wait() != 0:
                    raise Failed("cannot teach the tiny model")
        text, strange = table(await check(names))
        found = f"{await versions(names)}\n\n{text}"
    except (Failed, FileNotFoundError, TimeoutError) as error:
        print(f"translate-check: {error!r}; make vllm-env llamacpp-env litellm-env first", file=sys.stderr)
        return 2
    print(found)
    if options.write:
        on_page(PAGE, found)
    return 1 if strange else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
