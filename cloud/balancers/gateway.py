"""The embedded gateway as a load balancer: the target set is pushed over its socket and kept in a file.

The push comes first because it is the path a preemption notice takes: one warm connection, about a
millisecond to the acknowledgement. The file follows, so that a gateway that restarts while the daemon is
dead still finds the newest set. The gateway also polls the file, which makes it the second path when the
push fails.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cloud.balancers import targets_file as files
from cloud.balancers.exchange import Exchange, count, generation_in, json_of, read_as_ours, told, word
from cloud.balancers.kept_file import RunBlocking
from cloud.balancers.targets import SCHEMAS, TargetsError, TargetSet, encode, in_schema
from cloud.errors import Denied, Uncertain
from cloud.ports import BalancerView, Capabilities, Clock
from cloud.threads import WorkerThreads
from policies.held import AdapterCount, Held
from policies.model import Target, TargetPhase, TargetSpec, TargetState
from policies.service import ShownCertificate
from policies.value import replace

_CONFLICT, _BROKEN = 409, 500
_NOT_SERVED = ("no_pool", "wrong_pool")  # said of a pool that the gateway does not have
_OK = 200


async def inline(work: Callable[[], None]) -> None:
    """Run blocking work right here, for a world that forbids threads."""
    work()


class GatewayBalancer:
    """The target set of one pool in a gateway process.

    A set that was acknowledged is not pushed again until `observe` has seen another incarnation or a higher
    generation, so observe once a turn.

    `apply` returns as soon as the gateway has acknowledged; the file and its copy are then written by a
    background task, newest set wins. A failed write is reported to `on_file_error` with a sentence and tried
    again by the next `apply`, even of an equal set. `flush` waits for the file. Where two looks in a row show
    a gateway with the acknowledged set that does not find it in the file, the file is written again: it was
    damaged or removed.

    Generations must rise over the life of the pool, not of the daemon: one that lost its count goes on from
    `(await observe()).generation`.

    A gateway on another host is reached by `url` with `token`, and keeps its file itself: there is no second
    path to it then. `tls`: whom its certificate may be signed by, where not by the system's authorities.

    `run_blocking` writes the file; what is not given is a thread of its own, so that a disk that hangs stalls
    neither the event loop nor another pool. `leave` is for a pool that is being removed: a gateway that does
    not serve it any more then counts as one that holds nothing of it.

    Sets are written in the newest schema that the gateway said it reads, and before it said anything in the
    oldest: a gateway of any version reads that.
    """

    capabilities = Capabilities(
        drains=True, counts_in_flight=True, propagation=0.0, in_path=True, weights=True
    )

    def __init__(
        self,
        *,
        pool: str,
        clock: Clock,
        socket: Path | None = None,
        targets_file: Path | None = None,
        url: str = "",
        token: str = "",
        tls: ssl.SSLContext | None = None,
        name: str = "gateway",
        timeout: float = 2.0,
        run_blocking: RunBlocking | None = None,
        on_file_error: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self._peer = f"the gateway at {socket or url}"
        self._exchange = Exchange(
            self._peer, url or "http://gateway", socket=socket, token=token, tls=tls, timeout=timeout
        )
        self._file = targets_file
        self._pool = pool
        self._state = f"/v1/state?pool={quote(pool, safe='')}"
        self._clock = clock
        self._thread = WorkerThreads(f"targets-{pool}", 1)
        self._run_blocking = run_blocking if run_blocking is not None else self._thread.run
        self._leaving = False
        self._on_file_error = on_file_error
        self._order = asyncio.Lock()
        self._generation = 0
        self._incarnation = ""
        self._schema = SCHEMAS[0]
        self._acknowledged: tuple[str, tuple[TargetSpec, ...]] | None = None
        self._document: TargetSet | None = None  # the one acknowledged last
        self._behind = False  # the last look showed that the file does not hold it
        self._unwritten: TargetSet | None = None
        self._writer: asyncio.Task[None] | None = None

    async def observe(self) -> BalancerView:
        """Ask the gateway for its targets and how it serves.

        Raises Uncertain when it does not answer, Denied when it serves another pool.
        """
        status, body = await self._call("GET", self._state)
        if status != _OK:
            if self._leaving and _code(body) in _NOT_SERVED:
                return BalancerView(incarnation="none", generation=self._generation, targets=())
            raise self._refused(f"does not tell its state: {status} {told(body)}", status)
        with read_as_ours(self._peer):
            # A gateway of an older version says none of what is asked for with `get`.
            if body.get("only_pool", "") not in ("", self._pool):
                raise Denied(f"{self._peer} serves pool {body['only_pool']!r} only, not {self._pool!r}")
            recent = body.get("recent", {})
            view = BalancerView(
                incarnation=str(body["incarnation"]),
                generation=generation_in(body["generation"]),
                targets=tuple(_target(row) for row in body["targets"]),
                refuses=str(body.get("refuses", "")),
                answered=count(recent.get("answered", 0)),
                failed=count(recent.get("failed", 0)),
                held=max(0, count(body.get("active", 0)) - count(body.get("queued", 0))),
                certificate=_certificate(body.get("tls")),
                adapters={str(name): _count(row) for name, row in body.get("adapters", {}).items()},
            )
            in_file = generation_in(body["file_generation"])
            read = body.get("reads", SCHEMAS[:1])
            schema = next((s for s in reversed(SCHEMAS) if s in read), SCHEMAS[0])
        self._incarnation = view.incarnation
        if view.generation > self._generation or schema != self._schema:
            # Another daemon wrote, or what was acknowledged did not say all that this gateway reads.
            self._acknowledged = None
        self._schema = schema
        self._look_at_file(view.generation, in_file)
        return view

    async def apply(self, desired: Sequence[TargetSpec], generation: int) -> None:
        """Push the set, then have the file written.

        Raises Denied for a lower generation or a set the gateway refuses, Uncertain when no acknowledgement
        came; the file is written all the same then, and the gateway polls it.
        """
        targets = tuple(sorted(desired, key=lambda spec: spec.id))
        async with self._order:
            if generation < self._generation:
                raise Denied(
                    f"generation {generation} is older than {self._generation}, which was already applied"
                )
            if self._acknowledged == (self._incarnation, targets):
                if self._unwritten is not None:
                    self._start_writer()
                return
            await self._push(targets, generation)

    async def detach(self, leaving: Sequence[TargetSpec], generation: int) -> None:
        """Push the set that the gateway holds, with these targets draining. See `LoadBalancer.detach`."""
        going = {spec.id: spec for spec in leaving}
        async with self._order:
            _, body = await self._call("GET", self._state)
            if self._leaving and _code(body) in _NOT_SERVED:
                return
            with read_as_ours(self._peer):
                held = [_spec(row) for row in body["targets"] if row["phase"]]
                accepted = generation_in(body["generation"])
            if accepted > generation:
                raise Denied(f"the gateway accepted generation {accepted}, newer than {generation}")
            targets = tuple(_drained(spec, going.get(spec.id)) for spec in held)
            if targets != tuple(held):
                await self._push(tuple(sorted(targets, key=lambda spec: spec.id)), generation)

    async def _push(self, targets: tuple[TargetSpec, ...], generation: int) -> None:
        """Push a set and have its file written. Raises Denied, Uncertain."""
        document = TargetSet(
            generation=generation,
            pool=self._pool,
            written_at=self._clock.now(),
            targets=tuple(in_schema(spec, self._schema) for spec in targets),
            schema=self._schema,
        )
        try:
            data = encode(document)
        except TargetsError as error:
            raise Denied(f"the target set cannot be written down: {error}") from None
        self._acknowledged = None
        try:
            status, body = await self._call("PUT", "/v1/targets", data)
        except Uncertain as error:
            await self._write_after_failed_push(document, error)
            raise
        if self._leaving and _code(body) in _NOT_SERVED:
            self._generation = generation
            return
        if status == _CONFLICT:
            raise Denied(f"the gateway refused generation {generation}: {told(body)}")
        if status != _OK:
            raise self._refused(f"refused the target set: {status} {told(body)}", status)
        self._incarnation = str(body.get("incarnation", ""))
        self._generation = generation
        self._acknowledged = (self._incarnation, targets)
        self._behind = False
        if self._file is not None:
            self._unwritten = self._document = document
            self._start_writer()

    def _refused(self, how: str, status: int) -> Denied | Uncertain:
        """What a status says that is not that of success."""
        return (Uncertain if status >= _BROKEN else Denied)(f"{self._peer} {how}")

    def _look_at_file(self, held: int, in_file: int) -> None:
        """Have the file written again where the gateway did not find its set there, twice in a row."""
        document = self._document
        behind = document is not None and held == document.generation and in_file < held
        if behind and self._behind and self._unwritten is None:
            self._unwritten = document
            self._start_writer()
        self._behind = behind

    def leave(self) -> None:
        """The pool is being removed."""
        self._leaving = True

    async def flush(self) -> None:
        """Wait until no write of the file is under way."""
        while self._writer is not None and not self._writer.done():
            await asyncio.shield(self._writer)

    async def close(self) -> None:
        """Finish the file and release the connection. The target set stays."""
        await self.flush()
        await self._exchange.close()
        self._thread.close()

    async def _call(self, method: str, path: str, data: bytes | None = None) -> tuple[int, dict[str, Any]]:
        """One exchange over the warm connection; the JSON object of the answer, whatever the status."""
        status, said = await self._exchange.ask(method, path, data)
        body = json_of(self._peer, said)
        if not isinstance(body, dict):
            raise Uncertain(f"{self._peer} sent a {type(body).__name__}, not an object")
        return status, body

    async def _write_after_failed_push(self, document: TargetSet, push_error: Uncertain) -> None:
        """The second path. Raises Denied when another daemon has written a newer file, else Uncertain."""
        if self._file is None:
            return
        await self.flush()
        self._unwritten = None
        try:
            await self._run_blocking(partial(files.write, self._file, document))
        except OSError as error:
            raise Uncertain(f"{push_error}; {self._file} cannot be written either: {error}") from None
        self._generation = document.generation

    def _start_writer(self) -> None:
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_file(), name="gateway-targets-file")

    async def _write_file(self) -> None:
        """Write until the newest set is on disk; sets that were overtaken meanwhile are skipped."""
        while self._file is not None and (document := self._unwritten) is not None:
            try:
                await self._run_blocking(partial(files.write, self._file, document))
            except (OSError, Denied) as error:
                if self._on_file_error is not None:
                    held = f"the gateway holds generation {document.generation} but its file does not"
                    self._on_file_error(f"{held}: {error}")
                return
            if self._unwritten is document:
                self._unwritten = None


def _certificate(told: Any) -> ShownCertificate | None:
    return (
        None if told is None else ShownCertificate(expires=float(told["expires"]), fault=str(told["fault"]))
    )


def _target(row: dict[str, Any]) -> Target:
    continuation, adapters = row.get("continuation") or {}, row.get("adapters")
    return Target(
        id=word(row["id"]),
        address=word(row["address"]),
        state=TargetState(row["state"]),
        in_flight=count(row["in_flight"]),
        reason=word(row["reason"]),
        build=_word_or_none(row.get("build")),
        continues=_word_or_none(continuation.get("way")),
        continues_why=str(continuation.get("why", "")),
        adapters=None if adapters is None else tuple(map(_held, adapters)),
        adapter_in_flight=tuple(count(held.get("in_flight", 0)) for held in adapters or ()),
        adapters_leaving=tuple(map(_held, row.get("adapters_leaving", ()))),
    )


def _held(row: dict[str, Any]) -> Held:
    number = row["number"]
    return Held(
        name=word(row["name"]),
        served_as=word(row["served_as"]),
        number=None if number is None else count(number),
        revision=word(row["revision"]),
    )


def _word_or_none(value: Any) -> str | None:
    return None if value is None else word(value)


def _count(row: dict[str, Any]) -> AdapterCount:
    return AdapterCount(
        asked=count(row["asked"]), tokens=count(row["tokens"]), cold=bool(row.get("cold", False))
    )


def _spec(row: dict[str, Any]) -> TargetSpec:
    return TargetSpec(
        id=word(row["id"]),
        address=word(row["address"]),
        phase=TargetPhase(row["phase"]),
        weight=count(row["weight"]),
        drain_deadline=None if row["drain_deadline"] is None else float(row["drain_deadline"]),
        build=word(row.get("build", "")),
        adapters=tuple(map(_held, row.get("adapters") or ())),
    )


def _drained(held: TargetSpec, leaving: TargetSpec | None) -> TargetSpec:
    """A target as it is held, or draining; one that drains already goes on as it does."""
    if leaving is None or held.phase is TargetPhase.DRAINING:
        return held
    return replace(held, phase=TargetPhase.DRAINING, drain_deadline=leaving.drain_deadline)


def _code(body: dict[str, Any]) -> str:
    """The word for an error, empty where there is none."""
    error = body.get("error")
    return str(error.get("code", "")) if isinstance(error, dict) else ""
