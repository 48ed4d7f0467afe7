"""Streams are cut at random bytes: is the answer that of an uncut stream, and how long is the seam?

Two engines behind a gateway, each behind a cable that breaks the connection of one completion after a random
number of bytes of its answer. Clients are the SDKs of OpenAI and Anthropic. Text, reasoning, tool calls,
finish_reason and usage are compared with the uncut answer. Then streams run at once and a node is killed.

With real vLLM (`make vllm-env`; the tiny model is taught a few answers first) or the simulated engine.

    python bench/gateway_cuts.py
    python bench/gateway_cuts.py --engine simulated --cuts 100 --streams 20 --seed 7 -o json

Exit code 1 when an answer differed or a stream was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import aiohttp
import anthropic
import openai
from gateway_rig import Engine, GatewayRig, machine, progress, until

from cloud.engines.vllm_cpu import CPU_ARGS, CPU_ENV
from policies.model import TargetSpec

ROOT = Path(__file__).resolve().parents[1]
VENV = Path(os.environ.get("VLLM_VENV", ROOT / ".venv-vllm")) / "bin"
TINY = Path(os.environ.get("VLLM_MODEL", ROOT / ".cache" / "tiny-model"))
TAUGHT = TINY.with_name("taught-model")
READY = 300.0  # s until a vLLM that shares two cores answers
COMPLETIONS = (b"POST /v1/chat/completions HTTP", b"POST /v1/completions HTTP")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {part: {"type": "string"}}},
        },
    }
    for name, part in (("get_weather", "city"), ("get_time", "zone"))
]
CALL_SCRIPT = '!say 9\n!call get_weather {"city": "Köln", "days": 3}\n!call get_time {"zone": "CET"}'
PLAIN = ("--enable-scale-out", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")


KILLED, LONG = ("chat", "completion", "adapter"), 600  # what runs when a node is killed, for so many tokens


class Node(Protocol):
    """An engine's process."""

    port: int

    async def start(self) -> None: ...  # noqa: D102 - a protocol
    async def kill(self) -> None: ...  # noqa: D102 - a protocol
    async def close(self) -> None: ...  # noqa: D102 - a protocol


class Vllm:
    """A real vLLM with the taught model and an adapter, in a process group of its own."""

    def __init__(self, port: int, directory: Path, options: Sequence[str]) -> None:
        self.port = port
        self._log = directory / f"vllm-{port}.log"
        self._options = options
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(VENV / "vllm", "serve", TAUGHT, "--served-model-name", "tiny", "--port", str(self.port)),
                *(*CPU_ARGS, *self._options, "--enable-lora", "--max-lora-rank", "8"),
                *("--lora-modules", f"la={TAUGHT.with_name('taught-model-la')}"),
                env={**os.environ, **CPU_ENV},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        async with asyncio.timeout(READY), aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    async with session.get(f"http://127.0.0.1:{self.port}/health") as answer:
                        if answer.status == 200:
                            return
                if self._process.returncode is not None:
                    raise SystemExit(f"vLLM ended: see {self._log}")
                await asyncio.sleep(0.5)

    async def kill(self) -> None:
        """kill -9 of the whole group."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    async def close(self) -> None:
        """Leave nothing running."""
        await self.kill()


@dataclass
class Knife:
    """Says when the next completion's connection breaks; `size` is of the last answer, in bytes."""

    after: int | None = None
    size: int = 0
    cuts: int = 0

    def take(self) -> int | None:
        """Where to cut, once."""
        after, self.after = self.after, None
        return after


