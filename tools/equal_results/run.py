"""Compare what four clients get through the gateway with what they get from the engine itself.

    tools/equal_results/run.py [--write]

Starts a real vLLM with a tiny model, a second one for embeddings and a stand-in for what vLLM has not, a
gateway in front of each, and runs `clients.py` against both ends. Prints the table; `--write` puts it on its
page. `--text URL` and `--pooling URL` take servers that run already. Exit code: 0 all equal, 1 something
differs, 2 something could not be started.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from real_servers import ROOT, VLLM, Failed, on_page, process, vllm

from cloud.balancers.gateway import GatewayBalancer
from cloud.clock import SystemClock
from cloud.engines.vllm_cpu import CPU_ARGS
from cloud.errors import Uncertain
from policies.model import TargetSpec

HERE = Path(__file__).resolve().parent
PAGE = ROOT / "docs" / "reference" / "equal-results.md"
CLIENTS = Path(os.environ.get("CLIENTS_VENV", ROOT / ".venv-clients"))
MODEL = Path(os.environ.get("VLLM_MODEL", ROOT / ".cache" / "tiny-model"))
BERT = ROOT / ".cache" / "tiny-bert"
PROGRAMS = ("openai", "anthropic", "langchain-openai", "litellm")
SERVERS = {
    "text": "vLLM {version} on CPU, a Llama of random weights",
    "pooling": "vLLM {version} on CPU, a BERT of random weights",
    "kept": "a stand-in that keeps what it is given in memory",
}

Row = dict[str, Any]


@contextlib.asynccontextmanager
async def stand_in() -> AsyncIterator[str]:
    """The stand-in's URL."""
    async with process(sys.executable, str(HERE / "stand_in.py")) as child:
        port = int(await cast("asyncio.StreamReader", child.stdout).readline())
        yield f"http://127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def gateway(directory: Path, name: str, engine: str) -> AsyncIterator[str]:
    """A gateway in front of one engine; its URL."""
    sock, targets = directory / f"{name}.sock", directory / f"{name}.json"
    settings = {"targets_file": str(targets), "socket": str(sock), "port": 0}
    async with process(sys.executable, "-m", "orchestrator.gateway", json.dumps(settings)):
        balancer = GatewayBalancer(socket=sock, targets_file=targets, pool="equal", clock=SystemClock())
        target = TargetSpec(id=name, address=engine.removeprefix("http://"))
        async with asyncio.timeout(60):
            while True:
                try:
                    await balancer.apply([target], 1)
                    break
                except Uncertain:
                    await asyncio.sleep(0.1)  # noqa: TID251 - a tool that waits for a program
        connector = aiohttp.UnixConnector(str(sock))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://gateway/v1/state") as answer,
        ):
            listen = (await answer.json())["listen"]
        yield f"http://127.0.0.1:{listen.rpartition(':')[2]}"
        await balancer.close()


async def asked(urls: dict[str, str]) -> list[Row]:
    """What the clients return, one row for each case. Raises Failed."""
    argv = [str(CLIENTS / "bin" / "python"), str(HERE / "clients.py"), json.dumps(urls)]
    child = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    if child.returncode != 0:
        raise Failed(f"clients.py ended with code {child.returncode}")
    return cast("list[Row]", json.loads(out.splitlines()[-1]))


async def compare(text: str, pooling: str) -> list[Row]:
    """The rows of the direct way, each with what came `through` the gateway."""
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        urls = {"kept": await enter(stand_in())}
        urls["text"] = text or await enter(
            vllm("tiny", MODEL, *CPU_ARGS, "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
        )
        urls["pooling"] = pooling or await enter(
            vllm("bert", BERT, "--runner", "pooling", "--dtype", "float32", "--enforce-eager",
                 "--distributed-executor-backend", "uni", "--gpu-memory-utilization", "0.2")
        )  # fmt: skip
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        doors = {name: await enter(gateway(directory, name, url)) for name, url in urls.items()}
        direct, through = await asked(urls), await asked(doors)
        return [row | {"through": other["found"]} for row, other in zip(direct, through, strict=True)]


def verdict(row: Row) -> str:
    """How the two results compare, for one row."""
    if row["found"] == row["through"]:
        return "equal"
    return f"direct `{short(row['found'])}`, through `{short(row['through'])}`"


def short(value: Any) -> str:
    """A result in a cell of the table."""
    text = json.dumps(value, ensure_ascii=False).replace("|", "¦").replace("`", "'")
    return text if len(text) <= 120 else text[:117] + "..."


def table(rows: list[Row]) -> str:
    """The table in Markdown, a line for each case; an error is named by its status."""
    lines = ["| dialect | client | asked | engine | result |", "|---|---|---|---|---|"]
    for row in rows:
        error = isinstance(row["found"], dict) and "error" in row["found"]
        kind = f" (error {row['found']['status']})" if error else ""
        cells = (row["dialect"], row["client"], row["asked"] + kind, row["server"], verdict(row))
        lines.append("| " + " | ".join(cells) + " |")
    equal = sum(row["found"] == row["through"] for row in rows)
    return "\n".join([*lines, "", f"{equal} of {len(rows)} equal."])


async def versions() -> str:
    """What was compared with what, in words."""
    code = f"import importlib.metadata as m; print(', '.join(n + ' ' + m.version(n) for n in {PROGRAMS!r}))"
    child = await asyncio.create_subprocess_exec(
        str(CLIENTS / "bin" / "python"), "-c", code, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await child.communicate()
    code = "import importlib.metadata as m; print(m.version('vllm-cpu'))"
    child = await asyncio.create_subprocess_exec(
        str(VLLM / "bin" / "python"), "-c", code, stdout=asyncio.subprocess.PIPE
    )
    engine, _ = await child.communicate()
    named = [
        f"- `{name}`: {words.format(version=engine.decode().strip())}" for name, words in SERVERS.items()
    ]
    return "\n".join([f"Clients: {out.decode().strip()}. Engines:", "", *named])


async def main() -> int:
    """Run all and print or write the table."""
    parser = argparse.ArgumentParser(description=cast("str", __doc__).splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table on its page")
    parser.add_argument("--text", default="", help="a vLLM that serves the tiny model as `tiny`")
    parser.add_argument("--pooling", default="", help="a vLLM that serves the tiny BERT as `bert`")
    options = parser.parse_args()
    try:
        if not options.pooling and not (BERT / "model.safetensors").exists():
            async with process(
                str(VLLM / "bin" / "python"), str(HERE / "make_tiny_bert.py"), str(MODEL), str(BERT)
            ) as made:
                if await made.wait() != 0:
                    raise Failed("cannot make the tiny BERT")
        rows = await compare(options.text, options.pooling)
    except (Failed, FileNotFoundError, TimeoutError) as error:
        print(f"equal-results: {error}; make vllm-env clients-env first", file=sys.stderr)
        return 2
    found = f"{await versions()}\n\n{table(rows)}"
    print(found)
    if options.write:
        on_page(PAGE, found)
    return 0 if all(row["found"] == row["through"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
