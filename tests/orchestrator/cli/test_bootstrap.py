"""What a pool's file makes of its nodes: where weights come from and lie, and what is looked at."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from cloud.clock import SystemClock
from cloud.cloud_init.user_data import NodeSetup
from orchestrator.cli.bootstrap import node_setup, opened_ports, too_large
from tests.orchestrator.config.test_aws import built

ENGINE = {
    "kind": "vllm",
    "executable": "/opt/vllm/bin/vllm",
    "args": ["--tensor-parallel-size", "4", "--pipeline-parallel-size", "2", "--max-model-len", "4096"],
}
ROLE = "arn:aws:iam::123456789012:role/llama-node"


def setup(tmp_path: Path, engine: dict[str, Any] = ENGINE, stopped: int = 0, **aws: Any) -> NodeSetup:
    pool = {"model": "meta-llama/Llama-3.1-8B-Instruct", "engine": engine, "standby": {"stopped": stopped}}
    settings = {"instance_types": ["p5.48xlarge"], "node_role": ROLE, **aws}
    return node_setup(built(tmp_path, pool=pool, **settings), SystemClock())


def test_the_checks_know_what_the_engine_wants(tmp_path: Path) -> None:
    found = setup(tmp_path)
    assert (found.gpus, found.vllm, found.weights) == (8, True, "")
    assert found.size == pytest.approx(16e9, rel=0.1)
    assert found.command.argv[2] == "meta-llama/Llama-3.1-8B-Instruct"


def test_the_exporter_can_be_reached_where_the_daemon_reads_it(tmp_path: Path) -> None:
    assert opened_ports(built(tmp_path).pool) == (8000,)
    found = built(tmp_path, pool={"gpu": {"dcgm_port": 9400}}, engine_port=8080)
    assert opened_ports(found.pool) == (8080, 9400)


def test_an_engine_without_gpus_is_asked_for_none(tmp_path: Path) -> None:
    found = setup(tmp_path, engine={"allow_simulated": True})
    assert (found.gpus, found.vllm) == (0, False)


@pytest.mark.parametrize("weights", ["s3://llama-weights/8b", "/opt/weights/8b"])
def test_weights_that_lie_elsewhere_are_the_model_under_the_same_name(tmp_path: Path, weights: str) -> None:
    found = setup(tmp_path, weights=weights)
    words = found.command.argv
    assert (found.weights, words[2], found.size) == (weights, "{model}", 0.0)
    assert words[words.index("--served-model-name") + 1] == "meta-llama/Llama-3.1-8B-Instruct"


def test_a_pool_that_keeps_stopped_machines_downloads_to_what_outlives_a_stop(tmp_path: Path) -> None:
    assert setup(tmp_path).local_disk
    assert not setup(tmp_path, stopped=1).local_disk
    assert not setup(tmp_path, disk={"local": "off"}).local_disk


def test_what_ec2_would_not_take_is_named_beforehand(tmp_path: Path) -> None:
    noise = "".join(sha256(str(i).encode()).hexdigest() for i in range(400))
    engine = {"kind": "vllm", "run": "container", "image": "stage/vllm:1", "env": {"LARGE": noise}}
    large = built(tmp_path, pool={"model": "org/model", "engine": engine}, node_role=ROLE)
    (found,) = too_large(large, SystemClock())
    assert found.key == "pool.llama.engine"
    assert "and EC2 takes 16384; shorten one of these" in found.text
    assert "engine.args and engine.env" in found.text
    usual = built(tmp_path, pool={"model": "org/model", "engine": {**engine, "env": {}}}, node_role=ROLE)
    assert list(too_large(usual, SystemClock())) == []
