"""Adapters of a pool: which are taken, what is said of the others, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud.clock import SystemClock
from orchestrator.config.load import Config, ConfigError, load_config
from orchestrator.wiring.gateway import gateway_config
from orchestrator.wiring.ports import connect
from policies.held import Adapter


def load(directory: Path, more: str, *, engine: str = 'kind = "simulated"', model: str = "m/base") -> Config:
    file = directory / "pool.toml"
    text = f"[pool.a]\nreplicas = 1\nmodel = '{model}'\n{more}\n[pool.a.engine]\n{engine}\n"
    file.write_text(text, encoding="utf-8")
    return load_config(file)


def faults(directory: Path, more: str, **settings: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(directory, more, **settings)
    return {problem.key: problem.text for problem in caught.value.problems}


def test_adapters_become_what_policies_engine_and_gateway_take(tmp_path: Path) -> None:
    config = load(tmp_path, "adapter_slots = 2\nadapters = { sql = '/l/sql@1', law = 'acme/law@main' }")
    rules = config.only("a").wanted.adapters
    assert rules.wanted == (
        Adapter(name="sql", source="/l/sql@1"),
        Adapter(name="law", source="acme/law@main"),
    )
    assert (rules.slots, rules.runtime, rules.fit) == (2, True, True)
    ports = connect(config, SystemClock())
    assert "--enable-lora" in ports.command.argv
    (gate,) = gateway_config(config).pools
    assert (gate.loaded, gate.numbered) == (("sql", "law"), False)


def test_a_pool_without_adapters_is_started_without_room_for_any(tmp_path: Path) -> None:
    assert "--enable-lora" not in connect(load(tmp_path, ""), SystemClock()).command.argv
    assert "--enable-lora" in connect(load(tmp_path, "adapter_slots = 4"), SystemClock()).command.argv


@pytest.mark.parametrize(
    ("more", "args", "slots"),
    [
        ("", "", 64),
        ("adapter_slots = 3", "", 3),
        ("", '"--max-loras", "5"', 5),
        ("", '"--max-cpu-loras", "7", "--max-loras", "5"', 7),
    ],
)
def test_how_many_a_node_holds(tmp_path: Path, more: str, args: str, slots: int) -> None:
    config = load(tmp_path, f"{more}\nadapters = {{ sql = '/l/sql' }}", engine=f"args = [{args}]")
    assert config.only("a").wanted.adapters.slots == slots


def test_llamacpp_starts_with_them_and_knows_them_by_number(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.touch()
    more = "adapters = { sql = '/l/sql.gguf', law = '/l/law.gguf' }"
    config = load(tmp_path, more, engine='kind = "llamacpp"', model=str(model))
    rules = config.only("a").wanted.adapters
    assert (rules.slots, rules.runtime, rules.numbered) == (None, False, True)
    argv = connect(config, SystemClock()).command.argv
    assert argv[-4:] == ("--lora", "/l/sql.gguf", "--lora", "/l/law.gguf")
    assert gateway_config(config).pools[0].numbered


@pytest.mark.parametrize("task", ["embed", "rerank"])
def test_llamacpp_applies_all_of_them_to_what_is_no_text(tmp_path: Path, task: str) -> None:
    model = tmp_path / "m.gguf"
    model.touch()
    engine, adapters = f'kind = "llamacpp"\ntask = "{task}"', "adapters = { sql = '/l/sql.gguf' }"
    said = faults(tmp_path, adapters, engine=engine, model=str(model))["pool.a.adapters"]
    assert f"applies all of them to everything that it {task}s; leave them out" in said
    assert load(tmp_path, "", engine=engine, model=str(model)).only("a").wanted.adapters.wanted == ()


@pytest.mark.parametrize(
    ("engine", "numbered"),
    [
        ('kind = "llamacpp"', True),
        ('kind = "llamacpp"\ntask = "embed"', False),
        ('kind = "llamacpp"\nargs = ["--lora", "/l/a.gguf"]', False),
        ('kind = "llamacpp"\nargs = ["--lora-scaled=/l/a.gguf:0.5"]', False),
        ('kind = "llamacpp"\non.g.args = ["--lora", "/l/a.gguf"]', False),
        ('kind = "vllm"', False),
    ],
)
def test_a_request_to_llamacpp_says_that_it_wants_none_also_where_the_pool_has_none(
    tmp_path: Path, engine: str, numbered: bool
) -> None:
    """Nodes may still have those that were configured before; those of the user's own flags are applied."""
    model = tmp_path / "m.gguf"
    model.touch()
    config = load(tmp_path, "", engine=engine, model=str(model))
    assert gateway_config(config).pools[0].numbered is numbered
    assert config.only("a").wanted.adapters.numbered is numbered


