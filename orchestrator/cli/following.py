"""Waiting for what an operator set going: a node that leaves, a pool that is whole again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from orchestrator.api.client import ClientError, ControlClient, Unreachable
from orchestrator.cli import shared
from orchestrator.views.api import StatusView

_EVERY: Final = 1.0  # s between two looks
_OUT_OF_SERVICE: Final = ("terminating", "gone", "stopped")


def until_out(client: ControlClient, node: str) -> bool:
    """Wait until the node takes no part any more, and say so; False when the daemon refuses to tell."""
    while True:
        try:
            view = client.node(node)["node"]
        except Unreachable:
            view = None
        except ClientError as error:
            print(f"orchestrator: {error}", file=sys.stderr)
            return False
        else:
            if view is None or view["phase"] in _OUT_OF_SERVICE:
                print(f"{node} is out of service.", file=sys.stderr)
                return True
        shared.wait(_EVERY)


def until_whole(client: ControlClient, pool: str | None) -> None:
    """Wait until a pool has its wanted nodes, or all have theirs where none is named, and say so."""
    for view in looks(client, pool):
        if all(pool["ready"] >= pool["wanted"] for pool in view["pools"]):
            ready = ", ".join(f"{pool['name']}: {pool['ready']}/{pool['wanted']}" for pool in view["pools"])
            print(f"The wanted nodes are ready ({ready}).", file=sys.stderr)
            return


def looks(client: ControlClient, pool: str | None = None) -> Iterator[StatusView]:
    """The status again and again, a second apart; a daemon that restarts is waited for."""
    while True:
        with suppress(Unreachable):
            yield client.status(pool=pool)
        shared.wait(_EVERY)
