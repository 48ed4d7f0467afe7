"""From a configuration to ports: what of them must know which machines are the pool's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloud.clock import SystemClock
from orchestrator.config.load import build_config
from orchestrator.wiring import aws
from orchestrator.wiring.ports import connect


def on_aws(folder: Path) -> dict[str, Any]:
    secret = folder / "secret"
    secret.write_text("x" * 32, encoding="utf-8")
    return {
        "replicas": 4,
        "engine": {"kind": "simulated", "allow_simulated": True},
        "limits": {"spend_per_hour": 99},
        "agents": {"listen": "127.0.0.1:0", "secret_file": str(secret)},
        "cloud": {
            "kind": "aws",
            "aws": {
                "instance_types": ["g6.xlarge"],
                "regions": {
                    "us-east-1": {
                        "subnets": {"us-east-1a": "subnet-1"},
                        "launch_template": "node",
                        "launch_template_version": 1,
                        "notice_queue": "https://sqs.us-east-1.amazonaws.com/1/q",
                        "on_demand_prices": {"g6.xlarge": 0.8},
                    }
                },
            },
        },
    }


async def test_every_source_of_an_account_asks_whose_a_machine_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The account's events are those of every machine in it; all may be the pool's until somebody knows."""
    given: list[Any] = []
    for name in ("QueueNotices", "SpotRequestNotices", "InstanceStatusNotices"):
        real = getattr(aws, name)

        def made(*ports: Any, real: Any = real, **settings: Any) -> Any:
            given.append(settings["owned"])
            return real(*ports, **settings)

        monkeypatch.setattr(aws, name, made)
    ports = connect(build_config({"pool": {"p": on_aws(tmp_path)}}, base=tmp_path), SystemClock())
    try:
        assert ports.agents is not None
        given.append(ports.agents.owned)
        assert [owned("i-1") for owned in given] == [True] * 4
        ports.owned.judge = lambda node: node == "i-1"
        assert [(owned("i-1"), owned("i-2")) for owned in given] == [(True, False)] * 4
    finally:
        await ports.close()
