"""Makes the reference pages that follow the code: `python docs/generate.py`.

config.md comes from the models of the configuration, cli.md and the man page from the command line's help,
metrics.md from the registries of daemon and gateway, alerts.md from the rules that are shipped, capacity.md
from the policies' placement, gateway-faults.md from the mode table of the gateway's tests, fit.md from the
published facts of the fit check's tests, log-events.md from the calls that log, proof.md from the tables of
clouds, balancers and engines. A test asserts that all are
current.
"""

from __future__ import annotations

import inspect
import io
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).parent))  # also where this file is loaded by its path

import capacity_table
import fault_table
import fit_table
import log_event_table
import proof_table
import replayed_table
import xid_table

from cloud.clock import SystemClock
from orchestrator import monitoring
from orchestrator.config.errors import Key, heading, keys_of, table_model, tables
from orchestrator.config.reload import Effect, reload_at
from orchestrator.config.tables.file import ConfigFile
from orchestrator.gateway.accounts.gate import Gate
from orchestrator.gateway.accounts.key_metrics import KeyMetrics
from orchestrator.gateway.accounts.keyfile import ClientKeys
from orchestrator.gateway.accounts.limit_book import LimitBook
from orchestrator.gateway.accounts.refusals import Refusals
from orchestrator.gateway.adapters import Adapters
from orchestrator.gateway.config import PoolGate
from orchestrator.gateway.metrics import GatewayMetrics, Outcome
from orchestrator.gateway.provider_metrics import ProviderMetrics
from orchestrator.gateway.spend_file import Totals
from orchestrator.gateway.targets import TargetTable
from orchestrator.metrics import metrics

REFERENCE: Final = Path(__file__).parent / "reference"
MAN: Final = Path(__file__).parent / "man"

_CONFIG_HEAD: Final = """# Configuration

<!-- Made by docs/generate.py from the tables of orchestrator/config. Do not edit. -->

One TOML file describes one daemon, its pools and the gateway in front of them. `orchestrator validate FILE`
checks it and says what it means; every fault is reported at once as `file:line: key: what is wrong, and what
to do`.
`orchestrator schema config` prints its JSON Schema for editors.
[examples/pool.toml](../../examples/pool.toml) is an example with comments,
[examples/two-pools-and-an-api.toml](../../examples/two-pools-and-an-api.toml) one with routes.

* **Durations** carry a unit: `"500ms"`, `"90s"`, `"15m"`, `"2h"`, `"1h30m"`. A bare number is refused.
* **Shares** are percentages or fractions: `"70%"` or `0.7`.
* **Money** is US dollars: `"12.50"`, per hour, per day or per million tokens as the key says.
* **Sizes** carry a unit: `"64kB"`, `"32MiB"`.
* **Paths**: relative ones start from the directory of the file, so the same file means the same pool wherever
  the daemon is started. `{state_dir}` stands for `daemon.state_dir`, `~` for the home directory,
  `{credentials}` for the directory of the unit's systemd credentials.
* **A change** of a key takes what its row says: a *reload* of the daemon (`orchestrator reload`), a *reload
  of the gateway* (`systemctl reload spot-orchestrator-gateway`), which loses no request, or a *restart* of
  the daemon, which touches no node. The JSON Schema has the same as `reload`, at the key or at its table.

The smallest file:

```toml
[pool.llama]
replicas = 10
```
"""

_TAKES: Final = {Effect.NOW: "reload", Effect.GATEWAY: "reload of the gateway", Effect.RESTART: "restart"}

_CLI_HEAD: Final = """# Command line

<!-- Made by docs/generate.py from the command line's own help. Do not edit. -->

Results go to standard output, everything else to standard error. Tables adapt to the width of the terminal;
in a pipe lines are whole and without colours, and `NO_COLOR` switches colours off everywhere. `-o json`
prints what `orchestrator schema` describes; within one schema number fields are only ever added.

The daemon is found by `--socket`, else by `--config`, else by the variable `ORCHESTRATOR_SOCKET`, else at
`./state/orchestrator.sock`, else at that of the service in `/run/spot-orchestrator`. Where a command takes a
node, the beginning of its id is enough.

## Exit codes

| code | meaning |
|---|---|
| 0 | ok |
| 1 | error |
| 2 | wrong usage |
| 3 | the daemon cannot be reached |
| 4 | `status`: a pool is degraded or still starting |
| 5 | `status`: a pool is below its floor: of on-demand nodes, or of `drain.min_serving` |
| 6 | `status`: the daemon is paused |
| 7 | `status`: a pool is down: its clients get nothing |
| 8 | `status`: a pool is all on demand: its clients are served, and spot cannot be had |
| 10 | `plan --detailed-exit-code`: there is something to do |
| 130 | interrupted by Ctrl-C (ending `--watch`, `--follow` or `--wait` that way is 0) |

`status` reports the worst pool: 7 before 5 before 4 before 6 before 8. `--no-exit-code` makes it 0 whenever
the daemon answers.
"""


