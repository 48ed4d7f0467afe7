"""`orchestrator config`: the configuration as it is in force."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import PlainOutput


def show(
    file: Annotated[Path, Parameter(help="The TOML file.")],
    /,
    *,
    effective: Annotated[bool, Parameter(negative="", help="All keys, those at their default too.")] = False,
    origin: Annotated[
        bool, Parameter(negative="", help="Say of each value where it comes from: file and line, or default.")
    ] = False,
    output: PlainOutput = "table",
) -> int:
    """Print a configuration as TOML: what its file sets, or with --effective everything that is in force.

    Paths are absolute, values in their shortest form. Secrets that slipped into variables or flags are
    hidden.

    For example:
      orchestrator config show pool.toml
      orchestrator config show pool.toml --effective --origin
      orchestrator config show pool.toml --effective -o json | jq -r '.settings[].key'
    """
    from orchestrator.config import show as config_show
    from orchestrator.redact import Redactor

    view = config_show.view(shared.read_config(file), effective=effective, redactor=Redactor())
    if output == "json":
        shared.print_json(view)
    else:
        shared.print_text(config_show.toml(view, origin=origin))
    return shared.OK
