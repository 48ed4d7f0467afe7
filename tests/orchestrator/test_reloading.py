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
from orchestrator import metrics
from orchestrator.config import Config, ConfigFile, build_config, load_config
from orchestrator.config_errors import tables
from orchestrator.daemon import Daemon
from orchestrator.journal_file import JournalFile
from orchestrator.journal_replay import replay
from orchestrator.reloading import Change, Effect, differences, examine
from orchestrator.simulate import Simulation
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
    assert (spend.before, spend.after) == ("nothing", "12.5")


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
        ("pool.p.engine.args", Effect.RESTART),
        ("pool.p", Effect.RESTART),
        ("pool.p.gateway.queue_limit", Effect.GATEWAY),
        ("pool.p.gateway.listen", Effect.GATEWAY),
        ("pool.p.gateway.socket", Effect.RESTART),
    ],
)
def test_what_a_key_asks_for(key: str, effect: Effect) -> None:
    assert Change(path=tuple(key.split(".")), before="1", after="2").effect is effect


def test_the_tables_that_can_be_taken_up_exist() -> None:
    """A key that was renamed must not fall out of the list unseen."""
    from orchestrator import reloading

    (pool,) = [model for path, model in tables(ConfigFile) if path == ("pool", "NAME")]
    assert set(pool.model_fields) >= reloading._POLICY
    assert set(ConfigFile.model_fields["daemon"].annotation.model_fields) >= reloading._DAEMON  # type: ignore[union-attr]


def test_every_fault_is_told_at_its_line(file: Path) -> None:
    old = load_config(file)
    file.write_text(
        BASE.replace('listen = "off"', 'listen = "127.0.0.1:9"').replace("replicas = 4", "replicas = 1"),
        encoding="utf-8",
    )
    verdict = examine(old, lambda: load_config(file, "daemon"), force=False)
    assert not verdict.acceptable
    listen, replicas = map(str, verdict.problems)
    assert listen.startswith(
        f'{file}:3: daemon.listen: "off" -> "127.0.0.1:9" cannot be taken up by a running'
    )
    assert replicas.startswith(f"{file}:7: pool.p.replicas: 4 -> 1 would end most nodes of the pool")
    (listen,) = map(str, examine(old, lambda: load_config(file, "daemon"), force=True).problems)
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
        await sim.stop(process)

    sim.run(whole)


def wanted(daemon: Daemon) -> int:
    assert daemon.loop is not None
    return daemon.loop.pool.replicas


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
        assert daemon.loop is not None
        assert daemon.loop.last is not None
        if len(daemon.loop.last.fleet.ready) == count == len(daemon.loop.last.fleet.nodes):
            return
        await sim.clock.sleep(1.0)
    pytest.fail(f"the pool never had {count} ready nodes")


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
        assert daemon.loop is not None
        assert daemon.loop.last is not None
        assert daemon.loop.last.fleet.pool.replicas == 6, "a turn was made under it"
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
        (("[pool.p", "[pool.q"), "cannot be taken up"),
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
        assert daemon.loop is not None
        before = daemon.loop.pool
        write(file, BASE.replace(*replace).replace("30s", "20s"))
        view = await daemon.reloader.reload(wait=True)
        assert (view["outcome"], view["plan"]) == ("rejected", None)
        texts = daemon.describe()["config"]["rejected"]["problems"]  # type: ignore[index]
        assert any(says in text for text in texts), texts
        assert len(view["problems"]) == len(texts)
        assert shown("config_last_reload_successful") == 0
        assert daemon.reloader.note.endswith(texts[0])
        await sim.clock.sleep(30.0)
        assert daemon.loop.pool == before
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
            patch.setattr("orchestrator.reloading.decide_for", lambda *_: 1 / 0)
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
    verdict = examine(old, lambda: load_config(file), force=False)
    assert len(verdict.problems) == 2
    assert "sesame" not in f"{verdict.changes} {verdict.problems}"
