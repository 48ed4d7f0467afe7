"""`orchestrator doctor --try-node`: one node is launched, followed and ended."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError
from orchestrator.units import format_duration
from orchestrator.views.setup import FindingView
from orchestrator.words import clean, money

if TYPE_CHECKING:
    from cloud.ports import Clock
    from orchestrator.config.load import Config
    from orchestrator.doctor.short_lived import Passed
    from orchestrator.doctor.try_node import Offer

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def try_node(file: Path | None, market: str, yes: bool, pool: str | None = None) -> list[FindingView]:
    """Launch one node in a market, follow it and end it; its steps as findings. Asks first.

    Raises CommandError when nothing is launched.
    """
    from cloud.clock import SystemClock
    from cloud.errors import CloudError
    from orchestrator.doctor.try_node import offer
    from policies.model import Market

    if file is None:
        raise CommandError("--try-node needs --config FILE, to know what to launch", shared.USAGE)
    config, clock = shared.one_pool(shared.read_config(file), pool), SystemClock()
    try:
        offered = asyncio.run(offer(config, clock, Market(market)))
        if offered.refusal:
            raise CommandError(f"nothing was launched: {offered.refusal}")
        if not yes:
            _agree(_question(config, offered))
        steps = asyncio.run(_followed(config, clock, offered))
    except (CloudError, OSError) as error:
        raise CommandError(f"nothing was launched: {error}") from error
    return [_row(step) for step in steps]


async def _followed(config: Config, clock: Clock, offered: Offer) -> Sequence[Passed]:
    """The try, which a signal breaks off and which ends its node all the same."""
    from orchestrator.doctor.try_node import try_one

    loop = asyncio.get_running_loop()
    task = asyncio.create_task(try_one(config, clock, offered, _say))

    def stop() -> None:
        if not task.cancelling():
            task.cancel()
        with contextlib.suppress(OSError):
            _say("interrupted: the node is being ended, which takes a moment; it stays if you kill this")

    for each in _SIGNALS:
        loop.add_signal_handler(each, stop)
    try:
        return await task
    finally:
        for each in _SIGNALS:
            loop.remove_signal_handler(each)


def _question(config: Config, offered: Offer) -> str:
    first, boot = offered.offerings[0], config.wanted.health.boot_timeout
    placement = first.placement
    what = f"one {placement.instance_type} {placement.market} in {placement.zone}"
    cost = "at a price that is not known"
    if first.price is not None:
        cost = f"at {money(first.price)} an hour, {money(first.price * boot / 3600.0)} at most"
    if offered.dearest is not None and offered.dearest != first.price:
        cost += f" (or what else is to be had, up to {money(offered.dearest)} an hour)"
    return f"Launch {what} for up to {format_duration(boot)}, {cost}? It is ended in any case."


def _agree(question: str) -> None:
    """Ask. Raises CommandError without a yes."""
    if not sys.stdin.isatty():
        raise CommandError("--try-node asks before it launches; answer with --yes where nobody can")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was launched")


def _say(text: str) -> None:
    for line in text.splitlines():
        print(clean(line), file=sys.stderr, flush=True)


def _row(step: Passed) -> FindingView:
    finding = step.finding
    return {
        "group": "launch",
        "check": "try-node",
        "subject": finding.subject,
        "state": finding.state.value,
        "text": finding.text,
        "advice": finding.advice,
        "seconds": round(step.seconds, 3),
    }
