"""What must hold between the keys of a configuration, and between it and this machine.

The models check each key on its own. Here are the rules that need two keys or a look at the file system.
Errors stop the daemon, warnings do not.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cloud.engines.dialect import PROGRAMS
from orchestrator.config.checks.adapters import adapter_errors, adapter_warnings
from orchestrator.config.checks.agents import agents_errors, agents_warnings
from orchestrator.config.checks.balancer import balancer_errors, balancer_warnings
from orchestrator.config.checks.balancers import balancers_errors
from orchestrator.config.checks.certificates import certificate_errors, certificate_warnings
from orchestrator.config.checks.charges import charge_errors, charge_warnings
from orchestrator.config.checks.clouds import CHECKS
from orchestrator.config.checks.container import container_errors, container_warnings
from orchestrator.config.checks.costs import cost_errors, missing_cap, stated_offerings
from orchestrator.config.checks.engine import (
    engine_errors,
    engine_warnings,
    model_file_fault,
    on_each_type,
    type_errors,
)
from orchestrator.config.checks.engine_kinds import kind_errors, kind_warnings
from orchestrator.config.checks.keys import key_errors, key_warnings
from orchestrator.config.checks.listeners import listener_errors
from orchestrator.config.checks.many_clouds import many_errors
from orchestrator.config.checks.paths import directory_errors, socket_errors
from orchestrator.config.checks.pools import budget_warnings, pools_errors
from orchestrator.config.checks.providers import provider_errors, provider_warnings
from orchestrator.config.checks.routes import route_errors, route_warnings
from orchestrator.config.checks.shared_gpus import shared_errors, shared_warnings
from orchestrator.config.checks.tasks import task_errors
from orchestrator.config.checks.traits import trait_errors, trait_warnings
from orchestrator.config.clouds import each_cloud
from orchestrator.config.errors import Found, Key, Problem, Source
from orchestrator.config.gateways import place
from orchestrator.config.sockets import reading_socket
from orchestrator.config.tables.file import ConfigFile, Role
from orchestrator.config.tables.gateway import PROCESS_KEYS
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.config.types import is_credential, is_open, unreadable
from orchestrator.gateway.config import POSITIVE
from orchestrator.units import HostPort, format_duration

_SHORTEST_LEASE: Final = 3.0
_NOTHING_PASSES: Final = "is 0, which lets nothing pass; write something above 0"


def check(parsed: ConfigFile, source: Source, role: Role) -> tuple[list[Problem], list[Problem]]:
    """Errors and warnings of a file whose keys are each valid and whose paths are absolute."""
    errors: list[Found] = [*_daemon_errors(parsed, role), *_gateway_errors(parsed), *pools_errors(parsed)]
    errors += listener_errors(parsed.daemon, parsed.gateway, parsed.pool)
    errors += [*route_errors(parsed), *task_errors(parsed)]
    errors += [*provider_errors(parsed, role), *certificate_errors(parsed, role)]
    errors += [*key_errors(parsed, role), *charge_errors(parsed), *shared_errors(parsed.pool)]
    errors += balancers_errors(parsed.pool, parsed.daemon.call_timeout)
    warnings: list[Found] = [*_daemon_warnings(parsed)]
    for name, pool in parsed.pool.items():
        errors += [*_pool_errors(name, pool, parsed), *_file_errors(name, pool, parsed, role)]
        errors += type_errors(("pool", name), pool)
        errors += adapter_errors(("pool", name), pool)
        for each in (engine_errors, kind_errors, container_errors):
            errors += on_each_type(each, ("pool", name), pool)
        if role in ("daemon", "any"):
            errors += agents_errors(name, pool)
            errors += missing_cap(("pool", name), pool, () if errors else stated_offerings(pool))
    for name, pool in () if errors else parsed.pool.items():
        errors += cost_errors(("pool", name), pool, stated_offerings(pool))
        warnings += adapter_warnings(("pool", name), pool)
        for each in (engine_warnings, kind_warnings, container_warnings):
            warnings += on_each_type(each, ("pool", name), pool)
        warnings += [*_pool_warnings(name, pool, parsed), *_file_warnings(name, pool, parsed, role)]
        if role in ("daemon", "any"):
            warnings += agents_warnings(name, pool)
    if not errors:
        warnings += [*route_warnings(parsed), *provider_warnings(parsed, role), *budget_warnings(parsed)]
        warnings += [*certificate_warnings(parsed, role), *shared_warnings(parsed.pool)]
        warnings += [*key_warnings(parsed, role), *charge_warnings(parsed, role)]
    return (
        [source.problem(path, text) for path, text in errors],
        [source.problem(path, text) for path, text in warnings],
    )


def _daemon_errors(parsed: ConfigFile, role: Role) -> Iterator[Found]:
    daemon = parsed.daemon
    if role in ("daemon", "any"):
        yield from directory_errors(("daemon", "state_dir"), daemon.state_dir)
    longest = reading_socket(daemon.socket) if daemon.readers == "all" else daemon.socket
    yield from socket_errors(("daemon", "socket"), longest)
    for key in (
        "tick",
        "poll_instances",
        "poll_offerings",
        "poll_targets",
        "probe_interval",
        "probe_timeout",
        "call_timeout",
    ):
        if getattr(daemon, key) <= 0:
            yield ("daemon", key), 'is 0, which leaves no time at all; write a duration such as "1s"'
    if daemon.lease < _SHORTEST_LEASE:
        yield (
            ("daemon", "lease"),
            f"{_text(daemon.lease)} is too short: one answer of the database may take as long; write at "
            f"least {_text(_SHORTEST_LEASE)}",
        )


def _daemon_warnings(parsed: ConfigFile) -> Iterator[Found]:
    monitoring: dict[Key, HostPort | None] = {
        ("daemon", "listen"): parsed.daemon.listen,
        _place(parsed, "metrics_listen"): parsed.gateway.metrics_listen,
    }
    for key, listen in monitoring.items():
        if listen is not None and not listen.loopback:
            yield (
                key,
                f"{listen} can be reached from other machines and asks for no password; "
                "make sure that only the monitoring network reaches it",
            )


def _gateway_errors(parsed: ConfigFile) -> Iterator[Found]:
    """Keys of the gateway's process; of one that no pool sends requests to, too: it may be started."""
    yield from socket_errors(_place(parsed, "socket"), parsed.gateway.socket)
    if parsed.gateway.control_listen is not None:
        for key in ("control_token_file", "tls_cert_file"):
            if getattr(parsed.gateway, key) is None:
                yield (
                    _place(parsed, key),
                    "is missing, and control_listen is open under TLS with a token only",
                )
    for key in sorted(PROCESS_KEYS.intersection(POSITIVE)):
        if not getattr(parsed.gateway, key) > 0:
            yield _place(parsed, key), _NOTHING_PASSES


