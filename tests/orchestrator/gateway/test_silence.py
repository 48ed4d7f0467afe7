"""A gateway whose daemon is gone says so, once."""

from __future__ import annotations

from hand_clock import HandClock
from structlog.testing import capture_logs

from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.gateway.silence import SILENT_AFTER, DaemonSilence


def test_a_long_silence_of_the_daemon_is_two_log_lines() -> None:
    clock = HandClock()
    metrics = GatewayMetrics(clock.now)
    silence = DaemonSilence(metrics, clock)

    def passed(seconds: int) -> list[tuple[str, str]]:
        with capture_logs() as lines:
            for _ in range(seconds):
                clock.at += 1.0
                silence.look()
        return [(line["log_level"], line["event"]) for line in lines]

    assert passed(int(SILENT_AFTER)) == []
    assert passed(600) == [
        ("warning", "daemon.contact_lost")
    ]  # it was never heard since this gateway started
    metrics.daemon_heard = clock.at
    assert passed(int(SILENT_AFTER)) == [("info", "daemon.contact_restored")]
    assert passed(600) == [("warning", "daemon.contact_lost")]


async def test_a_running_gateway_looks_at_it(gateways, eventually, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    looks: list[DaemonSilence] = []
    monkeypatch.setattr(DaemonSilence, "look", lambda self: looks.append(self))
    await gateways(poll_interval=0.01)
    await eventually(lambda: len(looks) > 2)
