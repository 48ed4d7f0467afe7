"""Plays one case of the mode table over real sockets and says what its clients took their answers for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.orchestrator.gateway.faults import rig
from tests.orchestrator.gateway.faults.sdk import Client, Got, Verdict, expected_of, judge
from tests.orchestrator.gateway.faults.table import QUIET, WHOLE, Carrier, Mode
from tests.support.certificates import Pair


@dataclass(frozen=True, slots=True)
class Played:
    """The verdicts of one case: by whether the request met the fault, and after the nodes were well again."""

    met: list[Verdict]
    spared: list[Verdict]
    after: list[Verdict]
    sent: int  # how often the request that met the fault most often was sent to a node that has it

    def losses(self, mode: Mode, faulty: int) -> list[str]:
        """What is not as the table says, in words."""
        right, after = mode.right(faulty), mode.after if faulty == rig.NODES else WHOLE
        lost = [f"met the fault: {one}" for one in self.met if one.word not in right]
        lost += [f"did not meet it: {one}" for one in self.spared if one.word != "whole"]
        return lost + [f"afterwards: {one}" for one in self.after if one.word not in after]


async def play(mode: Mode, carrier: Carrier, faulty: int, directory: Path, tls: Pair | None = None) -> Played:
    """Three requests at once, one for each node; then three more on the same connections, all nodes well.

    With `tls` the clients' side is HTTPS.
    """
    settings = mode.settings | (QUIET if faulty == rig.NODES else {})
    if tls is not None:
        settings |= {"tls_cert_file": tls.certificate, "tls_key_file": tls.key}
    async with (
        _pool(carrier) as (pool, engine),
        rig.gateway(directory, **settings) as running,
        _clients(running.url, pool) as clients,
    ):
        await running.push(*pool.nodes)
        await rig.until_ready(running, ids=carrier.ids)
        await pool.break_nodes(mode.fault, faulty)
        first, again = [rig.marker() for _ in clients], [rig.marker() for _ in clients]
        got = await asyncio.gather(*(c.ask(carrier, name) for c, name in zip(clients, first, strict=True)))
        met = dict(pool.met)
        await pool.heal()
        then = await asyncio.gather(*(c.ask(carrier, name) for c, name in zip(clients, again, strict=True)))
        wanted = [await _expected(carrier, name, engine) for name in first + again]
    verdicts = [judge(one, want) for one, want in zip([*got, *then], wanted, strict=True)]
    hit = [name in met or faulty == rig.NODES for name in first]
    return Played(
        met=[verdict for verdict, was in zip(verdicts, hit, strict=False) if was],
        spared=[verdict for verdict, was in zip(verdicts, hit, strict=False) if not was],
        after=verdicts[len(first) :],
        sent=max(met.values(), default=0),
    )


@contextlib.asynccontextmanager
async def _pool(carrier: Carrier) -> AsyncIterator[tuple[rig.Pool, str]]:
    """The nodes, before an engine that tells ids where the request needs one."""
    async with contextlib.AsyncExitStack() as stack:
        engine, session = "", None
        if carrier.ids:
            engine = await stack.enter_async_context(rig.simulated_engine())
            session = await stack.enter_async_context(aiohttp.ClientSession())
        pool = rig.Pool(engine, session)
        await pool.start()
        stack.push_async_callback(pool.stop)
        yield pool, engine


@contextlib.asynccontextmanager
async def _clients(url: str, pool: rig.Pool) -> AsyncIterator[list[Client]]:
    clients = [Client(url, lambda name: pool.part_of(name).set()) for _ in pool.nodes]
    try:
        yield clients
    finally:
        for client in clients:
            await client.http.aclose()


async def _expected(carrier: Carrier, name: str, engine: str) -> Got:
    """The exact answer. An engine is asked for it, in the dialect that nodes speak."""
    if not engine:
        return expected_of(carrier, name)
    client = Client(f"http://{engine}")
    try:
        inner = "completions" if carrier.dialect == "completions" else "chat"
        got = await client.ask(Carrier(inner, stream=True, ids=True), name)
    finally:
        await client.http.aclose()
    assert got.error is None
    if carrier.dialect == "messages":
        got.reason = {"length": "max_tokens", "stop": "end_turn"}[got.reason or ""]
    return got
