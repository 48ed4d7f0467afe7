"""The checks of this machine, the state directory, the running daemon and the gateway's process.

Facts are read in threads of their own: a disk or a socket that hangs must not hold up the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from cloud.ports import Clock
from cloud.threads import WorkerThreads
from orchestrator import __version__
from orchestrator.api.client import ClientError, ControlClient, Unreachable
from orchestrator.config.checks.certificates import certificate_of
from orchestrator.config.checks.listeners import gateway_takes_requests
from orchestrator.config.load import Config
from orchestrator.config.types import SQLITE
from orchestrator.doctor import certificates, client_keys, host, machine, running, state
from orchestrator.doctor.findings import Check, Findings, skipped
from orchestrator.gateway.accounts.key_edit import read_file
from orchestrator.gateway.accounts.key_format import KeyFileError
from orchestrator.journal.file import NAME, JournalError, JournalFile
from orchestrator.journal.store import SCHEMA_VERSION, StoreUnavailable
from orchestrator.packaging import check_names
from orchestrator.views.api import StatusView

_ANSWER: Final = 5.0  # s for an answer of the daemon or the gateway
_PID: Final = re.compile(r"pid (\d+)")


def host_checks(threads: WorkerThreads) -> list[Check]:
    """What needs no configuration."""
    return [
        Check(group="host", name="python", look=_in(threads, host.python)),
        Check(group="host", name="sqlite", look=_in(threads, host.sqlite)),
        Check(group="host", name="packages", look=_in(threads, lambda: host.packages(check_names()))),
    ]


class MachineDoctor:
    """What can be found out about the processes of one configuration and the machine under them."""

    def __init__(self, config: Config, clock: Clock, threads: WorkerThreads) -> None:
        self._config, self._clock, self._threads = config, clock, threads
        self._daemon, self._pools = config.daemon, config.pools
        self._gateway = config.gateway if gateway_takes_requests(config.pools) else None

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
        ]
        if self._gateway is not None and self._gateway.tls_cert_file is not None:
            looks.append(("daemon", "certificate", self._certificate))
        if self._gateway is not None and self._gateway.keys_file is not None:
            looks.append(("daemon", "client-keys", partial(self._client_keys, self._gateway.keys_file)))
        return [Check(group=g, name=name, look=_in(self._threads, look)) for g, name, look in looks]

    def _open_files(self) -> Findings:
        """Of the running processes; of what this shell would start, while they do not run."""
        status, _ = self._status()
        pid = status["daemon"]["pid"] if status is not None else 0
        nodes = sum(settings.as_pool(name).most_units for name, settings in self._pools.items())
        needed = self._daemon.probe_concurrency + 2 * nodes
        found = [*host.open_files(machine.open_files_limit(pid), needed, _named("daemon", pid), always=True)]
        if self._gateway is not None:
            pid = self._gateway_pid()
            requests = sum(
                settings.gateway.max_in_flight * settings.replicas + settings.gateway.queue_limit
                for settings in self._pools.values()
            ) + sum(provider.in_flight for provider in self._config.providers.values())
            limit = machine.open_files_limit(pid)
            found += host.open_files(limit, 2 * requests, _named("gateway", pid), always=False)
        return found

    def _gateway_pid(self) -> int:
        """The process that listens where clients are served, 0 when none of ours is seen there."""
        try:
            found = machine.listeners()
        except OSError:
            return 0
        port = self._config.gateway.listen.port
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
        for settings in self._pools.values():
            if (at := settings.agents.listen) is not None:
                wanted.append(running.Address(key="agents.listen", at=at, process="daemon"))
        wanted = [address for address in wanted if address.at.port]
        try:
            found = machine.listeners()
        except OSError:
            return [skipped("this system does not say who listens")]
        answers = {"daemon": self._status()[0] is not None, "gateway": self._gateway_answers()}
        return running.ports(wanted, found, answers)

    def _exposure(self) -> Findings:
        gateway = self._gateway
        return running.exposure(
            {
                "daemon.listen": self._daemon.listen,
                "gateway.metrics_listen": gateway.metrics_listen if gateway is not None else None,
            },
            gateway.listen if gateway is not None else None,
            own_keys=self._config.gateway.keys_file is not None,
            engine_key=all(settings.engine.api_key_file is not None for settings in self._pools.values()),
            adds_key=any(settings.gateway.api_key_file is not None for settings in self._pools.values())
            or any(provider.api_key_file is not None for provider in self._config.providers.values()),
        )

    def _certificate(self) -> Findings:
        gateway, runs, shown = self._config.gateway, self._gateway_answers(), None
        if runs:
            with contextlib.suppress(ClientError, KeyError, TypeError):
                tls = ControlClient(gateway.socket, timeout=_ANSWER).get("/v1/routes")["tls"]
                shown = certificates.Shown(
                    expires=float(tls["expires"]), names=tuple(tls["names"]), fault=str(tls["fault"])
                )
        return certificates.certificate(certificate_of(gateway), shown, runs=runs, now=self._clock.now())

    def _client_keys(self, file: Path) -> Findings:
        runs, answered, filed = self._gateway_answers(), None, None
        if runs:
            with contextlib.suppress(ClientError, KeyError, TypeError):
                said = ControlClient(self._config.gateway.socket, timeout=_ANSWER).get("/v1/routes")["keys"]
                answered = client_keys.GatewayKeys(
                    valid=int(said["valid"]), read=said["read_at"] is not None, fault=str(said["fault"])
                )
        with contextlib.suppress(KeyFileError, OSError):
            filed = read_file(file).values()
        return client_keys.client_keys(filed, answered, runs=runs, now=self._clock.now())

    def _gateway_answers(self) -> bool:
        try:
            ControlClient(self._config.gateway.socket, timeout=_ANSWER).text("/metrics")
        except Unreachable:
            return False
        except ClientError:
            return True
        return True

    def _status(self) -> tuple[StatusView | None, str]:
        try:
            return ControlClient(self._daemon.socket, timeout=_ANSWER).status(), ""
        except ClientError as error:
            return None, str(error)


def _named(process: str, pid: int) -> str:
    return f"{process}, pid {pid}" if pid else f"a {process} of this shell"


def _said(status: StatusView) -> running.DaemonFacts:
    daemon = status["daemon"]
    rejected = daemon["config"]["rejected"]
    return running.DaemonFacts(
        version=daemon["version"],
        pid=daemon["pid"],
        states={one["name"]: one["state"] for one in status["pools"]},
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
