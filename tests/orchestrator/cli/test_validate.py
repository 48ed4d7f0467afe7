"""`orchestrator validate` refuses what costs money for nothing or could never work, and says why."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., tuple[int, str, str]]
Validate = Callable[..., tuple[int, str, str]]

AWS = """\
[pool.llama]
replicas = 10
model = "meta-llama/Llama-3.1-8B-Instruct"
limits.spend_per_hour = "unlimited"
[pool.llama.engine]
kind = "vllm"
[pool.llama.cloud]
kind = "aws"
[pool.llama.cloud.aws]
instance_types = ["p5.4xlarge"]
[pool.llama.cloud.aws.regions.us-east-1]
subnets = { us-east-1a = "subnet-1" }
launch_template = "node"
on_demand_prices = { "p5.4xlarge" = "6.88" }
notice_queue = "https://sqs.us-east-1.amazonaws.com/123456789012/notices"
"""
LOCAL = "[pool.llama]\nreplicas = 10\n"


@pytest.fixture
def validate(run: Run, tmp_path: Path) -> Validate:
    """Validate a file with this text; `{file}` is its path in what is expected."""

    def call(text: str, *more: str) -> tuple[int, str, str]:
        file = tmp_path / "pool.toml"
        file.write_text(text, encoding="utf-8")
        code, out, err = run("validate", str(file), *more)
        return code, out, err.replace(str(file), "pool.toml")

    return call


def only_fault(done: tuple[int, str, str]) -> str:
    """The one fault of a file that is refused."""
    code, out, err = done
    assert (code, out, err.count("\n")) == (1, "", 2), done
    assert err.endswith("1 error in pool.toml\n")
    return err.splitlines()[0]


def test_the_file_that_the_others_are_made_of_is_good(validate: Validate) -> None:
    code, _, err = validate(AWS)
    assert (code, err) == (0, "")


# -- an engine that only pretends, on machines that are paid for ---------------------------------------


def test_a_pool_on_two_clouds_says_where_its_machines_come_from(validate: Validate) -> None:
    gcp = """\
