"""`orchestrator support-bundle`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError, PlainOutput
from orchestrator.views.setup import BundleView
from orchestrator.words import plural

if TYPE_CHECKING:
    from orchestrator.cli.bundle import Part


def support_bundle(
    *,
    config: Annotated[Path, Parameter(name=["--config", "-c"], help="The daemon's configuration file.")],
    to: Annotated[
        Path | None, Parameter(help="The archive; else a new file here, named by the time.")
    ] = None,
    output: PlainOutput = "table",
) -> int:
    """Collect what somebody needs who is to help: one archive, with secrets hidden.

    It holds the configuration in force, status, plan, history, events, metrics of daemon and gateway, what
    `doctor` finds, versions, and the services' logs where systemd keeps them. What cannot be had, because
    the daemon is down for one, says so in its place. Look through it before you hand it on.

    For example:
      orchestrator support-bundle --config pool.toml
      orchestrator support-bundle --config pool.toml --to incident.tar.gz
    """
    from cloud.clock import SystemClock
    from orchestrator.cli import bundle
    from orchestrator.config.load import ConfigError, load_config
    from orchestrator.redact import Redactor

    now = SystemClock().now()
    folder = f"support-bundle-{_stamp(now)}"
    target = to if to is not None else Path(f"{folder}.tar.gz")
    try:
        loaded = load_config(config)
    except ConfigError as error:
        print(f"orchestrator: {config} has faults; collecting without it:\n{error}", file=sys.stderr)
        loaded = None
    redactor = Redactor(bundle.secrets(loaded) if loaded is not None else ())
    found = _told(bundle.parts(config, loaded, redactor))
    try:
        written = bundle.write(target, found, folder=folder, at=now)
    except FileExistsError:
        raise CommandError(f"{target}: is there already; choose another name with --to") from None
    except OSError as error:
        raise CommandError(f"{target}: cannot be written ({error.strerror}); see --to") from error
    view: BundleView = {
        "schema": "support-bundle/1",
        "file": str(target),
        "parts": [{"name": part.name, "ok": part.ok, "size": len(part.text.encode())} for part in written],
    }
    if output == "json":
        shared.print_json(view)
    else:
        missing = [part.name for part in written if not part.ok]
        lacks = f"; not collected: {', '.join(missing)}" if missing else ""
        print(f"{target}: {plural(len(written) - len(missing), 'part')}{lacks}")
        print(f"Next: tar -tzf {target}")
    return shared.OK


def _told(found: Iterable[Part]) -> Iterator[Part]:
    """The same parts, each named on a terminal when it is there."""
    for part in found:
        if sys.stderr.isatty():
            print(f"  {part.name}{'' if part.ok else ': ' + part.text.strip()}", file=sys.stderr)
        yield part


def _stamp(at: float) -> str:
    from orchestrator.words import instant

    return instant(at).replace("-", "").replace(":", "")
