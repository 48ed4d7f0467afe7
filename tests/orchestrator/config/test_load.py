"""The configuration: what it comes to, and every fault at its line."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from cloud.engines.dialect import DIALECTS
from orchestrator.config.checks.local import local_among
from orchestrator.config.errors import heading, model_at, tables
from orchestrator.config.load import Config, ConfigError, build_config, load_config
from orchestrator.config.tables.file import ConfigFile, Role
from orchestrator.gateway.config import POOL_KEYS, GatewayConfig, one_pool
from orchestrator.units import HostPort
from orchestrator.wiring.gateway import gateway_config
from policies.model import Pool

MINIMAL = "[pool.llama]\nreplicas = 10\n"


def load(directory: Path, text: str) -> Config:
    file = directory / "pool.toml"
    file.write_text(text, encoding="utf-8")
    return load_config(file)


def problems(directory: Path, text: str) -> list[str]:
    """The faults of a file, without the directory."""
    with pytest.raises(ConfigError) as caught:
        load(directory, text)
    return [str(problem).replace(f"{directory}/", "") for problem in caught.value.problems]


def test_defaults_are_those_of_the_policies(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL)
    assert config.wanted == Pool(name="llama", replicas=10, model="simulated")
    assert config.pool_name == "llama"
    assert config.warnings == ()


def test_defaults_are_those_of_the_gateway(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL)
    made = gateway_config(config)
    expected = one_pool(
        targets_file=tmp_path / "state/targets.json",
        socket=tmp_path / "state/gateway.sock",
        pool="llama",
        metrics_listen=HostPort("127.0.0.1", 9478),
        served="simulated",
        spend_file=tmp_path / "state/spend.db",
        usage_file=tmp_path / "state/usage.db",
    )
    assert made == expected


def test_paths_start_at_the_file_and_follow_the_state_directory(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL).daemon.socket == tmp_path / "state/orchestrator.sock"
    (tmp_path / "etc").mkdir()
    config = load(tmp_path / "etc", '[daemon]\nstate_dir = "../var"\n' + MINIMAL)
    assert config.daemon.state_dir == tmp_path / "var"
    assert config.pool.gateway.targets_file == tmp_path / "var/targets.json"
    assert config.pool.cloud.socket == tmp_path / "var/cloud/cloud.sock"
    explicit = load(tmp_path, '[daemon]\nsocket = "{state_dir}/a.sock"\nstate_dir = "~"\n' + MINIMAL)
    assert explicit.daemon.socket == Path.home() / "a.sock"


def test_a_whole_file_becomes_the_pool_of_the_policies(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        [daemon]
        listen = "[::1]:0"
        tick = "500ms"
        [pool.llama]
        replicas = 4
        spot_share = "50%"
        model = "tiny"
        [pool.llama.engine]
        kind = "vllm"
        args = ["--kv-cache-memory-bytes", "1G"]
        env = { A = "b" }
        served_name = "t"
        [pool.llama.drain]
        budget = "1m30s"
        min_serving = 0.5
        [pool.llama.standby]
        hot = 1
        [pool.llama.limits]
        spend_per_hour = "$12.50"
        [pool.llama.placement]
        spread = "150%"
        [pool.llama.gateway]
        listen = "0.0.0.0:80"
        body_limit = "1MiB"
        retry_after = "3s"
        """,
    )
    assert config.daemon.listen == HostPort("::1", 0)
    assert str(config.daemon.listen) == "[::1]:0"
    assert config.daemon.tick == 0.5
    pool = config.wanted
    assert (pool.replicas, pool.on_demand_floor, pool.model) == (4, 2, "tiny")
    assert (pool.drain.budget, pool.min_serving) == (90.0, 2)
    assert (pool.limits.spend_per_hour, pool.placement.spread, pool.standby.hot) == (12.5, 1.5, 1)
    assert config.pool.engine.args == ("--kv-cache-memory-bytes", "1G")
    assert config.pool.engine.env == {"A": "b"}
    gateway = gateway_config(config)
    assert (gateway.host, gateway.port, gateway.body_limit, gateway.retry_after) == ("0.0.0.0", 80, 2**20, 3)