[pool.llama.cloud.gcp]
project = "ml-serving"
instance_types = ["a3-highgpu-1g"]
image = "projects/ml-serving/global/images/family/vllm-node"
[pool.llama.cloud.gcp.regions.us-central1]
zones = ["us-central1-a"]
"""
    code, out, err = validate(AWS.replace('kind = "aws"', 'kind = ["aws", "gcp"]') + gcp)
    assert code == 0, err
    said = "Machines come from AWS (us-east-1) and Google Cloud (us-central1); 120 s of notice"
    assert said in out
    assert said not in validate(AWS)[1]


def test_a_simulated_engine_on_ec2_is_refused(validate: Validate) -> None:
    fault = only_fault(validate(AWS.replace('kind = "vllm"', 'kind = "simulated"')))
    assert fault.startswith("pool.toml:6: pool.llama.engine.kind: ")
    assert 'write kind = "vllm"' in fault
    assert "allow_simulated = true" in fault


def test_it_is_not_there_by_default_either(validate: Validate) -> None:
    assert "engine.kind: " in only_fault(validate(AWS.replace('kind = "vllm"\n', "")))


def test_a_simulated_engine_on_ec2_may_be_meant(validate: Validate) -> None:
    code, _, err = validate(AWS.replace('kind = "vllm"', 'kind = "simulated"\nallow_simulated = true'))
    assert (code, err) == (0, "")


# -- listeners ---------------------------------------------------------------------------------------


def listeners(daemon: str, gateway: str, more: str = "") -> str:
    return f'[daemon]\nlisten = "{daemon}"\n{LOCAL}[pool.llama.gateway]\nlisten = "{gateway}"\n{more}'


@pytest.mark.parametrize(
    ("daemon", "gateway"),
    [
        ("127.0.0.1:9000", "127.0.0.1:9000"),
        ("0.0.0.0:9000", "127.0.0.1:9000"),
        ("127.0.0.1:9000", "0.0.0.0:9000"),
        ("localhost:9000", "127.0.0.1:9000"),
        ("localhost:9000", "[::1]:9000"),
        ("localhost:9000", "LOCALHOST:9000"),
        ("[::]:9000", "[::1]:9000"),
        ("[::1]:9000", "[0:0:0:0:0:0:0:1]:9000"),
        ("127.0.0.1:9000", "[::]:9000"),
        ("0.0.0.0:9000", "[::]:9000"),
        ("control.internal:9000", "0.0.0.0:9000"),
    ],
)
def test_two_listeners_on_one_port(daemon: str, gateway: str, validate: Validate) -> None:
    fault = only_fault(validate(listeners(daemon, gateway)))
    assert fault == (
        f"pool.toml:6: pool.llama.gateway.listen: {gateway.lower()} cannot be opened beside {daemon} of "
        "daemon.listen; write another port"
    )


@pytest.mark.parametrize(
    ("daemon", "gateway"),
    [
        ("127.0.0.1:9000", "127.0.0.1:9001"),
        ("127.0.0.1:9000", "127.0.0.2:9000"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("[::]:9000", "127.0.0.1:9000"),
        ("[::]:9000", "0.0.0.0:9000"),
        ("off", "127.0.0.1:9477"),
    ],
)
def test_listeners_that_do_not_meet(daemon: str, gateway: str, validate: Validate) -> None:
    assert validate(listeners(daemon, gateway))[0] == 0


def test_the_agents_listener_counts_too(validate: Validate, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("0123456789abcdef")
    (tmp_path / "secret").chmod(0o600)
    agents = '[pool.llama.agents]\nlisten = "0.0.0.0:8000"\nurl = "http://c:8000"\nsecret_file = "secret"\n'
    fault = only_fault(validate(listeners("off", "127.0.0.1:8000", agents)))
    assert fault.startswith("pool.toml:8: pool.llama.agents.listen: 0.0.0.0:8000 cannot be opened beside")


def test_a_gateway_that_gets_no_requests_takes_no_port(validate: Validate) -> None:
    group = AWS.replace('["p5.4xlarge"]', '["p5.4xlarge"]\ntarget_group = "llama"')
    assert validate('[daemon]\nlisten = "127.0.0.1:8000"\n' + group)[0] == 0


@pytest.mark.parametrize(
    ("text", "key", "beside"),
    [
        ('[daemon]\nsocket = "a.sock"\n[pool.a]\nreplicas = 1\ngateway.socket = "a.sock"\n',
         "pool.a.gateway.socket", "daemon.socket"),
        ('[daemon]\nsocket = "a.sock"\n[pool.a]\nreplicas = 1\ngateway.socket = "a-read.sock"\n',
         "pool.a.gateway.socket", "daemon.readers"),
        ('[pool.a]\nreplicas = 1\ngateway.socket = "a"\ncloud.socket = "./a"\n',
         "pool.a.cloud.socket", "pool.a.gateway.socket"),
        ('[pool.a]\nreplicas = 1\ngateway.socket = "a"\ngateway.targets_file = "a"\n',
         "pool.a.gateway.targets_file", "pool.a.gateway.socket"),
    ],
)  # fmt: skip
def test_one_path_for_two_purposes(text: str, key: str, beside: str, validate: Validate) -> None:
    fault = only_fault(validate(text))
    assert f": {key}: " in fault
    assert fault.endswith(f"is the path of {beside} too; write another path")


def test_one_path_by_two_names(validate: Validate, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").symlink_to("here")
    text = '[pool.a]\nreplicas = 1\ngateway.socket = "here/a"\ncloud.socket = "there/a"\n'
    assert "pool.a.cloud.socket" in only_fault(validate(text))


def test_a_gateway_on_every_address_takes_the_port_of_local_engines(validate: Validate) -> None:
    """The machines of a local cloud are addresses of this host, with the engine's port on each."""
    fault = only_fault(validate(f'{LOCAL}gateway.listen = "0.0.0.0:8000"\n'))
    assert fault.startswith("pool.toml:3: pool.llama.gateway.listen: 0.0.0.0:8000 ")
    assert "local cloud" in fault
    assert validate(f'{LOCAL}gateway.listen = "0.0.0.0:8080"\n')[0] == 0


# -- money -------------------------------------------------------------------------------------------


def test_a_cap_below_what_the_floor_costs(validate: Validate) -> None:
    fault = only_fault(validate(AWS.replace('"unlimited"', "20")))
    assert fault == (
        "pool.toml:4: pool.llama.limits.spend_per_hour: $20.00 an hour is less than the on-demand floor of "
        "3 nodes costs, $20.64 at $6.88 each; raise the cap to what the pool may cost, lower the floor, or "
        'write "unlimited"'
    )  # fmt: skip
    assert validate(AWS.replace('"unlimited"', "21"))[0] == 0


