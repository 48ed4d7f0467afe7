"""`orchestrator doctor --field-test`: one node of a cloud goes through all that a pool asks of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError
from orchestrator.cli.try_node import agree, question, row, say, until_ended
from orchestrator.views.setup import FindingView

if TYPE_CHECKING:
    from cloud.kinds import CloudName
    from cloud.ports import Clock
    from orchestrator.config.load import Config
    from orchestrator.doctor.field import Subject
    from orchestrator.doctor.unfinished import Notebook

_CHECK = "field-test"


def field_test(
    file: Path | None, kind: CloudName, market: str, yes: bool, pool: str | None
) -> list[FindingView]:
    """End what an earlier test left, then test that kind of cloud; the steps as findings. Asks first.

    Raises CommandError when nothing is launched.
    """
    from cloud.errors import CloudError
    from orchestrator.doctor.field import Refused, subject
    from orchestrator.doctor.unfinished import Busy, Notebook

    if file is None:
        raise CommandError("--field-test needs --config FILE, to know what to launch", shared.USAGE)
    config = shared.read_config(file)
    try:
        one = subject(shared.one_pool(config, pool), kind)
        notebook = Notebook(config.daemon.state_dir)
        with notebook.held():
            rows = _finished(config, notebook)
            if any(each["state"] == "fail" for each in rows):
                return rows
            return [*rows, *_tested(one, market, yes, notebook)]
    except Refused as error:
        raise CommandError(f"nothing was launched: {error}", shared.USAGE) from error
    except (Busy, CloudError, OSError, ValueError) as error:
        raise CommandError(f"nothing was launched: {error}") from error


def _tested(one: Subject, market: str, yes: bool, notebook: Notebook) -> list[FindingView]:
    from orchestrator.doctor.field import test
    from orchestrator.doctor.try_node import offer
    from policies.model import Market

    clock = _clock()
    offered = asyncio.run(offer(one.config, clock, Market(market)))
    if offered.refusal:
        raise CommandError(f"nothing was launched: {offered.refusal}")
    asked = question(offered, one.longest)
    if yes:
        say(asked.replace("? It is", ". It is"))
    else:
        agree(asked, "--field-test")
    tested = asyncio.run(until_ended(test(one, clock, offered, notebook, say)))
    return [row(step, _CHECK) for step in tested.steps]


def _finished(config: Config, notebook: Notebook) -> list[FindingView]:
    """End what an earlier test left. Raises CommandError where this configuration does not lead to it."""
    from orchestrator.doctor.field import finish, left_over

    left = notebook.read()
    if left is None:
        return []
    one, by_hand = left_over(config, left)
    if one is None:
        raise CommandError(
            f"nothing was launched: an earlier field test of {left.kind} left a machine of pool "
            f"{left.pool}, to which this configuration does not lead. Name the one of that test, or end the "
            f"machine by hand and remove {notebook.path}: {by_hand}"
        )
    steps = asyncio.run(until_ended(finish(one, _clock(), left, notebook, say)))
    return [row(step, _CHECK) for step in steps]


def _clock() -> Clock:
    from cloud.clock import SystemClock

    return SystemClock()