_MAN_HEAD: Final = r""".\" Made by docs/generate.py from the command line's own help. Do not edit.
.TH ORCHESTRATOR 1 "" "spot\-orchestrator" "User Commands"
.SH NAME
orchestrator \- keep a pool of inference nodes on spot machines as dependable as on\-demand
.SH SYNOPSIS
.B orchestrator
.I COMMAND
.RI [ OPTIONS ]
.SH DESCRIPTION
The daemon is found by
.BR \-\-socket ,
else by
.BR \-\-config ,
else by the variable
.BR ORCHESTRATOR_SOCKET ,
else at
.IR ./state/orchestrator.sock .
Where a command takes a node, the beginning of its id is enough.
Results go to standard output, everything else to standard error.
.SH COMMANDS
"""

_MAN_TAIL: Final = r""".SH EXIT STATUS
0 ok, 1 error, 2 wrong usage, 3 daemon unreachable, 130 interrupted.
.B status
also: 4 degraded or starting, 5 below the floor, 6 paused, 7 down, 8 all on demand since spot cannot be had.
.SH ENVIRONMENT
.TP
.B ORCHESTRATOR_SOCKET
The daemon's control socket.
.TP
.B NO_COLOR
No colours on a terminal.
"""

_METRICS_HEAD: Final = """# Metrics

<!-- Made by docs/generate.py from orchestrator/metrics/ and orchestrator/gateway/metrics.py. Do not edit. -->

Prometheus text. The daemon shows its metrics at `/metrics` of `daemon.listen` and of its control socket, the
gateway its own at `/metrics` of `pool.NAME.gateway.metrics_listen` and of its control socket. Engines show
theirs at their own addresses, which the daemon tells at `/v1/sd`: [how to scrape all of
them](../how-to/alerts.md).

Times are seconds, money US dollars, timestamps seconds since the epoch. A histogram `NAME` is shown as
`NAME_bucket` with the label `le`, `NAME_sum` and `NAME_count`. A series appears with its first value; the
gauges of a pool are there after the first turn. Counters start at zero with the process: take rates, not
differences over restarts. Counters and histograms have a companion that ends in `_created`: when they began.
"""

_ALERTS_HEAD: Final = """# Alerts

<!-- Made by docs/generate.py from orchestrator/monitoring/rules.yaml. Do not edit. -->

What `orchestrator rules` prints, for Prometheus; [how to set it up](../how-to/alerts.md). `page`: somebody
should look now. `warning`: within a working day. Each name links to its runbook.
"""

_GATEWAY_HEAD: Final = """## Gateway

One gateway serves the pools of one configuration; tell gateways apart by the labels of your scrape job. The
label `pool` is there where it serves several, `orchestrator_gateway_route*` where it has routes, and
`orchestrator_gateway_key*` and `orchestrator_gateway_clients_refused_total` where it asks for keys.
[How limits of keys are counted](../explanation/client-limits.md); at most 100 keys are named, the others
are `other`.
A request's `outcome`:
"""


_PROVIDERS_HEAD: Final = """## Providers

Of the gateway, too, where it has providers.
[How money is held and booked](../explanation/providers-money.md).
"""


def config_page() -> str:
    """The whole of config.md."""
    return "\n".join([_CONFIG_HEAD, *(line for part in tables(ConfigFile) for line in _table(*part))])


def cli_page() -> str:
    """The whole of cli.md."""
    from orchestrator.cli.app import COMMANDS, HIDDEN, build_app

    app = build_app(complete=True)
    parts = [_CLI_HEAD]
    for command in COMMANDS:
        note = (
            "Used by the tutorial and the demo; not shown in the overview.\n\n" if command in HIDDEN else ""
        )
        parts.append(f"## orchestrator {command}\n\n{note}```text\n{_help(app, command)}\n```\n")
    return "\n".join(parts)


def man_page() -> str:
    """The whole of orchestrator.1, for man(7)."""
    from orchestrator.cli.app import COMMANDS, HIDDEN, build_app

    app = build_app(complete=True)
    parts = [_MAN_HEAD]
    for command in COMMANDS:
        if command not in HIDDEN:
            text = "\n".join(_roff(line) for line in _help(app, command, 78).splitlines())
            parts.append(f".SS orchestrator {_roff(command)}\n.nf\n{text}\n.fi\n")
    return "".join([*parts, _MAN_TAIL])


def _roff(line: str) -> str:
    """A line of plain text that roff sets as it stands."""
    escaped = line.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("'", "\\(aq")
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


def metrics_page() -> str:
    """The whole of metrics.md."""
    rng = random.Random(0)  # noqa: S311 - nothing is drawn
    table = TargetTable(now=lambda: 0.0, rng=rng, gate=PoolGate(targets_file=Path("t")))
    gateway = GatewayMetrics(lambda: 0.0, ("chat", "embed"), routed=True)
    gateway.lane("chat", table, lambda: 0, Adapters(("sql",), table, lambda: 0.0))
    gateway.certificate_taken(0.0)
    clock = SystemClock()
    KeyMetrics(gateway.registry, ClientKeys(Path("keys.toml"), clock))
    refusals = Refusals(gateway.registry, clock)
    Gate(LimitBook(None, clock), refusals, registry=gateway.registry, clock=clock)
    outcomes = ", ".join(f"`{outcome}`" for outcome in Outcome)
    parts = [
        _METRICS_HEAD,
        f"## Daemon\n\n{_metrics(metrics.REGISTRY)}\n",
        f"{_GATEWAY_HEAD.rstrip()} {outcomes}.\n\n{_metrics(gateway.registry)}\n",
        f"{_PROVIDERS_HEAD}\n{_metrics(_provider_metrics())}",
    ]
    return "\n".join(parts) + "\n"