def test_a_cap_of_just_what_the_floor_costs(validate: Validate) -> None:
    """Three times 1.10 is 3.3000000000000003 in binary."""
    capped = AWS.replace('"unlimited"', "3.3")
    assert validate(capped.replace('"6.88"', '"1.10"'))[0] == 0


def test_a_price_that_the_file_does_not_say_is_not_guessed(validate: Validate) -> None:
    capped = AWS.replace('"unlimited"', "1")
    assert validate(capped.replace('on_demand_prices = { "p5.4xlarge" = "6.88" }\n', ""))[0] == 0
    assert validate(capped.replace('["p5.4xlarge"]', '["p5.4xlarge", "g6e.12xlarge"]'))[0] == 0


def test_the_local_cloud_has_prices_too(validate: Validate, tmp_path: Path) -> None:
    fault = only_fault(validate(f'{LOCAL}limits.spend_per_hour = "0.50"\n'))
    assert fault.startswith("pool.toml:3: pool.llama.limits.spend_per_hour: $0.50 an hour is less than")
    assert "$9.00" in fault
    market = tmp_path / "market.json"
    zone = {"zone": "z-1a", "spot_price": 0.01, "on_demand_price": 0.1}
    market.write_text(json.dumps({"state_dir": "cloud", "market": {"source": "constant", "zones": [zone]}}))
    code, out, _ = validate(f'{LOCAL}limits.spend_per_hour = "0.50"\n', "--market", str(market))
    assert (code, "at most $0.50 an hour" in out) == (0, True)


def test_what_it_may_cost_is_said_where_prices_are_known(validate: Validate) -> None:
    assert "at most 12 live at once, for at most $36.00 an hour" in validate(LOCAL)[1]
    assert "at most 12 live at once, for at most $82.56 an hour" in validate(AWS)[1]
    unpriced = AWS.replace('on_demand_prices = { "p5.4xlarge" = "6.88" }\n', "")
    assert "at most 12 live at once, without a spend cap" in validate(unpriced)[1]
    view = json.loads(validate(LOCAL, "-o", "json")[1])
    assert view["pools"][0]["most_usd_per_hour"] == pytest.approx(36.0)


UNCAPPED = AWS.replace('limits.spend_per_hour = "unlimited"\n', "")


def test_what_is_paid_for_needs_a_cap_and_the_figure_is_proposed(validate: Validate) -> None:
    """Ten replicas, a surge of two, and seven on spot that are taken and bill on, at 6.88 each."""
    assert only_fault(validate(UNCAPPED)) == (
        "pool.toml:1: pool.llama.limits.spend_per_hour: is missing: a pool on AWS does not start without a "
        'cap; write spend_per_hour = "130.72" (what replicas, standby and surge may cost at most while spot '
        'nodes that are taken bill on), or spend_per_hour = "unlimited"'
    )
    proposed = UNCAPPED.replace("replicas = 10\n", 'replicas = 10\nlimits.spend_per_hour = "130.72"\n')
    code, out, err = validate(proposed)
    assert (code, err) == (0, "")
    assert "for at most $82.56 an hour" in out


def test_without_prices_no_figure_is_made_up(validate: Validate) -> None:
    fault = only_fault(validate(UNCAPPED.replace('on_demand_prices = { "p5.4xlarge" = "6.88" }\n', "")))
    assert "write the most US dollars that it may cost an hour (`orchestrator validate --prices` " in fault
    assert '= "unlimited"' in fault
    assert "$" not in fault


def test_the_missing_cap_is_named_beside_all_other_faults(validate: Validate) -> None:
    code, _, err = validate(UNCAPPED.replace("replicas = 10", "replicas = 10\non_demand_floor = 11"))
    assert code == 1
    assert "pool.llama.on_demand_floor: " in err
    assert "pool.llama.limits.spend_per_hour: is missing" in err


def test_local_machines_cost_nothing_and_need_no_cap(validate: Validate) -> None:
    assert validate(LOCAL)[0] == 0


@pytest.mark.parametrize("value", ["0", '"none"', '"Unlimited"', "-3", "true"])
def test_a_cap_is_an_amount_or_the_word(value: str, validate: Validate) -> None:
    fault = only_fault(validate(AWS.replace('"unlimited"', value)))
    assert fault.startswith("pool.toml:4: pool.llama.limits.spend_per_hour: ")


