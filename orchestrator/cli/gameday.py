"""`orchestrator gameday`."""

from __future__ import annotations

import random
import sys
from contextlib import suppress
from typing import Annotated

from cyclopts import Parameter

from orchestrator.api.client import ClientError, ControlClient
from orchestrator.cli import following, shared
from orchestrator.cli import gameday_rules as rules
from orchestrator.cli.shared import CommandError, Connection, Duration, PlainOutput
from orchestrator.views.api import GamedayView, PastSwapView, PoolView, StatusView
from orchestrator.words import short_time


def gameday(
    *,
    pool: Annotated[str | None, Parameter(help="Which pool, when the daemon runs several.")] = None,
    seed: Annotated[int | None, Parameter(help="Draw the same node again; random if not said.")] = None,
    deadline: Annotated[
        Duration | None, Parameter(help="How long requests in flight may take, such as 2m.")
    ] = None,
    timeout: Annotated[Duration, Parameter(help="Give up, and take the drain back, after this.")] = 1800.0,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative="", help="Do not ask first.")] = False,
    output: PlainOutput = "table",
    connection: Connection = Connection(),  # noqa: B008
) -> int:
    """Drain one random spot node on purpose, and see whether the pool bears it.

    It begins only with a whole pool. The node goes on serving until another takes its place, as in any drain,
    and within the disruption budget. When the pool falls short, gets a real notice, or takes too long, the
    drain is taken back and the exit code is 1; Ctrl-C takes it back too.

    For example:
      orchestrator gameday --yes
      orchestrator gameday --seed 7 --deadline 60s --yes -o json
    """
    client = connection.client()
    view = client.status()
    if pool is None and len(view["pools"]) > 1:
        known = ", ".join(one["name"] for one in view["pools"])
        raise CommandError(f"say which pool is meant with --pool: {known}", shared.USAGE)
    found = _pool_of(view, pool)
    reason = rules.unfit(found, view["daemon"])
    if reason:
        paused = view["daemon"]["paused"] is not None or found["state"] == "paused"
        raise CommandError(reason, shared.PAUSED if paused else shared.DEGRADED)
    chosen = seed if seed is not None else random.randrange(2**31)  # noqa: S311 - no secret
    node = rules.draw(found, chosen)["id"]
    if not yes:
        _confirm(node, found)
    client.drain(node, reason=f"game day, seed {chosen}", deadline_s=deadline)
    print(f"{node} is being drained (seed {chosen}).", file=sys.stderr)
    began = view["at"]
    try:
        broken, ended = _watch(client, found["name"], node, began, timeout)
    except KeyboardInterrupt:
        broken, ended = "interrupted by Ctrl-C", client.status()["at"]
    if broken:
        _take_back(client, node)
    swap = next(iter(client.history(node=node)["swaps"]), None)
    result = GamedayView(
        schema="gameday/1",
        pool=found["name"],
        node=node,
        seed=chosen,
        passed=not broken,
        breach=broken or None,
        took_s=ended - began,
        swap=swap,
    )
    if output == "json":
        shared.print_json(result)
    else:
        shared.print_text(_report(result, swap))
    return shared.ERROR if broken else shared.OK


def _pool_of(view: StatusView, name: str | None) -> PoolView:
    known = [pool["name"] for pool in view["pools"]]
    for pool in view["pools"]:
        if name in (None, pool["name"]):
            return pool
    missing = "" if name is None else f"there is no pool {name!r}; "
    raise CommandError(f"{missing}the daemon runs {', '.join(known) or 'no pool'}")


def _confirm(node: str, pool: PoolView) -> None:
    """Ask a person. Raises CommandError where nobody can answer, or the answer is no."""
    if not sys.stdin.isatty():
        raise CommandError(f"{node} of pool {pool['name']} would be drained; add --yes", shared.USAGE)
    print(f"Drain {node} of pool {pool['name']} on purpose? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was done")


def _watch(client: ControlClient, pool: str, node: str, began: float, timeout: float) -> tuple[str, float]:
    """Look until it is over or something broke: what broke, empty if nothing, and when."""
    for view in following.looks(client):
        now = _pool_of(view, pool)
        if broken := rules.breach(now, node):
            return broken, view["at"]
        if rules.over(now, node):
            return "", view["at"]
        if view["at"] - began > timeout:
            return f"it was not over within {short_time(timeout)}", view["at"]
    raise AssertionError("looks never end")


def _take_back(client: ControlClient, node: str) -> None:
    """Put the node back to work; one that is gone by now cannot be."""
    with suppress(ClientError):
        client.undrain(node, reason="the game day was broken off")
        print(f"The drain of {node} was taken back.", file=sys.stderr)


def _report(result: GamedayView, swap: PastSwapView | None) -> str:
    head = "passed" if result["passed"] else f"broken off: {result['breach']}"
    lines = [f"Game day {head} after {short_time(result['took_s'])} (seed {result['seed']})."]
    if swap is not None:
        stages = [f"{name} after {short_time(at)}" for name, at in _reached(swap)]
        lines.append(f"{result['node']}: {', '.join(stages) or 'no stage reached'}.")
    return "".join(line + "\n" for line in lines)


def _reached(swap: PastSwapView) -> list[tuple[str, float]]:
    seconds = swap["seconds"]
    found = (
        ("detached", seconds["detached"]),
        ("drained", seconds["drained"]),
        ("replaced", seconds["replaced"]),
        ("gone", seconds["gone"]),
    )
    return [(name, at) for name, at in found if at is not None]
