"""The checks of this machine, the state directory, the running daemon and the pool's own arithmetic.

Facts are read in threads of their own: a disk or a socket that hangs must not hold up the others.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from cloud.ports import Clock
from cloud.threads import WorkerThreads
from orchestrator import __version__
from orchestrator.api.client import ClientError, ControlClient
from orchestrator.config.load import Config
from orchestrator.config.types import SQLITE
from orchestrator.doctor import host, machine, pool, running, state
from orchestrator.doctor.findings import Check, Findings, skipped
from orchestrator.journal.file import NAME, JournalError, JournalFile
from orchestrator.journal.store import SCHEMA_VERSION, StoreUnavailable
from orchestrator.packaging import check_names
from orchestrator.views.api import StatusView

_ANSWER: Final = 5.0  # s for an answer of the daemon or the gateway
_LOOKS: Final = 4  # at the gateway's targets: a set that is on its way is not a disagreement
_BETWEEN: Final = 1.0  # s
_AGENT_POLLS: Final = 5.0  # s between two looks of a node's agent at its metadata
_PID: Final = re.compile(r"pid (\d+)")


def host_checks(threads: WorkerThreads) -> list[Check]:
    """What needs no configuration."""
    return [
        Check(group="host", name="python", look=_in(threads, host.python)),
        Check(group="host", name="sqlite", look=_in(threads, host.sqlite)),
        Check(group="host", name="packages", look=_in(threads, lambda: host.packages(check_names()))),
    ]


class MachineDoctor:
    """Everything that can be found out about one configuration without asking its cloud."""

    def __init__(self, config: Config, clock: Clock, threads: WorkerThreads) -> None:
        self._config, self._clock, self._threads = config, clock, threads
        self._daemon, self._settings = config.daemon, config.pool
        self._pool = config.wanted
        aws = self._settings.cloud.aws if self._settings.cloud.kind == "aws" else None
        self._aws = aws
        self._gateway = None if aws is not None and aws.target_group else self._settings.gateway

    def checks(self) -> list[Check]:
        """Every check."""
        looks: list[tuple[str, str, Callable[[], Findings]]] = [
            ("host", "open-files", self._open_files),
            ("state", "directory", self._directory),
            ("state", "file-system", self._file_system),
            ("state", "lease", lambda: state.lease(self._lease())),
            ("state", "journal", self._journal),
            ("daemon", "process", self._process),
            ("daemon", "ports", self._ports),
            ("daemon", "exposure", self._exposure),
            ("daemon", "continuation", self._continuation),
            ("pool", "drain", lambda: pool.drain(self._pool.drain, self._notices())),
            ("pool", "capacity", lambda: pool.capacity(self._pool, self._zones())),
            ("pool", "engine", self._engine),
        ]
        found = [Check(group=g, name=name, look=_in(self._threads, look)) for g, name, look in looks]
        return [*found, Check(group="daemon", name="gateway", look=self._gateway_agrees)]

    def _open_files(self) -> Findings:
        """Of the running processes; of what this shell would start, while they do not run."""
        status, _ = self._status()
        pid = status["daemon"]["pid"] if status is not None else 0
        needed = self._daemon.probe_concurrency + 2 * self._pool.most_units
        found = [*host.open_files(machine.open_files_limit(pid), needed, _named("daemon", pid), always=True)]
        if self._gateway is not None:
            pid = self._gateway_pid()
            requests = self._gateway.max_in_flight * self._pool.replicas + self._gateway.queue_limit
            limit = machine.open_files_limit(pid)
            found += host.open_files(limit, 2 * requests, _named("gateway", pid), always=False)
        return found

    def _gateway_pid(self) -> int:
        """The process that listens where clients are served, 0 when none of ours is seen there."""
        try:
            found = machine.listeners()
        except OSError:
            return 0
        port = self._settings.gateway.listen.port
        return next((one.pid for one in found if one.port == port and "orchestrator" in one.command), 0)

    def _directory(self) -> Findings:
        path = self._daemon.state_dir
        there = path if path.exists() else path.parent
        try:
            room = machine.room(there)
        except OSError:
            room = None
        writable = os.access(there, os.W_OK | os.X_OK)
        size = self._daemon.keep_turns_size
        return state.directory(path, room, exists=path.exists(), writable=writable, journal_size=size)

    def _file_system(self) -> Findings:
        path = self._daemon.state_dir
        return state.file_system(path, machine.file_system(path if path.exists() else path.parent))

    def _lease(self) -> state.LeaseFacts:
        path = self._daemon.state_dir / "lease"
        try:
            written: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            who, epoch = str(written["who"]), int(written["epoch"])
        except FileNotFoundError:
            return state.LeaseFacts(exists=False)
        except (OSError, ValueError, KeyError, TypeError):
            who, epoch = "a process that did not write its name", 0
        pid = _PID.search(who)
        holder = machine.lock_holder(path, int(pid.group(1)) if pid else -1)
        return state.LeaseFacts(exists=True, who=who, epoch=epoch, holder=holder)

    def _journal(self) -> Findings:
        if self._daemon.store != SQLITE:
            return self._shared_journal()
        path = self._daemon.state_dir / NAME
        if not path.exists():
            return state.journal(False, "", False, 0, SCHEMA_VERSION)
        try:
            with JournalFile.open(path) as journal:
                fault = "; ".join(journal.faults())
                return state.journal(True, fault, True, journal.schema, SCHEMA_VERSION)
        except JournalError as error:
            corrupt = "is corrupt" in str(error) or "is not a journal" in str(error)
            return state.journal(True, str(error), corrupt, 0, SCHEMA_VERSION)

    def _shared_journal(self) -> Findings:
        from orchestrator.journal.postgres import PostgresDatabase

        try:
            version = PostgresDatabase(self._daemon.store).version()
        except StoreUnavailable as error:
            return state.journal(True, str(error), False, 0, SCHEMA_VERSION)
        newer = f"written by a newer version (schema {version})" if version > SCHEMA_VERSION else ""
        return state.journal(version > 0, newer, False, version, SCHEMA_VERSION)

    def _process(self) -> Findings:
        status, error = self._status()
        return running.daemon(
            None if status is None else _said(status),
            error,
            holder=self._lease().holder,
            installed=__version__,
            changed_at=_changed_at(self._config.path),
        )

    def _ports(self) -> Findings:
        wanted = [
            running.Address(key="daemon.listen", at=at, process="daemon")
            for at in [self._daemon.listen]
            if at
        ]
        if self._gateway is not None:
            wanted.append(running.Address(key="gateway.listen", at=self._gateway.listen, process="gateway"))
            if (at := self._gateway.metrics_listen) is not None:
                wanted.append(running.Address(key="gateway.metrics_listen", at=at, process="gateway"))
        if self._settings.agents.listen is not None:
            at = self._settings.agents.listen
            wanted.append(running.Address(key="agents.listen", at=at, process="daemon"))
        wanted = [address for address in wanted if address.at.port]
        try:
            found = machine.listeners()
        except OSError:
            return [skipped("this system does not say who listens")]
        answers = {"daemon": self._status()[0] is not None, "gateway": self._held()[0] is not None}
        return running.ports(wanted, found, answers)

    def _exposure(self) -> Findings:
        gateway = self._gateway
        return running.exposure(
            {
                "daemon.listen": self._daemon.listen,
                "gateway.metrics_listen": gateway.metrics_listen if gateway is not None else None,
            },
            gateway.listen if gateway is not None else None,
            engine_key=self._settings.engine.api_key_file is not None,
            adds_key=gateway is not None and gateway.api_key_file is not None,
        )

    async def _gateway_agrees(self) -> Findings:
        """Looked at a few times: targets may be changing just now."""
        if self._gateway is None:
            return [skipped("a target group gets the requests instead of the gateway")]
        for look in range(_LOOKS):
            if look:
                await self._clock.sleep(_BETWEEN)
            held, error, fault = await self._threads.run(self._held)
            wanted = await self._threads.run(self._wanted)
            findings = running.gateway(held, wanted, error, file_fault=fault)
            if held is None or wanted is None or not any(f.advice for f in findings):
                break
        return findings

    def _continuation(self) -> Findings:
        if self._gateway is None:
            return [skipped("a target group gets the requests instead of the gateway")]
        said, _ = self._gateway_says()
        return running.continuation(self._gateway.continuation, None if said is None else said.continues)

    def _notices(self) -> dict[str, float]:
        """What each source of notices leaves at worst, in seconds."""
        if self._aws is None:
            return {"local-feed": self._settings.starts.notice}
        from cloud.aws.events import NOTICE_SECONDS

        found = {"aws-spot-requests": NOTICE_SECONDS - self._aws.poll_spot_requests}
        if any(region.notice_queue for region in self._aws.regions.values()):
            found["aws-queue"] = NOTICE_SECONDS
        if self._settings.agents.listen is not None:
            found["node-agent"] = NOTICE_SECONDS - _AGENT_POLLS
        return found

    def _zones(self) -> int:
        return (
            sum(len(region.subnets) for region in self._aws.regions.values()) if self._aws is not None else 0
        )

    def _engine(self) -> Findings:
        engine = self._settings.engine
        return pool.engine(engine.kind, engine.executable, self._settings.cloud.kind == "local")

    def _status(self) -> tuple[StatusView | None, str]:
        try:
            return ControlClient(self._daemon.socket, timeout=_ANSWER).status(), ""
        except ClientError as error:
            return None, str(error)

    def _wanted(self) -> dict[str, str] | None:
        """The daemon's target set: node to phase."""
        try:
            plan = ControlClient(self._daemon.socket, timeout=_ANSWER).plan()
        except ClientError:
            return None
        return {target["id"]: target["phase"] for one in plan["pools"] for target in one["targets"]}

    def _held(self) -> tuple[dict[str, str] | None, str, str]:
        """The gateway's target set: node to phase; why there is none; why it does not take its file."""
        said, error = self._gateway_says()
        return (None, error, "") if said is None else (said.held, "", said.file_fault)

    def _gateway_says(self) -> tuple[_GatewayFacts | None, str]:
        """What the gateway says of itself and its targets, or why there is nothing."""
        if self._gateway is None:
            return None, ""
        path = self._gateway.socket
        try:
            return _GatewayFacts.of(ControlClient(path, timeout=_ANSWER).get("/v1/state")), ""
        except ClientError:
            return None, f"nothing answers on {path}"
        except (KeyError, TypeError, AttributeError):
            return None, f"what answers on {path} is no gateway of this version"