def test_the_usual_cost_stands_beside_the_most(validate: Validate) -> None:
    """Without a price of spot it is counted as on-demand, and that is said."""
    out = validate(AWS)[1]
    assert "costs about $68.80 an hour, with spot counted at the price of on-demand." in out
    capped = validate(AWS.replace('"unlimited"', "70"))[1]
    assert "for at most $70.00 an hour" in capped
    assert "without the cap it could come to $82.56" in capped
    view = json.loads(validate(AWS, "-o", "json")[1])["pools"][0]
    assert (view["usual_usd_per_hour"], view["proposed_cap_usd_per_hour"]) == (pytest.approx(68.8), 130.72)


def test_a_cap_below_the_usual_cost_is_told(validate: Validate) -> None:
    """Seven on spot at 0.9 and three on demand at 3: the cap allows the floor and not the rest."""
    out = validate(f"{LOCAL}limits.spend_per_hour = 12\n")[1]
    assert "it costs about $15.30 an hour, more than the cap of $12.00: nodes will be missing." in out


def test_prices_of_a_local_cloud_are_not_asked_for(validate: Validate) -> None:
    code, _, err = validate(LOCAL, "--prices")
    assert (code, "leave --prices out" in err) == (1, True)


@pytest.mark.slow
def test_the_price_list_is_asked_for_a_figure(validate: Validate, aws_shim: Any) -> None:
    aws_shim.order("set", on_demand_prices={"p5.4xlarge": 6.88}, spot_prices={"p5.4xlarge": 2.0})
    there = f'endpoint = "{aws_shim.url}"\ninstance_types ='
    unpriced = UNCAPPED.replace('on_demand_prices = { "p5.4xlarge" = "6.88" }\n', "")
    unpriced = unpriced.replace("instance_types =", there)
    assert 'write spend_per_hour = "96.56"' in only_fault(validate(unpriced, "--prices"))
    capped = unpriced.replace("replicas = 10", "replicas = 10\nlimits.spend_per_hour = 30")
    code, out, err = validate(capped, "--prices")
    assert (code, err) == (0, "")
    assert "it costs about $34.64 an hour, more than the cap of $30.00: nodes will be missing." in out
    low = unpriced.replace("replicas = 10", "replicas = 10\nlimits.spend_per_hour = 20")
    assert "less than the on-demand floor of 3 nodes costs, $20.64" in only_fault(validate(low, "--prices"))
    unread = capped.replace('model = "meta-llama/Llama-3.1-8B-Instruct"\n', "")
    assert "llama.model: is missing" in only_fault(validate(unread, "--prices"))


@pytest.mark.slow
def test_a_price_list_that_does_not_answer_is_no_sum(validate: Validate, aws_shim: Any) -> None:
    aws_shim.order("set", pricing=False)
    there = f'endpoint = "{aws_shim.url}"\ninstance_types ='
    unpriced = AWS.replace('on_demand_prices = { "p5.4xlarge" = "6.88" }\n', "")
    code, out, err = validate(unpriced.replace("instance_types =", there), "--prices")
    assert (code, out) == (1, "")
    assert "the prices cannot be read: no on-demand price of p5.4xlarge in us-east-1: " in err
    assert "write on_demand_prices" in err


