"""Routers for inference engines as load balancers: workers that are added and removed over REST.

smg, sglang-router and vllm-router keep workers by URL, in memory, and neither a generation nor (vllm-router)
ids, so the adapter keeps a ledger (`cloud.balancers.ledger`): a worker whose address is in it is ours, others
are foreign. A restart loses every worker, and the next set brings them back. They know no draining state of
ours: a worker that drains is removed, what it is answering goes on, and how much that is its engine says.
Source: `/workers` of the three programs, driven in tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal
from urllib.parse import quote

import orjson

from cloud.balancers.exchange import Exchange, json_of, read_as_ours, text_of
from cloud.balancers.ledger import Ledger
from cloud.errors import CloudError, Denied, Uncertain
from cloud.handover import WAIT, newcomers, one_takes_requests
from cloud.ports import BalancerView, Capabilities, Clock
from policies.model import Target, TargetPhase, TargetSpec, TargetState
from policies.value import replace

Router = Literal["smg", "sglang-router", "vllm-router"]

_LEAVES_WITHIN: Final = 9.0
"""Seconds that smg keeps a removed worker in its list, with some to spare. It cannot come back before: one
that is put there again meanwhile is removed all the same."""

_TAKEN_WITHIN: Final = 3.0  # s from a call that was accepted to the list that shows it
_POLL: Final = 0.02  # s
_REFUSED, _BROKEN = 300, 500
_GONE: Final = (404, 410)
_THERE: Final = (400, 409)


class RouterWorkers:
    """The workers of one router.

    `url`: where it listens. `token`: its API key, if it asks for one. `ledger`: what it was given. `wait`:
    see `cloud.handover`.
    """

    capabilities = Capabilities(drains=True, counts_in_flight=False, propagation=0.0, in_path=True)

    def __init__(
        self,
        *,
        kind: Router,
        url: str,
        ledger: Ledger,
        clock: Clock,
        name: str = "",
        token: str = "",
        timeout: float = 3.0,
        wait: float = WAIT,
    ) -> None:
        self.name = name or kind
        self._ledger, self._clock, self._wait = ledger, clock, wait
        self._peer = f"{kind} at {url.rstrip('/')}"
        self._exchange = Exchange(self._peer, url, timeout=timeout, token=token)
        self._order = asyncio.Lock()

    async def observe(self) -> BalancerView:
        """The workers of ours. Raises Uncertain when the router does not answer, Denied when it refuses."""
        workers, held = await asyncio.gather(self._workers(), self._ledger.read())
        active = [spec for spec in held.targets if spec.phase is TargetPhase.ACTIVE]
        lost = bool(active) and not any(_at(spec) in workers for spec in active)
        return BalancerView(
            incarnation="lost" if lost else "kept",
            generation=held.generation,
            targets=_targets(workers, held.targets),
        )

    async def apply(self, desired: Sequence[TargetSpec], generation: int) -> None:
        """Add workers, wait if nothing that stays takes requests, then remove.

        Raises Denied for a lower generation or a worker that the router refuses, Uncertain; what could be
        done is done before.
        """
        async with self._order:
            workers, held = await asyncio.gather(self._workers(), self._ledger.read())
            if generation < held.generation:
                raise Denied(f"generation {generation} is older than {held.generation}, already applied")
            wanted = tuple(sorted(map(_kept, desired), key=lambda spec: spec.id))
            active = {_at(s): s for s in wanted if s.phase is TargetPhase.ACTIVE}
            ours = {_at(spec) for spec in (*held.targets, *wanted)}
            joining = [s for at, s in active.items() if at not in workers or _leaves(workers[at])]
            leaving = [w for at, w in workers.items() if at in ours - active.keys() and not _leaves(w)]
            if not joining and not leaving:
                if held.targets != wanted:
                    await self._ledger.write(wanted, generation)
                return
            # Both sets first: whatever happens from here on, no worker of ours becomes foreign.
            known = {_at(spec): spec for spec in held.targets} | {_at(spec): spec for spec in wanted}
            await self._ledger.write(_distinct(known.values()), generation)
            back = [spec for spec in joining if _at(spec) in workers]
            adds = [self._add(spec) for spec in joining if spec not in back]
            late = [self._add_again(spec) for spec in back]
            waiting = newcomers(_targets(workers, held.targets), desired) if leaving else frozenset()
            if waiting:
                adds, late = [*adds, *late], []
            failed = [error for error in await asyncio.gather(*adds) if error is not None]
            if waiting:
                await one_takes_requests(waiting, self._shown, desired, self._clock, self._wait)
            stay = [error for error in await asyncio.gather(*map(self._remove, leaving)) if error is not None]
            failed += [error for error in await asyncio.gather(*late) if error is not None]
            if not stay:  # until they have left, they are ours
                await self._ledger.write(wanted, generation)
            if stay or failed:
                raise [*stay, *failed][0]

    async def detach(self, leaving: Sequence[TargetSpec], generation: int) -> None:
        """Remove those workers that are there. See `LoadBalancer.detach`."""
        going = {spec.id for spec in leaving}
        async with self._order:
            workers, held = await asyncio.gather(self._workers(), self._ledger.read())
            if generation < held.generation:
                raise Denied(f"generation {held.generation} was applied, newer than {generation}")
            drained = [_drained(spec) if spec.id in going else spec for spec in held.targets]
            there = [workers[_at(s)] for s in held.targets if s.id in going and _at(s) in workers]
            going_on = [worker for worker in there if not _leaves(worker)]
            stay = [
                error for error in await asyncio.gather(*map(self._remove, going_on)) if error is not None
            ]
            if stay:
                raise stay[0]
            await self._ledger.write(drained, held.generation)

    async def close(self) -> None:
        """Release the connection. The workers stay."""
        await self._exchange.close()
        self._ledger.close()

    async def _shown(self) -> tuple[Target, ...]:
        return (await self.observe()).targets

    async def _add_again(self, spec: TargetSpec) -> CloudError | None:
        """Add one that is still leaving, once it has left."""
        until = self._clock.steady() + _LEAVES_WITHIN
        try:
            while _at(spec) in await self._workers():
                if self._clock.steady() >= until:
                    return Uncertain(f"{self._peer} still removes {spec.address}")
                await self._clock.sleep(_POLL)
        except CloudError as error:
            return error
        return await self._add(spec)

    async def _add(self, spec: TargetSpec) -> CloudError | None:
        """Add a worker and wait until it is listed; what went wrong, if anything did."""
        body = {"url": _at(spec), "worker_type": "regular", "labels": {"spot-orchestrator": spec.id}}
        try:
            status, said = await self._call("POST", "/workers", body)
            if status >= _REFUSED and not (status in _THERE and "exists" in said):
                return Denied(f"{self._peer} refused {spec.address}: {status} {said[:200]}")
            until = self._clock.steady() + _TAKEN_WITHIN
            while _at(spec) not in await self._workers():
                if self._clock.steady() >= until:
                    return Uncertain(f"{self._peer} accepted {spec.address} and does not list it")
                await self._clock.sleep(_POLL)
        except CloudError as error:
            return error
        return None

    async def _remove(self, worker: Mapping[str, Any]) -> CloudError | None:
        """Remove a worker and wait until it gets nothing any more; what went wrong, if anything did."""
        key, url = str(worker.get("id") or worker["url"]), worker["url"]
        try:
            status, said = await self._call("DELETE", f"/workers/{quote(key, safe='')}")
            if status >= _REFUSED and status not in _GONE:
                return Denied(f"{self._peer} does not remove {url}: {status} {said[:200]}")
            until = self._clock.steady() + _TAKEN_WITHIN
            while (left := (await self._workers()).get(url)) is not None and not _leaves(left):
                if self._clock.steady() >= until:
                    return Uncertain(f"{self._peer} accepted the removal of {url} and lists it still")
                await self._clock.sleep(_POLL)
        except CloudError as error:
            return error
        return None

    async def _workers(self) -> Mapping[str, Mapping[str, Any]]:
        """All workers by URL."""
        status, said = await self._call("GET", "/workers")
        if status >= _BROKEN:
            raise Uncertain(f"{self._peer} does not list its workers: {status} {said[:200]}")
        if status >= _REFUSED:
            raise Denied(f"{self._peer} does not list its workers: {status} {said[:200]}")
        with read_as_ours(self._peer):
            rows = json_of(self._peer, said.encode())["workers"]
            listed = ({**row, "url": str(row["url"]).rstrip("/")} for row in rows)
            return {row["url"]: row for row in listed}

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, str]:
        data = None if body is None else orjson.dumps(body)
        status, said = await self._exchange.ask(method, path, data)
        return status, text_of(said)


def _at(spec: TargetSpec) -> str:
    return f"http://{spec.address}"


def _leaves(worker: Mapping[str, Any]) -> bool:
    return worker.get("status") == "draining"


def _kept(spec: TargetSpec) -> TargetSpec:
    """As the ledger has it: without what no router knows."""
    phase = spec.phase if spec.weight else TargetPhase.DRAINING
    return TargetSpec(id=spec.id, address=spec.address, phase=phase)


def _drained(spec: TargetSpec) -> TargetSpec:
    return replace(spec, phase=TargetPhase.DRAINING)


def _distinct(specs: Any) -> list[TargetSpec]:
    """One of each id, the last."""
    return [*{spec.id: spec for spec in specs}.values()]


def _targets(workers: Mapping[str, Mapping[str, Any]], held: Sequence[TargetSpec]) -> tuple[Target, ...]:
    """The targets of the ledger as the router has them. An active one that it does not list is not shown."""
    found = []
    for spec in held:
        worker = workers.get(_at(spec))
        state = TargetState.DRAINING if spec.phase is TargetPhase.DRAINING else _state(worker)
        if state is not None:
            found.append(Target(id=spec.id, address=spec.address, state=state))
    return tuple(found)


def _state(worker: Mapping[str, Any] | None) -> TargetState | None:
    if worker is None:
        return None
    if _leaves(worker):
        return TargetState.DRAINING
    if worker.get("is_healthy"):
        return TargetState.HEALTHY
    return TargetState.INITIAL if worker.get("status") == "pending" else TargetState.UNHEALTHY
