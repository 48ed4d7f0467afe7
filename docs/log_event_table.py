"""Every event of the log as a table: docs/reference/log-events.md.

Names, loggers, levels and keys are read from the code; what an event means is said here, once.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent

_METHODS: Final = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
    "exception": "error",
}

WHEN: Final = {
    "action.decided": "A turn decided an action; `kind` is `launch`, `start`, `stop`, `attach`, `detach`, "
    "`drain`, `undrain`, `terminate`, `load-adapter` or `unload-adapter`",
    "adapter.lost": "A node's engine no longer has an adapter that it had",
    "admin_order.applied": "The local cloud applied an order of its administrator",
    "alarm.raised": "An operator should look: `reason` says at what",
    "attempt.failed": "A node did not serve a request; `retried` says whether another node gets it",
    "azure.clearing_failed": "What is left of a machine of Azure that never started cannot be deleted; the "
    "next list tries again",
    "backend.failed": "A backend of a route did not serve a request; the next one is tried",
    "balancer.file_failed": "A balancer holds a target set, and the file for its restarts cannot be written",
    "balancer.write_failed": "A balancer did not take a change; it is tried again",
    "breaker.opened": "A target failed too often in a row and gets no requests for a while",
    "call.crashed": "An adapter raised an exception in a call; whether the call took effect is unknown",
    "call.failed": "A call to the cloud or an engine failed, or its effect is unknown",
    "clients.admitted": "The gateway's call to its own listener succeeds again",
    "clients.locked_out": "The gateway's calls to its own listener fail: clients cannot connect",
    "cloud.not_connected": "One of several clouds of a pool is not used: its adapters could not be made, for "
    "want of a package or a file; the others go on",
    "config.applied": "A reload took effect",
    "config.check_failed": "A new configuration made a decision raise; the reload is rejected",
    "config.rejected": "A reload was rejected; the old configuration stays",
    "connection.accept_failed": "A listener could not accept a connection; it tries again",
    "connections.limited": "The limit of open connections is reached; idle ones are closed to admit new ones",
    "console.read_crashed": "The adapter raised an exception while it read a failed node's console",
    "console.read_failed": "A failed node's console could not be read",
    "container.remove_failed": "The local cloud could not remove a container",
    "costs.read_failed": "The journal's costs could not be read; the figures shown stay as they were",
    "daemon.contact_lost": "The gateway has not heard from the daemon for two minutes",
    "daemon.contact_restored": "The gateway hears from the daemon again",
    "daemon.failed": "The daemon stops because a task of it failed; it exits with 1",
    "daemon.hung": "The process did not run for a while; what it saw before does not count",
    "daemon.started": "The daemon leads and has started its pools",
    "daemon.stopped": "The daemon has stopped; nodes and targets stay as they are",
    "drill.refused": "The demo's cloud refused an interruption",
    "engine.exited": "An engine of the local cloud exited",
    "engine.start_failed": "The local cloud could not start an engine",
    "engine_log.trim_failed": "The local cloud could not trim the output of an engine",
    "failsafe.ended": "The database answers again",
    "failsafe.started": "The lease ran out because the database is silent: only noticed nodes leave the set",
    "gateway.replace_failed": "The new gateway process could not serve; the old one serves on",
    "gateway.replace_requested": "The gateway's keys changed; `waits` says that a change of it is held up",
    "gateway.replaced": "A new process serves; the old one finishes its requests",
    "gateway.started": "The gateway listens",
    "gateway.stopped": "The gateway has stopped; `clean` says whether every request was finished",
    "gateway.stopping": "The gateway refuses new requests and finishes those in flight",
    "gpu.acquitted": "A node that was to leave for a broken GPU stays",
    "gpu.condemned": "A GPU is broken: its node will be replaced",
    "gpus.read_failed": "The GPUs of a node cannot be read; once until they can",
    "health_check.crashed": "A health check raised an exception; checks go on",
    "instance_status.read_failed": "Scheduled events and status checks cannot be read; once until they can",
    "instance_status.recovered": "Scheduled events and status checks can be read again",
    "instances.read_failed": "The list of instances was not read when the daemon started",
    "journal.recovered": "The journal can be written again; `written` events had waited",
    "journal.set_aside": "The journal was corrupt and has been renamed; a new one was begun",
    "journal.snapshot_failed": "A snapshot of the memory was not written; it is tried again",
    "journal.write_failed": "The journal cannot be written; once until it can",
    "keys_file.check_failed": "A look at the file of clients' keys raised an exception; the keys stay",
    "keys_file.loaded": "The file of clients' keys was read",
    "keys_file.refused": "The file of clients' keys is broken or missing; the keys read before stay valid",
    "lane_task.failed": "A task of a pool in the gateway failed and is started again",
    "lease.release_failed": "The lease was not released at the end; it runs out by itself",
    "lease.renew_failed": "The lease was not renewed; once until it is",
    "lease.renewed": "The lease is renewed again",
    "limits.isolated": "The usage file cannot be written: each gateway process counts by itself",
    "limits.shared": "The processes of the gateway share their limits again",
    "local_cloud.started": "The local cloud listens",
    "loss.refused": "The demo's cloud refused to kill an engine",
    "machine.ended": "A machine of the local cloud stopped or terminated",
    "machine.launched": "The local cloud launched a machine",
    "metadata.listen_failed": "A machine of the local cloud has no metadata service: its address is taken",
    "metrics_listener.open_failed": "The gateway's listener for metrics cannot be opened; it is tried again",
    "operations.read_failed": "The operations of Google Cloud, which tell of preemptions, could not be read; "
    "the next look tries again",
    "remote_control.file_failed": "A set from another host is in force, and its file cannot be written",
    "remote_control.open_failed": "The listener for daemons elsewhere cannot be opened; it is tried again",
    "remote_control.opened": "The gateway's listener for daemons elsewhere is open",
    "metrics_listener.opened": "The gateway's listener for metrics is open",
    "node.outdated": "A node runs an older configuration and will be replaced",
    "node_key.check_failed": "A node's proof of identity cannot be checked now; the node asks again",
    "node_key.issued": "A node proved its identity and got its key",
    "node_key.refused": "A node did not prove its identity",
    "node_report.refused": "A node's report was refused; logged at the 1st, 2nd, 4th, 8th time and so on",
    "notice.acknowledge_failed": "A source did not take an acknowledgement; it delivers the notice again",
    "notice.heard": "A new notice for a node of the pool",
    "notice_queue.delete_failed": "Messages were not deleted before the end; they are delivered again",
    "notice_queue.parse_failed": "A message cannot be read; logged at the 1st, 2nd, 4th, 8th time and so on",
    "notice_queue.read_failed": "The queue of notices cannot be read; once until it can",
    "notice_queue.recovered": "The queue of notices can be read again",
    "notice_source.failed": "A source of notices failed and is started again",
    "part.lost": "A part that the pool depends on cannot be read",
    "part.recovered": "A part can be read again",
    "pool.close_failed": "A removed pool's end was not journalled; it is tried again",
    "pool.failed": "A pool failed and starts again later; its nodes stay as they are",
    "pool.removed": "A pool that left the configuration has ended",
    "pool.start_failed": "A pool could not start again",
    "pool_failure.record_failed": "A pool's failure was not journalled",
    "ports.close_failed": "A pool's adapters did not close in time",
    "probe.crashed": "A probe of an engine raised an exception; the node is probed anew",
    "provider.failed": "A provider did not serve a request",
    "provider_usage.exceeded": "A provider reports more usage than the most that a request can cost",
    "reclaim.scheduled": "The local cloud will take a spot machine back",
    "request.crashed": "A handler raised an exception; the client got a 500 or a broken stream",
    "request.malformed": "Broken requests; while they go on, a line every 1 to 60 s with their `count`",
    "request.misdirected": "Requests for a host name that is not ours; `advice` says how to allow it",
    "reservation.read_failed": "The nodes of an ending capacity reservation were not listed; tried again",
    "routes.changed": "A route's requests go elsewhere, or a provider failed or recovered",
    "routes.record_failed": "What changed in the routes was not journalled; tried again",
    "skypilot.answer_refused": "SkyPilot's helper wrote what is no answer, and is started anew",
    "skypilot.engine_not_started": "An engine could not be started over SSH yet; the next list tries again",
    "skypilot.helper_ended": "SkyPilot's helper ended and the daemon did not ask for it",
    "skypilot.helper_lost": "SkyPilot's helper gave no sign of life and is ended; another follows",
    "skypilot.helper_renewed": "SkyPilot's helper held too much memory and is started anew",
    "skypilot.helper_started": "SkyPilot's helper answers",
    "socket.lost": "A socket's file is gone and cannot be made again; once for each reason",
    "socket.restored": "A socket's file was gone and has been made again",
    "spend_file.write_failed": "The spend file cannot be written; once until it can",
    "spot_requests.read_failed": "Spot requests cannot be read; once until they can",
    "spot_requests.recovered": "Spot requests can be read again",
    "standby.changed": "The standby daemon can take over, or cannot; `state` says why",
    "standby.promoted": "The standby daemon got the lease and leads from now on",
    "standby.started": "This daemon stands by: another one leads",
    "start.measured": "A node became ready: how long each part of its start took, in seconds",
    "start.read_crashed": "The adapter raised an exception while it read a node's start times",
    "start.read_failed": "A node's start times could not be read",
    "state.changed": "The state that `orchestrator status` shows changed",
    "state_file.write_failed": "The local cloud could not write its state; the request failed",
    "stream.cut": "A stream that a client was reading was cut",
    "target.health_changed": "A target of the gateway became healthy or unhealthy",
    "target.probed": "What the engine of a target supports: how a broken stream can be continued",
    "targets.accepted": "The gateway took a new set of targets",
    "targets_file.refused": "The gateway refused the targets file; at once, then once an hour",
    "targets_file.write_failed": "The daemon could not write the targets file; the socket is used alone",
    "task.failed": "A task of the daemon or of a pool raised an exception",
    "tls_certificate.loaded": "A TLS certificate is in use",
    "tls_certificate.refused": "A new TLS certificate was refused; the old one stays in use",
    "tls_certificate.rejected": "The TLS certificate at start has a fault that clients will object to",
    "turns.record_failed": "Turns were not recorded; once for each reason",
    "usage.lost": "The gateway stopped with usage that it could not write",
    "usage_file.recovered": "The usage file can be written again",
    "usage_file.write_failed": "The usage file cannot be written; once until it can",
}
"""What each event means, in one sentence without its full stop."""

MORE: Final = {
    "admin_order.applied": ("the order's fields",),
    "request.crashed": ("`method`", "`path`", "`what`", "`count`"),
    "request.malformed": ("`peer`", "`what`", "`count`"),
    "request.misdirected": ("`host`", "`advice`", "`count`"),
    "start.measured": ("`PART_s` for each part",),
    "task.failed": ("`pool`",),
}
"""Keys that the call does not spell out."""

_HEAD: Final = """# Log events

