"""Advice that is given where it holds, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.config.checks import advice as checks
from orchestrator.config.load import load_config

AWS = """\
[pool.chat]
replicas = 4
model = "{model}"
limits.spend_per_hour = "unlimited"
{more}
[pool.chat.engine]
kind = "vllm"
args = {args}
[pool.chat.cloud]
kind = "aws"
[pool.chat.cloud.aws]
instance_types = ["{kind}"]
{aws}
[pool.chat.cloud.aws.regions.us-east-1]
subnets = {{ us-east-1a = "subnet-1" }}
launch_template = "node"
"""
PROVIDER = """
[provider.api]
kind = "openai"
url = "http://127.0.0.1:9"
[provider.api.price.m]
input = "1"
output = "1"
most_output = 100
context = 1000
"""
ROUTE = """
[[route]]
models = ["assistant"]
to = [{ pool = "chat" }, { provider = "api", model = "m" }]
"""
SMALL, LARGE = "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-70B-Instruct"


def advice(tmp_path: Path, text: str) -> dict[str, str]:
    """What is said, by the key that it is said of."""
    file = tmp_path / "pool.toml"
    file.write_text(text, encoding="utf-8")
    config = load_config(file)
    return {problem.key: problem.text for problem in config.advice()}


def aws(
    model: str = SMALL, kind: str = "p5.4xlarge", args: str = "[]", more: str = "", cloud: str = ""
) -> str:
    return AWS.format(model=model, kind=kind, args=args, more=more, aws=cloud)


# -- weights that would fit twice ---------------------------------------------------------------------


def test_weights_in_16_bits_that_would_fit_twice(tmp_path: Path) -> None:
    text = aws(kind="g6.xlarge", args='["--max-model-len", "8192"]') + PROVIDER + ROUTE
    assert advice(tmp_path, text) == {
        "pool.chat.model": "meta-llama/Llama-3.1-8B-Instruct in 16 bits takes 15.0 GiB of the 22 GiB of 1 x "
        "L4 (g6.xlarge); in 4 bits (AWQ or GPTQ) 5.3 GiB: it would fit twice, or leave 4.0 times the memory "
        'for requests; name such weights (where that is meant: accepted = ["16-bit"] in [pool.chat])'
    }


@pytest.mark.parametrize(
    ("model", "kind", "args"),
    [
        (SMALL, "p5.4xlarge", "[]"),  # fits twice as it is
        (f"{SMALL}-AWQ-INT4", "g6.xlarge", '["--max-model-len", "8192"]'),
        ("acme/unknown", "g6.xlarge", '["--max-model-len", "8192"]'),
        (LARGE, "p5.48xlarge", '["--tensor-parallel-size", "4", "--max-model-len", "8192"]'),
    ],
)
def test_weights_that_need_no_advice(tmp_path: Path, model: str, kind: str, args: str) -> None:
    assert advice(tmp_path, aws(model, kind, args) + PROVIDER + ROUTE) == {}


@pytest.mark.parametrize(
    ("model", "kind", "said"),
    [
        (
            "acme/some-14B",
            "g6e.xlarge",
            "in 8 bits (FP8) 13.0 GiB: it would fit twice, or on a g5.xlarge (1 x A10G), or",
        ),
        ("acme/some-32B", "p5.4xlarge", "in 4 bits (AWQ or GPTQ) 16.4 GiB: it would fit twice, or on a g7."),
        (
            SMALL,
            "g6.xlarge",
            "GiB: it would fit twice, or leave 4.0 times",
        ),  # nothing smaller computes bfloat16
    ],
)
def test_the_smaller_machine_is_named(tmp_path: Path, model: str, kind: str, said: str) -> None:
    text = aws(model, kind, '["--max-model-len", "8192"]') + PROVIDER + ROUTE
    assert said in advice(tmp_path, text)["pool.chat.model"]


def test_a_model_that_embeds_is_left_as_it_is(tmp_path: Path) -> None:
    text = aws(kind="g6.xlarge", args='["--max-model-len", "8192"]', more='accepted = ["no-fallback"]')
    assert set(advice(tmp_path, text)) == {"pool.chat.model"}
    assert advice(tmp_path, text.replace('kind = "vllm"', 'kind = "vllm"\ntask = "embed"')) == {}


def test_weights_that_the_engine_can_quantise_itself(tmp_path: Path) -> None:
    args = '["--tensor-parallel-size", "4", "--max-model-len", "4096"]'
    text = advice(tmp_path, aws("acme/some-120B", "p5.48xlarge", args) + PROVIDER + ROUTE)["pool.chat.model"]
    assert "224 GiB" not in text
    assert "in 8 bits (FP8) 111.8 GiB" in text
    assert "or write --quantization fp8" in text


# -- llama.cpp and Ollama for several users ------------------------------------------------------------


def local(args: str, gateway: str = "", more: str = "") -> str:
    return (
        f"[pool.chat]\nreplicas = 1\nmodel = 'org/llama-GGUF:Q4_K_M'\n{more}\n"
        f"[pool.chat.engine]\nkind = 'llamacpp'\nargs = {args}\n{gateway}"
    )


@pytest.mark.parametrize(
    ("args", "slots"),
    [
        ("[]", "4 requests"),
        ("['--parallel', '-1']", "4 requests"),
        ("['--parallel', '0']", "4 requests"),
        ("['--parallel', '1']", "1 request"),
        ("['-np', '16']", "16 requests"),
    ],
)
def test_llamacpp_for_more_than_its_slots(tmp_path: Path, args: str, slots: str) -> None:
    text = advice(tmp_path, local(args))["pool.chat.engine.kind"]
    assert f"llama.cpp answers {slots} at once" in text
    assert "sends a node up to 512 (gateway.max_in_flight)" in text
    assert "vLLM, which computes 256 at once" in text


@pytest.mark.parametrize(
    ("args", "bound"),
    [("[]", 4), ("['--parallel', '16']", 16), ("['-np', '16']", 7), ("['--parallel=600']", 512)],
)
def test_llamacpp_behind_a_gateway_that_knows_its_slots(tmp_path: Path, args: str, bound: int) -> None:
    assert advice(tmp_path, local(args, f"[pool.chat.gateway]\nmax_in_flight = {bound}\n")) == {}


def test_llamacpp_that_embeds_has_no_slots_to_speak_of(tmp_path: Path) -> None:
    assert advice(tmp_path, local("[]") + "task = 'embed'\n") == {}


OLLAMA = """
[[route]]
models = ["assistant"]
to = [{ provider = "box", model = "llama3" }]
[provider.box]
kind = "openai"
url = "http://127.0.0.1:%s/v1"
%s
[provider.box.price.llama3]
input = "0"
output = "0"
"""


@pytest.mark.parametrize(
    ("port", "more", "said"), [("11434", "", True), ("11434", "in_flight = 4", False), ("8000", "", False)]
)
def test_ollama_is_known_by_its_port(tmp_path: Path, port: str, more: str, said: bool) -> None:
    found = advice(tmp_path, OLLAMA % (port, more))
    assert bool(found) is said
    if said:
        assert "would be sent 64; write in_flight = 1" in found["provider.box.in_flight"]


# -- no fallback ---------------------------------------------------------------------------------------


def test_a_pool_that_nothing_stands_in_for(tmp_path: Path) -> None:
    text = advice(tmp_path, aws())["pool.chat"]
    assert "when spot is taken and on-demand is refused as well, 2 of 4 nodes are left to serve" in text
    assert f'models = ["{SMALL}"]' in text
    assert 'to = [{ pool = "chat" }, ...]' in text


def test_without_a_floor_nobody_is_left(tmp_path: Path) -> None:
    text = advice(tmp_path, aws(more="on_demand_floor = 0"))["pool.chat"]
    assert "refused as well, requests get 503 after 1s" in text


def test_a_pool_that_embeds_is_told_of_another_pool(tmp_path: Path) -> None:
    found = advice(tmp_path, aws().replace('kind = "vllm"', 'kind = "vllm"\ntask = "embed"'))
    assert "another pool of the same model" in found["pool.chat"]
    assert "provider" not in found["pool.chat"]


def test_a_route_to_the_pool_alone_is_no_fallback(tmp_path: Path) -> None:
    route = '[[route]]\nmodels = ["assistant"]\nto = [{ pool = "chat" }]\n'
    assert 'models = ["assistant"]' in advice(tmp_path, aws() + route)["pool.chat"]


@pytest.mark.parametrize(
    ("more", "cloud"),
    [("on_demand_floor = 4", ""), ("", 'target_group = "chat"')],
    ids=["all on demand", "the requests are a balancer's"],
)
def test_pools_for_which_a_fallback_says_nothing(tmp_path: Path, more: str, cloud: str) -> None:
    assert advice(tmp_path, aws(more=more, cloud=cloud)) == {}


def test_a_route_with_a_provider_or_another_pool_is_one(tmp_path: Path) -> None:
    assert advice(tmp_path, aws() + PROVIDER + ROUTE) == {}
    other = aws().replace("pool.chat", "pool.spare").replace("subnet-1", "subnet-2")
    other = other.replace(f'model = "{SMALL}"', 'model = "acme/tiny-1B"')
    route = '[[route]]\nmodels = ["assistant"]\nto = [{ pool = "chat" }, { pool = "spare" }]\n'
    assert advice(tmp_path, aws() + other + route) == {}


def test_a_pool_that_nobody_bills_for_needs_none(tmp_path: Path) -> None:
    assert advice(tmp_path, "[pool.chat]\nreplicas = 3\n") == {}


# -- what is meant as it is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accepted", "left"),
    [
        ("[]", {"pool.chat", "pool.chat.model"}),
        ('["16-bit"]', {"pool.chat"}),
        ('["no-fallback"]', {"pool.chat.model"}),
        ('["no-fallback", "16-bit", "slots", "utilisation"]', set()),
    ],
)
def test_what_is_accepted_is_not_said_again(tmp_path: Path, accepted: str, left: set[str]) -> None:
    text = aws(kind="g6.xlarge", args='["--max-model-len", "8192"]', more=f"accepted = {accepted}")
    assert set(advice(tmp_path, text)) == left
    assert advice(tmp_path, local("[]", more="accepted = ['slots']")) == {}


def test_the_first_machine_on_which_weights_would_fit_twice_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus, split = SimpleNamespace(kind="GPU", memory=80.0), SimpleNamespace(gpus=1)
    kinds = [(kind, Need(), gpus, split, 0.9) for kind in ("none", "first", "second")]
    packed = SimpleNamespace(bits=4, before=60.0, after=20.0, methods="AWQ", gain=2.0)
    left = [None, packed, packed]
    monkeypatch.setattr(checks, "machines", lambda _: kinds)
    monkeypatch.setattr(checks, "pack", lambda *_: left.pop(0))
    monkeypatch.setattr(checks, "_smaller", lambda *_: "")
    pool: Any = SimpleNamespace(model="m", engine=SimpleNamespace(task="generate"))
    [(where, text)] = checks._would_fit_twice("chat", pool)
    assert where == ("pool", "chat", "model")
    assert "(first)" in text


@dataclass(frozen=True)
class Need:
    """What weights need, as far as it is read."""

    bits: int = 16
    form: Any = None
