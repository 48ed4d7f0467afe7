"""A backend of HAProxy (2.6 and later) as a load balancer, through its runtime API.

Servers of ours are named `so.` and the node's id; whatever else is in the backend is neither shown nor
touched. HAProxy keeps the generation, and a word by which a restart is noticed, as variables of its process.
Servers that are added at run time are lost with the process, so they are written into a file of its
configuration too (`cloud.balancers.haproxy_file`): the push comes first, since it is the path that a
preemption notice takes, and the file follows.

A new server gets requests before its first check: the daemon has probed its engine. HAProxy never sends
requests to servers that are down, also when all are, so the checks are tolerant by default.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from cloud.balancers import haproxy_file as files
from cloud.balancers.haproxy_wire import Look, Server, exchange, look
from cloud.balancers.kept_file import KeptFile, RunBlocking
from cloud.errors import Denied, Uncertain
from cloud.handover import WAIT, newcomers, one_takes_requests
from cloud.ports import BalancerView, Capabilities, Clock
from cloud.threads import WorkerThreads
from policies.model import Target, TargetPhase, TargetSpec
from policies.value import replace

PREFIX: Final = "so."
CHECK: Final = "check inter 1s fall 3 rise 1"
"""How servers are checked; the backend's `timeout check` says how long a check may take."""

_NAME: Final = re.compile(r"[A-Za-z0-9_.:-]+")
_MAX_WEIGHT: Final = 256


