"""What a simulated host does not have: a gateway in a process of its own."""

from __future__ import annotations

from pathlib import Path

from cloud.balancers.routes import Document
from cloud.errors import Uncertain


async def no_gateway(_: Path) -> str:
    """The table of targets is no process that could have an heir."""
    return ""


async def no_routes(_: Path) -> Document:
    """Nor does it route requests by the models that they name."""
    raise Uncertain("no gateway runs in a simulation")