@pytest.mark.parametrize(
    ("more", "engine", "key", "says"),
    [
        ("adapters = { a = 'rel/x/y' }", "", "pool.a.adapters.a", "is no place"),
        ("adapters = { a = '' }", "", "pool.a.adapters.a", "is no place"),
        ("adapters = { a = '/l/a@' }", "", "pool.a.adapters.a", "is no place"),
        ("adapters = { a = '/l/with blank' }", "", "pool.a.adapters.a", "is no place"),
        ("adapters = { 'm/base' = '/l/a' }", "", "pool.a.adapters.m/base", "name of the model itself"),
        ("adapters = { 'a b' = '/l/a' }", "", "pool.a.adapters.a b", "cannot be the name"),
        (
            "adapters = { a = '/l/a' }",
            'args = ["--lora-modules", "a=/x"]',
            "pool.a.adapters.a",
            "lora-modules",
        ),
        ("adapters = { a = '/l/a' }", 'args = ["--no-enable-lora"]', "pool.a.engine.args", "refuses"),
        (
            "adapters = { a = '/l/a' }",
            'args = ["--lora-modules", "b@0123abcd=/l/b"]',
            "pool.a.engine.args",
            "would be unloaded",
        ),
        (
            "adapters = { a = '/l/a' }\nadapter_slots = 8",
            'args = ["--max-cpu-loras", "7"]',
            "pool.a.engine.args",
            "a node is to hold 8",
        ),
        ("adapters = { a = 'o/a@v1' }", 'kind = "vllm"', "pool.a.adapters.a", "newest revision"),
        ("adapters = { a = '/l/a' }", 'kind = "tgi"', "pool.a.adapters", "not given to Text Generation"),
        ("adapters = { a = '/l/a' }", 'kind = "sglang"', "pool.a.adapters", "not given to SGLang"),
        ("adapter_slots = 4", 'kind = "tgi"', "pool.a.adapter_slots", "leave it out"),
        ("adapter_slots = 0", "", "pool.a.adapter_slots", "1"),
        ("adapters = { a = '/l/a' }", 'kind = "llamacpp"', "pool.a.adapters.a", "no file of llama.cpp"),
        (
            "adapters = { a = '/l/a.gguf' }",
            'kind = "llamacpp"\nargs = ["--lora-scaled", "/l/b.gguf:1"]',
            "pool.a.engine.args",
            "takes the first numbers",
        ),
        (
            "adapters = { a = '/l/a.gguf' }",
            'kind = "llamacpp"\non.g.args = ["--lora", "/l/b.gguf"]',
            "pool.a.engine.on.g.args",
            "takes the first numbers",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_refused(
    tmp_path: Path, more: str, engine: str, key: str, says: str
) -> None:
    found = faults(tmp_path, more, engine=engine)
    matching = [text for name, text in found.items() if name.replace('"', "") == key]
    assert matching, found
    assert says in matching[0]


def test_a_variable_that_keeps_vllm_from_loading_any_is_refused(tmp_path: Path) -> None:
    engine = 'kind = "vllm"\nenv = { VLLM_ALLOW_RUNTIME_LORA_UPDATING = "0" }'
    found = faults(tmp_path, "adapters = { a = '/l/a' }", engine=engine)
    assert any("keeps adapters from being loaded" in text for text in found.values())


def test_two_pools_may_not_serve_one_name_and_no_route_may_take_an_adapters(tmp_path: Path) -> None:
    file = tmp_path / "pools.toml"
    pools = "[pool.a]\nreplicas = 1\nmodel = 'a'\nadapters = { sql = '/l/a' }\n"
    pools += "[pool.b]\nreplicas = 1\nmodel = 'b'\n"
    file.write_text(f"{pools}adapters = {{ sql = '/l/b' }}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"both serve .sql.*pool = .a., model = .sql.") as caught:
        load_config(file)
    assert "served_name" not in str(caught.value)
    for backend, says in (
        ("{ pool = 'b' }", "is what pool a serves"),
        ("{ pool = 'a' }", "is an adapter of pool a, and this route leads to another model of it"),
    ):
        file.write_text(f"{pools}[[route]]\nmodels = ['sql']\nto = [{backend}]\n", encoding="utf-8")
        with pytest.raises(ConfigError, match=rf".sql. {says}.*pool = .a., model = .sql."):
            load_config(file)
    to = "[{ pool = 'a', model = 'sql' }, { pool = 'b' }]"
    file.write_text(f"{pools}[[route]]\nmodels = ['sql']\nto = {to}\n", encoding="utf-8")
    load_config(file)


def test_a_repository_that_moves_is_warned_of(tmp_path: Path) -> None:
    config = load(tmp_path, "adapters = { a = 'acme/a', b = '/l/b' }")
    assert [w.key for w in config.warnings if "repository" in w.text] == ["pool.a.adapters.a"]
