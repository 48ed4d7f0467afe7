"""What nodes say of themselves through their agents: as the API's JSON, in words, and as gauges."""

from __future__ import annotations

from typing import Final

from cloud.agent_receiver import AgentReceiver, BootReport, NodeReport
from orchestrator.api.gpus import gpu_view, xid_view
from orchestrator.metrics import metrics
from orchestrator.views import api as views

_FRESH: Final = 60.0
"""Seconds since its last report for which an agent counts as heard: a few heartbeats."""


def view(report: NodeReport, now: float) -> views.AgentView:
    """The last report of a node."""
    return views.AgentView(
        heard_s=max(0.0, now - report.heard_at),
        life_cycle=report.life_cycle,
        gpus=[gpu_view(gpu) for gpu in report.gpus],
        xids=[xid_view(xid) for xid in report.xids],
        boot=None if report.boot is None else _boot(report.boot),
        errors=[text for text in (report.metadata_error, report.gpu_error, report.xid_error) if text],
    )


def boot_words(agents: AgentReceiver, node: str) -> str:
    """How far a node came by its own word, and what it found wrong; empty where it does not say."""
    report = agents.report(node)
    if report is None or report.boot is None:
        return ""
    boot = report.boot
    wrong = [f"{check.name}: {check.text}" for check in boot.checks if not check.ok]
    text = "; ".join(filter(None, (boot.detail, *wrong)))
    restarts = f", {boot.restarts} restarts" if boot.restarts else ""
    return f"its node got to {boot.stage or 'an unknown stage'}{restarts}{f': {text}' if text else ''}"


def publish(agents: AgentReceiver, pool: str) -> None:
    """Set the gauges."""
    metrics.AGENTS_HEARD.labels(pool).set(sum(age <= _FRESH for age in agents.ages().values()))
    for why, count in agents.refused.items():
        metrics.AGENT_REFUSALS.labels(pool, why).set(count)
    if agents.keys is not None:
        metrics.NODE_KEYS.labels(pool, "given").set(agents.keys.given)
        metrics.NODE_KEYS.labels(pool, "refused").set(agents.keys.refused)


def _boot(boot: BootReport) -> views.BootView:
    return views.BootView(
        stage=boot.stage,
        ok=boot.ok,
        detail=boot.detail,
        checks=[views.BootCheckView(name=c.name, ok=c.ok, text=c.text) for c in boot.checks],
        restarts=boot.restarts,
    )
