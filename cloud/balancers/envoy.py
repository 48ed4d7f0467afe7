"""A cluster of Envoy as a load balancer: its endpoints come from a file, and the admin port shows them.

The file outlives both the daemon and Envoy, so a restart of either loses nothing: it holds the set and, as
its version, the generation. It is on the disk for good a moment after Envoy has it: a drain does not wait for
that. Where a power cut falls into this moment, Envoy starts without endpoints, and is given the set again by
the next look at it. The id of a node is the `hostname` of its endpoint, `so.` and the id; endpoints
that others put into the file are neither shown nor touched. Sources: `config.endpoint.v3` of Envoy's API,
"Dynamic configuration (filesystem)" and "Administration interface" of its documentation.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import orjson

from cloud.balancers.exchange import Exchange, count, generation_in, json_of, read_as_ours
from cloud.balancers.kept_file import KeptFile, RunBlocking
from cloud.durable import sync, write_atomic
from cloud.errors import Denied, Uncertain
from cloud.handover import WAIT, newcomers, one_takes_requests
from cloud.ports import BalancerView, Capabilities, Clock
from cloud.threads import WorkerThreads
from policies.model import Target, TargetPhase, TargetSpec, TargetState
from policies.value import replace

PREFIX: Final = "so."

_TYPE: Final = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
_ACKNOWLEDGED_WITHIN: Final = 5.0  # s from a new file to Envoy's word that it holds it
_POLL_FIRST, _POLL_MOST = 0.001, 0.02  # s; Envoy reads a small file within a few milliseconds
_SICK: Final = ("failed_active_health_check", "failed_outlier_check", "failed_active_degraded_check")
_OK: Final = 200

Shown = frozenset[tuple[str, str, bool, int]]  # id, address, whether it drains, weight


class EnvoyCluster:
    """One cluster of one Envoy.

    `admin`: the URL of its admin port. `file`: the endpoints, a file that Envoy watches together with its
    directory. `cluster`: the name of the cluster, of type EDS. `wait`: seconds for which a drain waits for a
    newcomer, see `cloud.handover`. `run_blocking` writes the file. That it could not be put on the disk for
    good is reported to `on_file_error` with a sentence.
    """

    capabilities = Capabilities(
        drains=True, counts_in_flight=True, propagation=0.0, in_path=True, weights=True
    )

    def __init__(
        self,
        *,
        admin: str,
        file: Path,
        cluster: str,
        clock: Clock,
        name: str = "envoy",
        timeout: float = 2.0,
        wait: float = WAIT,
        run_blocking: RunBlocking | None = None,
        on_file_error: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self._admin, self._file, self._cluster, self._clock = admin.rstrip("/"), file, cluster, clock
        self._wait = wait
        self._exchange = Exchange(f"Envoy's admin port {self._admin}", self._admin, timeout=timeout)
        self._threads = WorkerThreads(f"envoy-{name}", 2)  # a write does not wait for the disk
        self._run_blocking = run_blocking if run_blocking is not None else self._threads.run
        self._on_disk: KeptFile[int] = KeptFile(
            lambda _: sync(file), run_blocking=self._run_blocking, on_error=on_file_error
        )
        self._writes = itertools.count()
        self._order = asyncio.Lock()
        self._generation = 0

    async def observe(self) -> BalancerView:
        """Read the endpoints that Envoy holds. Raises Uncertain when it does not answer, Denied when it has
        no such cluster."""
        started, targets = await asyncio.gather(self._started(), self._targets())
        generation, _ = await self._read()
        return BalancerView(incarnation=started, generation=generation, targets=targets)

    async def apply(self, desired: Sequence[TargetSpec], generation: int) -> None:
        """Write the new endpoints, wait if nothing that stays takes requests, then write the whole set.

        Raises Denied for a lower generation or endpoints that Envoy refuses, Uncertain when it did not take
        them; the file holds the set all the same then.
        """
        async with self._order:
            held, document = await self._read()
            if generation < max(held, self._generation):
                raise Denied(f"generation {generation} is older than {max(held, self._generation)}")
            wanted = _shown_by(desired)
            try:
                hosts = await self._hosts()
            except Uncertain:
                await self._write(document, desired, generation)  # Envoy may start before it is reached again
                raise
            if _described(document) == wanted == _seen(hosts):
                return
            waiting = newcomers((target for target, _ in hosts), desired)
            if waiting:
                both = _both(list(_specs(document)), desired)
                await self._write(document, both, generation)
                await self._acknowledged(_shown_by(both))
                await one_takes_requests(waiting, self._targets, desired, self._clock, self._wait)
            await self._write(document, desired, generation)
            await self._acknowledged(wanted)

    async def detach(self, leaving: Sequence[TargetSpec], generation: int) -> None:
        """Have those of them that are there drain. See `LoadBalancer.detach`."""
        going = {spec.id for spec in leaving}
        async with self._order:
            held, document = await self._read()
            if generation < held:
                raise Denied(f"generation {held} was applied, newer than {generation}")
            specs = [_drained(spec) if spec.id in going else spec for spec in _specs(document)]
            await self._hosts()  # nothing is promised where nobody answers
            if _shown_by(specs) != _described(document):
                await self._write(document, specs, held)
            await self._acknowledged(_shown_by(specs))

    async def flush(self) -> None:
        """Wait until the file is on the disk for good."""
        await self._on_disk.flush()

    async def close(self) -> None:
        """Finish the file and release the connection. The endpoints stay."""
        await self.flush()
        await self._exchange.close()
        self._threads.close()

    async def _acknowledged(self, wanted: Shown) -> None:
        """Wait until Envoy holds these endpoints."""
        until, pause = self._clock.steady() + _ACKNOWLEDGED_WITHIN, _POLL_FIRST
        while _seen(await self._hosts()) != wanted:
            if self._clock.steady() >= until:
                raise Uncertain(
                    f"Envoy at {self._admin} did not take {self._file} within {_ACKNOWLEDGED_WITHIN:g} s: "
                    f"it watches the file's directory with watched_directory, and says in its log why it "
                    f"refuses a file ({await self._updates()})"
                )
            await self._clock.sleep(pause)
            pause = min(_POLL_MOST, 2 * pause)

    async def _targets(self) -> tuple[Target, ...]:
        return tuple(target for target, _ in await self._hosts())

    async def _hosts(self) -> tuple[tuple[Target, int], ...]:
        """The endpoints of ours as the admin port shows them, each with its weight."""
        clusters = await self._get("/clusters?format=json")
        with read_as_ours(self._exchange.peer):
            for cluster in clusters.get("cluster_statuses", ()):
                if cluster["name"] == self._cluster:
                    return tuple(
                        (_target(host), int(host.get("weight", 1)))
                        for host in cluster.get("host_statuses", ())
                        if host.get("hostname", "").startswith(PREFIX)
                    )
        raise Denied(f"Envoy at {self._admin} has no cluster {self._cluster!r}: correct its name, or add it")

    async def _started(self) -> str:
        """When this Envoy began to have the cluster."""
        dump = await self._get("/config_dump?resource=static_clusters&mask=last_updated")
        with read_as_ours(self._exchange.peer):
            return min(
                (str(entry.get("last_updated", "")) for entry in dump.get("configs", ())), default="none"
            )

    async def _updates(self) -> str:
        """What Envoy counted of the files that it saw."""
        name = quote(rf"^cluster\.{self._cluster}\.(version_text|update_(rejected|failure))$")
        try:
            found = await self._get(f"/stats?format=json&filter={name}")
            with read_as_ours(self._exchange.peer):
                rows = [row for row in found.get("stats", ()) if "name" in row]
                return ", ".join(f"{row['name'].rpartition('.')[2]} {row.get('value')}" for row in rows)
        except Uncertain as error:
            return str(error)

    async def _read(self) -> tuple[int, Mapping[str, Any]]:
        """The generation in the file and what it holds; 0 and nothing for one that is damaged."""
        return await asyncio.to_thread(_read, self._file)

    async def _write(self, before: Mapping[str, Any], desired: Sequence[TargetSpec], generation: int) -> None:
        data = orjson.dumps(_document(self._cluster, before, desired, generation))
        try:
            # Also where it holds this already: Envoy reads a file that was replaced again.
            await self._run_blocking(functools.partial(_replace, self._file, data))
        except OSError as error:
            raise Uncertain(f"{self._file} cannot be written: {error.strerror or error}") from None
        self._generation = generation
        self._on_disk.keep(next(self._writes))

    async def _get(self, path: str) -> Any:
        status, data = await self._exchange.ask("GET", path)
        if status != _OK:
            raise Uncertain(f"{self._exchange.peer} answered {status} to {path}")
        return json_of(self._exchange.peer, data)


def empty(cluster: str) -> bytes:
    """The file with no endpoints, which Envoy can be started with."""
    return orjson.dumps(_document(cluster, {}, (), 0)) + b"\n"


def _read(file: Path) -> tuple[int, Mapping[str, Any]]:
    try:
        document = orjson.loads(file.read_bytes())
        word = str(document["version_info"]).partition(".")[0]
        list(_specs(document))
        return (generation_in(word) if word.isdecimal() else 0), document
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0, {}


def _replace(file: Path, data: bytes) -> None:
    mode = file.stat().st_mode & 0o777 if file.exists() else 0o644  # Envoy has another user
    write_atomic(file, data, mode=mode, synced=False)


def _lists(document: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Every list of endpoints in a document."""
    for resource in document.get("resources", ()):
        for locality in resource.get("endpoints", ()):
            yield list(locality.get("lb_endpoints", ()))


