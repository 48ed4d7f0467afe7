"""`orchestrator rules`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from orchestrator import monitoring
from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError

_CHECK_SECONDS = 60.0


def rules(
    *,
    to: Annotated[
        Path | None,
        Parameter(help="Write the rules there, with examples for Prometheus and Alertmanager."),
    ] = None,
    runbooks: Annotated[
        str, Parameter(metavar="URL", help="Where your copy of docs/runbooks is; alerts link to it.")
    ] = monitoring.RUNBOOKS,
    check: Annotated[bool, Parameter(negative="", help="Have promtool check what is printed.")] = False,
) -> int:
    """Print the alert rules for Prometheus that are shipped.

    For example:
      orchestrator rules > rules.yaml
      orchestrator rules --check > rules.yaml
      orchestrator rules --to /etc/prometheus --runbooks https://wiki.example/runbooks
    """
    base = runbooks if runbooks.endswith("/") else f"{runbooks}/"
    texts = {name: monitoring.read(name, runbooks=base) for name in monitoring.FILES}
    if check:
        print(_checked(texts[monitoring.RULES]), file=sys.stderr)
    if to is None:
        shared.print_text(texts[monitoring.RULES])
        return shared.OK
    shared.write_files(to, texts, anew={monitoring.RULES})
    return shared.OK


def _checked(text: str) -> str:
    """What promtool says of the rules. Raises CommandError when it is not there or not content."""
    tool = shutil.which("promtool")
    if tool is None:
        raise CommandError("promtool is not installed; it comes with Prometheus (Debian: prometheus)")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / monitoring.RULES
        file.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [tool, "check", "rules", file], capture_output=True, text=True, timeout=_CHECK_SECONDS
        )
    said = (done.stdout + done.stderr).strip()
    if done.returncode:
        raise CommandError(f"promtool refuses the rules: {said}")
    return said.splitlines()[-1].strip()
