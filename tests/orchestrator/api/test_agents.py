"""What a node says of its own start: in the API, and in the reason of a boot that failed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from adapter_engine import HoldingEngine
from played_ports import COMMAND, Machines, Play

from cloud.agent_receiver import BootCheck, BootReport, NodeReport
from cloud.ports import Clock
from orchestrator.api import agents
from orchestrator.loop.actuator import Actuator
from policies.events import BootFailed, Event
from policies.model import Market, Placement

pytestmark = pytest.mark.usefixtures("quiet")

REPORT = NodeReport(
    node="i-1",
    heard_at=50.0,
    life_cycle="spot",
    gpus=(),
    xids=(),
    metadata_error="",
    gpu_error="",
    xid_error="",
)
BOOT = BootReport(
    stage="checks",
    ok=False,
    detail="1 of 2 checks failed",
    checks=(
        BootCheck(name="driver", ok=True, text="580.95"),
        BootCheck(name="ninja", ok=False, text="not found: add it to the image"),
    ),
    at=40.0,
    restarts=0,
)


class Heard:
    """A receiver that heard these reports."""

    def __init__(self, *reports: NodeReport) -> None:
        self._reports = {report.node: report for report in reports}

    def report(self, node: str) -> NodeReport | None:
        return self._reports.get(node)


def test_the_api_shows_how_far_a_node_came() -> None:
    boot = agents.view(replace(REPORT, boot=BOOT), now=60.0)["boot"]
    assert boot is not None
    assert (boot["stage"], boot["ok"], boot["restarts"]) == ("checks", False, 0)
    assert [(c["name"], c["ok"]) for c in boot["checks"]] == [("driver", True), ("ninja", False)]
    assert agents.view(REPORT, now=60.0)["boot"] is None, "an agent of an older version does not say"


@pytest.mark.parametrize(
    ("boot", "words"),
    [
        (BOOT, "its node got to checks: 1 of 2 checks failed; ninja: not found: add it to the image"),
        (replace(BOOT, stage="failed", restarts=7, checks=()), "its node got to failed, 7 restarts: 1 of 2"),
        (replace(BOOT, stage="", detail="", checks=()), "its node got to an unknown stage"),
        (None, ""),
    ],
)
def test_how_far_a_node_came_in_words(boot: BootReport | None, words: str) -> None:
    heard: Any = Heard(replace(REPORT, boot=boot))
    assert agents.boot_words(heard, "i-1").startswith(words)
    assert (agents.boot_words(heard, "i-1") == "") == (words == "")
    assert agents.boot_words(heard, "i-2") == ""


def test_the_reason_of_a_failed_boot_has_what_its_node_said(play: Play) -> None:
    async def work(clock: Clock) -> list[Event]:
        told: list[Event] = []
        heard: Any = Heard(replace(REPORT, boot=BOOT))
        hands = Actuator(
            pool="p",
            clock=clock,
            instances=Machines(clock),
            balancers=(),
            engine=HoldingEngine(clock),
            command=COMMAND,
            call_timeout=10.0,
            emit=told.append,
            leading=lambda: True,
            failsafe=lambda: False,
            sees=lambda _: True,
            node_says=lambda node: agents.boot_words(heard, node),
        )
        place = Placement("sim", "r", "a", "gpu", Market.SPOT)
        hands.ended_unready("i-1", place, "not ready 900 s after its start")
        hands.ended_unready("i-2", place, "not ready 900 s after its start")
        await clock.sleep(60.0)
        return told

    reasons = {e.node: e.why for e in play(work) if isinstance(e, BootFailed)}
    assert reasons["i-2"] == "not ready 900 s after its start"
    assert reasons[
        "i-1"
    ] == f"{reasons['i-2']}; its node got to checks: {BOOT.detail}; ninja: not found: " + (
        "add it to the image"
    )
