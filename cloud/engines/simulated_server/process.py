"""The life of the simulated engine's process: load, listen, drain, exit, as vLLM does it.

* The port is bound at once and listens only when the model is loaded: until then connections are refused.
* SIGTERM in the first half of the loading kills the process; in the second half it is swallowed, and the
  process ends once it has loaded.
* SIGTERM with a shutdown timeout drains: it goes on listening, health stays 200, requests in flight finish,
  and the process exits 0 when the last is answered. After the timeout the engine is killed under them.
* SIGTERM without one closes the listener, and requests in flight hang in silence until the client leaves.
* A connection without a request is closed after a while, without a word (VLLM_HTTP_TIMEOUT_KEEP_ALIVE).
* A crashed engine ends every request with an error and the process exits 0, within a fraction of a second.
* Further signals change nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import sys
from typing import TYPE_CHECKING

from aiohttp import web

from cloud.clock import SystemClock
from cloud.engines.simulated_server.api import Api, ApiSettings
from cloud.engines.simulated_server.core import Core, CoreSettings
from cloud.engines.simulated_server.metrics import Metrics
from cloud.engines.simulated_server.options import parse_options
from cloud.serving.requests import Runner

if TYPE_CHECKING:
    from cloud.ports import Clock

_CRASH_LINGER = 0.2  # s that a server with a dead engine still answers (503), as measured
_FLUSH = 2.0  # s that answers get to leave once the engine was killed under them
_BACKLOG = 1024


def say(text: str) -> None:
    """One line for the node's log."""
    print(f"simulated-engine: {text}", file=sys.stderr, flush=True)


class Server:
    """One server from its start to its exit code."""

    def __init__(self, clock: Clock, options: argparse.Namespace) -> None:
        self._clock = clock
        self._options = options
        self._core = Core(
            clock,
            CoreSettings(
                tokens_per_second=options.tokens_per_second,
                time_to_first_token=options.time_to_first_token,
                max_num_seqs=options.max_num_seqs,
                max_model_len=options.max_model_len,
                seed=options.seed,
                mean_length=options.mean_length,
                pooling=options.runner == "pooling",
            ),
            Metrics(options.served_model_name),
        )
        self._api = Api(
            clock,
            self._core,
            ApiSettings(
                model=options.model,
                served_name=options.served_model_name,
                api_key=options.api_key,
                max_num_queued_reqs=options.max_num_queued_reqs,
                drain_answer=options.drain_answer,
                adapters=tuple(options.lora_modules),
                adapter_load_time=options.adapter_load_time,
                max_cpu_loras=options.max_cpu_loras,
                auto_tools=options.enable_auto_tool_choice and bool(options.tool_call_parser),
                reasoning=bool(options.reasoning_parser),
                scale_out=options.enable_scale_out,
                responses_store=options.responses_store,
                tokenizer_info=options.enable_tokenizer_info_endpoint,
                faults=options.faults,
                pooling=options.runner == "pooling",
            ),
        )
        self._inference = self._api.inference
        self._stop = asyncio.Event()
        self._crashed = asyncio.Event()
        self._quiet = asyncio.Event()
        self._inference.on_quiet = self._quiet.set
        self._api.on_crash = self._crashed.set

    async def serve(self, bound: socket.socket) -> int:
        """Load, serve until a signal or a crash, and return the exit code."""
        await self._load()
        if self._stop.is_set():
            return 0
        host, port = bound.getsockname()[:2]
        runner = Runner(
            self._api.application(),
            listener=f"{host}:{port}",
            handler_cancellation=True,
            shutdown_timeout=_FLUSH,
            keepalive_timeout=self._options.keep_alive,
        )
        await runner.setup()
        site = web.SockSite(runner, bound, backlog=_BACKLOG)
        await site.start()
        say(f"ready on {host}:{port}")
        say("Application startup complete.")
        engine = asyncio.create_task(self._core.run())
        try:
            await self._first(self._stop, self._crashed)
            await self._end(runner, site)
        finally:
            engine.cancel()
            await runner.cleanup()
        say("exit")
        return 0

    async def _load(self) -> None:
        half = self._options.load_time / 2
        await self._clock.sleep(half)
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._stop.set)
        say("half loaded")
        await self._clock.sleep(half)
        say(f"Loading weights took {self._options.load_time:.2f} seconds")

    async def _end(self, runner: web.AppRunner, site: web.SockSite) -> None:
        if not self._crashed.is_set():
            if self._options.shutdown_timeout > 0:
                await self._drain(self._options.shutdown_timeout)
            else:
                await self._close_and_hang(runner, site)
        if self._crashed.is_set():
            say("the engine is dead")
            await self._clock.sleep(_CRASH_LINGER)
            await self._answered(_FLUSH)

    async def _drain(self, budget: float) -> None:
        say(f"draining for at most {budget:g} s, {self._inference.answering} requests in flight")
        self._inference.draining = True
        if not await self._answered(budget):
            say("drain time is over: killing the engine")
            self._core.kill()
            await self._answered(_FLUSH)

    async def _close_and_hang(self, runner: web.AppRunner, site: web.SockSite) -> None:
        say(f"closing, {self._inference.answering} requests in flight")
        self._core.freeze()  # no request ends: what a plain SIGTERM does to vLLM
        await site.stop()
        if runner.server is not None:
            runner.server.pre_shutdown()  # idle connections end now, busy ones after their answer
        await self._answered(None)

    async def _answered(self, budget: float | None) -> bool:
        """Wait until no inference request is in flight; False when the budget (s) ends first."""
        try:
            async with asyncio.timeout(budget):
                while self._inference.answering > 0:
                    self._quiet.clear()
                    await self._quiet.wait()
        except TimeoutError:
            return False
        return True

    async def _first(self, *events: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


async def run(options: argparse.Namespace, bound: socket.socket) -> int:
    """Serve on the bound socket and return the exit code."""
    return await Server(SystemClock(), options).serve(bound)


def main() -> int:
    """Parse the command line, take the port and serve."""
    options = parse_options()
    try:
        bound = bind(options.host, options.port)
    except OSError as error:
        say(f"cannot listen on {options.host}:{options.port}: {error.strerror}; choose another --port")
        return 1
    return asyncio.run(run(options, bound))
