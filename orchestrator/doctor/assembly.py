"""Which checks there are for a configuration file, and for none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cloud.ports import Clock
from cloud.threads import WorkerThreads
from orchestrator.api.client import ClientError, ControlClient, find_socket
from orchestrator.config.load import Config, ConfigError, load_config
from orchestrator.doctor.clouds import LOOKS, groups_elsewhere
from orchestrator.doctor.findings import GROUPS, Check, Finding, Findings, Result, fail, ok, skipped, warn
from orchestrator.doctor.on_machine import MachineDoctor, host_checks
from orchestrator.doctor.on_pool import PoolDoctor
from orchestrator.doctor.on_providers import ProvidersDoctor
from orchestrator.doctor.runner import Progress, run

_THREADS = 8
_ANSWER = 5.0  # s for an answer of the daemon
_NEEDS_CONFIG = ("state", "daemon", "pool", "aws")


async def examine(file: Path | None, only: Sequence[str], clock: Clock, progress: Progress) -> list[Result]:
    """Run the checks of these groups (all when empty) for a configuration; without one, for that of the
    daemon that the usual socket leads to, if one runs."""
    file = file if file is not None else _file_of_the_running_daemon()
    config, faults = _read(file)
    threads = WorkerThreads("doctor", _THREADS)
    closing: list[Callable[[], Awaitable[None]]] = []
    checks = [*host_checks(threads), Check(group="config", name="file", look=_found(faults))]
    if config is not None:
        checks.append(Check(group="config", name="advice", look=_found(_advised(config))))
    if config is None:
        why = "no configuration is given" if file is None else "the configuration has errors"
        checks += [_skipped(group, why) for group in _NEEDS_CONFIG]
    else:
        checks += MachineDoctor(config, clock, threads).checks()
        checks += ProvidersDoctor(config, clock, threads).checks()
        for name in config.pools:
            found, to_close = _of_pool(config.only(name), str(file), only, clock, threads)
            checks += found if len(config.pools) == 1 else [_named(check, name) for check in found]
            closing += to_close
    try:
        wanted = [check for check in checks if not only or check.group in only]
        return await run(sorted(wanted, key=lambda c: GROUPS.index(c.group)), clock, progress)
    finally:
        threads.close()
        for close in closing:
            await close()


def _of_pool(
    config: Config, file: str, only: Sequence[str], clock: Clock, threads: WorkerThreads
) -> tuple[list[Check], list[Callable[[], Awaitable[None]]]]:
    """The checks of the only pool of a configuration, and what is to be closed after them."""
    checks = PoolDoctor(config, clock, threads).checks()
    kinds = config.pool.cloud.kinds
    runs_on = f"the pool runs on {' and '.join(kinds)}"
    checks += [_skipped(group, runs_on) for group in groups_elsewhere(kinds, only)]
    closing: list[Callable[[], Awaitable[None]]] = []
    for kind in kinds:
        looks = LOOKS[kind]
        if looks is None:
            continue
        try:
            cloud = looks.doctor(config.on_cloud(kind), file, clock)
        except (OSError, ValueError) as error:  # the other clouds of the pool are looked at all the same
            found = [fail(str(error), "correct that; until then this cloud cannot be asked")]
            checks.append(Check(group=looks.groups[0], name="all", look=_found(found)))
            continue
        checks += cloud.checks()
        closing.append(cloud.close)
    return checks, closing


def _named(check: Check, pool: str) -> Check:
    """The same check among those of other pools."""
    needs = f"{check.needs}-{pool}" if check.needs else ""
    return replace(check, name=f"{check.name}-{pool}", needs=needs)


def _file_of_the_running_daemon() -> Path | None:
    try:
        status = ControlClient(find_socket(None, None), timeout=_ANSWER).status()
    except ClientError:
        return None
    file = status["daemon"]["config"]["file"]
    return Path(file) if file is not None else None


def _skipped(group: str, why: str) -> Check:
    return Check(group=group, name="all", look=_found([skipped(why)]))


def _read(file: Path | None) -> tuple[Config | None, Findings]:
    """The configuration, and what there is to say of it."""
    if file is None:
        advice = "name it with --config FILE, or its daemon with ORCHESTRATOR_SOCKET"
        return None, [skipped("no configuration is given, and no daemon answers that has one", advice)]
    try:
        config = load_config(file)
    except ConfigError as error:
        advice = f"fix it; `orchestrator validate {file}` checks it"
        return None, [fail(str(problem), advice) for problem in error.problems]
    warnings: list[Finding] = [warn(str(w), "change it, or leave it knowingly") for w in config.warnings]
    wanted = [pool.as_pool(name) for name, pool in config.pools.items()]
    sizes = [f"{pool.replicas} {pool.noun(pool.replicas)}" for pool in wanted]
    text = f"{file} is valid: " + (f"{' and '.join(sizes)} wanted" if sizes else "it has no pool")
    return config, warnings or [ok(text)]


def _advised(config: Config) -> Findings:
    """Warnings about a file that is valid."""
    return [warn(str(one), "change it, or accept it knowingly") for one in config.advice()] or [ok("none")]


def _found(findings: Findings) -> Callable[[], Awaitable[Findings]]:
    async def look() -> Findings:
        return findings

    return look
