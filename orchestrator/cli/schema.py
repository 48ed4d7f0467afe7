"""`orchestrator schema`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from orchestrator import schemas
from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError


def schema(
    name: Annotated[str | None, Parameter(help="One of the names that are listed without it.")] = None, /
) -> int:
    """Print the JSON Schema of an answer or of the configuration file.

    For example:
      orchestrator schema
      orchestrator schema status
      orchestrator schema config > pool.schema.json
    """
    if name is None:
        print("\n".join(schemas.names()))
        return shared.OK
    if name not in schemas.names():
        raise CommandError(
            f"there is no schema {name!r}; write one of {', '.join(schemas.names())}", shared.USAGE
        )
    shared.print_text(schemas.read(name))
    return shared.OK