@dataclass(frozen=True, slots=True, kw_only=True)
class _GatewayFacts:
    """What a gateway says: its target set (node to phase), why it does not take its file, and whose answers
    others can finish (None for a gateway of a version that does not ask)."""

    held: dict[str, str]
    file_fault: str
    continues: list[running.Continues] | None

    @staticmethod
    def of(state: Mapping[str, Any]) -> _GatewayFacts:
        """The body of GET /v1/state. Raises KeyError, TypeError, AttributeError for one of another shape."""
        rows = state["targets"]
        return _GatewayFacts(
            held={row["id"]: row["phase"] for row in rows if row["phase"] is not None},
            file_fault=str(state["file_fault"]),
            continues=[
                running.Continues(node=row["id"], way=str(said["way"]), why=str(said.get("why", "")))
                for row in rows
                if (said := row["continuation"])
            ]
            if all("continuation" in row for row in rows)
            else None,
        )


def _named(process: str, pid: int) -> str:
    return f"{process}, pid {pid}" if pid else f"a {process} of this shell"


def _said(status: StatusView) -> running.DaemonFacts:
    daemon = status["daemon"]
    rejected = daemon["config"]["rejected"]
    return running.DaemonFacts(
        version=daemon["version"],
        pid=daemon["pid"],
        state=", ".join(one["state"] for one in status["pools"]),
        leading=daemon["leading"],
        journal_ok=daemon["journal_ok"],
        loaded_at=daemon["config"]["loaded_at"],
        rejected=() if rejected is None else tuple(rejected["problems"]),
        silent=daemon.get("database_silent_s"),
    )


def _changed_at(path: Path | None) -> float:
    try:
        return path.stat().st_mtime if path is not None else 0.0
    except OSError:
        return 0.0


def _in(threads: WorkerThreads, look: Callable[[], Findings]) -> Callable[[], Awaitable[Findings]]:
    return partial(threads.run, look)
