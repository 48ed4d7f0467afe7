"""`orchestrator doctor`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from cloud.engines.dialect import Kind
from cloud.kinds import CloudName
from cloud.ports import Task
from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError, PlainOutput
from orchestrator.doctor.findings import CheckGroup
from orchestrator.views.setup import DoctorView, FindingView

if TYPE_CHECKING:
    from cloud.ports import Clock
    from orchestrator.config.load import Config
    from orchestrator.doctor.findings import Result
    from orchestrator.doctor.runner import Progress


_FieldTest = Annotated[
    CloudName | None,
    Parameter(
        metavar="PROVIDER",
        help="Put one cheap node of this cloud.kind through launch, replay, stop, preemption and end, and "
        "write a report to send in.",
    ),
]
_Market = Annotated[
    Literal["spot", "on-demand"] | None, Parameter(help="The market of --field-test's node; else spot.")
]
_Yes = Annotated[
    bool,
    Parameter(name=["--yes", "-y"], negative="", help="Do not ask before --fix, --try-node or --field-test."),
]


def doctor(
    *,
    config: Annotated[
        Path | None,
        Parameter(
            name=["--config", "-c"],
            help="The configuration; else that of the daemon on ORCHESTRATOR_SOCKET or ./state.",
        ),
    ] = None,
    only: Annotated[
        tuple[CheckGroup, ...],
        Parameter(consume_multiple=True, negative="", help="Only the checks of these groups."),
    ] = (),
    fix: Annotated[
        bool,
        Parameter(negative="", help="Set a target group's deregistration delay that is too long to 90 s."),
    ] = False,
    try_node: Annotated[
        Literal["spot", "on-demand"] | None,
        Parameter(help="Launch one node in this market, follow it until it answers, and end it."),
    ] = None,
    field_test: _FieldTest = None,
    market: _Market = None,
    yes: _Yes = False,
    engine: Annotated[
        str | None,
        Parameter(help="Hold the engine that runs at this URL against what is known of its kind."),
    ] = None,
    kind: Annotated[Kind | None, Parameter(help="What runs there, as engine.kind says it.")] = None,
    task: Annotated[Task, Parameter(help="What its model does.")] = "generate",
    model: Annotated[str, Parameter(help="The model to ask it for; else the first that it lists.")] = "",
    key_file: Annotated[Path | None, Parameter(help="File with the key that it asks for.")] = None,
    pool: shared.WhichPool = None,
    output: PlainOutput = "table",
) -> int:
    """Check what a pool needs: this machine, the configuration, the state, the daemon, the cloud.

    Nothing is changed without --fix, --try-node or --field-test. Each finding says what to do. The exit code
    is 1 when something fails. For AWS it looks with the daemon's credentials; `orchestrator aws policy FILE
    --doctor` prints what it needs beside the daemon's policy, and what it may not see is skipped.

    For example:
      orchestrator doctor --config pool.toml
      orchestrator doctor --config pool.toml --only aws notices launch balancer
      orchestrator doctor --config pool.toml -o json | jq '.findings[] | select(.state != "ok")'
      orchestrator doctor --config pool.toml --only balancer --fix
      orchestrator doctor --config pool.toml --try-node on-demand
      orchestrator doctor --config pool.toml --field-test aws
      orchestrator doctor --engine http://10.0.0.7:30000 --kind sglang
    """
    from cloud.clock import SystemClock
    from orchestrator.logs import configure_logging

    configure_logging("auto", "warning")
    launches = "--try-node" if try_node is not None else "--field-test" if field_test is not None else ""
    if launches and (fix or only or (try_node and field_test)):
        raise CommandError(f"{launches} runs by itself: leave --fix, --only and others out", shared.USAGE)
    clock = SystemClock()
    if pool is not None and not launches:
        raise CommandError("--pool says whose node is launched; leave it out", shared.USAGE)
    if market is not None and field_test is None:
        raise CommandError("--market goes with --field-test; --try-node names a market itself", shared.USAGE)
    if (engine is None) != (kind is None):
        raise CommandError("--engine and --kind go together", shared.USAGE)
    if engine is not None and kind is not None:
        rows = _claimed(engine, kind, task, model, key_file)
    elif try_node is not None:
        rows = _tried(config, try_node, yes, pool)
    elif field_test is not None:
        rows = _in_the_field(config, field_test, market or "spot", yes, pool)
    else:
        rows = _examined(config, only, fix, yes, clock)
    return _told(rows, clock.now(), output)


def _told(rows: list[FindingView], now: float, output: PlainOutput) -> int:
    """Print what was found; the exit code."""
    from orchestrator import __version__

    view: DoctorView = {
        "schema": "doctor/1",
        "at": now,
        "version": __version__,
        "ok": not any(row["state"] == "fail" for row in rows),
        "findings": rows,
    }
    if output == "json":
        shared.print_json(view)
    else:
        from orchestrator.render.doctor import doctor as rendered

        shared.print_text(rendered(view, shared.look(output)))
    return shared.OK if view["ok"] else shared.ERROR


def _claimed(url: str, kind: Kind, task: Task, model: str, key_file: Path | None) -> list[FindingView]:
    """What a running engine answers otherwise than its row says."""
    import asyncio

    from cloud.clock import SystemClock
    from orchestrator.doctor.engine_claims import EngineClaims
    from orchestrator.doctor.runner import run

    scheme, address = _place(url)
    try:
        key = "" if key_file is None else key_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CommandError(f"{key_file}: {error.strerror}") from None

    async def ask(progress: Progress) -> list[Result]:
        claims = EngineClaims(kind, address, task=task, name=model, key=key, scheme=scheme)
        try:
            return await run(claims.checks(), SystemClock(), progress)
        finally:
            await claims.close()

    with _showing() as progress:
        return [row for result in asyncio.run(ask(progress)) for row in _rows(result)]


def _place(url: str) -> tuple[str, str]:
    """Scheme and HOST:PORT of an engine's URL; without a scheme it is http, without a port that of the
    scheme. Raises CommandError for what is no such URL."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:  # a port that is none, a bracket that is not closed
        raise CommandError(f"{url} is not http://HOST:PORT", shared.USAGE) from None
    if scheme not in ("http", "https") or not host or "@" in parts.netloc:
        raise CommandError(f"{url} is not http://HOST:PORT", shared.USAGE)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise CommandError(f"{url} is not http://HOST:PORT: leave out what follows the port", shared.USAGE)
    at = f"[{host}]" if ":" in host else host
    return scheme, f"{at}:{port or (443 if scheme == 'https' else 80)}"


def _tried(config: Path | None, market: str, yes: bool, pool: str | None) -> list[FindingView]:
    from orchestrator.cli.try_node import try_node

    return try_node(config, market, yes, pool)


def _in_the_field(
    config: Path | None, kind: CloudName, market: str, yes: bool, pool: str | None
) -> list[FindingView]:
    from orchestrator.cli.field import field_test

    return field_test(config, kind, market, yes, pool)


def _examined(
    config: Path | None, only: Sequence[CheckGroup], fix: bool, yes: bool, clock: Clock
) -> list[FindingView]:
    """What every check finds, after --fix."""
    import asyncio

    from cloud.errors import CloudError
    from orchestrator.doctor.assembly import examine

    if fix:
        try:
            for pool in _on_aws(config):
                asyncio.run(_mend(pool, str(config), yes))
        except CloudError as error:
            raise CommandError(f"nothing was changed: {error}") from error
    with _showing() as progress:
        results = asyncio.run(examine(config, only, clock, progress))
    return [row for result in results for row in _rows(result)]


def _rows(result: Result) -> list[FindingView]:
    return [
        {
            "group": result.check.group,
            "check": result.check.name,
            "subject": finding.subject,
            "state": finding.state.value,
            "text": finding.text,
            "advice": finding.advice,
            "seconds": round(result.seconds, 3),
        }
        for finding in result.findings
    ]


def _on_aws(file: Path | None) -> list[Config]:
    """The configuration of each pool that --fix can change something for."""
    if file is None:
        raise CommandError("--fix needs --config FILE, to know what to fix", shared.USAGE)
    config = shared.read_config(file)
    pools = [config.only(name) for name in config.pools]
    found = [one for one in pools if one.pool.cloud.target_group]
    if not found:
        raise CommandError(f"{file}: no pool uses a target group, and --fix changes nothing else")
    return found


async def _mend(config: Config, file: str, yes: bool) -> None:
    """Lower a deregistration delay that is longer than a notice. Raises CloudError."""
    from cloud.clock import SystemClock
    from orchestrator.doctor.aws_balancer import DELAY, delay_is_too_long
    from orchestrator.doctor.on_aws import AwsDoctor

    aws = AwsDoctor(config, file, SystemClock())
    try:
        group = await aws.target_group()
        if group is None or not delay_is_too_long(group, config.pool.drain.margin):
            print("There is nothing that --fix can fix.", file=sys.stderr)
            return
        what = f"the deregistration delay of {group.name} in {aws.region} from {group.delay:g} s to {DELAY} s"
        if not yes and not _agreed(f"Set {what}? [y/N] "):
            raise CommandError("nothing was changed")
        await aws.set_delay(group)
        print(f"Set {what}.", file=sys.stderr)
    finally:
        await aws.close()


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise CommandError("--fix asks before it changes anything; answer with --yes where nobody can")
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextmanager
def _showing() -> Iterator[Progress]:
    """What is being waited for, on a terminal; a pipe gets the result only."""
    if not sys.stderr.isatty():
        yield lambda _done, _waiting: None
        return
    from rich.console import Console

    with Console(stderr=True).status("checking ...") as status:

        def progress(done: int, waiting: Sequence[str]) -> None:
            shown = ", ".join(waiting[:3]) + (", ..." if len(waiting) > 3 else "")
            status.update(f"{done} of {done + len(waiting)} checks done; waiting for {shown}")

        yield progress