<!-- Made by docs/generate.py from the calls in orchestrator and cloud. Do not edit. -->

Daemon, gateway and local cloud log to standard error, which systemd keeps in the journal. Each line is one
event, `noun.verb`. A JSON line has `timestamp`, `level`, `logger`, `event` and the keys of the event; lines
of a pool also have `pool`. `logger` is the directory of the code that logs. [`daemon.log_format`](config.md)
chooses between JSON and a form for people, [`daemon.log_level`](config.md) hides less important lines.

```sh
journalctl -u spot-orchestrator -o cat | jq -c 'select(.event == "notice.heard")'
```

`error` is the text of an exception, `reason` says why, `node` names a node, `after` and `seconds` are
seconds, `retry_in` the seconds until the next try. An exception adds its traceback as `exception`.

| event | logger | level | keys | when |
|---|---|---|---|---|
"""

_TAIL: Final = """
[The changelog](../../CHANGELOG.md) lists names that changed.
"""


@dataclass(slots=True)
class LogEvent:
    """One event as one logger writes it."""

    name: str
    logger: str
    levels: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


def log_events() -> list[LogEvent]:
    """The events of the code, by name and logger."""
    found: dict[tuple[str, str], LogEvent] = {}
    for package in ("cloud", "orchestrator"):
        for file in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            if (logger := _logger(tree)) is None:
                continue
            for name, levels, keys in _calls(tree):
                event = found.setdefault((name, logger), LogEvent(name, logger))
                event.levels += [level for level in levels if level not in event.levels]
                event.keys += [key for key in keys if key not in event.keys]
    return [found[key] for key in sorted(found)]


def _logger(tree: ast.Module) -> str | None:
    """The name in `log = structlog.get_logger(name)`."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="get_logger"), args=[ast.Constant(value=str(name))]):
                return name
    return None


