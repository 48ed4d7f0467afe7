"""Flags of the engine on single instance types: a pool of machines with one GPU and with eight."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud.clock import SystemClock
from orchestrator.cli.bootstrap import node_setup
from orchestrator.config import show
from orchestrator.config.load import Config, ConfigError, load_config
from orchestrator.config.reload import RESTART, Effect, reload_at
from orchestrator.config.tables.file import ConfigFile
from orchestrator.redact import Redactor
from orchestrator.wiring.ports import connect, engine_command, engine_of

POOL = """
[pool.llama]
replicas = 8
model = "meta-llama/Llama-3.1-70B-Instruct"
units = {{ "p5.48xlarge" = 8 }}
[pool.llama.limits]
spend_per_hour = "unlimited"
[pool.llama.engine]
kind = "vllm"
args = ["--quantization", "fp8", "--max-model-len", "8192", "--enforce-eager"]
{on}
[pool.llama.cloud]
kind = "aws"
[pool.llama.cloud.aws]
instance_types = ["p5.4xlarge", "p5.48xlarge"]
[pool.llama.cloud.aws.regions.us-east-1]
launch_template = "llama"
launch_template_version = 1
[pool.llama.cloud.aws.regions.us-east-1.subnets]
us-east-1a = "subnet-1"
"""
LARGE = """
[pool.llama.engine.on."p5.48xlarge"]
args = ["--tensor-parallel-size", "{gpus}", "--max-model-len", "131072"]
"""
LOCAL = """
[pool.sim]
replicas = 2
engine.args = ["--max-num-seqs", "4"]
[pool.sim.engine.on."sim.large"]
args = {args}
"""


def load(directory: Path, text: str) -> Config:
    file = directory / "pool.toml"
    file.write_text(text, encoding="utf-8")
    return load_config(file)


def faults(directory: Path, text: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(directory, text)
    return {problem.key: problem.text for problem in caught.value.problems}


def test_each_type_gets_its_flags_and_a_build_of_its_own(tmp_path: Path) -> None:
    config = load(tmp_path, POOL.format(on=LARGE))
    command = engine_command(engine_of(config.pool, SystemClock()), config.pool)
    small, large = command.at("p5.4xlarge"), command.at("p5.48xlarge")
    assert small.argv[-5:] == ("--quantization", "fp8", "--max-model-len", "8192", "--enforce-eager")
    assert large.argv[-7:] == (
        *("--quantization", "fp8", "--enforce-eager"),
        *("--tensor-parallel-size", "{gpus}", "--max-model-len", "131072"),
    )
    assert large.argv.count("--max-model-len") == 1
    assert small.build != large.build
    assert command.at("g6.xlarge") == small
    assert small.on == large.on == {}


def test_the_nodes_user_data_has_them(tmp_path: Path) -> None:
    config = load(tmp_path, POOL.format(on=LARGE))
    setup = node_setup(config, SystemClock())
    assert setup.command.on.keys() == setup.gpus_on.keys() == {"p5.48xlarge"}
    # {gpus} is filled in by the machine, whose GPUs are counted there.
    assert (setup.gpus, setup.gpus_on["p5.48xlarge"]) == (1, 1)


def test_whether_the_model_fits_is_judged_by_the_flags_of_each_type(tmp_path: Path) -> None:
    long = '[pool.llama.engine.on."p5.4xlarge"]\nargs = ["--max-model-len", "131072"]\n'
    found = faults(tmp_path, POOL.format(on=LARGE + long))
    assert list(found) == ["pool.llama.cloud.aws.instance_types"]
    assert found["pool.llama.cloud.aws.instance_types"].startswith("p5.4xlarge: ")
    assert "131072 tokens" in found["pool.llama.cloud.aws.instance_types"]


def test_gpus_that_one_type_leaves_idle_are_told_where_its_flags_do_not_use_them(tmp_path: Path) -> None:
    def idle(on: str) -> list[str]:
        return [w.text for w in load(tmp_path, POOL.format(on=on)).warnings if "are paid for" in w.text]

    assert idle(LARGE) == []
    (text,) = idle("")
    assert "1 of the 8 GPUs of p5.48xlarge" in text


@pytest.mark.parametrize(
    ("on", "key", "words"),
    [
        (
            '"p5.48xlarge"]\nargs = ["--quantization", "awq"]',
            '."p5.48xlarge".args',
            "is not quantised with awq",
        ),
        ('"p5.48xlarge"]\nargs = ["-tp", "{gpu}"]', '."p5.48xlarge".args', "is filled in by nobody"),
        ('"p5.48xlarge"]\nargs = ["--lora-modules", "a=/a"]', '."p5.48xlarge".args', "the same on all nodes"),
        (
            '"p5.48xlarge"]\nargs = ["--served-model-name", "x"]',
            '."p5.48xlarge".args',
            "the same on all nodes",
        ),
        (
            '"p4d.24xlarge"]\nargs = ["--dtype", "auto"]',
            '."p4d.24xlarge"',
            "none of cloud.aws.instance_types",
        ),
        ('"p5.48xlarge"]\nargs = "-tp 8"', '."p5.48xlarge".args', "one text is not a list"),
        ('"p5.48xlarge"]\nenv = {}', '."p5.48xlarge".env', ""),
    ],
)
def test_faults_of_one_type_stand_at_its_table(tmp_path: Path, on: str, key: str, words: str) -> None:
    found = faults(tmp_path, POOL.format(on=f"[pool.llama.engine.on.{on}\n"))
    assert words in found[f"pool.llama.engine.on{key}"]


def test_what_holds_for_all_is_said_once(tmp_path: Path) -> None:
    text = POOL.format(on=LARGE).replace('"fp8"', '"awq"')
    assert [key for key in faults(tmp_path, text) if "engine" in key] == ["pool.llama.engine.args"]


def test_a_secret_of_one_type_is_found(tmp_path: Path) -> None:
    on = '[pool.llama.engine.on."p5.48xlarge"]\nargs = ["-tp", "8", "--api-key", "correct horse"]\n'
    config = load(tmp_path, POOL.format(on=on))
    assert any("secret" in warning.text or "key" in warning.text for warning in config.warnings)
    assert not any("correct horse" in warning.text for warning in config.warnings)


def test_machines_of_the_local_cloud_get_them_too(tmp_path: Path) -> None:
    config = load(tmp_path, LOCAL.format(args='["--max-num-seqs", "32"]'))
    command = connect(config, SystemClock()).command
    assert command.at("sim.large").argv[-2:] == ("--max-num-seqs", "32")
    assert command.at("sim.small").argv[-2:] == ("--max-num-seqs", "4")
    found = faults(tmp_path, LOCAL.format(args='["--tensor-parallel-size", "{gpus}"]'))
    assert "machines of AWS, Google Cloud, Azure only" in found['pool.sim.engine.on."sim.large".args']


def test_they_are_shown_and_a_change_asks_for_a_restart(tmp_path: Path) -> None:
    config = load(tmp_path, POOL.format(on=LARGE))
    shown = show.view(config, effective=False, redactor=Redactor())
    text = show.toml(shown, origin=False)
    assert '[pool.llama.engine.on."p5.48xlarge"]' in text
    assert "131072" in text
    path = ("pool", "llama", "engine", "on", "p5.48xlarge", "args")
    assert reload_at(ConfigFile, path).effect is Effect.RESTART


def test_what_stands_below_an_unknown_key_is_unknown() -> None:
    assert reload_at(ConfigFile, ("pool", "chat", "limits", "surge")).resizes
    assert reload_at(ConfigFile, ("unknown", "pool", "chat", "limits", "surge")) == RESTART