class Cable:
    """A TCP proxy to an engine. The first completion after the knife was set is cut."""

    def __init__(self, to: int, knife: Knife) -> None:
        self._to = to
        self._knife = knife
        self._server: asyncio.Server | None = None
        self.address = ""

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Take no more connections."""
        if self._server is not None:
            self._server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.transport.abort()
            return
        limit: int | None = None
        size, judged = 0, False

        async def ask() -> None:
            nonlocal limit, size, judged
            while data := await reader.read(65536):
                if data.startswith(COMPLETIONS):
                    limit, size, judged = self._knife.take(), 0, True
                back.write(data)
                await back.drain()

        async def answer() -> None:
            nonlocal size
            while data := await there.read(65536):
                size += len(data)
                if judged:
                    self._knife.size = size
                over = 0 if limit is None else max(0, size - limit)
                writer.write(data[: len(data) - over])
                await writer.drain()
                if over:
                    self._knife.cuts += 1
                    return

        ways = [asyncio.ensure_future(ask()), asyncio.ensure_future(answer())]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        writer.close() if limit is None else writer.transport.abort()
        back.transport.abort()


@dataclass
class Answer:
    """What a client got. `seam` is the longest silence between two events, in seconds."""

    text: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    finish: str | None = None
    usage: tuple[int, int] | None = None
    seam: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Case:
    """A request; `thinks`: its engines run a reasoning parser."""

    name: str
    api: str
    fields: dict[str, Any]
    thinks: bool = False


async def timed(events: AsyncIterator[Any], answer: Answer) -> AsyncIterator[Any]:
    """The same events; notes the longest wait behind the first."""
    last = 0.0
    async for event in events:
        at = time.perf_counter()
        answer.seam = max(answer.seam, at - last if last else 0.0)
        last = at
        yield event


async def ask(url: str, case: Case) -> Answer:
    """Ask by the SDK and collect the answer. Raises what the SDK raises."""
    answer = Answer()
    if case.api == "messages":
        async with anthropic.AsyncAnthropic(base_url=url, api_key="x", max_retries=0) as client:
            stream = client.messages.stream(model="tiny", **case.fields)
            async with stream as events:
                async for _ in timed(events, answer):
                    pass
                message = await events.get_final_message()
        for block in message.content:
            if block.type == "text":
                answer.text += block.text
            elif block.type == "tool_use":
                answer.calls.append([block.name, json.dumps(block.input)])
        answer.finish = message.stop_reason
        answer.usage = (message.usage.input_tokens, message.usage.output_tokens)
        return answer
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        made = client.chat.completions if case.api == "chat" else client.completions
        stream = await made.create(**case.fields, stream=True, stream_options={"include_usage": True})
        async for chunk in timed(stream, answer):
            if chunk.usage is not None:
                answer.usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
            for choice in chunk.choices:
                answer.finish = choice.finish_reason or answer.finish
                take(answer, choice)
    if answer.finish is None:
        raise AssertionError("the stream ended without a finish_reason")
    return answer


def take(answer: Answer, choice: Any) -> None:
    """Add what a chunk's choice says."""
    delta = getattr(choice, "delta", None)
    if delta is None:
        answer.text += choice.text
        return
    answer.text += delta.content or ""
    answer.reasoning += (delta.model_extra or {}).get("reasoning") or ""
    for call in delta.tool_calls or ():
        while len(answer.calls) <= call.index:
            answer.calls.append(["", ""])
        answer.calls[call.index][0] += call.function.name or ""
        answer.calls[call.index][1] += call.function.arguments or ""


def cases(engine: str) -> list[Case]:
    """The requests for an engine."""
    simulated = engine == "simulated"
    on = {"temperature": 0, "extra_body": {"ignore_eos": True}}

    def chat(content: str, tokens: int = 80, **fields: Any) -> dict[str, Any]:
        said = [{"role": "user", "content": content}]
        return {"model": "tiny", "messages": said, "max_tokens": tokens, "temperature": 0, **fields}

    weather, two = (CALL_SCRIPT, CALL_SCRIPT) if simulated else ("weather?", "two calls")
    think, both = (
        ("!think 20\n!say 40", f"!think 9\n{CALL_SCRIPT}") if simulated else ("think", "think and call")
    )
    anthropic_tools = [
        {"name": tool["function"]["name"], "input_schema": tool["function"]["parameters"]} for tool in TOOLS
    ]
    return [
        Case("chat", "chat", chat("Grüße 日本語, tell me more", **on)),
        Case("completion", "text", {"model": "tiny", "prompt": "spot nodes", "max_tokens": 80, **on}),
        Case("adapter", "chat", chat("hi", **on) | {"model": "la"}),
        Case("tools", "chat", chat(weather, 200, tools=TOOLS)),
        Case("two tools", "chat", chat(two, 200, tools=TOOLS)),
        Case("stop strings", "chat", chat("tell me of a node", stop=["th r", "sh475", "ing e"], **on)),
        Case(
            "stop in a text", "text", {"model": "tiny", "prompt": "a", "max_tokens": 80, "stop": "qqq", **on}
        ),
        Case(
            "messages",
            "messages",
            {"max_tokens": 80, "messages": [{"role": "user", "content": "hello"}]}
            | {"extra_body": {"temperature": 0}},
        ),
        Case(
            "messages with tools",
            "messages",
            {"max_tokens": 200, "messages": [{"role": "user", "content": weather}], "tools": anthropic_tools}
            | {"extra_body": {"temperature": 0}},
        ),
        Case("reasoning", "chat", chat(think, 200), thinks=True),
        Case("reasoning and tools", "chat", chat(both, 200, tools=TOOLS), thinks=True),
    ]


