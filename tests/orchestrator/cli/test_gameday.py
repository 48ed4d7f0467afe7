"""`history`, `replace` and `gameday`: what they ask for, what they say, when a game day is broken off."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest

from orchestrator.__main__ import main
from orchestrator.cli import gameday_rules as rules
from orchestrator.cli import shared
from orchestrator.views.api import GamedayView

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(api: Any, capsys: pytest.CaptureFixture[str]) -> Ask:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, "--socket", str(api.socket)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def pool(api: Any, calm: Any) -> Any:
    """A whole pool behind the API."""
    api.status = calm
    return calm["pools"][0]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What happens to the pool between two looks; Ctrl-C when nothing is left."""
    steps: list[Callable[[], None]] = []

    def wait(_: float) -> None:
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    monkeypatch.setattr(shared, "wait", wait)
    return steps


def drop(pool: Any, node: str) -> None:
    pool["nodes"] = [n for n in pool["nodes"] if n["id"] != node]


def test_history(ask: Ask, api: Any) -> None:
    code, out, _ = ask("history", "-n", "5", "--node", "i-0c")
    assert code == 0
    assert api.gets[-1] == "/v1/history?limit=5&node=i-0c41"
    assert out.splitlines()[0].split() == ["BEGAN", "NODE", "CAUSE", "REPLACED", "BY", "DETACHED"]
    assert "i-0c41  notice  i-0f22           80ms" in out
    assert out.endswith("detached: 1 swap, median 80ms, p95 80ms, longest 80ms\n")
    assert json.loads(ask("history", "-o", "json")[1]) == api.history
    api.history = api.history | {"swaps": [], "stages": []}
    assert ask("history")[1] == "No swaps yet.\n"


def test_replace_waits_for_the_node_and_for_the_pool(
    ask: Ask, api: Any, pool: Any, looks: list[Callable[[], None]]
) -> None:
    leaving = pool["nodes"][0]
    node = leaving["id"]
    looks += [lambda: leaving.update(phase="terminating"), lambda: pool.update(ready=10)]
    pool["ready"] = 9
    code, out, err = ask("replace", node, "-m", "slow disk")
    assert code == 0
    assert api.posts == [(f"/v1/nodes/{node}/drain", {"reason": "slow disk"})]
    assert err.splitlines() == [
        f"{node} is out of service.",
        "The wanted nodes are ready (llama: 10/10).",
    ]
    assert "Next: orchestrator history" in out


def test_replace_need_not_wait(ask: Ask, api: Any, pool: Any, looks: list[Callable[[], None]]) -> None:
    assert ask("replace", pool["nodes"][0]["id"], "--no-wait")[0] == 0
    assert len(api.posts) == 1


def test_a_game_day_that_the_pool_bears(
    ask: Ask, api: Any, pool: Any, looks: list[Callable[[], None]]
) -> None:
    node = rules.draw(pool, 7)["id"]
    found = next(n for n in pool["nodes"] if n["id"] == node)
    spare = dict(found, id="i-ffff", market="on-demand")
    looks += [
        lambda: pool["nodes"].append(spare),
        lambda: found.update(phase="draining"),
        lambda: drop(pool, node),
    ]
    code, out, err = ask("gameday", "--seed", "7", "--deadline", "60s", "--yes", "-o", "json")
    assert code == 0, err
    assert api.posts == [(f"/v1/nodes/{node}/drain", {"reason": "game day, seed 7", "deadline_s": 60.0})]
    result = json.loads(out)
    assert set(result) == set(get_type_hints(GamedayView))
    assert (result["passed"], result["breach"], result["node"]) == (True, None, node)


def test_a_game_day_is_broken_off_and_the_drain_taken_back(
    ask: Ask, api: Any, pool: Any, looks: list[Callable[[], None]]
) -> None:
    node = rules.draw(pool, 7)["id"]
    looks += [lambda: drop(pool, node)]
    code, out, _ = ask("gameday", "--seed", "7", "--yes")
    assert code == 1
    assert out.startswith("Game day broken off: 9 of 10 wanted nodes were ready")
    assert [path for path, _ in api.posts] == [f"/v1/nodes/{node}/{what}" for what in ("drain", "undrain")]


def test_ctrl_c_takes_the_drain_back(ask: Ask, api: Any, pool: Any, looks: list[Callable[[], None]]) -> None:
    code, out, _ = ask("gameday", "--seed", "1", "--yes")
    assert code == 1
    assert "interrupted by Ctrl-C" in out
    assert api.posts[-1][0].endswith("/undrain")


def test_a_game_day_that_takes_too_long(
    ask: Ask, api: Any, pool: Any, looks: list[Callable[[], None]]
) -> None:
    looks += [lambda: api.status.update(at=api.status["at"] + 100)]
    code, out, _ = ask("gameday", "--timeout", "30s", "--yes")
    assert code == 1
    assert "it was not over within 30s" in out


def test_nobody_who_could_say_yes(ask: Ask, api: Any, pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, _, err = ask("gameday")
    assert code == 2
    assert "add --yes" in err
    assert api.posts == []


def test_a_game_day_needs_a_whole_pool(ask: Ask, api: Any, paused: Any) -> None:
    assert ask("gameday", "--yes")[0] == 4
    api.status = paused
    assert ask("gameday", "--yes")[0] == 6
    assert ask("gameday", "--pool", "nobody", "--yes")[0] == 1
    assert api.posts == []


def test_what_breaks_a_game_day(pool: Any) -> None:
    node = rules.draw(pool, 3)["id"]
    assert rules.breach(pool, node) == ""
    assert rules.draw(pool, 3)["id"] == node
    own = {"node": node}
    assert rules.breach(pool | {"notices": [own]}, node) == ""
    assert "got a notice" in rules.breach(pool | {"notices": [{"node": "i-other"}]}, node)
    assert "below its floor" in rules.breach(pool | {"state": "below-floor"}, node)


def test_a_pool_of_on_demand_has_nobody_to_draw(calm: Any) -> None:
    pool = calm["pools"][0]
    for node in pool["nodes"]:
        node["market"] = "on-demand"
    assert "no ready spot node" in rules.unfit(pool, calm["daemon"])


def test_a_game_day_without_a_pool_says_so(ask: Ask, api: Any) -> None:
    api.status["pools"] = []
    code, _, err = ask("gameday", "--yes")
    assert (code, "the daemon runs no pool" in err, "None" in err) == (1, True, False)
