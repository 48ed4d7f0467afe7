"""The life of the process that is played: load, listen, drain, exit, each kind as its source has it.

* SGLang refuses connections while it loads and answers 503 while it warms up. SIGTERM: health 503; it goes
  on answering, new requests too, and looks every 5 s whether none is left.
* TGI and TEI refuse connections until they are ready. SIGTERM: they stop to listen and answer what they have.
* Ollama listens at once and loads for its first request. SIGTERM cuts every connection.
* TensorRT-LLM answers 503 on every path until it is ready. SIGTERM: as TGI.
* When the model's process ends, TEI's and Ollama's servers stay, the others end.

TGI's launcher gives its router as long as configured; the others wait for their clients without a limit.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import sys
from collections.abc import Sequence

from aiohttp import web

from cloud.clock import SystemClock
from cloud.engines.replay.options import parse
from cloud.engines.replay.played import Played
from cloud.engines.replay.shape import Shape
from cloud.engines.simulated_server.process import bind
from cloud.ports import Clock
from cloud.serving.requests import Runner

_BACKLOG = 1024
_WARM_UP = 0.2  # share of the load time in which SGLang listens and is not ready
_LINGER = 0.2  # s that a server outlives the model's process that it does not survive
_FLUSH = 0.5  # s that answers get to leave


def say(text: str) -> None:
    """One line for the node's log."""
    print(f"replayed-engine: {text}", file=sys.stderr, flush=True)


class Server:
    """One server from its start to its exit code."""

    def __init__(self, clock: Clock, options: argparse.Namespace, shape: Shape) -> None:
        self._clock = clock
        self._options = options
        self._shape = shape
        self._played = Played(
            clock, shape, tokens_per_second=options.tokens_per_second, faults=options.faults
        )
        self._stop = asyncio.Event()

    async def serve(self, bound: socket.socket) -> int:
        """Load, serve until a signal or the end of the model's process, and return the exit code."""
        kind, load_time = self._shape.kind, self._options.load_time
        answers_early = self._shape.loading() is not None
        refused = 0.0 if kind in ("ollama", "trtllm") else load_time
        if kind == "sglang":
            refused = load_time * (1 - _WARM_UP)
        await self._clock.sleep(refused)
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, self._stop.set)
        runner, site = await self._listen(bound)
        engine = asyncio.create_task(self._played.core.run())
        loads = asyncio.create_task(self._load(load_time - refused, wait=self._shape.listens_first))
        if not answers_early:
            self._played.ready = True
        try:
            crashed = await self._until_told()
            await (self._crashed() if crashed else self._drain(site, runner))
        finally:
            for task in (engine, loads):
                task.cancel()
            await runner.cleanup()
        say("exit")
        return 1 if crashed else 0

    async def _listen(self, bound: socket.socket) -> tuple[web.AppRunner, web.SockSite]:
        host, port = bound.getsockname()[:2]
        runner = Runner(
            self._played.application(),
            listener=f"{host}:{port}",
            handler_cancellation=True,
            shutdown_timeout=0.0 if self._shape.kind == "ollama" else _FLUSH,
        )
        await runner.setup()
        site = web.SockSite(runner, bound, backlog=_BACKLOG)
        await site.start()
        say(f"listens on {host}:{port}")
        return runner, site

    async def _load(self, seconds: float, *, wait: bool) -> None:
        if wait:
            await self._played.asked.wait()
        await self._clock.sleep(seconds)
        self._played.ready = True
        self._played.loaded.set()
        say("ready")

    async def _until_told(self) -> bool:
        """Wait for the end; True where the model's process ended under a server that does not survive it."""
        waits = [asyncio.ensure_future(self._stop.wait())]
        if not self._shape.outlives:
            waits.append(asyncio.ensure_future(self._played.crashed.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return not self._stop.is_set()

    async def _crashed(self) -> None:
        say("the model's process ended")
        await self._clock.sleep(_LINGER)

    async def _drain(self, site: web.SockSite, runner: web.AppRunner) -> None:
        played = self._played
        say(f"stopping, {played.answering} requests in flight")
        if self._shape.kind == "ollama":
            return
        played.draining = True
        if self._shape.kind == "sglang":
            await self._clock.sleep(self._options.watch_every)
            while played.answering:
                await self._clock.sleep(self._options.watch_every)
            return
        await site.stop()
        if runner.server is not None:
            runner.server.pre_shutdown()  # idle connections end now, busy ones after their answer
        try:
            async with asyncio.timeout(self._shape.setup.grace):
                while played.answering:
                    played.quiet.clear()
                    await played.quiet.wait()
        except TimeoutError:
            say("its time is over")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, take the port and serve."""
    options, shape = parse(sys.argv[1:] if argv is None else argv)
    setup = shape.setup
    try:
        bound = bind(setup.host, setup.port)
    except OSError as error:
        say(f"cannot listen on {setup.host}:{setup.port}: {error.strerror}")
        return 1
    return asyncio.run(_run(options, shape, bound))


async def _run(options: argparse.Namespace, shape: Shape, bound: socket.socket) -> int:
    return await Server(SystemClock(), options, shape).serve(bound)