@contextlib.asynccontextmanager
async def behind_cables(
    engine: str, thinks: bool, directory: Path
) -> AsyncIterator[tuple[GatewayRig, list[Node], Knife]]:
    """A gateway over two engines, each behind a cable. Nothing of it is left afterwards."""
    knife = Knife()
    nodes: list[Node] = []
    parser = "qwen3" if engine == "simulated" else "deepseek_r1"
    options = (*PLAIN, *(("--reasoning-parser", parser) if thinks else ()))
    for number in range(2):
        if engine == "vllm":
            nodes.append(Vllm(free_port(), directory, options))
        else:
            pace = ("--tokens-per-second", "300", "--time-to-first-token", "0.02", "--max-num-seqs", "64")
            adapters = ("--lora-modules", "la=la")
            named = ("--served-model-name", "tiny")
            nodes.append(Engine(f"n{number}", directory, (*named, *pace, *options, *adapters)))
    cables = [Cable(node.port, knife) for node in nodes]
    rig = GatewayRig(directory)
    try:
        await asyncio.gather(*(node.start() for node in nodes))
        await rig.start()
        for cable in cables:
            await cable.start()
        await rig.apply([TargetSpec(id=f"n{at}", address=cable.address) for at, cable in enumerate(cables)])
        await until("both can be continued", lambda: continued(rig))
        yield rig, nodes, knife
    finally:
        await rig.close()
        for cable in cables:
            await cable.close()
        for node in nodes:
            await node.close()


async def continued(rig: GatewayRig) -> bool:
    """Whether the gateway knows of all targets that they finish each other's streams."""
    told = [row.get("continuation") or {} for row in (await rig.state())["targets"]]
    return all(row.get("way") == "derender" for row in told) and len({row["identity"] for row in told}) == 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def cut(rig: GatewayRig, knife: Knife, chosen: Sequence[Case], count: int, rng: random.Random) -> Any:
    """Cut so many streams, one at a time; rows of equal and of different answers."""
    whole: dict[str, Answer] = {}
    sizes: dict[str, int] = {}
    for case in chosen:
        whole[case.name] = await ask(rig.url, case)
        sizes[case.name] = knife.size
        progress(f"{case.name}: {sizes[case.name]} bytes, {whole[case.name]}"[:160])
    equal: collections.Counter[str] = collections.Counter()
    seams: list[float] = []
    different: list[dict[str, Any]] = []
    for number in range(count):
        case = chosen[number % len(chosen)]
        knife.after = rng.randrange(1, sizes[case.name])
        at, said = knife.after, None
        try:
            said = await ask(rig.url, case)
        except Exception as error:
            different.append({"case": case.name, "byte": at, "error": repr(error)[:300]})
        if said is not None:
            seams.append(said.seam)
            if said == whole[case.name]:
                equal[case.name] += 1
            else:
                different.append(
                    {"case": case.name, "byte": at, "got": str(said), "whole": str(whole[case.name])}
                )
        if number % 50 == 49:
            progress(f"{number + 1} cuts, {sum(equal.values())} equal")
    return equal, seams, different