def _provider_metrics() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProviderMetrics(registry, states=dict, caps={}, today=lambda: Totals("2026-01-01"), trouble=lambda: "")
    return registry


def alerts_page() -> str:
    """The whole of alerts.md."""
    parts = [_ALERTS_HEAD]
    for group in yaml.safe_load(monitoring.read(monitoring.RULES))["groups"]:
        title = group["name"].removeprefix("orchestrator-").capitalize()
        alerts = [rule for rule in group["rules"] if "alert" in rule]
        if not alerts:
            rows = ["| recorded series | expression |\n|---|---|"]
            rows += [f"| `{r['record']}` | `{' '.join(r['expr'].split())}` |" for r in group["rules"]]
            parts.append(f"## {title}\n\n" + "\n".join(rows) + "\n")
            continue
        rows = ["| alert | severity | after | meaning | fires when |\n|---|---|---|---|---|"]
        for rule in alerts:
            name, notes = rule["alert"], rule["annotations"]
            expression = " ".join(rule["expr"].split()).replace("|", "\\|")
            severity, after = rule["labels"]["severity"], rule.get("for", "at once")
            page = f"[{name}](../runbooks/{name}.md)"
            rows.append(f"| {page} | {severity} | {after} | {notes['description']} | `{expression}` |")
        parts.append(f"## {title}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _metrics(registry: CollectorRegistry) -> str:
    rows = ["| name | type | labels | meaning |\n|---|---|---|---|"]
    # the registry offers no public way to ask for the labels of a metric without values
    for collector in registry._collector_to_names:
        if isinstance(collector, MetricWrapperBase):
            described = [(collector._type, collector.describe()[0], collector._labelnames)]
        else:
            described = [(family.type, family, family._labelnames) for family in collector.collect()]  # type: ignore[attr-defined]
        for kind, family, labels in described:
            name = family.name + ("_total" if kind == "counter" else "")
            shown = ", ".join(f"`{label}`" for label in labels)
            rows.append(f"| `{name}` | {kind} | {shown} | {family.documentation.rstrip('.')}. |")
    return "\n".join(rows)


def _help(app: Any, command: str, width: int = 100) -> str:
    from rich.console import Console

    buffer = io.StringIO()
    app.help_formatter = "plain"
    app([*command.split(), "--help"], console=Console(file=buffer, width=width, color_system=None))
    return "\n".join(line.rstrip() for line in buffer.getvalue().strip().splitlines())


def _table(path: Key, model: type[BaseModel]) -> Iterator[str]:
    keys = {name: field for name, field in keys_of(model).items() if table_model(field.annotation)[0] is None}
    if not path or not keys:
        return
    yield f"## {heading(path)}\n"
    yield f"{inspect.cleandoc(model.__doc__ or '')}\n"
    yield "| key | default | a change takes | meaning |\n|---|---|---|---|"
    properties = model.model_json_schema()["properties"]
    for name, field in keys.items():
        default = "required" if field.is_required() else f"`{_default(properties[name])}`"
        takes = _TAKES[reload_at(ConfigFile, (*path, name)).effect]
        yield f"| `{name}` | {default} | {takes} | {_meaning(field.description or '', properties[name])} |"
    yield ""


def _default(schema: dict[str, Any]) -> str:
    value = schema.get("default")
    if value is None:
        return "not set"
    return json.dumps({} if value == {} else value, ensure_ascii=False)


def _meaning(description: str, schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return f"{description} One of {', '.join(f'`{json.dumps(item)}`' for item in schema['enum'])}."
    return description.replace("|", "\\|")


def pages() -> dict[Path, str]:
    """Every page with its text."""
    return {
        REFERENCE / "config.md": config_page(),
        REFERENCE / "cli.md": cli_page(),
        MAN / "orchestrator.1": man_page(),
        REFERENCE / "metrics.md": metrics_page(),
        REFERENCE / "alerts.md": alerts_page(),
        REFERENCE / "gateway-faults.md": fault_table.page(),
        REFERENCE / "engines-replayed.md": replayed_table.page(),
        REFERENCE / "fit.md": fit_table.page(),
        REFERENCE / "log-events.md": log_event_table.page(),
        REFERENCE / "proof.md": proof_table.page(),
        REFERENCE / "xid.md": xid_table.page(),
        REFERENCE.parent / "explanation" / "capacity.md": capacity_table.page(),
    }


def main() -> None:
    """Write every page anew."""
    for file, text in pages().items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
