"""The [[pool.NAME.balancer]] tables: what they need, may not share, and become."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cloud.balancers.envoy import EnvoyCluster
from cloud.balancers.examples import EXAMPLES, Place, example
from cloud.balancers.gateway import GatewayBalancer
from cloud.balancers.haproxy import HaproxyBackend
from cloud.balancers.kinds import KINDS
from cloud.balancers.nginx import PROPAGATION
from cloud.balancers.proof import BALANCERS
from cloud.clock import SystemClock
from orchestrator.config.checks.listeners import takes_requests
from orchestrator.config.load import ConfigError, build_config, load_config
from orchestrator.config.tables.balancer import NGINX_SETTLES, BalancerKind
from orchestrator.wiring.ports import connect

HAPROXY = {"kind": "haproxy", "socket": "ha.sock"}


def built(tmp_path: Path, *tables: dict[str, Any], **others: list[dict[str, Any]]) -> Any:
    pools = {"p": {"replicas": 2, "balancer": list(tables)}}
    pools |= {name: {"replicas": 2, "balancer": found} for name, found in others.items()}
    return build_config({"daemon": {"listen": "off"}, "pool": pools}, base=tmp_path)


def faults(tmp_path: Path, *tables: dict[str, Any], **others: list[dict[str, Any]]) -> dict[str, str]:
    with pytest.raises(ConfigError) as raised:
        built(tmp_path, *tables, **others)
    return {problem.key: problem.text for problem in raised.value.problems}


def test_without_tables_the_gateway_of_this_host_gets_the_targets(tmp_path):
    (only,) = connect(built(tmp_path), SystemClock()).balancers
    assert isinstance(only, GatewayBalancer)


def test_each_table_is_a_balancer_in_the_place_of_the_gateway(tmp_path):
    envoy = {"kind": "envoy", "url": "http://127.0.0.1:9901", "file": "eds.json"}
    config = built(tmp_path, HAPROXY, HAPROXY | {"name": "east", "socket": "east.sock"}, envoy)
    assert config.pool.balancer[0].socket == tmp_path / "ha.sock"
    assert not takes_requests(config.pool)
    found = connect(config, SystemClock()).balancers
    assert [type(each) for each in found] == [HaproxyBackend, HaproxyBackend, EnvoyCluster]
    assert [each.name for each in found] == ["haproxy", "east", "envoy"]


def test_the_gateway_of_this_host_may_be_one_of_them(tmp_path):
    config = built(tmp_path, HAPROXY, {"kind": "gateway"})
    assert takes_requests(config.pool)
    assert [each.name for each in connect(config, SystemClock()).balancers] == ["haproxy", "gateway"]


@pytest.mark.parametrize(
    ("tables", "key", "text"),
    [
        ([{"kind": "haproxy"}], "[0].socket", "is missing"),
        ([{"kind": "envoy", "url": "http://x"}], "[0].file", "is missing"),
        ([HAPROXY | {"url": "http://x"}], "[0].url", "is no key of HAProxy"),
        ([{"kind": "envoy", "url": "127.0.0.1:1", "file": "f"}], "[0].url", "is no address"),
        ([HAPROXY, HAPROXY | {"socket": "b.sock"}], "[1].name", "pool.p.balancer[0] already"),
        ([HAPROXY, HAPROXY | {"name": "b"}], "[1]", "holds the targets of pool.p.balancer[0]"),
        ([HAPROXY | {"wait": 6.0}], "[0].wait", "half of daemon.call_timeout"),
        ([{"kind": "haprxy"}], "[0].kind", "did you mean 'haproxy'"),
    ],
)
def test_what_cannot_be_is_said_at_its_key(tmp_path, tables, key, text):
    assert text in faults(tmp_path, *tables)[f"pool.p.balancer{key}"]


def test_two_pools_share_a_haproxy_but_no_backend(tmp_path):
    built(tmp_path, HAPROXY, q=[HAPROXY])
    found = faults(tmp_path, HAPROXY, q=[HAPROXY | {"backend": "p"}])
    assert "holds the targets of pool.p.balancer[0]" in found["pool.q.balancer[0]"]


def test_nginx_is_given_the_time_that_its_old_workers_take(tmp_path):
    nginx = {"kind": "nginx", "url": "http://x", "file": "f", "reload": ["true"]}
    assert NGINX_SETTLES == PROPAGATION
    assert built(tmp_path, nginx).wanted.drain.settle == NGINX_SETTLES
    pool = {"replicas": 1, "balancer": [nginx], "drain": {"settle": 1.0}}
    with pytest.raises(ConfigError, match="too short with nginx"):
        build_config({"daemon": {"listen": "off"}, "pool": {"p": pool}}, base=tmp_path)


def test_a_gateway_on_another_host_is_reached_under_tls_with_a_token(tmp_path):
    (tmp_path / "token").write_text("0123456789abcdef")
    far = {"kind": "gateway", "url": "https://10.0.0.7:9479", "token_file": "token"}
    config = built(tmp_path, far, far | {"name": "g2", "url": "https://10.0.0.8:9479"})
    assert takes_requests(config.pool)
    assert [each.name for each in connect(config, SystemClock()).balancers] == ["gateway", "g2"]
    found = faults(tmp_path, {"kind": "gateway", "url": "http://10.0.0.7:9479"})
    assert "https://" in found["pool.p.balancer[0].url"]
    assert "is missing" in found["pool.p.balancer[0].token_file"]


def test_control_listen_needs_a_token_and_a_certificate(tmp_path):
    gateway = {"control_listen": "10.0.0.7:9479"}
    with pytest.raises(ConfigError) as raised:
        build_config(
            {"daemon": {"listen": "off"}, "gateway": gateway, "pool": {"p": {"replicas": 1}}}, base=tmp_path
        )
    keys = {problem.key for problem in raised.value.problems}
    assert {key.rpartition(".")[2] for key in keys} == {"control_token_file", "tls_cert_file"}


def test_every_kind_is_described():
    assert set(KINDS) == set(BalancerKind.__args__)
    assert set(KINDS) == set(BALANCERS) - {"target-group"}
    assert set(EXAMPLES) <= set(KINDS)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_table_of_an_example_is_one_that_the_daemon_takes(tmp_path, kind):
    text = example(kind, Place(pool="chat", folder=str(tmp_path), run=str(tmp_path)))["pool.toml"]
    file = tmp_path / "pool.toml"
    file.write_text(f"[pool.chat]\nreplicas = 2\n\n{text}")
    (only,) = load_config(file).pool.balancer
    assert only.kind == kind
    assert [each.name for each in connect(load_config(file), SystemClock()).balancers] == [kind]
    assert tomllib.loads(text)
    assert not re.search("<<|>>", "".join(example(kind, Place()).values()))
