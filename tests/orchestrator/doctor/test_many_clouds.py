"""The doctor of a pool on two clouds: each is looked at alone, whatever becomes of the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloud.clock import SystemClock
from orchestrator.config.load import Config
from orchestrator.doctor import assembly
from orchestrator.doctor.assembly import examine
from orchestrator.doctor.clouds import CloudLooks
from orchestrator.doctor.findings import Check, Findings, ok

TOML = """\
[daemon]
state_dir = "state"
listen = "off"
[pool.llama]
replicas = 4
engine.allow_simulated = true
limits.spend_per_hour = "unlimited"
[pool.llama.cloud]
kind = ["aws", "gcp"]
[pool.llama.cloud.aws]
instance_types = ["g6.2xlarge"]
[pool.llama.cloud.aws.regions.us-east-1]
launch_template = "node"
subnets = { us-east-1a = "subnet-1" }
[pool.llama.cloud.gcp]
project = "ml-serving"
instance_types = ["g2-standard-12"]
image = "projects/ml-serving/global/images/family/vllm-node"
[pool.llama.cloud.gcp.regions.us-central1]
zones = ["us-central1-a"]
"""


class Doctor:
    """Looks at one cloud, and says which."""

    def __init__(self, config: Config, group: Any) -> None:
        self._kind, self._group, self.closed = config.pool.cloud.kind, group, 0

    def checks(self) -> list[Check]:
        async def look() -> Findings:
            return [ok(f"on {self._kind}")]

        return [Check(group=self._group, name="account", look=look)]

    async def close(self) -> None:
        self.closed += 1


async def test_each_cloud_is_looked_at_with_the_pool_on_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pool.toml").write_text(TOML, encoding="utf-8")
    made: list[Doctor] = []

    def looks(group: Any) -> CloudLooks:
        def doctor(config: Config, _file: str, _clock: object) -> Doctor:
            made.append(Doctor(config, group))
            return made[-1]

        return CloudLooks(groups=(group,), doctor=doctor)

    def broken(_config: Config, _file: str, _clock: object) -> Any:
        raise ValueError("the SDK is not installed")

    monkeypatch.setattr(assembly, "LOOKS", {"aws": looks("aws"), "gcp": looks("gcp")})
    assert await told(tmp_path) == {
        ("aws", "account"): "on aws",
        ("gcp", "account"): "on gcp",
        ("azure", "all"): "the pool runs on aws and gcp",
    }
    assert [one.closed for one in made] == [1, 1]
    monkeypatch.setattr(
        assembly, "LOOKS", {"aws": CloudLooks(groups=("aws",), doctor=broken), "gcp": looks("gcp")}
    )
    found = await told(tmp_path)
    assert found["aws", "all"] == "the SDK is not installed"
    assert found["gcp", "account"] == "on gcp"


async def told(directory: Path) -> dict[tuple[str, str], str]:
    """What is said in the groups of clouds, by group and name of the check."""
    only = ("aws", "gcp", "azure")
    results = await examine(directory / "pool.toml", only, SystemClock(), lambda _done, _waiting: None)
    return {(one.check.group, one.check.name): one.findings[0].text for one in results}