def test_floor_as_a_number_of_nodes(tmp_path: Path) -> None:
    for replicas, floor in ((10, 4), (10, 0), (10, 10), (7, 3), (9999, 3333)):
        text = f"[pool.a]\nreplicas = {replicas}\non_demand_floor = {floor}\n"
        assert load(tmp_path, text).wanted.on_demand_floor == floor


def test_listening_can_be_switched_off(tmp_path: Path) -> None:
    assert load(tmp_path, '[daemon]\nlisten = "off"\n' + MINIMAL).daemon.listen is None


def test_configuration_in_memory_takes_plain_numbers(tmp_path: Path) -> None:
    config = build_config(
        {"daemon": {"tick": 0.1, "probe_timeout": 1}, "pool": {"p": {"replicas": 2, "drain": {"budget": 5}}}},
        base=tmp_path,
    )
    assert (config.daemon.tick, config.daemon.probe_timeout, config.wanted.drain.budget) == (0.1, 1.0, 5.0)
    assert config.daemon.state_dir == tmp_path / "state"
    with pytest.raises(ConfigError, match=r"configuration: pool\.p\.replicas: -1 is too small"):
        build_config({"pool": {"p": {"replicas": -1}}}, base=tmp_path)


def test_nothing_changes_later(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.pool.replicas = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.pools["b"] = config.pool  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.path = None  # type: ignore[misc]


POOL = "[pool.a]\nreplicas = 10\n"

# name, text of the file, the beginning of every line of the complaint
FAULTS: list[tuple[str, str, list[str]]] = [
    ("empty", "", ["pool.toml:1: pool: holds no pool; write one table such as [pool.llama]"]),
    ("no pools", "[pool]", ["pool.toml:1: pool: holds no pool; write one table such as [pool.llama]"]),
    ("syntax", "[daemon]\ntick = 1s\n", ["pool.toml:2: is not TOML at column 9: "]),
    ("unquoted", "[pool.a]\nreplicas = 1\nmodel = tiny\n",
     ["pool.toml:3: is not TOML at column 9: invalid value; put text in quotes"]),
    ("a name with its port", '[daemon]\nallowed_hosts = ["control:9477"]\n' + POOL,
     ['pool.toml:2: daemon.allowed_hosts: "control:9477" is not a host name; write it without a port']),
    ("twice", POOL + "replicas = 3\n", ["pool.toml:3: is not TOML at column 13: cannot overwrite a value"]),
    ("unknown key", POOL + "replica = 1\n",
     ["pool.toml:3: pool.a.replica: is not a key; did you mean replicas?"]),
    ("unknown table", POOL + "[pool.a.drian]\nbudget = 1\n",
     ["pool.toml:3: pool.a.drian: is not a key; did you mean drain?"]),
    ("unknown top", POOL + "[deamon]\n", ["pool.toml:3: deamon: is not a key; did you mean daemon?"]),
    ("wrong place", POOL + "[pool.a.drain]\nsurge = 3\n",
     ["pool.toml:4: pool.a.drain.surge: is not a key here; it belongs in [pool.NAME.limits]"]),
    ("nothing close", "xyz = 1\n" + POOL, ["pool.toml:1: xyz: is not a key; write one of budget, cost, "]),
    ("inline table", "pool.a = { replicas = 1, drain = { bugdet = '3s' } }\n",
     ["pool.toml:1: pool.a.drain.bugdet: is not a key; did you mean budget?"]),
    ("table missing key", "[pool.a.drain]\nbudget = '3s'\n[pool.a]\nmodel = 'x'\n",
     ["pool.toml:3: pool.a.replicas: is missing; write replicas = 10: Ready nodes"]),
    ("not a table", POOL + "drain = 3\n",
     ["pool.toml:3: pool.a.drain: 3 is not a table; write a table [pool.a.drain]: Taking"]),
    ("array of tables", "[[pool]]\nreplicas = 1\n", ["pool.toml:1: pool: "]),
    ("fewer than none", "[pool.a]\nreplicas = -1\n",
     ["pool.toml:2: pool.a.replicas: -1 is too small; write at least 0"]),
    ("many replicas", "[pool.a]\nreplicas = 10001\n",
     ["pool.toml:2: pool.a.replicas: 10001 is too large; write at most 10000"]),
    ("fraction of a node", "[pool.a]\nreplicas = 1.5\n",
     ["pool.toml:2: pool.a.replicas: 1.5 is not a whole number; write replicas = 10"]),
    ("text for a number", "[pool.a]\nreplicas = '3'\n",
     ["pool.toml:2: pool.a.replicas: \"3\" is not a whole number; write replicas = 10"]),
    ("truth for a number", "[pool.a]\nreplicas = true\n",
     ["pool.toml:2: pool.a.replicas: true is not a whole number"]),
    ("duration without unit", "[daemon]\ntick = 2\n" + POOL,
     ['pool.toml:2: daemon.tick: 2 has no unit; write "2s" for seconds or "2m" for minutes']),
    ("duration text without unit", "[daemon]\ntick = '2'\n" + POOL,
     ['pool.toml:2: daemon.tick: "2" has no unit; write "2s" for seconds']),
    ("wrong unit", "[daemon]\ntick = '2w'\n" + POOL,
     ['pool.toml:2: daemon.tick: "2w" is not a duration; write a number with a unit, such as "90s"']),
    ("negative duration", "[daemon]\ntick = -2\n" + POOL, ["pool.toml:2: daemon.tick: -2 is negative"]),
    ("no time", "[daemon]\ntick = '0s'\n" + POOL, ["pool.toml:2: daemon.tick: is 0, which leaves no time"]),
    ("percent without sign", POOL + "spot_share = 70\n",
     ['pool.toml:3: pool.a.spot_share: 70 is more than the whole; a share lies between 0 and 1; '
      'for 70 percent write "70%"']),
    ("more than all", POOL + "spot_share = '170%'\n",
     ['pool.toml:3: pool.a.spot_share: "170%" is more than the whole; a share lies between 0 and 1']),
    ("negative share", POOL + "spot_share = -0.1\n", ["pool.toml:3: pool.a.spot_share: -0.1 is negative"]),
    ("not a share", POOL + "spot_share = 'most'\n",
     ['pool.toml:3: pool.a.spot_share: "most" is not a share']),
    ("nan share", POOL + "spot_share = nan\n", ["pool.toml:3: pool.a.spot_share: nan is not a share"]),
    ("endless duration", "[daemon]\ntick = inf\n" + POOL,
     ["pool.toml:2: daemon.tick: inf is not a duration"]),
    ("floor above wanted", POOL + "on_demand_floor = 11\n",
     ["pool.toml:3: pool.a.on_demand_floor: the floor of 11 on-demand nodes is above replicas = 10; "
      "lower the floor or raise replicas"]),
    ("floor twice", POOL + "spot_share = 0.5\non_demand_floor = 3\n",
     ["pool.toml:4: pool.a.on_demand_floor: says the same as spot_share; write only one of the two"]),
    ("negative standby", POOL + "standby = { hot = -1 }\n",
     ["pool.toml:3: pool.a.standby.hot: -1 is too small; write at least 0"]),
    ("money", POOL + "limits.spend_per_hour = 'lots'\n",
     ['pool.toml:3: pool.a.limits.spend_per_hour: "lots" is not an amount; write US dollars per hour, '
      'such as "12.50", or "unlimited"']),
    ("money that has no end", POOL + "limits.spend_per_hour = 'Unlimited'\n",
     ['pool.toml:3: pool.a.limits.spend_per_hour: "Unlimited" is not an amount; write US dollars per hour, '
      'such as "12.50", or "unlimited"']),
    ("money of nothing", POOL + "limits.spend_per_hour = '0'\n",
     ['pool.toml:3: pool.a.limits.spend_per_hour: "0" allows nothing at all; write US dollars per hour, '
      'such as "12.50", or "unlimited"']),
    ("no money", POOL + "limits.spend_per_hour = 0\n",
     ["pool.toml:3: pool.a.limits.spend_per_hour: 0 allows nothing at all"]),
    ("address", "[daemon]\nlisten = '127.0.0.1'\n" + POOL,
     ['pool.toml:2: daemon.listen: "127.0.0.1" is not host:port; write an address such as "127.0.0.1:9477"']),
    ("port", "[daemon]\nlisten = 'localhost:70000'\n" + POOL,
     ["pool.toml:2: daemon.listen: port 70000 does not exist; write one from 1 to 65535"]),
    ("address type", "[daemon]\nlisten = 9477\n" + POOL,
     ["pool.toml:2: daemon.listen: 9477 is not host:port"]),
    ("store", "[daemon]\nstore = 'mysql://db/p'\n" + POOL,
     ['pool.toml:2: daemon.store: "mysql" is no place for a journal; write "sqlite" or a URI such as']),
    ("store with a password", "[daemon]\nstore = 'postgresql://me:planted@db/p'\n" + POOL,
     ["pool.toml:2: daemon.store: it holds a password, which a configuration must not; put it into a file"]),
    ("store with a password at its end", "[daemon]\nstore = 'postgres://db/p?a=b&password=planted'\n" + POOL,
     ["pool.toml:2: daemon.store: it holds a password"]),
    ("lease", "[daemon]\nlease = '2s'\n" + POOL,
     ["pool.toml:2: daemon.lease: 2s is too short: one answer of the database may take as long"]),
    ("size", POOL + "gateway.body_limit = '3 apples'\n",
     ['pool.toml:3: pool.a.gateway.body_limit: "3 apples" is not a size']),
    ("size without unit", POOL + "gateway.body_limit = 3\n",
     ["pool.toml:3: pool.a.gateway.body_limit: 3 is not a size; write text such as"]),
    ("gateway path", POOL + "gateway.health_path = 'health'\n",
     ['pool.toml:3: pool.a.gateway.health_path: "health" does not match ^/']),
    ("gateway zero", POOL + "gateway.idle_timeout = 0\n",
     ["pool.toml:3: pool.a.gateway.idle_timeout: is 0, which lets nothing pass"]),
    ("path type", "[daemon]\nstate_dir = 3\n" + POOL, ["pool.toml:2: daemon.state_dir: 3 is not a path"]),
    ("choice", "[daemon]\nlog_level = 'warn'\n" + POOL,
     ["pool.toml:2: daemon.log_level: \"warn\" is not known (did you mean 'warning'?); write 'debug', "]),
    ("engine", POOL + "engine.kind = 'tgl'\n",
     ["pool.toml:3: pool.a.engine.kind: \"tgl\" is not known (did you mean 'tgi'?); write 'simulated', "]),
    ("args as one text", POOL + "engine.args = '--dtype auto'\n",
     ['pool.toml:3: pool.a.engine.args: one text is not a list; write ["--dtype", "auto"]']),
    ("args with a number", POOL + 'engine.args = [\n "--port",\n 80,\n]\n',
     ['pool.toml:3: pool.a.engine.args: every item is text; write "80", as the flag would be typed']),
    ("env with a number", POOL + "[pool.a.engine.env]\nTHREADS = 4\n",
     ['pool.toml:3: pool.a.engine.env: THREADS is not text; write THREADS = "4"']),
    ("vllm without a model", POOL + "engine.kind = 'vllm'\n",
     ["pool.toml:1: pool.a.model: is missing; vLLM needs a model"]),
    ("pool name", '[pool."Big Llama"]\nreplicas = 1\n',
     ['pool.toml:1: pool."Big Llama": "Big Llama" cannot be a pool\'s name; use 1 to 24 of the characters']),
    ("always stale", POOL + "patience.stale_after = '5s'\n",
     ["pool.toml:3: pool.a.patience.stale_after: 5s is not longer than daemon.poll_instances (5s)"]),
    ("no grace", POOL + "patience.vanish_grace = '0s'\n",
     ["pool.toml:3: pool.a.patience.vanish_grace: is 0"]),
    ("no half-life", POOL + "placement.refusal_half_life = 0\n",
     ["pool.toml:3: pool.a.placement.refusal_half_life: is 0"]),
    ("no boot", POOL + "health.boot_timeout = 0\n", ["pool.toml:3: pool.a.health.boot_timeout: is 0"]),
    ("parent of the state", "[daemon]\nstate_dir = 'no/such/state'\n" + POOL,
     ["pool.toml:2: daemon.state_dir: no/such does not exist; create it with mkdir -p"]),
    ("state is a file", "[daemon]\nstate_dir = 'pool.toml'\n" + POOL,
     ["pool.toml:2: daemon.state_dir: pool.toml is a file; name a directory"]),
    ("key file", POOL + "engine.api_key_file = 'key'\n",
     ["pool.toml:3: pool.a.engine.api_key_file: there is no file key; create it or correct the path"]),
    ("gateway limit that is only its own", POOL + "gateway.body_rate = '0B'\n",
     ["pool.toml:3: pool.a.gateway.body_rate: is 0, which lets nothing pass"]),
    ("gateway factor", POOL + "gateway.stall_factor = 0\n",
     ["pool.toml:3: pool.a.gateway.stall_factor: 0"]),
    ("gateway continuation", POOL + "gateway.continuation = 'yes'\n",
     ['pool.toml:3: pool.a.gateway.continuation: "yes" is not known']),
    ("gateway key file", POOL + "gateway.api_key_file = 'key'\n",
     ["pool.toml:3: pool.a.gateway.api_key_file: there is no file key; create it or correct the path"]),
    ("program", POOL + "engine.executable = '/no/vllm'\n",
     ["pool.toml:3: pool.a.engine.executable: there is no file /no/vllm; correct the path"]),
    ("all at once", "[daemon]\ntick = 2\nlisten = 'x'\n[pool.a]\nreplicas = -1\nspot_share = 2\nfoo = 1\n",
     ["pool.toml:2: daemon.tick: ", "pool.toml:3: daemon.listen: ", "pool.toml:5: pool.a.replicas: ",
      "pool.toml:6: pool.a.spot_share: ", "pool.toml:7: pool.a.foo: "]),
    ("both sorts at once", "[daemon]\nstate_dir = 'no/such/state'\n" + POOL + "on_demand_floor = 99\n",
     ["pool.toml:2: daemon.state_dir: ", "pool.toml:5: pool.a.on_demand_floor: "]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS]
)
def test_fault(text: str, expected: list[str], short_dir: Path) -> None:
    found = problems(short_dir, text)
    assert len(found) == len(expected), found
    for line, beginning in zip(found, expected, strict=True):
        assert line.startswith(beginning)


def test_a_password_in_the_address_of_the_store_is_not_repeated(tmp_path: Path) -> None:
    found = problems(tmp_path, "[daemon]\nstore = 'postgresql://me:planted@db/p'\n[pool.a]\nreplicas = 1\n")
    assert "planted" not in "".join(found)


def test_a_passfile_may_be_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
    text = "[daemon]\nstore = 'postgresql://db/p?passfile={credentials}/pgpass'\n[pool.a]\nreplicas = 1\n"
    store = load(tmp_path, text).daemon.store
    assert store == "postgresql://db/p?passfile=/run/credentials/x/pgpass"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "none.toml")
    assert str(caught.value).startswith(f"{tmp_path}/none.toml: cannot be read (no such file or directory); ")