def _calls(tree: ast.Module) -> Iterator[tuple[str, list[str], list[str]]]:
    """Name, levels and keys of `log.info(name)`, `log.log(level, name)` and `partial(log.info, name)`."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="log"), attr="log"),
                args=[level, ast.Constant(value=str(name))],
            ):
                named = [part.attr.lower() for part in ast.walk(level) if isinstance(part, ast.Attribute)]
                levels = [each for each in named if each in _METHODS]
            case (
                ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log"), attr=method),
                    args=[ast.Constant(value=str(name))],
                )
                | ast.Call(
                    func=ast.Name(id="partial"),
                    args=[
                        ast.Attribute(value=ast.Name(id="log"), attr=method),
                        ast.Constant(value=str(name)),
                    ],
                )
            ) if method in _METHODS:
                levels = [_METHODS[method]]
            case _:
                continue
        yield name, levels, [keyword.arg for keyword in node.keywords if keyword.arg is not None]


def page() -> str:
    """The whole of log-events.md."""
    rows = []
    for event in log_events():
        keys = [*(f"`{key}`" for key in event.keys), *MORE.get(event.name, ())]
        rows.append(
            f"| `{event.name}` | {event.logger} | {', '.join(event.levels)} | {', '.join(keys)} "
            f"| {WHEN.get(event.name, '')}. |\n"
        )
    return _HEAD + "".join(rows) + _TAIL
