"""The tables of a pool on EC2: what they mean, what is wrong with them, whether the model fits."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloud.aws.load_balancer import AlbTargetGroup
from cloud.balancers.gateway import GatewayBalancer
from cloud.clock import SystemClock
from orchestrator.cli.validate import meaning
from orchestrator.config.load import Config, ConfigError, build_config, load_config
from orchestrator.config.values import settings
from orchestrator.gateway.config import IDLE
from orchestrator.wiring.aws import places
from orchestrator.wiring.ports import connect

QUEUE = "https://sqs.us-east-1.amazonaws.com/123456789012/notices"


def region(**changes: Any) -> dict[str, Any]:
    made = {
        "subnets": {"us-east-1a": "subnet-1"},
        "launch_template": "node",
        "launch_template_version": 3,
        "notice_queue": QUEUE,
    }
    return {key: value for key, value in {**made, **changes}.items() if value is not None}


def built(tmp_path: Path, *, pool: dict[str, Any] | None = None, regions: Any = None, **aws: Any) -> Config:
    tables = {"instance_types": ["p5.4xlarge"], "regions": regions or {"us-east-1": region()}, **aws}
    settings = {
        "replicas": 4,
        "engine": {"allow_simulated": True},
        "limits": {"spend_per_hour": "unlimited"},
        "cloud": {"kind": "aws", "aws": tables},
        **(pool or {}),
    }
    return build_config({"pool": {"llama": settings}}, base=tmp_path)


def faults(tmp_path: Path, **settings: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as raised:
        built(tmp_path, **settings)
    return {problem.key: problem.text for problem in raised.value.problems}


def test_a_complete_pool_has_neither_errors_nor_warnings(tmp_path: Path) -> None:
    config = built(tmp_path)
    assert config.warnings == ()
    aws = config.pool.cloud.aws
    assert aws.regions["us-east-1"].subnets == {"us-east-1a": "subnet-1"}
    assert aws.regions["us-east-1"].on_demand_prices == {}


def test_a_file_reads_the_same(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(
        f"""
        [pool.llama]
        replicas = 4
        engine.allow_simulated = true
        limits.spend_per_hour = "125.92"
        [pool.llama.cloud]
        kind = "aws"
        [pool.llama.cloud.aws]
        instance_types = ["p5.4xlarge", "g6e.12xlarge"]
        poll_spot_requests = "2s"
        [pool.llama.cloud.aws.regions.us-east-1]
        subnets = {{ us-east-1a = "subnet-1" }}
        launch_template = "node"
        launch_template_version = 3
        on_demand_prices = {{ "p5.4xlarge" = "6.88" }}
        notice_queue = "{QUEUE}"
        """
    )
    aws = load_config(file).pool.cloud.aws
    assert aws.poll_spot_requests == 2.0
    assert aws.regions["us-east-1"].on_demand_prices == {"p5.4xlarge": 6.88}


def test_without_a_cap_only_the_daemon_stays_down(tmp_path: Path) -> None:
    """A gateway that is upgraded with an old file must serve, and clients must reach the daemon."""
    file = tmp_path / "pool.toml"
    file.write_text(
        f"""
        [pool.llama]
        replicas = 4
        engine.allow_simulated = true
        [pool.llama.cloud]
        kind = "aws"
        [pool.llama.cloud.aws]
        instance_types = ["p5.4xlarge"]
        [pool.llama.cloud.aws.regions.us-east-1]
        subnets = {{ us-east-1a = "subnet-1" }}
        launch_template = "node"
        notice_queue = "{QUEUE}"
        """
    )
    assert load_config(file, "gateway").wanted.limits.spend_per_hour is None
    assert load_config(file, "client").pool.cloud.bills == "AWS"
    for role in ("daemon", "any"):
        with pytest.raises(ConfigError, match="does not start without a cap"):
            load_config(file, role)


def test_unlimited_is_no_cap(tmp_path: Path) -> None:
    config = built(tmp_path)
    assert config.wanted.limits.spend_per_hour is None
    shown = {".".join(s.path): s.text for s in settings(config)}
    assert shown["pool.llama.limits.spend_per_hour"] == '"unlimited"'
    capped = built(tmp_path, pool={"limits": {"spend_per_hour": 50.0}})
    assert capped.wanted.limits.spend_per_hour == 50.0


def test_everything_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        build_config({"pool": {"a": {"replicas": 1, "cloud": {"kind": "aws"}}}}, base=tmp_path)
    assert {p.key for p in raised.value.problems} == {
        "pool.a.cloud.aws.instance_types",
        "pool.a.cloud.aws.regions",
        "pool.a.engine.kind",
        "pool.a.limits.spend_per_hour",
    }


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"subnets": {}}, "subnets", "one for each zone"),
        ({"subnets": {"eu-west-1a": "s"}}, "subnets.eu-west-1a", "not a zone of us-east-1"),
        ({"launch_template": None}, "launch_template", "is missing"),
        ({"launch_template_version": 0}, "launch_template_version", "at least 1"),
        ({"notice_queue": "notices"}, "notice_queue", "not a URL"),
        ({"on_demand_prices": {"x": "0"}}, "on_demand_prices.x", "allows nothing at all"),
    ],
)
def test_a_region_that_cannot_work(tmp_path: Path, change: Any, key: str, words: str) -> None:
    found = faults(tmp_path, regions={"us-east-1": region(**change)})
    assert words in found[f"pool.llama.cloud.aws.regions.us-east-1.{key}"]


def test_a_region_by_a_wrong_name(tmp_path: Path) -> None:
    found = faults(tmp_path, regions={"virginia": region(subnets={"virginia-a": "s"})})
    assert "not the name of a region" in found["pool.llama.cloud.aws.regions.virginia"]


def test_a_target_group_needs_one_region_and_time_to_settle(tmp_path: Path) -> None:
    both = {"us-east-1": region(), "us-west-2": region(subnets={"us-west-2a": "subnet-2"})}
    found = faults(tmp_path, regions=both, target_group="llama")
    assert "one region" in found["pool.llama.cloud.aws.target_group"]
    assert "pool.llama.drain.settle" not in found
    found = faults(tmp_path, target_group="llama", pool={"drain": {"settle": 24.0}})
    assert "for 25s" in found["pool.llama.drain.settle"]
    config = built(tmp_path, target_group="llama", pool={"drain": {"settle": 30.0}})
    assert config.wanted.drain.settle == 30.0
    assert built(tmp_path, target_group="llama").wanted.drain.settle == 25.0
    assert built(tmp_path).wanted.drain.settle == 1.0


KEPT = "VLLM_HTTP_TIMEOUT_KEEP_ALIVE"


def served(*args: str, **env: str) -> dict[str, Any]:
    return {"model": "Qwen/Qwen3-0.6B", "engine": {"kind": "vllm", "args": list(args), "env": env}}


def kept(config: Config) -> str:
    ports = connect(config, SystemClock())
    return ports.command.env[KEPT]


def test_a_gateway_is_told_of_an_engine_that_closes_connections_as_it_does(tmp_path: Path) -> None:
    for seconds, told in (("75", False), (f"{IDLE:.0f}", True), (f"{IDLE + 1:.0f}", False)):
        config = built(tmp_path, pool=served(**{KEPT: seconds}))
        assert any(KEPT in str(warning) for warning in config.warnings) is told, seconds


@pytest.mark.parametrize("idle", [60.0, 600.0])
def test_an_engine_keeps_idle_connections_longer_than_its_balancer(tmp_path: Path, idle: float) -> None:
    aws = {"target_group": "llama", "balancer_idle_timeout": idle}
    assert float(kept(built(tmp_path, pool=served(), **aws))) == idle + 15.0
    own = served(**{KEPT: f"{idle + 1.0:.0f}"})
    assert float(kept(built(tmp_path, pool=own, **aws))) == idle + 1.0, "the user's own wins"
    for text in (f"{idle:.0f}", "5"):
        found = faults(tmp_path, pool=served(**{KEPT: text}), **aws)
        assert f'leave it out, or write "{idle + 15.0:.0f}"' in found[f"pool.llama.engine.env.{KEPT}"]
    assert (
        float(kept(built(tmp_path, pool=served(), target_group="llama", balancer_idle_timeout=1.0))) == 75.0
    )


@pytest.mark.parametrize("text", ["", "soon", "75.5", "75s"])
def test_what_vllm_would_not_start_with_is_refused(tmp_path: Path, text: str) -> None:
    assert "whole number" in faults(tmp_path, pool=served(**{KEPT: text}))[f"pool.llama.engine.env.{KEPT}"]


def test_the_gateway_too_must_be_the_first_to_let_go(tmp_path: Path) -> None:
    (warning,) = built(tmp_path, pool=served(**{KEPT: "4"})).warnings
    assert warning.key == f"pool.llama.engine.env.{KEPT}"
    assert "4 s for which the gateway keeps connections" in warning.text
    assert built(tmp_path, pool=served(**{KEPT: "5"})).warnings == ()


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ({"drain": {"budget": 75.0}}, "drain.budget gives requests 75s"),
        (served("--max-model-len", "8192"), "8192 tokens of --max-model-len take about 164 s"),
        (served("--max-model-len", "16k"), "16000 tokens of --max-model-len take about 320 s"),
    ],
)
def test_answers_that_the_balancer_does_not_wait_for_are_named(
    tmp_path: Path, pool: dict[str, Any], words: str
) -> None:
    (warning,) = built(tmp_path, target_group="llama", pool=pool).warnings
    assert warning.key == "pool.llama.cloud.aws.balancer_idle_timeout"
    assert words in warning.text
    assert "--region us-east-1 --load-balancer-arn ARN --attributes" in warning.text
    assert "Key=idle_timeout.timeout_seconds,Value=600" in warning.text
    assert built(tmp_path, target_group="llama", pool=pool, balancer_idle_timeout=600.0).warnings == ()
    assert built(tmp_path, pool=pool).warnings == (), "the gateway waits"


def test_without_a_queue_there_is_a_warning(tmp_path: Path) -> None:
    (warning,) = built(tmp_path, regions={"us-east-1": region(notice_queue="")}).warnings
    assert "orchestrator aws bootstrap" in warning.text


def test_a_type_of_which_nobody_knows_the_gpus_is_a_warning(tmp_path: Path) -> None:
    (warning,) = built(tmp_path, instance_types=["m7i.large"]).warnings
    assert "m7i.large is not in the table of GPU types" in warning.text


def vllm(model: str, *args: str) -> dict[str, Any]:
    return {"model": model, "engine": {"kind": "vllm", "args": list(args)}}


def test_a_model_that_does_not_fit_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    settings = vllm("meta-llama/Llama-3.1-70B-Instruct", "--max-model-len", "8192")
    found = faults(tmp_path, pool=settings)
    assert found["pool.llama.cloud.aws.instance_types"] == (
        "p5.4xlarge: 70.5B in 16 bits needs about 141 GB for its weights; 1 x H100 has 80 GiB: use 4 bits"
    )


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("p5.48xlarge", vllm("Llama-3.1-70B", "--tensor-parallel-size", "8")),
        ("p5.4xlarge", vllm("Llama-3.1-70B-AWQ", "--max-model-len", "16k")),
        ("p5.4xlarge", vllm("Llama-3.1-70B-AWQ", "--max-model-len=auto")),
        ("g6e.12xlarge", vllm("Llama-3.1-70B", "--quantization", "fp8", "--tensor-parallel-size=4")),
    ],
)
def test_a_model_that_fits_is_accepted(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    assert built(tmp_path, pool=settings, instance_types=[kind]).warnings == ()


def test_a_close_fit_is_a_warning(tmp_path: Path) -> None:
    (warning,) = built(tmp_path, pool=vllm("Llama-3.1-70B-FP8", "--max-model-len", "4096")).warnings
    assert "close fit" in warning.text


# -- how long a request may be -----------------------------------------------------------------------


def test_without_a_length_the_models_own_maximum_must_fit(tmp_path: Path) -> None:
    """55 % of the GPUs for 2,048 tokens, 104 % for the 131,072 that vLLM takes: it does not start."""
    awq = "hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4"
    four = ("--tensor-parallel-size", "4")
    (warning,) = built(tmp_path, pool=vllm(awq, *four), instance_types=["g5.12xlarge"]).warnings
    assert "for one request of 131072 tokens" in warning.text
    assert warning.text.endswith("use --max-model-len 65536")
    written = vllm(awq, *four, "--max-model-len", "65536")
    assert built(tmp_path, pool=written, instance_types=["g5.12xlarge"]).warnings == ()
    found = faults(tmp_path, pool=vllm("meta-llama/Llama-3.1-8B-Instruct"), instance_types=["g5.xlarge"])
    assert found["pool.llama.cloud.aws.instance_types"].endswith(": use --max-model-len 16384")


def test_the_gpus_of_the_machine_are_those_of_its_type(tmp_path: Path) -> None:
    awq = "hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4"
    spread = vllm(awq, "--tensor-parallel-size", "{gpus}", "--max-model-len", "16384")
    types = ["g5.12xlarge", "g5.48xlarge"]
    assert built(tmp_path, pool=spread, instance_types=types).warnings == ()
    (of_one,) = faults(tmp_path, pool=spread, instance_types=["g5.xlarge"]).values()
    assert "1 x A10G has 22 GiB" in of_one


@pytest.mark.parametrize("word", ["{gpu}", "{GPUS}", "{ gpus }", "--tensor-parallel-size={Gpu}"])
def test_what_nobody_fills_in_is_refused(tmp_path: Path, word: str) -> None:
    flags = vllm("acme/odd-8B", "--max-model-len", "8192", word)
    (told,) = faults(tmp_path, pool=flags).values()
    assert told.endswith("is filled in by nobody; write {gpus}")


def test_the_gpus_are_filled_in_within_args_alone(tmp_path: Path) -> None:
    given = vllm("acme/odd-8B", "--max-model-len", "8192")
    given["engine"] = {**given["engine"], "env": {"RANKS": "{gpus}"}}
    assert faults(tmp_path, pool=given) == {
        "pool.llama.engine.env.RANKS": "{gpus} is filled in within args alone; write a number"
    }


def test_an_unknown_maximum_is_warned_of_and_not_guessed(tmp_path: Path) -> None:
    (warning,) = built(tmp_path, pool=vllm("acme/odd-8B")).warnings
    assert warning.key == "pool.llama.engine.args"
    assert "Write --max-model-len" in warning.text
    assert built(tmp_path, pool=vllm("acme/odd-8B", "--max-model-len", "8192")).warnings == ()
    assert built(tmp_path, pool=vllm("acme/odd-8B", "--max_model_len=8k")).warnings == ()


# -- how the weights are quantised -------------------------------------------------------------------

AWQ_WORDS = "Cannot find the config file for awq"


def test_weights_that_cannot_be_what_the_flag_says_are_refused(tmp_path: Path) -> None:
    """The pair that the documentation once had: it never starts."""
    plain = vllm("meta-llama/Llama-3.1-70B-Instruct", "--quantization", "awq", "--tensor-parallel-size=4")
    found = faults(tmp_path, pool=plain, instance_types=["p5.48xlarge"])
    assert list(found) == ["pool.llama.engine.args"]
    assert AWQ_WORDS in found["pool.llama.engine.args"]


def test_a_name_that_says_nothing_is_warned_of(tmp_path: Path) -> None:
    own = vllm("/opt/weights/llama-8b", "--quantization=awq", "--max-model-len", "8192")
    texts = {w.key: w.text for w in built(tmp_path, pool=own).warnings}
    assert AWQ_WORDS in texts["pool.llama.engine.args"]


def test_a_simulated_engine_reads_no_such_flags(tmp_path: Path) -> None:
    settings = vllm("meta-llama/Llama-3.1-70B-Instruct", "--quantization", "awq")
    settings["engine"] |= {"kind": "simulated", "allow_simulated": True}
    assert built(tmp_path, pool=settings).warnings == ()


def test_a_local_pool_is_told_too(tmp_path: Path) -> None:
    pool = {"replicas": 1, **vllm("meta-llama/Llama-3.1-8B", "--quantization", "gptq")}
    with pytest.raises(ConfigError, match="Cannot find the config file for gptq"):
        build_config({"pool": {"a": pool}}, base=tmp_path)


def test_the_flags_of_the_engine_decide(tmp_path: Path) -> None:
    long = vllm("Llama-3.1-8B", "--max-model-len", "4000000")
    assert (
        "for one request of 4000000 tokens"
        in faults(tmp_path, pool=long)["pool.llama.cloud.aws.instance_types"]
    )
    greedy = vllm("Llama-3.1-8B", "--gpu-memory-utilization", "0.1")
    assert faults(tmp_path, pool=greedy)
    odd = vllm("Llama-3.1-8B", "--max-model-len", "much", "--gpu-memory-utilization", "all")
    assert built(tmp_path, pool=odd).warnings == ()


async def test_the_adapters_are_those_of_the_tables(tmp_path: Path) -> None:
    ports = connect(built(tmp_path), SystemClock())
    assert [source.name for source in ports.notices] == [
        "aws-queue",
        "aws-spot-requests",
        "aws-instance-status",
    ]
    assert [type(balancer) for balancer in ports.balancers] == [GatewayBalancer]
    await ports.close()
    regions = {"us-east-1": region(), "us-west-2": region(subnets={"us-west-2a": "s"}, notice_queue="")}
    ports = connect(built(tmp_path, regions=regions), SystemClock())
    assert [source.name for source in ports.notices] == [
        "aws-queue-us-east-1",
        "aws-spot-requests-us-east-1",
        "aws-instance-status-us-east-1",
        "aws-spot-requests-us-west-2",
        "aws-instance-status-us-west-2",
    ]
    await ports.close()
    alb = built(tmp_path, target_group="llama", pool={"drain": {"settle": 30.0}})
    ports = connect(alb, SystemClock())
    assert [type(balancer) for balancer in ports.balancers] == [AlbTargetGroup]
    await ports.close()


@pytest.mark.slow
def test_a_local_pool_does_not_load_boto3() -> None:
    code = (
        "import sys\n"
        "from cloud.clock import SystemClock\n"
        "from orchestrator.config.load import build_config\n"
        "from orchestrator.wiring.ports import connect\n"
        "import orchestrator.daemon.daemon\n"
        "connect(build_config({'pool': {'a': {'replicas': 1}}}), SystemClock())\n"
        "assert not {'boto3', 'botocore'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_pool_on_ec2_is_read_without_boto3(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from orchestrator.config.load import build_config\n"
        "aws = {'instance_types': ['p5.4xlarge'], 'target_group': 'g', 'regions': {'us-east-1': {\n"
        "    'subnets': {'us-east-1a': 's'}, 'launch_template': 'node'}}}\n"
        "pool = {'replicas': 1, 'engine': {'allow_simulated': True}, 'cloud': {'kind': 'aws', 'aws': aws},\n"
        "    'limits': {'spend_per_hour': 'unlimited'}}\n"
        f"build_config({{'pool': {{'a': pool}}}}, base={str(tmp_path)!r})\n"
        "assert not {'boto3', 'botocore'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


NODE_ROLE = "arn:aws:iam::123456789012:role/nodes/llama-node"
PARAMETER = "arn:aws:ssm:us-east-1:123456789012:parameter/llama/key"


def test_the_instance_profile_is_named_like_the_role_unless_another_is_given(tmp_path: Path) -> None:
    assert built(tmp_path).pool.cloud.aws.profile_name == ""
    assert built(tmp_path, node_role=NODE_ROLE).pool.cloud.aws.profile_name == "llama-node"
    other = built(tmp_path, node_role=NODE_ROLE, instance_profile="other").pool.cloud.aws
    assert other.profile_name == "other"


def test_secrets_stand_by_reference_and_need_a_role(tmp_path: Path) -> None:
    key = "pool.llama.cloud.aws"
    assert built(tmp_path, node_role=NODE_ROLE, engine_secrets={"A": PARAMETER}).warnings == ()
    found = faults(tmp_path, engine_secrets={"A": PARAMETER})
    assert found == {f"{key}.node_role": "is missing; nodes fetch the engine's secrets with their role"}
    with pytest.raises(ConfigError) as raised:
        built(tmp_path, engine_secrets={"A": PARAMETER, "B": PARAMETER})
    assert [problem.key for problem in raised.value.problems] == [f"{key}.node_role"], "it is said once"
    found = faults(tmp_path, node_role="llama-node", engine_secrets={"A": "hf_1234"})
    assert "the secret itself must not stand here" in found[f"{key}.engine_secrets.A"]
    assert "hf_1234" not in found[f"{key}.engine_secrets.A"]
    assert "is not the ARN of a role" in found[f"{key}.node_role"]


def test_nodes_fetch_their_keys_where_they_have_a_role(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef")
    secret.chmod(0o600)
    agents = {"listen": "127.0.0.1:9465", "secret_file": str(secret)}
    ports = connect(built(tmp_path, pool={"agents": agents}, node_role=NODE_ROLE), SystemClock())
    assert ports.agents is not None
    assert ports.agents.keys is not None
    config = built(tmp_path, pool={"agents": agents})
    assert any("nodes cannot fetch their keys" in str(problem) for problem in config.warnings)
    without = connect(config, SystemClock())
    assert without.agents is not None
    assert without.agents.keys is None


def test_only_machines_of_aws_fill_in_their_gpus(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(
        '[daemon]\nstate_dir = "state"\n[pool.p]\nreplicas = 1\nmodel = "acme/odd-8B"\n[pool.p.engine]\n'
        'kind = "vllm"\nargs = ["--tensor-parallel-size", "{gpus}"]\n[pool.p.cloud]\nkind = "local"\n'
    )
    with pytest.raises(ConfigError, match="is filled in by machines of AWS, Google Cloud, Azure only"):
        load_config(file)


@pytest.mark.parametrize(
    ("engine", "key"),
    [
        ({"env": {"HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQr"}}, "pool.llama.engine.env.HF_TOKEN"),
        ({"env": {"VLLM_API_KEY": "correct horse"}}, "pool.llama.engine.env.VLLM_API_KEY"),
        ({"env": {"WHERE": "https://u:hf_AbCdEfGhIjKlMnOpQr@x"}}, "pool.llama.engine.env.WHERE"),
        ({"args": ["--api_key=correct horse"]}, "pool.llama.engine.args"),
        ({"args": ["--hf-token", "hf_AbCdEfGhIjKlMnOpQr"]}, "pool.llama.engine.args"),
    ],
)
def test_secrets_that_would_travel_in_user_data_are_warned_of(tmp_path: Path, engine: Any, key: str) -> None:
    (warning,) = built(tmp_path, pool={"engine": {"allow_simulated": True, **engine}}).warnings
    assert warning.key == key
    assert "as cloud.aws.engine_secrets." in warning.text
    assert "hf_" not in warning.text
    assert "horse" not in warning.text


def test_switches_that_are_named_like_secrets_are_none(tmp_path: Path) -> None:
    env = {
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "TOKENIZERS_PARALLELISM": "false-or-true",
        "HF_TOKEN_PATH": "/opt/hf",
    }
    assert built(tmp_path, pool={"engine": {"allow_simulated": True, "env": env}}).warnings == ()


def test_llamacpp_lets_go_first_so_no_balancer_of_aws_goes_before_it(tmp_path: Path) -> None:
    llama = {"model": "org/llama-GGUF", "engine": {"kind": "llamacpp"}}
    found = faults(tmp_path, pool=llama, target_group="llama")
    assert "llama.cpp closes those after 5 s" in found["pool.llama.cloud.aws.target_group"]
    assert built(tmp_path, pool=llama).pool.engine.kind == "llamacpp"


def warned(tmp_path: Path, **settings: Any) -> dict[str, str]:
    return {problem.key: problem.text for problem in built(tmp_path, **settings).warnings}


@pytest.mark.parametrize(
    ("kind", "args", "words"),
    [
        ("p4d.24xlarge", ["--tensor-parallel-size", "4"], "uses 4 of the 8 GPUs of p4d.24xlarge"),
        ("p4d.24xlarge", ["-tp", "2", "-pp", "2"], "uses 4 of the 8"),
        ("g5.12xlarge", [], "uses 1 of the 4"),
        ("p4d.24xlarge", ["--tensor-parallel-size={gpus}"], ""),
        ("p4d.24xlarge", ["--tensor-parallel-size", "4", "--data-parallel-size", "2"], ""),
        ("p4d.24xlarge", ["-tp", "4", "-dp", "2"], ""),
        ("g6.xlarge", [], ""),
    ],
)
def test_gpus_that_are_paid_for_and_idle_are_told_of(
    tmp_path: Path, kind: str, args: list[str], words: str
) -> None:
    engine = {"kind": "vllm", "args": ["--max-model-len", "4096", *args]}
    found = warned(tmp_path, pool={"engine": engine, "model": "meta-llama/Llama-3.1-8B-Instruct"},
                   instance_types=[kind])  # fmt: skip
    assert words in found.get("pool.llama.engine.args", "")
    assert bool(words) == ("pool.llama.engine.args" in found)


def test_a_cap_that_is_no_price_of_such_machines_is_told_of(tmp_path: Path) -> None:
    key = "pool.llama.limits.spend_per_hour"

    def cap(dollars: str, **pool: Any) -> dict[str, Any]:
        return {"replicas": 10, "limits": {"spend_per_hour": dollars}, **pool}

    found = warned(tmp_path, pool=cap("0.50"))
    assert found[key].startswith("$0.50 an hour is less than 10 nodes cost anywhere")
    assert key not in warned(tmp_path, pool=cap("40.00"))
    assert key not in warned(tmp_path, pool=cap("0.50", units={"p5.4xlarge": 10}))
    unknown = warned(tmp_path, pool=cap("0.50"), instance_types=["c7i.xlarge"])
    assert key not in unknown  # machines without a GPU may be as cheap as that


def test_what_a_target_group_makes_of_units_is_said(tmp_path: Path) -> None:
    kinds = ["g6.xlarge", "g6.12xlarge"]
    group = {"target_group": "arn:aws:elasticloadbalancing:us-east-1:1:targetgroup/a/1"}
    for aws, said in ((group, True), ({}, False)):
        config = built(tmp_path, pool={"units": {"g6.12xlarge": 4}}, instance_types=kinds, **aws)
        found = meaning(config, "llama", ())["sentences"]
        assert any("needs the algorithm least_outstanding_requests" in text for text in found) is said


HELD = {"zone": "us-east-1a", "instance_type": "p5.4xlarge", "price": "6.50"}


def reserved(**changes: Any) -> dict[str, Any]:
    held = {key: value for key, value in {**HELD, **changes}.items() if value is not None}
    return {"us-east-1": region(reservations={"cr-0123456789abcdef0": held})}


def test_a_reservation_is_taken_as_it_stands(tmp_path: Path) -> None:
    (place,) = places(built(tmp_path, regions=reserved(block=True)).pool.cloud.aws)
    (held,) = place.reservations
    assert (held.id, held.zone, held.instance_type) == ("cr-0123456789abcdef0", "us-east-1a", "p5.4xlarge")
    assert (held.price, held.block) == (6.5, True)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"zone": "us-east-1b"}, "zone"),
        ({"zone": None}, "zone"),
        ({"instance_type": "p5.48xlarge"}, "instance_type"),
        ({"price": None}, "price"),
        ({"price": "0"}, "price"),
    ],
)
def test_a_reservation_that_cannot_be_used_is_refused(
    tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    found = faults(tmp_path, regions=reserved(**changes))
    assert [where.rpartition(".")[2] for where in found] == [key]


def test_a_reservation_is_named_by_its_id(tmp_path: Path) -> None:
    assert faults(tmp_path, regions={"us-east-1": region(reservations={"mine": HELD})})
