"""A configuration is taken up whole or not at all, and a running pool goes by it from the next turn on."""

from __future__ import annotations

import asyncio
import os
import tomllib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from cloud.sim.world import Pace, Sale
from orchestrator.api.changes import Change, differences, examine, gateway_changed
from orchestrator.config.errors import tables
from orchestrator.config.load import Config, build_config, load_config
from orchestrator.config.reload import Effect, reload_at
from orchestrator.config.tables.file import ConfigFile
from orchestrator.daemon.daemon import Daemon
from orchestrator.journal.file import JournalFile
from orchestrator.journal.replay import replay
from orchestrator.loop.loop import Loop, Snapshot
from orchestrator.metrics import metrics
from orchestrator.simulation.simulate import Simulation
from policies.model import Market, Placement

BASE = """\
[daemon]
state_dir = "state"
listen = "off"
record_turns = "10s"

[pool.p]
replicas = 4

[pool.p.drain]
budget = "30s"
"""


def changed(old: Config, text: str) -> dict[str, Effect]:
    """The keys that differ from `old`, and what each asks for."""
    new = build_config(tomllib.loads(text), base=old.daemon.state_dir.parent)
    return {".".join(change.path): change.effect for change in differences(old, new)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pool.toml"
    path.write_text(BASE, encoding="utf-8")
    return path


# -- judging ---------------------------------------------------------------------------------------


def test_a_change_is_shown_as_the_file_would_have_it(file: Path) -> None:
    old = load_config(file)
    file.write_text(
        BASE.replace('"30s"', '"1m30s"') + '[pool.p.limits]\nspend_per_hour = "12.50"\n', encoding="utf-8"
    )
    budget, spend = differences(old, load_config(file))
    assert (budget.path, budget.before, budget.after) == (
        ("pool", "p", "drain", "budget"),
        '"30s"',
        '"90s"',
    )
    assert (spend.before, spend.after) == ('"unlimited"', "12.5")


def test_the_same_meaning_is_no_change(file: Path) -> None:
    old = load_config(file)
    file.write_text("# a comment\n" + BASE.replace('"30s"', '"0.5m"'), encoding="utf-8")
    assert list(differences(old, load_config(file))) == []


@pytest.mark.parametrize(
    ("key", "effect"),
    [
        ("pool.p.replicas", Effect.NOW),
        ("pool.p.drain.budget", Effect.NOW),
        ("daemon.log_level", Effect.NOW),
        ("daemon.state_dir", Effect.RESTART),
        ("daemon.listen", Effect.RESTART),
        ("pool.p.cloud.aws.region.us-east-1.image", Effect.RESTART),
        ("pool.p.cloud.aws.tags", Effect.RESTART),
        ("pool.p.cloud.aws.disk.size", Effect.RESTART),
        ("pool.p.engine.args", Effect.RESTART),
        ("pool.p", Effect.NOW),
        ("pool.p.gateway.queue_limit", Effect.GATEWAY),
        ("pool.p.gateway.listen", Effect.GATEWAY),
        ("pool.p.gateway.socket", Effect.RESTART),
        ("pool.p.priority", Effect.NOW),
        ("gateway.listen", Effect.GATEWAY),
        ("gateway.default_route", Effect.GATEWAY),
        ("gateway.socket", Effect.RESTART),
        ("provider.claude.usd_per_day", Effect.GATEWAY),
        ("provider.claude.price.m.input", Effect.GATEWAY),
        ("route.0.to", Effect.GATEWAY),
        ("budget.nodes", Effect.NOW),
    ],
)
def test_what_a_key_asks_for(key: str, effect: Effect) -> None:
    assert Change(path=tuple(key.split(".")), before="1", after="2").effect is effect


def test_a_second_pool_changes_nothing_of_the_first_or_of_the_process(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text('[pool.a]\nreplicas = 2\nmodel = "a"\ngateway.linger = "3s"\n', encoding="utf-8")
    old = load_config(file)
    file.write_text(
        '[gateway]\nlinger = "3s"\n[pool.a]\nreplicas = 2\nmodel = "a"\n'
        '[pool.b]\nreplicas = 2\nmodel = "b"\n',
        encoding="utf-8",
    )
    new = load_config(file)
    assert {change.path[:2] for change in differences(old, new)} == {("pool", "b")}
    assert {change.path[:2] for change in differences(new, old)} == {("pool", "b")}
    assert "pool.b" in gateway_changed(old, new)


def test_the_first_pool_may_go_where_the_others_keep_their_targets(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    first, second = ('[pool.a]\nreplicas = 2\nmodel = "a"\n', '[pool.b]\nreplicas = 2\nmodel = "b"\n')
    file.write_text(first + second, encoding="utf-8")
    old = load_config(file)
    file.write_text(second, encoding="utf-8")
    (problem,) = examine(old, lambda: load_config(file, "daemon"), force=True, last={}).problems
    kept = f'targets_file = "{tmp_path}/state/targets-b.json"'
    assert f"write {kept} in [pool.b.gateway] to keep it, or restart it" in str(problem)
    file.write_text(f"{second}[pool.b.gateway]\n{kept}\n", encoding="utf-8")
    assert examine(old, lambda: load_config(file, "daemon"), force=True, last={}).problems == ()


ROUTED = """
[pool.p]
replicas = 4
model = "m"
[provider.api]
kind = "openai"
url = "http://127.0.0.1:9"
[[route]]
models = ["a"]
to = [{ pool = "p" }]
[[route]]
models = ["b"]
to = [{ provider = "api", model = "x" }]
"""


@pytest.mark.parametrize(
    ("before", "after", "keys"),
    [
        ("replicas = 4", "replicas = 5", []),
        ('model = "m"', 'model = "n"', ["pool.p.model"]),
        ('model = "m"', 'model = "m"\nengine.served_name = "n"', ["pool.p.engine.served_name"]),
        ('model = "m"', 'model = "m"\ngateway.queue_limit = 1', ["pool.p.gateway.queue_limit"]),
        ('model = "m"', 'model = "m"\ngateway.listen = "[::1]:1"', ["pool.p.gateway.listen"]),
        ("127.0.0.1:9", "127.0.0.1:8", ["provider.api.url"]),
        ('{ pool = "p" }', '{ pool = "p" }, { provider = "api", model = "x" }', ["route[0].to"]),
        ("[[route]]\nmodels", "[[route]]\npriority = 3\nmodels", ["route[0].priority", "route[1].priority"]),
        ('models = ["b"]', 'models = ["b", "c"]', ["route[1].models"]),
    ],
)
def test_what_the_gateway_has_to_read_again(before: str, after: str, keys: list[str], tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(ROUTED, encoding="utf-8")
    old = load_config(file)
    file.write_text(ROUTED.replace(before, after), encoding="utf-8")
    assert gateway_changed(old, load_config(file)) == keys


def test_routes_in_another_order_are_the_same_routes(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(ROUTED, encoding="utf-8")
    old = load_config(file)
    head, first, second = ROUTED.split("[[route]]")
    file.write_text("[[route]]".join((head, second, first)), encoding="utf-8")
    assert list(differences(old, load_config(file))) == []


def test_what_decides_the_size_of_a_pool_is_asked_about() -> None:
    keys = [(*path, key) for path, model in tables(ConfigFile) for key in model.model_fields]
    resizing = {".".join(path[2:]) for path in keys if reload_at(ConfigFile, path).resizes}
    tops = {key.partition(".")[0] for key in resizing}
    assert tops == {
        "replicas", "spot_share", "mix", "on_demand_floor", "availability", "standby", "limits",
    }  # fmt: skip
    assert {"standby.hot", "limits.surge", "limits.spend_per_hour"} < resizing


def test_a_pool_may_be_named_like_a_key() -> None:
    for name in ("drain", "replicas", "gateway"):
        assert reload_at(ConfigFile, ("pool", name, "engine", "args")).effect is Effect.RESTART
        assert reload_at(ConfigFile, ("pool", name, "limits", "surge")).resizes


def test_the_schema_says_what_a_change_of_a_key_takes() -> None:
    schema = ConfigFile.model_json_schema()
    pool, daemon, gateway = (
        schema["$defs"][name]["properties"] for name in ("PoolConfig", "DaemonConfig", "GatewayTable")
    )
    assert [pool[key]["reload"] for key in ("replicas", "drain", "gateway")] == ["now", "now", "gateway"]
    assert (daemon["tick"]["reload"], gateway["socket"]["reload"]) == ("now", "restart")
    assert "reload" not in daemon["listen"]


def test_every_fault_is_told_at_its_line(file: Path) -> None:
    old = load_config(file)
    file.write_text(
        BASE.replace('listen = "off"', 'listen = "127.0.0.1:9"').replace("replicas = 4", "replicas = 1"),
        encoding="utf-8",
    )
    verdict = examine(old, lambda: load_config(file, "daemon"), force=False, last={})
    assert not verdict.acceptable
    listen, replicas = map(str, verdict.problems)
    assert listen.startswith(
        f'{file}:3: daemon.listen: "off" -> "127.0.0.1:9" cannot be taken up by a running'
    )
    assert replicas == (
        f"{file}:7: pool.p.replicas: the pool was last whole with 4, and less than half of that would "
        "be left: 4 -> 1 node (prices are not known yet); if that is meant, `orchestrator reload --force "
        f"--config {file}`"
    )
    (listen,) = map(str, examine(old, lambda: load_config(file, "daemon"), force=True, last={}).problems)
    assert "daemon.listen" in listen


# -- a running pool --------------------------------------------------------------------------------


Script = Callable[[Simulation, Daemon], Awaitable[None]]


def write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


def play(file: Path, script: Script) -> None:
    """Run a script once a daemon with this configuration has its pool whole."""
    sales = [
        Sale(placement=Placement("sim", "r", zone, "gpu", market), price=1.0 + number, capacity=9)
        for number, market in enumerate(Market)
        for zone in "ab"
    ]
    pace = Pace(boot=(1.0, 2.0), load=(1.0, 2.0), list_lag=(0.1, 0.2))
    sim = Simulation(load_config(file, "daemon"), sales=sales, pace=pace)

    async def whole(sim: Simulation) -> None:
        sim.furnish()
        process = sim.boot()
        await sim.settle()
        await script(sim, process.daemon)
        if sim.running is not None:
            await sim.stop(sim.running)

    sim.run(whole)


def loop(daemon: Daemon) -> Loop:
    """The loop of the only pool."""
    found = daemon.runs["p"].loop
    assert found is not None
    return found


def turn(daemon: Daemon) -> Snapshot:
    """Its newest turn."""
    found = loop(daemon).last
    assert found is not None
    return found


def wanted(daemon: Daemon) -> int:
    return loop(daemon).pool.replicas


def shown(name: str) -> float:
    (line,) = [
        line
        for line in generate_latest(metrics.REGISTRY).decode().splitlines()
        if line.startswith(f"orchestrator_{name} ")
    ]
    return float(line.split()[1])


async def pool_has(sim: Simulation, daemon: Daemon, count: int) -> None:
    """Wait until so many nodes are ready."""
    for _ in range(300):
        if len(turn(daemon).fleet.ready) == count == len(turn(daemon).fleet.nodes):
            return
        await sim.clock.sleep(1.0)
    pytest.fail(f"the pool never had {count} ready nodes")


@pytest.mark.usefixtures("quiet")
def test_a_dry_run_shares_the_budget_as_the_new_file_asks(file: Path) -> None:
    """The grant of the last turn is for what was wanted then."""
    roomy = BASE + "[budget]\nspend_per_hour = 60\n"

    async def script(sim: Simulation, daemon: Daemon) -> None:
        write(file, roomy)
        await daemon.reloader.reload(wait=True)
        write(file, roomy.replace("replicas = 4", "replicas = 6"))
        plan = (await daemon.reloader.reload(dry_run=True))["plan"]
        assert plan is not None
        assert [action["kind"] for action in plan["actions"]].count("launch") == 2
        write(file, roomy.replace("replicas = 4", "replicas = 6").replace("= 60", "= 1"))
        refused = await daemon.reloader.reload(dry_run=True)
        assert refused["outcome"] == "rejected", (
            "a budget that ends nodes is confirmed, as fewer replicas are"
        )
        assert "pool p: " in refused["problems"][0]["text"]
        assert "reload --force" in refused["problems"][0]["text"]
        plan = (await daemon.reloader.reload(dry_run=True, force=True))["plan"]
        assert plan is not None
        assert "launch" not in [action["kind"] for action in plan["actions"]]
        assert any("short by budget" in note for note in plan["notes"])

    play(file, script)


@pytest.mark.usefixtures("quiet")
def test_more_replicas_are_launched_and_the_plan_said_so(file: Path) -> None:
    async def script(sim: Simulation, daemon: Daemon) -> None:
        write(file, BASE.replace("replicas = 4", "replicas = 6"))
        dry = await daemon.reloader.reload(dry_run=True)
        assert (dry["outcome"], wanted(daemon)) == ("checked", 4)
        view = await daemon.reloader.reload(wait=True)
        assert (view["outcome"], wanted(daemon)) == ("applied", 6)
        (change,) = view["changes"]
        assert change == {
            "key": "pool.p.replicas", "line": 7, "before": "4", "after": "6", "effect": "now",
        }  # fmt: skip
        for plan in (dry["plan"], view["plan"]):
            assert plan is not None
            assert [a["kind"] for a in plan["actions"]] == ["launch", "launch"]
        assert turn(daemon).fleet.pool.replicas == 6, "a turn was made under it"
        await pool_has(sim, daemon, 6)
        assert (await daemon.reloader.reload())["outcome"] == "unchanged"

    play(file, script)
    with JournalFile.open(file.parent / "state" / "journal.db") as journal:
        turns = list(replay(journal))
    assert {turn.identical for turn in turns} == {True}, "a recording holds one wanted state"
    assert {turn.scene.pool.replicas for turn in turns if turn.scene is not None} == {4, 6}


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("replace", "says"),
    [
        (("replicas = 4", 'replicas = "four"'), "pool.toml:7: pool.p.replicas: "),
        (("[pool.p.drain]", "[pool.p.drian]"), "pool.toml:9: pool.p.drian: "),
        (('"off"', '"127.0.0.1:9"'), "pool.toml:3: daemon.listen: "),
        (("[pool.p", "[pool.q"), "pool.p: it ends for good: its 4 nodes"),
        (("replicas = 4", "replicas = 1"), "reload --force"),
        (("replicas", "replicas ="), "pool.toml:7: is not TOML"),
        (("replicas = 4", "replicas = " + "[" * 10_000), "pool.toml:7: tables or arrays are nested"),
        (("replicas = 4", "replicas = " + "4" * 5_000), "pool.toml:7: an integer has more than 64 bits"),
    ],
    ids=["value", "key", "restart", "name", "drop", "syntax", "deep", "digits"],
)
def test_a_rejected_one_leaves_the_one_before_in_force(
    file: Path, replace: tuple[str, str], says: str
) -> None:
    async def script(sim: Simulation, daemon: Daemon) -> None:
        before = loop(daemon).pool
        write(file, BASE.replace(*replace).replace("30s", "20s"))
        view = await daemon.reloader.reload(wait=True)
        assert (view["outcome"], view["plan"]) == ("rejected", None)
        texts = daemon.describe()["config"]["rejected"]["problems"]  # type: ignore[index]
        assert any(says in text for text in texts), texts
        assert len(view["problems"]) == len(texts)
        assert shown("config_last_reload_successful") == 0
        assert texts[0] in daemon.reloader.note
        await sim.clock.sleep(30.0)
        assert loop(daemon).pool == before
        write(file, BASE)
        assert (await daemon.reloader.reload())["outcome"] == "unchanged"
        assert shown("config_last_reload_successful") == 1
        assert daemon.describe()["config"]["rejected"] is None
        assert daemon.reloader.note == ""

    play(file, script)


@pytest.mark.usefixtures("quiet")
def test_a_missing_file_is_one_fault(file: Path) -> None:
    async def script(sim: Simulation, daemon: Daemon) -> None:
        os.unlink(file)
        view = await daemon.reloader.reload()
        assert view["outcome"] == "rejected"
        (problem,) = view["problems"]
        assert "cannot be read (no such file or directory)" in problem["text"]

    play(file, script)


@pytest.mark.usefixtures("quiet")
def test_a_daemon_that_was_built_in_memory_has_no_file_to_read(tmp_path: Path) -> None:
    daemon = Daemon(build_config(tomllib.loads(BASE), base=tmp_path), threads=False)

    async def ask() -> Mapping[str, Any]:
        return await daemon.reloader.reload()

    view = asyncio.run(ask())
    assert (view["outcome"], "no file to read again" in view["problems"][0]["text"]) == ("rejected", True)


@pytest.mark.usefixtures("quiet")
def test_one_under_which_no_decision_can_be_made_is_rejected(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken up, it would end the daemon, and every daemon after it."""

    async def script(sim: Simulation, daemon: Daemon) -> None:
        write(file, BASE.replace("replicas = 4", "replicas = 5"))
        with monkeypatch.context() as patch:
            patch.setattr("orchestrator.api.changes.decide_for", lambda *_: 1 / 0)
            view = await daemon.reloader.reload()
        assert (view["outcome"], wanted(daemon)) == ("rejected", 4)
        (problem,) = view["problems"]
        assert (problem["line"], "ZeroDivisionError" in problem["text"]) == (6, True)

    play(file, script)


def test_secrets_are_not_shown(file: Path) -> None:
    def engine(key: str) -> str:
        return (
            f'{BASE}[pool.p.engine]\nargs = ["--api-key", "{key}"]\n[pool.p.engine.env]\nHF_TOKEN = "{key}"\n'
        )

    write(file, engine("sesame-one"))
    old = load_config(file)
    write(file, engine("sesame-two"))
    verdict = examine(old, lambda: load_config(file), force=False, last={})
    assert len(verdict.problems) == 2
    assert "sesame" not in f"{verdict.changes} {verdict.problems}"


# -- the size of a pool --------------------------------------------------------------------------------


def with_replicas(count: int, more: str = "") -> str:
    return BASE.replace("replicas = 4", f"replicas = {count}") + more


@pytest.mark.usefixtures("quiet")
def test_growth_beyond_what_is_likely_meant_shows_its_price_and_asks(file: Path) -> None:
    async def script(sim: Simulation, daemon: Daemon) -> None:
        write(file, with_replicas(4000))
        for dry_run in (True, False):
            view = await daemon.reloader.reload(dry_run=dry_run, wait=not dry_run)
            (problem,) = view["problems"]
            assert (view["outcome"], wanted(daemon), problem["line"]) == ("rejected", 4, 7)
            assert problem["text"] == (
                "the pool would grow to more than twice the size in force: 4 -> 4000 nodes, about $6.00 -> "
                "$5,200.00 an hour, at most $12.00 -> $8,004.00; if that is meant, `orchestrator reload "
                f"--force --config {file}`"
            )
        await sim.clock.sleep(60.0)
        assert len(sim.live()) == 4, "nothing was launched"

    play(file, script)


@pytest.mark.usefixtures("quiet")
def test_a_mistake_that_was_forced_is_taken_back_by_a_word(file: Path) -> None:
    async def script(sim: Simulation, daemon: Daemon) -> None:
        write(file, with_replicas(4000))
        assert (await daemon.reloader.reload(force=True, wait=True))["outcome"] == "applied"
        await sim.clock.sleep(45.0)
        assert len(sim.live()) > 12, "nodes came that nobody wants"
        write(file, BASE)
        view = await daemon.reloader.reload(wait=True)
        assert (view["outcome"], wanted(daemon)) == ("applied", 4)
        assert view["size"] == (
            "4000 -> 4 nodes, about $5,200.00 -> $6.00 an hour, at most $8,004.00 -> $12.00"
        )
        await pool_has(sim, daemon, 4)

    play(file, script)


@pytest.mark.usefixtures("quiet")
def test_a_small_pool_grows_and_shrinks_without_a_question(file: Path) -> None:
    async def script(sim: Simulation, daemon: Daemon) -> None:
        for count in (3, 1, 3):
            write(file, with_replicas(count))
            assert (await daemon.reloader.reload(wait=True))["outcome"] == "applied"
            await pool_has(sim, daemon, count)

    write(file, with_replicas(1))
    play(file, script)


@pytest.mark.usefixtures("quiet")
def test_twice_as_many_are_taken_back_unasked_beside_a_hot_standby(file: Path) -> None:
    hot = "[pool.p.standby]\nhot = 1\n"

    async def script(sim: Simulation, daemon: Daemon) -> None:
        for count in (8, 4):
            write(file, with_replicas(count, hot))
            assert (await daemon.reloader.reload(wait=True))["outcome"] == "applied"
            await pool_has(sim, daemon, count + 1)

    write(file, with_replicas(4, hot))
    play(file, script)


@pytest.mark.usefixtures("quiet")
def test_a_number_that_is_doubled_while_its_nodes_start_asks(file: Path) -> None:
    async def script(sim: Simulation, daemon: Daemon) -> None:
        await pool_has(sim, daemon, 4)
        outcomes = []
        for count in (8, 16, 32):
            write(file, with_replicas(count))
            outcomes.append((await daemon.reloader.reload(wait=True))["outcome"])
        assert (outcomes, wanted(daemon)) == (["applied", "rejected", "rejected"], 8)
        await pool_has(sim, daemon, 8)
        write(file, with_replicas(16))
        assert (await daemon.reloader.reload(wait=True))["outcome"] == "applied"

    play(file, script)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("before", "after", "line", "says"),
    [
        ("", "[pool.p.standby]\nhot = 50\n", 12, "would grow"),
        ("", "[pool.p.limits]\nsurge = 50\n", 12, "may cost more than twice"),
        ("[pool.p.limits]\nspend_per_hour = 5\n", "", 6, "at most $5.00 -> $12.00"),
        ("", "[pool.p.limits]\nspend_per_hour = 5\n", 0, ""),
    ],
    ids=["standby", "surge", "cap taken away", "cap"],
)
def test_whatever_makes_a_pool_larger_or_dearer_is_judged(
    file: Path, before: str, after: str, line: int, says: str
) -> None:
    async def script(sim: Simulation, daemon: Daemon) -> None:
        write(file, BASE + after)
        problems = (await daemon.reloader.reload())["problems"]
        assert [problem["line"] for problem in problems] == ([line] if line else [])
        assert all(says in problem["text"] for problem in problems)

    write(file, BASE + before)
    play(file, script)


ON_AWS = """
[pool.p.engine]
allow_simulated = true
[pool.p.cloud]
kind = "aws"
[pool.p.cloud.aws]
instance_types = ["p5.4xlarge"]
[pool.p.cloud.aws.regions.us-east-1]
subnets = { us-east-1a = "subnet-1" }
launch_template = "node"
[pool.p.limits]
"""


@pytest.mark.usefixtures("quiet")
def test_a_file_that_lost_its_cap_is_refused_and_the_cap_stays(file: Path) -> None:
    async def script(sim: Simulation, daemon: Daemon) -> None:
        write(file, BASE.replace("replicas = 4", "replicas = 5") + ON_AWS)
        answer = await daemon.reloader.reload(wait=True)
        assert answer["outcome"] == "rejected"
        (problem,) = answer["problems"]
        assert "is missing: a pool on AWS does not start without a cap" in problem["text"]
        assert (wanted(daemon), loop(daemon).pool.limits.spend_per_hour) == (4, 20.0)
        await pool_has(sim, daemon, 4)

    write(file, BASE + ON_AWS + 'spend_per_hour = "20"\n')
    play(file, script)


# -- a restart -----------------------------------------------------------------------------------------


async def restarted(sim: Simulation, daemon: Daemon, file: Path) -> Daemon:
    """Stop the daemon; the one that starts instead has read the file as it is now."""
    await sim.stop(next(process for process in sim.processes if process.daemon is daemon))
    sim.config = load_config(file, "daemon")
    process = sim.boot()
    await sim.clock.sleep(30.0)
    return process.daemon


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("count", [4000, 1])
def test_a_restart_meets_the_same_question(file: Path, count: int) -> None:
    """The daemon starts, keeps the number that was in force, says so, and takes the other when forced."""

    async def script(sim: Simulation, daemon: Daemon) -> None:
        write(file, with_replicas(count).replace("30s", "20s"))
        daemon = await restarted(sim, daemon, file)
        assert (wanted(daemon), len(sim.live())) == (4, 4)
        assert loop(daemon).pool.drain.budget == 20.0, "the rest of the file is in force"
        rejected = daemon.describe()["config"]["rejected"]
        assert rejected is not None
        assert rejected["in_force"] == "4 replicas stay wanted and all else in the file is in force"
        (problem,) = rejected["problems"]
        assert problem.startswith(f"{file}:7: pool.p.replicas: the pool ")
        assert f"4 -> {count} node" in problem
        assert "an hour, at most $12.00 -> $" in problem, "prices are remembered"
        assert f"`orchestrator reload --force --config {file}`" in problem
        assert daemon.reloader.note.endswith(problem)
        assert shown("config_last_reload_successful") == 0
        assert (await daemon.reloader.reload())["outcome"] == "rejected"
        await sim.clock.sleep(2.0)
        daemon = await restarted(sim, daemon, file)
        assert wanted(daemon) == 4, "a second restart asks again"
        view = await daemon.reloader.reload(force=True, wait=True)
        assert (view["outcome"], wanted(daemon)) == ("applied", count)
        assert (daemon.reloader.note, shown("config_last_reload_successful")) == ("", 1)
        daemon = await restarted(sim, daemon, file)
        assert (wanted(daemon), daemon.reloader.note) == (count, "")

    play(file, script)
    with JournalFile.open(file.parent / "state" / "journal.db") as journal:
        kinds = [entry.kind for entry in journal.events()]
    assert kinds.count("ConfigRejected") == 3


@pytest.mark.usefixtures("quiet")
def test_a_restart_with_a_likely_change_takes_it_up(file: Path) -> None:
    async def script(sim: Simulation, daemon: Daemon) -> None:
        write(file, with_replicas(6))
        daemon = await restarted(sim, daemon, file)
        assert (wanted(daemon), daemon.reloader.note) == (6, "")

    play(file, script)


@pytest.mark.usefixtures("quiet")
def test_without_a_journal_there_is_nothing_to_compare_with(file: Path) -> None:
    async def script(sim: Simulation, daemon: Daemon) -> None:
        write(file, with_replicas(20))
        await sim.stop(next(process for process in sim.processes if process.daemon is daemon))
        sim.lose_journal()
        sim.config = load_config(file, "daemon")
        daemon = sim.boot().daemon
        await sim.clock.sleep(30.0)
        assert (wanted(daemon), daemon.reloader.note) == (20, "")

    play(file, script)


@pytest.mark.usefixtures("quiet")
def test_a_mistake_is_corrected_by_a_restart_too(file: Path) -> None:
    async def script(sim: Simulation, daemon: Daemon) -> None:
        write(file, with_replicas(4000))
        await daemon.reloader.reload(force=True, wait=True)
        await sim.clock.sleep(45.0)
        write(file, BASE)
        daemon = await restarted(sim, daemon, file)
        assert (wanted(daemon), daemon.reloader.note) == (4, "")
        await pool_has(sim, daemon, 4)

    play(file, script)