@pytest.mark.slow
def test_without_credentials_it_says_so(validate: Validate, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    unpriced = AWS.replace('on_demand_prices = { "p5.4xlarge" = "6.88" }\n', "")
    code, _, err = validate(unpriced, "--prices")
    assert code == 1
    assert "credentials" in err


# -- instance types ----------------------------------------------------------------------------------


def test_an_instance_type_that_does_not_exist(validate: Validate) -> None:
    fault = only_fault(validate(AWS.replace('["p5.4xlarge"]', '["p5.4xlarge", "g6.xlrge"]')))
    assert fault.startswith(
        'pool.toml:10: pool.llama.cloud.aws.instance_types: "g6.xlrge" is not an instance type of EC2; did '
        "you mean g6.xlarge?"
    )
    shouted = only_fault(validate(AWS.replace('["p5.4xlarge"]', '["G6.XLARGE"]')))
    assert '"G6.XLARGE" is not an instance type of EC2; did you mean g6.xlarge?' in shouted


def test_one_that_resembles_nothing(validate: Validate) -> None:
    fault = only_fault(validate(AWS.replace('["p5.4xlarge"]', '["p5.4xlarge", "a big one"]')))
    assert "allow_unknown_types = true" in fault
    assert "did you mean" not in fault


def test_one_that_is_newer_than_this_version_may_be_used(validate: Validate) -> None:
    code, _, err = validate(
        AWS.replace('["p5.4xlarge"]', '["p5.4xlarge", "p9.2xlarge"]\nallow_unknown_types = true')
    )
    assert code == 0
    assert "p9.2xlarge is not in the table of instance types" in err


def test_the_table_of_types_holds_all_that_boto_knows() -> None:
    """A newer boto3 needs a newer table: run tools/instance_types.py."""
    from cloud.aws.catalogue import instance_types

    spec = find_spec("botocore")
    assert spec is not None
    assert spec.origin is not None
    versions = sorted((Path(spec.origin).parent / "data" / "ec2").iterdir())
    model: dict[str, Any] = json.loads(gzip.decompress((versions[-1] / "service-2.json.gz").read_bytes()))
    assert set(model["shapes"]["InstanceType"]["enum"]) <= instance_types()


# -- draining behind a load balancer -----------------------------------------------------------------


def test_the_time_to_settle_fits_the_load_balancer_by_itself(
    validate: Validate, run: Run, tmp_path: Path
) -> None:
    group = AWS.replace('["p5.4xlarge"]', '["p5.4xlarge"]\ntarget_group = "llama"')
    code, out, err = validate(group)
    assert (code, err) == (0, "")
    assert "target group llama" in out
    assert "127.0.0.1:8000" not in out
    shown = run("config", "show", str(tmp_path / "pool.toml"), "--effective")[1]
    assert 'settle = "25s"' in shown
    validate(AWS)
    assert 'settle = "1s"' in run("config", "show", str(tmp_path / "pool.toml"), "--effective")[1]


def test_a_shorter_one_that_is_written_is_refused(validate: Validate) -> None:
    group = AWS.replace('["p5.4xlarge"]', '["p5.4xlarge"]\ntarget_group = "llama"')
    fault = only_fault(
        validate(group.replace("[pool.llama.engine]", 'drain.settle = "1s"\n[pool.llama.engine]'))
    )
    assert "drain.settle: 1s is too short with a target group" in fault


# -- times and numbers that contradict each other ------------------------------------------------------


def test_a_node_is_not_replaced_before_it_counts_as_unhealthy(validate: Validate) -> None:
    fault = only_fault(validate(f'{LOCAL}health = {{ unhealthy_after = "60s", replace_after = "40s" }}\n'))
    assert fault.startswith(
        "pool.toml:3: pool.llama.health.replace_after: 40s is shorter than unhealthy_after"
    )


def test_more_hot_standbys_than_replicas_are_doubtful(validate: Validate) -> None:
    code, _, err = validate("[pool.llama]\nreplicas = 3\nstandby.hot = 50\n")
    assert code == 0
    assert err.startswith("warning: pool.toml:3: pool.llama.standby.hot: 50 ")


# -- advice --------------------------------------------------------------------------------------------


def test_advice_stands_behind_what_the_file_means_and_is_no_error(validate: Validate) -> None:
    code, out, err = validate(AWS)
    assert (code, err) == (0, "")
    *_, advice, then = out.splitlines()
    assert "pool.toml:1: pool.llama: nothing stands in for it" in advice
    assert advice.startswith("advice: ")
    assert then.startswith("Next: ")
    _, out, _ = validate(AWS, "-o", "json")
    assert [said["key"] for said in json.loads(out)["advice"]] == ["pool.llama"]


def test_advice_that_is_accepted_is_not_given(validate: Validate) -> None:
    code, out, _ = validate(AWS.replace("replicas = 10", 'replicas = 10\naccepted = ["no-fallback"]'))
    assert code == 0
    assert "advice: " not in out


def test_nodes_that_ec2_could_not_set_up_are_warned_of(validate: Validate) -> None:
    """What sets them up has to fit 16 KiB compressed, which nobody sees in a file."""
    said = "".join(sha256(str(i).encode()).hexdigest() for i in range(400))
    large = AWS.replace('kind = "vllm"', f'kind = "vllm"\nenv = {{ LARGE = "{said}" }}')
    warning = "pool.llama.engine: the user-data of pool llama has"
    code, _, err = validate(large)
    assert (code, warning in err) == (0, True), err
    assert "`orchestrator aws bootstrap` fails" in err
    view = json.loads(validate(large, "--output", "json")[1])
    assert any("the user-data of pool llama has" in found["text"] for found in view["warnings"])
    assert warning not in validate(AWS)[2]