def _is_ours(entry: Mapping[str, Any]) -> bool:
    return str(entry.get("endpoint", {}).get("hostname", "")).startswith(PREFIX)


def _document(
    cluster: str, before: Mapping[str, Any], desired: Sequence[TargetSpec], generation: int
) -> dict[str, Any]:
    """The file: endpoints of others as they were, ours in the first locality."""
    groups = [
        {**group, "lb_endpoints": [e for e in group.get("lb_endpoints", ()) if not _is_ours(e)]}
        for resource in before.get("resources", ())
        for group in resource.get("endpoints", ())
    ]
    first, rest = (groups[0], groups[1:]) if groups else ({"lb_endpoints": []}, [])
    ours = [_endpoint(spec) for spec in sorted(_distinct(desired), key=lambda spec: spec.id)]
    first = {**first, "lb_endpoints": [*first["lb_endpoints"], *ours]}
    found = {"@type": _TYPE, "cluster_name": cluster, "endpoints": [first, *rest]}
    return {"version_info": str(generation), "resources": [found]}


def _endpoint(spec: TargetSpec) -> dict[str, Any]:
    host, _, port = spec.address.rpartition(":")
    if not host or not port.isdigit():
        raise Denied(f"target {spec.id}: address {spec.address!r}: expected host:port")
    address = {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}
    body = {
        "endpoint": {"hostname": PREFIX + spec.id, "address": address},
        "load_balancing_weight": _weight(spec),
    }
    return body if _gets_requests(spec) else body | {"health_status": "DRAINING"}