def _place(parsed: ConfigFile, key: str, pool: str = "") -> Key:
    return place(parsed.gateway, parsed.pool, key, pool)


def _pool_errors(name: str, pool: PoolConfig, parsed: ConfigFile) -> Iterator[Found]:
    at = ("pool", name)
    if pool.on_demand_floor is not None:
        if "spot_share" in pool.model_fields_set:
            yield (*at, "on_demand_floor"), "says the same as spot_share; write only one of the two"
        if pool.on_demand_floor > pool.replicas > 0:
            yield (
                (*at, "on_demand_floor"),
                f"the floor of {pool.on_demand_floor} on-demand nodes is above replicas = {pool.replicas}; "
                "lower the floor or raise replicas",
            )
    if pool.mix == "adaptive" and any(units != 1 for units in pool.units.values()):
        yield (
            (*at, "units"),
            'the adaptive mix counts nodes that serve one unit each; leave units out, or write mix = "70/30"',
        )
    if pool.mix == "adaptive" and pool.standby.hot:
        yield (
            (*at, "standby", "hot"),
            "the adaptive mix finds itself how many nodes are ready beyond the replicas; leave hot out, or "
            'write mix = "70/30"',
        )
    if pool.engine.kind == "simulated" and pool.cloud.bills and not pool.engine.allow_simulated:
        yield (
            (*at, "engine", "kind"),
            f"is simulated, and {pool.cloud.machines} are paid for: the engine would make its answers "
            'up; write kind = "vllm", or allow_simulated = true beside it where that is meant',
        )
    if pool.health.replace_after < pool.health.unhealthy_after:
        yield (
            (*at, "health", "replace_after"),
            f"{_text(pool.health.replace_after)} is shorter than unhealthy_after "
            f"({_text(pool.health.unhealthy_after)}): a node would be replaced before it leaves the target "
            "set; raise it or lower unhealthy_after",
        )
    if pool.patience.stale_after <= parsed.daemon.poll_instances:
        yield (
            (*at, "patience", "stale_after"),
            f"{_text(pool.patience.stale_after)} is not longer than daemon.poll_instances "
            f"({_text(parsed.daemon.poll_instances)}), so every list would count as stale and no node could "
            "ever be replaced; raise stale_after or poll more often",
        )
    if pool.patience.vanish_grace <= 0:
        yield (
            (*at, "patience", "vanish_grace"),
            'is 0, so a list that lags behind a launch would lose the new node; write "15s"',
        )
    for table, key in (("placement", "refusal_half_life"), ("placement", "reclaim_half_life")):
        if getattr(getattr(pool, table), key) <= 0:
            yield (
                (*at, table, key),
                'is 0, and a weight cannot halve in no time; write a duration such as "3m"',
            )
    if pool.health.boot_timeout <= 0:
        yield (*at, "health", "boot_timeout"), 'is 0, so no node could ever start; write "15m"'
    yield from balancer_errors(at, pool)
    yield from many_errors(at, pool)
    for kind, alone in each_cloud(pool):
        yield from trait_errors(at, alone, parsed.daemon)
        yield from CHECKS[kind].errors(at, alone)
    for key, value in pool.gateway:
        if key in POSITIVE and key not in PROCESS_KEYS and not value > 0:
            yield _place(parsed, key, name), _NOTHING_PASSES


