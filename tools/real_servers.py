"""Real servers as children of the tools that compare answers: started, waited for, and killed at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import cast

import aiohttp

from cloud.engines.vllm_cpu import CPU_ENV

ROOT = Path(__file__).resolve().parent.parent
VLLM = Path(os.environ.get("VLLM_VENV", ROOT / ".venv-vllm"))
PATIENCE = 600.0  # s until an engine is ready, on a machine that does other things


class Failed(Exception):
    """Something could not be started."""


@contextlib.asynccontextmanager
async def process(
    *argv: str, env: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child that is killed with its group at the end."""
    child = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=ROOT,
        env=os.environ | (env or {}),
        start_new_session=True,
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 9)
        await child.wait()


@contextlib.asynccontextmanager
async def server(
    *argv: str, port: int, env: Mapping[str, str] | None = None, health: str = "/health"
) -> AsyncIterator[str]:
    """A child that serves at this port; its URL once `health` answers 200. Raises Failed."""
    async with process(*argv, env=env) as child:
        drained = asyncio.create_task(cast("asyncio.StreamReader", child.stdout).read())
        await ready(f"http://127.0.0.1:{port}", child, health)
        yield f"http://127.0.0.1:{port}"
    await drained


@contextlib.asynccontextmanager
async def vllm(name: str, model: Path, *flags: str) -> AsyncIterator[str]:
    """A vLLM server; its URL once it is ready. Raises Failed."""
    port = free_port()
    argv = [str(VLLM / "bin" / "vllm"), "serve", str(model), "--served-model-name", name]
    argv += ["--host", "127.0.0.1", "--port", str(port), *flags]
    async with server(*argv, port=port, env=dict(CPU_ENV)) as url:
        yield url


async def ready(url: str, child: asyncio.subprocess.Process, health: str = "/health") -> None:
    """Wait for the server. Raises Failed."""
    async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
        while child.returncode is None:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url + health) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.5)  # noqa: TID251 - a tool that waits for a program
    raise Failed(f"the server for {url} ended with code {child.returncode}")


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def on_page(page: Path, text: str) -> None:
    """Put a result between the marks of its page."""
    start, end = "<!-- table -->", "<!-- end -->"
    head, _, rest = page.read_text(encoding="utf-8").partition(start)
    page.write_text(f"{head}{start}\n\n{text}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")