def _weight(spec: TargetSpec) -> int:
    return max(1, spec.weight)  # Envoy knows none below 1


def _gets_requests(spec: TargetSpec) -> bool:
    return spec.phase is TargetPhase.ACTIVE and spec.weight > 0


def _shown_by(specs: Sequence[TargetSpec]) -> Shown:
    return frozenset((s.id, s.address, not _gets_requests(s), _weight(s)) for s in _distinct(specs))


def _seen(hosts: Sequence[tuple[Target, int]]) -> Shown:
    return frozenset((t.id, t.address, t.state is TargetState.DRAINING, weight) for t, weight in hosts)


def _distinct(specs: Sequence[TargetSpec]) -> list[TargetSpec]:
    """One of each address, since Envoy takes no more: the one that gets requests."""
    found: dict[str, TargetSpec] = {}
    for spec in sorted(specs, key=_gets_requests):
        found[spec.address] = spec
    return list(found.values())


def _both(before: Sequence[TargetSpec], desired: Sequence[TargetSpec]) -> list[TargetSpec]:
    """What is there and what is wanted, with those that leave as they were."""
    held = {spec.address: spec for spec in before}
    return [*(held | {s.address: s for s in desired if s.address not in held or _gets_requests(s)}).values()]


def _described(document: Mapping[str, Any]) -> Shown:
    return _shown_by(list(_specs(document)))


def _specs(document: Mapping[str, Any]) -> Iterator[TargetSpec]:
    """The targets of ours in a document."""
    for entry in (entry for each in _lists(document) for entry in each if _is_ours(entry)):
        at = entry["endpoint"]["address"]["socket_address"]
        drains = entry.get("health_status") == "DRAINING"
        yield TargetSpec(
            id=entry["endpoint"]["hostname"].removeprefix(PREFIX),
            address=_joined(at["address"], at["port_value"]),
            phase=TargetPhase.DRAINING if drains else TargetPhase.ACTIVE,
            weight=int(entry.get("load_balancing_weight", 1)),
        )


def _target(host: Mapping[str, Any]) -> Target:
    at = host["address"]["socket_address"]
    counts = {stat["name"]: count(int(stat.get("value", 0))) for stat in host.get("stats", ())}
    status = host.get("health_status", {})
    state = _state(status)
    reasons = (name.replace("_", " ") for name in _SICK if status.get(name))
    return Target(
        id=host["hostname"].removeprefix(PREFIX),
        address=_joined(at["address"], at["port_value"]),
        state=state,
        in_flight=counts.get("rq_active", 0) + counts.get("rq_pending_active", 0),
        reason=", ".join(reasons) if state is TargetState.UNHEALTHY else "",
    )


def _state(status: Mapping[str, Any]) -> TargetState:
    if status.get("eds_health_status") == "DRAINING":
        return TargetState.DRAINING
    if status.get("pending_active_hc"):
        return TargetState.INITIAL
    return TargetState.UNHEALTHY if any(status.get(name) for name in _SICK) else TargetState.HEALTHY


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _drained(spec: TargetSpec) -> TargetSpec:
    return replace(spec, phase=TargetPhase.DRAINING)