def test_directory_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(tmp_path / "pool.toml")


def test_socket_path_too_long_for_the_kernel(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    found = problems(tmp_path, f"[daemon]\nstate_dir = '{deep}'\n" + POOL)
    assert [line.split(": ")[1] for line in found] == [
        "daemon.socket",
        "pool.a.cloud.socket",
        "pool.a.gateway.socket",
    ]
    assert all("a unix socket's path may have 107" in line for line in found)


def test_two_local_clouds_share_all_or_nothing_whatever_stands_between_them() -> None:
    def pool(kind: str, **cloud: str) -> Any:
        return SimpleNamespace(cloud=SimpleNamespace(kinds=(kind,), **cloud))

    pools = {
        "a": pool("local", state_dir="here", socket="one"),
        "b": pool("aws"),
        "c": pool("local", state_dir="here", socket="two"),
        "d": pool("local", state_dir="there", socket="three"),
    }
    parsed: Any = SimpleNamespace(pool=pools)
    [(where, text)] = local_among(parsed)
    assert where == ("pool", "c", "cloud", "state_dir")
    assert text.startswith("here is that of pool a too")


@pytest.mark.parametrize("made", [True, False])
def test_state_directory_not_writable(made: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if made:
        (tmp_path / "state").mkdir()
    # the superuser, who may run these tests, is allowed everything
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    (found,) = problems(tmp_path, POOL)
    assert found.startswith("pool.toml:1: daemon.state_dir: ")
    assert "cannot be written by this user" in found


WARNINGS: list[tuple[str, str, str]] = [
    ("drain too long", POOL + "drain.budget = '118s'\n",
     "pool.toml:3: pool.a.drain.budget: budget and margin need 123s, but an interruption notice gives 2m"),
    ("no spot at all", "[pool.a]\nreplicas = 1\nspot_share = 0.7\n",
     "pool.toml:3: pool.a.spot_share: with replicas = 1 the on-demand floor rounds up to every node"),
    ("no room to replace", POOL + "limits.surge = 0\n",
     "pool.toml:3: pool.a.limits.surge: with no surge and no hot standby a node cannot be replaced"),
    ("margin of all streams", POOL + "drain.budget = '8s'\n",
     "pool.toml:1: pool.a.gateway.drain_margin: 10s is not below drain.budget, so every stream leaves"),
    ("margin as long as the budget", POOL + "drain.budget = '10s'\n",
     "pool.toml:1: pool.a.gateway.drain_margin: 10s is not below drain.budget, so every stream leaves"),
    ("hasty", POOL + "health.unhealthy_after = '1s'\nhealth.replace_after = '3s'\n",
     "pool.toml:4: pool.a.health.replace_after: 3s is shorter than one probe's interval and timeout"),
    ("open door", "[daemon]\nlisten = '0.0.0.0:9477'\n" + POOL,
     "pool.toml:2: daemon.listen: 0.0.0.0:9477 can be reached from other machines"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "beginning"), [item[1:] for item in WARNINGS], ids=[item[0] for item in WARNINGS]
)
def test_warning(text: str, beginning: str, tmp_path: Path) -> None:
    (warning,) = load(tmp_path, text).warnings
    assert str(warning).replace(f"{tmp_path}/", "").startswith(beginning)


def test_key_file_open_to_others_is_a_warning(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    key.chmod(0o644)
    text = POOL + "engine.api_key_file = 'key'\ngateway.api_key_file = 'key'\n"
    assert [warning.key for warning in load(tmp_path, text).warnings] == [
        "pool.a.engine.api_key_file",
        "pool.a.gateway.api_key_file",
    ]
    key.chmod(0o600)
    config = load(tmp_path, text)
    assert config.warnings == ()
    assert gateway_config(config).pools[0].api_key == "secret"


def every_model() -> Iterator[tuple[str, type[BaseModel]]]:
    for path, model in tables(ConfigFile):
        yield heading(path), model


@pytest.mark.parametrize(("name", "model"), list(every_model()))
def test_every_table_and_key_has_a_help_text(name: str, model: type[BaseModel]) -> None:
    assert model.__doc__, name
    for key, field in model.model_fields.items():
        assert field.description, f"{name}.{key}"
        assert field.description.rstrip()[-1] in '."', f"{name}.{key}: a help text is a sentence"


RULES = ("drain", "back_to_spot", "health", "standby", "placement", "limits", "patience")


@pytest.mark.parametrize("table", RULES)
def test_every_rule_of_the_policies_is_a_key(table: str) -> None:
    rules: Any = getattr(Pool(name="x", replicas=1), table)
    granted = {"nodes", "shared"}  # what a shared budget says, and no file
    model = model_at(ConfigFile, ("pool", "NAME", table))
    assert model is not None
    names = {field.name for field in dataclasses.fields(rules)} - granted
    expected = {name: getattr(rules, name) for name in names}
    assert {key: field.default for key, field in model.model_fields.items()} == expected


def test_every_setting_of_the_gateway_is_a_key() -> None:
    model = model_at(ConfigFile, ("pool", "NAME", "gateway"))
    assert model is not None
    settings = {field.name for field in dataclasses.fields(GatewayConfig)} | POOL_KEYS
    assert set(model.model_fields) - settings == {"listen", "api_key_file"}
    given = {"host", "port", "name", "served", "adapters", "tasks", "tells_ids", "ranking", "api_key"}
    given |= {"charge", "seed"}
    given |= {"loaded", "numbered"}
    elsewhere = {"pools", "routes", "providers", "default_route", "spend_file", "usage_file", "keys_file"}
    assert settings - set(model.model_fields) == given | elsewhere


@pytest.mark.parametrize("name", ["two-pools-and-an-api.toml", "api-only.toml"])
def test_the_examples_with_routes_are_valid(name: str) -> None:
    config = load_config(Path(__file__).parents[3] / "examples" / name)
    assert config.warnings == ()
    assert config.routes


def test_the_example_of_each_engine_is_valid() -> None:
    config = load_config(Path(__file__).parents[3] / "examples" / "engines.toml")
    kinds = {pool.engine.kind for pool in config.pools.values()}
    assert kinds == set(DIALECTS) - {"simulated"}
    played = {kind for kind, row in DIALECTS.items() if not row.capabilities.ran}
    told = [problem for problem in config.warnings if "was not run against the real one" in problem.text]
    assert len(told) == len(played)
    unread = [problem for problem in config.warnings if "only the weights were held" in problem.text]
    assert len(told) + len(unread) == len(config.warnings), config.warnings


def test_the_example_is_valid() -> None:
    file = Path(__file__).parents[3] / "examples/pool.toml"
    config = load_config(file)
    assert config.warnings == ()
    assert (config.wanted.replicas, config.wanted.spot_wanted, config.wanted.on_demand_floor) == (10, 7, 3)
    assert tomllib.loads(file.read_text(encoding="utf-8"))["pool"]


def test_each_process_needs_only_its_own_files(tmp_path: Path) -> None:
    """The gateway runs as another user, who can see neither the daemon's state nor its secrets."""
    file = tmp_path / "pool.toml"
    file.write_text(
        '[daemon]\nstate_dir = "gone/state"\n[pool.p]\nreplicas = 4\n'
        '[pool.p.engine]\napi_key_file = "{credentials}/engine-key"\n'
        '[pool.p.gateway]\napi_key_file = "gateway-key"\n',
        encoding="utf-8",
    )

    def faults(role: Role) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load_config(file, role)
        return [problem.key for problem in caught.value.problems]

    assert faults("daemon") == ["daemon.state_dir", "pool.p.engine.api_key_file"]
    assert faults("gateway") == ["pool.p.gateway.api_key_file"]
    assert faults("any") == ["daemon.state_dir", "pool.p.gateway.api_key_file"]
    (tmp_path / "gateway-key").touch(mode=0o600)
    assert load_config(file, "gateway").pool.replicas == 4


def test_credentials_are_where_the_service_manager_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    file = tmp_path / "pool.toml"
    file.write_text(
        '[pool.p]\nreplicas = 4\n[pool.p.engine]\napi_key_file = "{credentials}/engine-key"\n',
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=rf"there is no file {given}/engine-key"):
        load_config(file, "daemon")
    (given / "engine-key").touch(mode=0o600)
    assert load_config(file, "daemon").pool.engine.api_key_file == given / "engine-key"