class HaproxyBackend:
    """One backend of one HAProxy.

    `socket`: its stats socket, of level admin. `servers_file`: the file of its configuration that holds the
    backend; None: after a restart it has no servers until the next look. `check`: the parameters of a server
    that say how it is checked. `wait`: seconds for which a drain waits for a newcomer, see `cloud.handover`.
    A failed write of the file is reported to `on_file_error` with a sentence.
    """

    capabilities = Capabilities(
        drains=True, counts_in_flight=True, propagation=0.0, in_path=True, weights=True
    )

    def __init__(
        self,
        *,
        socket: Path,
        backend: str,
        clock: Clock,
        name: str = "haproxy",
        servers_file: Path | None = None,
        check: str = CHECK,
        timeout: float = 2.0,
        wait: float = WAIT,
        run_blocking: RunBlocking | None = None,
        on_file_error: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self._socket, self._backend, self._clock, self._check = socket, backend, clock, check
        self._timeout, self._wait = timeout, wait
        key = re.sub(r"\W", "_", backend)
        self._variables = (f"proc.so_gen_{key}", f"proc.so_life_{key}")
        self._order = asyncio.Lock()
        self._file = servers_file
        self._thread = WorkerThreads(f"haproxy-{name}", 1)
        self._kept: KeptFile[files.Servers] | None = None
        if servers_file is not None:
            self._kept = KeptFile(
                partial(files.write, servers_file),
                run_blocking=run_blocking if run_blocking is not None else self._thread.run,
                on_error=on_file_error,
            )

    async def observe(self) -> BalancerView:
        """Read the servers. Raises Uncertain when HAProxy does not answer, Denied when it cannot be used."""
        seen = await self._look()
        return BalancerView(incarnation=seen.life, generation=seen.generation, targets=_targets(seen))

    async def apply(self, desired: Sequence[TargetSpec], generation: int) -> None:
        """Add and change what differs, wait if nothing that stays takes requests, then drain and remove.

        Raises Denied for a lower generation or a set that HAProxy does not take, Uncertain.
        """
        wanted = {PREFIX + _checked(spec).id: spec for spec in desired}
        weights = _weights(desired)
        servers = files.Servers(generation, self._lines(wanted, weights))
        async with self._order:
            try:
                seen = await self._look()
                if generation < seen.generation:
                    raise Denied(f"generation {generation} is older than {seen.generation}, already applied")
                await self._make_it_so(seen, wanted, weights, generation)
            except Uncertain:
                self._keep(servers)  # it may start, or be asked by others, before it is reached again
                raise
            self._keep(servers)

    async def detach(self, leaving: Sequence[TargetSpec], generation: int) -> None:
        """Drain those of them that are there. See `LoadBalancer.detach`."""
        async with self._order:
            seen = await self._look()
            if generation < seen.generation:
                raise Denied(f"generation {seen.generation} was applied, newer than {generation}")
            there = [s for spec in leaving if (s := seen.servers.get(PREFIX + spec.id)) is not None]
            going = [server.name for server in there if server.state == "ready"]
            if not going:
                return
            said = await self._say([f"set server {self._backend}/{name} state drain" for name in going])
            after = await self._look()
            left = [name for name in going if (s := after.servers.get(name)) and s.state == "ready"]
            if left:
                raise self._refused(seen, after, f"{', '.join(left)} still get requests", said)

    async def flush(self) -> None:
        """Wait until no write of the file is under way."""
        if self._kept is not None:
            await self._kept.flush()

    async def close(self) -> None:
        """Finish the file. The servers stay."""
        await self.flush()
        self._thread.close()

    async def _make_it_so(
        self, seen: Look, wanted: Mapping[str, TargetSpec], weights: Mapping[str, int], generation: int
    ) -> None:
        first, then = self._changes(seen.servers, wanted, weights)
        rest = [name for name in _ours(seen) if name not in wanted and seen.servers[name].state == "maint"]
        forget = [f"del server {self._backend}/{name}" for name in rest]
        if not first and not then and not forget and generation == seen.generation:
            return
        said = []
        desired = tuple(wanted.values())
        waiting = newcomers(_targets(seen), desired) if then else frozenset()
        if waiting:
            said.append(await self._say([*first, *self._notes(seen, generation)]))
            await one_takes_requests(waiting, self._shown, desired, self._clock, self._wait)
            said.append(await self._say([*then, *forget]))
        else:
            said.append(await self._say([*first, *then, *forget, *self._notes(seen, generation)]))
        after = await self._look()
        first, then = self._changes(after.servers, wanted, weights)
        if first or then or after.generation < generation:
            lacks = "; ".join([*first, *then][:3]) or "its generation was not kept"
            raise self._refused(seen, after, lacks, "".join(said))

    def _changes(
        self, held: Mapping[str, Server], wanted: Mapping[str, TargetSpec], weights: Mapping[str, int]
    ) -> tuple[list[str], list[str]]:
        """The commands that add and change, and those that take out."""
        first, then = list[str](), list[str]()
        for name, spec in wanted.items():
            server, row = f"{self._backend}/{name}", held.get(name)
            drains = spec.phase is TargetPhase.DRAINING
            state, weight = "drain" if drains else "ready", weights[spec.id]
            if row is None:
                # One that drains is added too: a drain may be taken back, and the set is what is shown.
                first += [f"add server {server} {spec.address} {self._check} weight {weight}"]
                first += [f"enable health {server}", f"set server {server} state {state}"]
                continue
            if row.address != spec.address:
                host, _, port = spec.address.rpartition(":")
                first.append(f"set server {server} addr {host.strip('[]')} port {port}")
            if row.weight != weight:
                first.append(f"set server {server} weight {weight}")
            if row.state != state:
                (then if drains else first).append(f"set server {server} state {state}")
        for name, row in held.items():
            if name.startswith(PREFIX) and name not in wanted and row.state != "maint":
                server = f"{self._backend}/{name}"
                # Refused while it has requests or open connections: the next set deletes it.
                then += [f"set server {server} state maint", f"del server {server}"]
        return first, then

    def _notes(self, seen: Look, generation: int) -> list[str]:
        held, word = self._variables
        notes = [f"experimental-mode on; set var {held} int({generation})"]
        if seen.life == f"{seen.pid}.":
            notes.append(f"experimental-mode on; set var {word} str({secrets.token_hex(8)})")
        return notes

    def _lines(self, wanted: Mapping[str, TargetSpec], weights: Mapping[str, int]) -> tuple[str, ...]:
        def line(name: str, spec: TargetSpec) -> str:
            off = " disabled" if spec.phase is TargetPhase.DRAINING else ""
            return f"server {name} {spec.address} {self._check} weight {weights[spec.id]}{off}"

        return tuple(line(name, spec) for name, spec in sorted(wanted.items()))

    def _keep(self, servers: files.Servers) -> None:
        if self._kept is not None:
            self._kept.keep(servers)

    def _refused(self, seen: Look, after: Look, lacks: str, said: str) -> Denied | Uncertain:
        if after.pid != seen.pid:
            return Uncertain(f"HAProxy at {self._socket} was restarted while its servers changed")
        return Denied(f"HAProxy did not take the target set ({lacks}): {' '.join(said.split())[-400:]}")

    async def _shown(self) -> tuple[Target, ...]:
        return _targets(await self._look())

    async def _say(self, commands: Sequence[str]) -> str:
        return await exchange(self._socket, commands, self._timeout)

    async def _look(self) -> Look:
        seen = await look(self._socket, self._backend, self._variables, self._timeout)
        if seen.generation or self._file is None:
            return seen
        # A process that has just started: what it holds is what its file says.
        held = 0
        if self._file is not None:
            held = await asyncio.to_thread(files.generation_in, self._file)
        return Look(pid=seen.pid, life=seen.life, generation=held, servers=seen.servers)


def _targets(seen: Look) -> tuple[Target, ...]:
    """The servers of ours, but for those that only wait until they can be deleted."""
    ours = (seen.servers[name] for name in _ours(seen))
    return tuple(replace(s.target, id=s.name.removeprefix(PREFIX)) for s in ours if s.state != "maint")


def _ours(seen: Look) -> list[str]:
    return [name for name in seen.servers if name.startswith(PREFIX)]


def _weights(desired: Sequence[TargetSpec]) -> Mapping[str, int]:
    """Weights in HAProxy's range, the highest at its top."""
    top = max((spec.weight for spec in desired), default=0) or 1
    return {spec.id: round(_MAX_WEIGHT * spec.weight / top) or min(spec.weight, 1) for spec in desired}


def _checked(spec: TargetSpec) -> TargetSpec:
    """Raises Denied for what HAProxy's commands cannot say."""
    if not _NAME.fullmatch(spec.id):
        raise Denied(f"{spec.id!r} cannot name a server of HAProxy: letters, digits and _ . : - only")
    host, _, port = spec.address.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise Denied(
            f"target {spec.id}: {spec.address}: HAProxy takes addresses at run time, no names"
        ) from None
    if not port.isdigit():
        raise Denied(f"target {spec.id}: address {spec.address!r}: expected host:port")
    return spec