def _pool_warnings(name: str, pool: PoolConfig, parsed: ConfigFile) -> Iterator[Found]:
    at = ("pool", name)
    wanted = pool.as_pool(name)
    if pool.gateway.continuation != "off" and not pool.gateway.drain_margin < pool.drain.budget:
        yield (
            (*at, "gateway", "drain_margin"),
            f"{_text(pool.gateway.drain_margin)} is not below drain.budget, so every stream leaves a node as "
            f"soon as that drains; write less than {_text(pool.drain.budget)}",
        )
    if wanted.replicas and wanted.spot_share > 0 and wanted.spot_wanted == 0:
        yield (
            (*at, "spot_share"),
            f"with replicas = {wanted.replicas} the on-demand floor rounds up to every node and none is on "
            "spot; raise replicas or spot_share",
        )
    if pool.standby.hot > pool.replicas > 0:
        yield (
            (*at, "standby", "hot"),
            f"{pool.standby.hot} hot beside {pool.replicas} replicas: more would stand by than serve, at the "
            "price of on-demand; lower it unless that is meant",
        )
    if pool.limits.surge == 0 and pool.standby.hot == 0:
        yield (
            (*at, "limits", "surge"),
            "with no surge and no hot standby a node cannot be replaced before it is taken out, and "
            "on-demand cover never goes back to spot; allow a surge of at least 1",
        )
    if 0 < pool.limits.surge < wanted.largest and "surge" in pool.limits.model_fields_set:
        yield (
            (*at, "limits", "surge"),
            f"nodes come whole, and one may serve {wanted.largest} units: rounding up may use all of a surge "
            f"of {pool.limits.surge}; then nothing is replaced before it is taken out, and on-demand cover "
            f"never goes back to spot; write {2 * wanted.largest} or leave it out",
        )
    if pool.health.replace_after < parsed.daemon.probe_interval + parsed.daemon.probe_timeout:
        yield (
            (*at, "health", "replace_after"),
            f"{_text(pool.health.replace_after)} is shorter than one probe's interval and timeout together, "
            "so one slow answer replaces a node; write at least 30s",
        )
    yield from balancer_warnings(at, pool)
    for kind, alone in each_cloud(pool):
        yield from trait_warnings(at, alone)
        yield from CHECKS[kind].warnings(at, alone)


def _file_errors(name: str, pool: PoolConfig, parsed: ConfigFile, role: Role) -> Iterator[Found]:
    for path, key_file in _key_files(name, pool, parsed, role):
        if is_credential(key_file):
            if role != "any":
                yield path, f"{key_file}: no service manager gave this process credentials; name a file"
        elif fault := unreadable(key_file):
            yield path, fault
    at, program = ("pool", name, "engine", "executable"), pool.engine.executable
    if "/" in program and pool.cloud.here:  # elsewhere it is a path on the nodes
        if not Path(program).is_file():
            yield at, f"there is no file {program}; correct the path or install the engine"
        elif not os.access(program, os.X_OK):
            yield at, f"{program} cannot be run; make it executable with chmod +x"
    if fault := model_file_fault(pool):
        yield ("pool", name, "model"), fault


def _file_warnings(name: str, pool: PoolConfig, parsed: ConfigFile, role: Role) -> Iterator[Found]:
    at = ("pool", name)
    program = pool.engine.executable or PROGRAMS.get(pool.engine.kind, "")
    here = pool.cloud.here and pool.engine.run == "process"
    if here and program and "/" not in program and shutil.which(program) is None:
        yield (
            (*at, "engine", "executable"),
            f"{program} is not on the PATH, and the nodes of a local cloud run on this machine; "
            "install the engine or write the path of its program",
        )
    for path, key_file in _key_files(name, pool, parsed, role):
        if is_open(key_file):
            yield path, f"{key_file} can be read by other users; close it with chmod 600"


def _key_files(name: str, pool: PoolConfig, parsed: ConfigFile, role: Role) -> list[tuple[Key, Path]]:
    """The key files that the reader of the configuration will open."""
    given: list[tuple[Role, Key, Path | None]] = [
        ("daemon", ("pool", name, "engine", "api_key_file"), pool.engine.api_key_file),
        ("gateway", _place(parsed, "api_key_file", name), pool.gateway.api_key_file),
    ]
    return [(path, file) for who, path, file in given if file is not None and role in (who, "any")]


def _text(seconds: float) -> str:
    return format_duration(seconds)
