"""Several engines on one machine: pools of the local cloud share its GPUs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.load import Config, ConfigError, build_config

MODEL = "acme/odd-8B"


def pool(share: str = "", *args: str, replicas: int = 1, **engine: Any) -> dict[str, Any]:
    words = ["--gpu-memory-utilization", share] if share else []
    engine = {"kind": "vllm", "executable": "/bin/true", "args": [*words, *args]} | engine
    return {"replicas": replicas, "model": MODEL, "engine": engine}


def built(directory: Path, pools: dict[str, Any]) -> Config:
    pools = copy.deepcopy(pools)
    for name, made in pools.items():
        made.setdefault("engine", {})["served_name"] = name
    return build_config({"pool": pools}, base=directory)


def fault(directory: Path, **pools: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        built(directory, pools)
    (problem,) = [one for one in raised.value.problems if "of the memory" in one.text]
    return f"{problem.key}: {problem.text}"


def warnings(directory: Path, **pools: Any) -> list[str]:
    found = built(directory, pools).warnings
    return [f"{one.key}: {one.text}" for one in found if "of the memory" in one.text]


def test_two_pools_that_take_too_much_together(tmp_path: Path) -> None:
    text = fault(tmp_path, chat=pool("0.6"), embed=pool("0.5", task="embed"))
    assert text.startswith(
        "pool.embed.engine.args: the engines on GPU 0 of this machine take 110% of the memory"
    )
    assert "(1 x 0.6 of pool chat and 1 x 0.5 of pool embed)" in text
    assert "write 0.5 or less for each" in text


def test_the_nodes_of_one_pool_are_several_engines_as_well(tmp_path: Path) -> None:
    assert "take 135% of the memory together (3 x 0.45 of pool chat)" in fault(
        tmp_path, chat=pool("0.45", replicas=3)
    )
    assert "2 x 0.9 of pool chat" in fault(tmp_path, chat=pool(replicas=2)), "vLLM's own share counts"


def test_ready_standby_is_an_engine_more(tmp_path: Path) -> None:
    chat = {**pool("0.4", replicas=2), "standby": {"hot": 1}}
    assert "3 x 0.4" in fault(tmp_path, chat=chat)


def test_what_fits_has_room_for_a_replacement_or_is_told(tmp_path: Path) -> None:
    assert warnings(tmp_path, chat=pool("0.3", replicas=2)) == []
    assert warnings(tmp_path, chat=pool("0.25"), embed=pool("0.2")) == []
    (told,) = warnings(tmp_path, chat=pool("0.5", replicas=2))
    assert "leaves no room for one more" in told
    (told,) = warnings(tmp_path, chat=pool())
    assert "90% of the memory" in told
    (told,) = warnings(tmp_path, embed=pool("0.2", task="embed"), chat=pool("0.6"))
    assert told.startswith("pool.chat.engine.args: "), "it is the largest that has no room for another"


def test_other_gpus_are_others(tmp_path: Path) -> None:
    first, second = {"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}
    warnings(tmp_path, chat=pool("0.6", env=first), embed=pool("0.5", env=second))
    assert "on GPU 1" in fault(tmp_path, chat=pool("0.6", env=second), embed=pool("0.5", env=second))


def test_an_engine_over_two_gpus_takes_of_both(tmp_path: Path) -> None:
    wide = pool("0.7", "--tensor-parallel-size", "2")
    text = fault(tmp_path, chat=wide, embed=pool("0.5", env={"CUDA_VISIBLE_DEVICES": "1"}))
    assert "on GPU 1" in text
    assert "on GPU 0, 1" in fault(tmp_path, chat=wide, other=wide)


@pytest.mark.parametrize(
    "other",
    [
        pool("", "--kv-cache-memory-bytes", "67108864", replicas=9),
        {"replicas": 9},
        pool("0.9", run="container", image="i:1", executable="", container_args=["--gpus", "device=1"]),
    ],
)
def test_what_takes_no_share_of_these_gpus_is_not_counted(tmp_path: Path, other: dict[str, Any]) -> None:
    assert warnings(tmp_path, chat=pool("0.4"), other=other) == []


def test_a_machine_of_ec2_runs_one_engine(tmp_path: Path) -> None:
    region = {"subnets": {"us-east-1a": "subnet-1"}, "launch_template": "node", "launch_template_version": 3}
    aws = {"instance_types": ["p5.48xlarge"], "regions": {"us-east-1": region}}
    chat = {
        **pool("0.9", "--max-model-len", "8192", replicas=4),
        "limits": {"spend_per_hour": "unlimited"},
        "cloud": {"kind": "aws", "aws": aws},
    }
    assert warnings(tmp_path, chat=chat) == []