async def kill_one(rig: GatewayRig, node: Node, count: int, chosen: Sequence[Case]) -> dict[str, Any]:
    """Kill a node with streams in flight on both; how many came whole, how many as undisturbed."""
    chosen = [
        replace(case, fields=case.fields | {"max_tokens": LONG}) for case in chosen if case.name in KILLED
    ]
    alone = {case.name: await ask(rig.url, case) for case in chosen}
    asking = [chosen[number % len(chosen)] for number in range(count)]
    streams = [asyncio.ensure_future(ask(rig.url, case)) for case in asking]
    await until("the streams run", lambda: in_flight(rig, count))
    await asyncio.sleep(0.5)
    await node.kill()
    answers = await asyncio.gather(*streams, return_exceptions=True)
    whole = [said for said in answers if isinstance(said, Answer)]
    same = sum(said == alone[case.name] for said, case in zip(answers, asking, strict=True))
    lost = [repr(said)[:200] for said in answers if not isinstance(said, Answer)]
    return {"streams": count, "whole": len(whole), "as_undisturbed": same, "lost": lost[:3]}


async def in_flight(rig: GatewayRig, count: int) -> bool:
    return sum(row["in_flight"] for row in (await rig.state())["targets"]) >= count


def teach() -> None:
    """Make the taught model and its adapter, once."""
    tools = ROOT / "tools" / "vllm"
    if not (TAUGHT.with_name("taught-model-la") / "adapter_config.json").exists():
        base = TAUGHT.with_name("untaught-model")
        for words in (
            (tools / "make_tiny_model.py", base, "--adapter", "la"),
            (tools / "teach_tiny_model.py", base, TAUGHT),
        ):
            subprocess.run(
                [VENV / "python", *words], check=True, stdout=sys.stderr, stderr=subprocess.DEVNULL
            )
        base.with_name("untaught-model-la").rename(TAUGHT.with_name("taught-model-la"))


async def play(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, with both kinds of engines' flags."""
    rng = random.Random(options.seed)
    equal: collections.Counter[str] = collections.Counter()
    seams: list[float] = []
    different: list[dict[str, Any]] = []
    killed: dict[str, Any] = {}
    broken, counted = 0, collections.Counter[str]()
    wanted = [case for case in cases(options.engine) if not options.only or case.name in options.only]
    for thinks in (False, True):
        chosen = [case for case in wanted if case.thinks is thinks]
        if not chosen:
            continue
        share = round(options.cuts * len(chosen) / len(wanted))
        with tempfile.TemporaryDirectory() as directory:
            async with behind_cables(options.engine, thinks, Path(directory)) as (rig, nodes, knife):
                told = await cut(rig, knife, chosen, share, rng)
                equal += told[0]
                seams += told[1]
                different += told[2]
                broken += knife.cuts
                counted.update(await rig.counted("continuations", "retries"))
                if not thinks and options.streams:
                    killed = await kill_one(rig, nodes[0], options.streams, chosen)
    return {
        "engine": options.engine,
        "cuts": sum(equal.values()) + len(different),
        "equal": sum(equal.values()),
        "connections_cut": broken,
        **counted,
        "by_case": dict(equal),
        "seam_median_ms": round(statistics.median(seams) * 1000, 1) if seams else None,
        "seam_p99_ms": round(sorted(seams)[int(len(seams) * 0.99)] * 1000, 1) if seams else None,
        "different": different[:10],
        "killed": killed,
        "machine": machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    installed = (VENV / "vllm").exists()
    parser.add_argument(
        "--engine", choices=("vllm", "simulated"), default="vllm" if installed else "simulated"
    )
    parser.add_argument("--cuts", type=int, default=500, help="streams to cut (500)")
    parser.add_argument(
        "--streams", type=int, default=50, help="streams in flight when a node is killed (50)"
    )
    parser.add_argument("--only", nargs="*", default=[], help="names of cases")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="22 cuts and 8 streams with simulated engines")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    options = parser.parse_args()
    if options.quick:
        options.engine, options.cuts, options.streams = "simulated", 22, 8
    if options.engine == "vllm":
        teach()
    result = asyncio.run(play(options))
    print(
        json.dumps(result) if options.output == "json" else json.dumps(result, indent=2, ensure_ascii=False)
    )
    killed = result["killed"]
    raise SystemExit(bool(result["different"]) or bool(killed and killed["whole"] < killed["streams"]))


if __name__ == "__main__":
    main()
