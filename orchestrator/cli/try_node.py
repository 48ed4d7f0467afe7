"""`orchestrator doctor --try-node`: one node is launched, followed and ended."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError
from orchestrator.units import format_duration
from orchestrator.views.setup import FindingView
from orchestrator.words import clean, money

if TYPE_CHECKING:
    from orchestrator.doctor.short_lived import Passed
    from orchestrator.doctor.try_node import Offer

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def try_node(file: Path | None, market: str, yes: bool, pool: str | None = None) -> list[FindingView]:
    """Launch one node in a market, follow it and end it; its steps as findings. Asks first.

    Raises CommandError when nothing is launched.
    """
    from cloud.clock import SystemClock
    from cloud.errors import CloudError
    from orchestrator.doctor.try_node import offer, try_one
    from policies.model import Market

    if file is None:
        raise CommandError("--try-node needs --config FILE, to know what to launch", shared.USAGE)
    config, clock = shared.one_pool(shared.read_config(file), pool), SystemClock()
    try:
        offered = asyncio.run(offer(config, clock, Market(market)))
        if offered.refusal:
            raise CommandError(f"nothing was launched: {offered.refusal}")
        if not yes:
            agree(question(offered, config.wanted.health.boot_timeout), "--try-node")
        steps = asyncio.run(until_ended(try_one(config, clock, offered, say)))
    except (CloudError, OSError) as error:
        raise CommandError(f"nothing was launched: {error}") from error
    return [row(step, "try-node") for step in steps]


async def until_ended(work: Coroutine[Any, Any, T]) -> T:
    """What launches a node and ends it, which a signal breaks off and which ends its node all the same."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(work)

    def stop() -> None:
        if not task.cancelling():
            task.cancel()
        with contextlib.suppress(OSError):
            say("interrupted: the node is being ended, which takes a moment; it stays if you kill this")

    for each in _SIGNALS:
        loop.add_signal_handler(each, stop)
    try:
        return await task
    finally:
        for each in _SIGNALS:
            loop.remove_signal_handler(each)


def question(offered: Offer, longest: float) -> str:
    """Whether to launch the cheapest for up to so many seconds, with what that costs at most."""
    first = offered.offerings[0]
    placement = first.placement
    what = f"one {placement.instance_type} {placement.market} in {placement.zone}"
    cost = "at a price that is not known"
    if first.price is not None:
        cost = f"at {money(first.price)} an hour, {money(first.price * longest / 3600.0)} at most"
    if offered.dearest is not None and offered.dearest != first.price:
        cost += f" (or what else is to be had, up to {money(offered.dearest)} an hour)"
    return f"Launch {what} for up to {format_duration(longest)}, {cost}? It is ended in any case."


def agree(question: str, flag: str) -> None:
    """Ask. Raises CommandError without a yes."""
    if not sys.stdin.isatty():
        raise CommandError(f"{flag} asks before it launches; answer with --yes where nobody can")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was launched")


def say(text: str) -> None:
    """Tell it while it goes on."""
    for line in text.splitlines():
        print(clean(line), file=sys.stderr, flush=True)


def row(step: Passed, check: str) -> FindingView:
    """A step as a finding of a check."""
    finding = step.finding
    return {
        "group": "launch",
        "check": check,
        "subject": finding.subject,
        "state": finding.state.value,
        "text": finding.text,
        "advice": finding.advice,
        "seconds": round(step.seconds, 3),
    }
