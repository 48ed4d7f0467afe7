"""`orchestrator journal`: what it prints, how it exits, and what it says when it cannot."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from orchestrator import __version__
from orchestrator.__main__ import main
from orchestrator.journal.store import SCHEMA_VERSION
from orchestrator.schemas import generate
from policies import swap
from policies.plan_builder import Turn

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in an empty directory; its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["journal", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def journal(recorded: Path, tmp_path: Path) -> str:
    return str(shutil.copy(recorded / "journal.db", tmp_path / "incident.db"))


@pytest.fixture
def drains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed policy."""

    def nothing(_: Turn) -> None:
        return None

    monkeypatch.setattr(swap, "drain_noticed", nothing)


def schema(name: str, text: str) -> object:
    view = json.loads(text)
    TypeAdapter(generate._described(generate.VIEWS[name], {})).validate_python(view, strict=True)
    return view


def change(path: str, statement: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement)


def test_show_says_what_is_in_it(run: Run, journal: str) -> None:
    code, out, err = run("show", journal)
    assert (code, err) == (0, "")
    assert out.startswith(f"{journal}: journal, format {SCHEMA_VERSION}, ")
    assert "  events  " in out
    assert f"by version {__version__}" in out
    code, out, err = run("show", journal, "-o", "json")
    view = schema("journal", out)
    assert isinstance(view, dict)
    assert view["turns"] > 10
    assert view["pools"] == ["p"]


def test_a_replay_that_comes_out_the_same(run: Run, journal: str) -> None:
    code, out, err = run("replay", journal)
    assert (code, err) == (0, "")
    assert out.endswith("Every plan came out the same, byte for byte.\n")
    code, out, err = run("replay", journal, "-o", "json")
    view = schema("replay", out)
    assert isinstance(view, dict)
    assert (code, view["different"], view["identical"]) == (0, [], view["turns"])


@pytest.mark.usefixtures("drains_nothing")
def test_a_changed_policy_is_shown_and_exits_with_1(run: Run, journal: str) -> None:
    code, out, err = run("replay", journal)
    assert (code, err) == (1, "")
    assert "  action drain i-" in out
    assert "either its code was changed since, or a plan depends on something that the journal" in out
    assert f"Next: orchestrator journal replay {journal} --turn " in out
    code, out, _ = run("replay", journal, "-o", "json")
    view = schema("replay", out)
    assert isinstance(view, dict)
    assert code == 1
    first = view["different"][0]
    assert first["unreadable"] is None
    assert len(view["different"]) == view["differing"] == view["turns"] - view["identical"]
    code, out, err = run("replay", journal, "--turn", str(first["turn"]))
    assert (code, err) == (1, "")
    assert "Decided again, it differs\n  " + first["differences"][0] in out


@pytest.mark.usefixtures("drains_nothing")
def test_another_version_is_named(run: Run, journal: str) -> None:
    change(journal, "UPDATE recordings SET version='0.0.9'")
    code, out, _ = run("replay", journal)
    assert code == 1
    assert f"Recorded by version 0.0.9; version {__version__} would have decided otherwise." in out


def test_damage_is_counted_apart(run: Run, journal: str) -> None:
    change(journal, "UPDATE turns SET body=x'00' WHERE id=2")
    code, out, _ = run("replay", journal)
    assert code == 1
    assert "  differing   0\n  unreadable  1\n" in out
    assert "What can be read came out the same; the rest of the file is damaged." in out
    code, out, err = run("replay", journal, "--turn", "2")
    assert (code, out) == (1, "")
    assert err.startswith(f"{journal}: turn 2: the recorded turn cannot be read")


def test_one_turn_in_words(run: Run, journal: str) -> None:
    with closing(sqlite3.connect(journal)) as db:
        (seq,) = db.execute("SELECT MIN(seq) FROM events WHERE kind='DrainStarted'").fetchone()
    _, out, _ = run("replay", journal, "--until", str(seq - 1), "-o", "json")
    number = json.loads(out)["last_turn"]
    code, out, err = run("replay", journal, "--turn", str(number))
    assert (code, err) == (0, "")
    for text in (
        f"Turn {number} of p, ",
        f"recorded by version {__version__}",
        "  machines   ",
        "  sim-gateway ",
        "  drain i-",
        "interruption notice",
        "  target set: ",
        "4 nodes are wanted: 2 spot and 2 on-demand",
        "Decided again, it is the same, byte for byte.",
    ):
        assert text in out
    code, out, _ = run("replay", journal, "--turn", str(number), "-o", "json")
    view = schema("turn", out)
    assert isinstance(view, dict)
    assert view["identical"]
    assert view["plan"] == view["plan_now"]
    assert {"now", "regions", "engines", "balancers", "offerings"} <= set(view["world"])
    assert dict(view["memory"]["nodes"])


def test_turns_are_chosen_by_event_time_and_length(run: Run, journal: str) -> None:
    def numbers(*arguments: str) -> tuple[int, int]:
        view = json.loads(run("replay", journal, "-o", "json", *arguments)[1])
        return view["first_turn"], view["last_turn"]

    with closing(sqlite3.connect(journal)) as db:
        rows = db.execute("SELECT id, seq, at FROM turns ORDER BY id").fetchall()
    first, last = rows[0][0], rows[-1][0]
    half = rows[-1][2] - 30.0
    late = next(number for number, _, at in rows if at >= half)
    assert numbers() == (first, last)
    assert numbers("--from", "30s") == (late, last)
    assert numbers("--from", str(rows[-1][1])) == (
        next(number for number, seq, _ in rows if seq == rows[-1][1]), last,
    )  # fmt: skip
    assert numbers("--from", "2023-11-14T22:13", "--until", "2023-11-14T23:13:00+00:00") == (first, last)
    assert numbers("--until", "2023-11-14T22:13:20Z")[0] == first


def test_a_copy_and_an_export(run: Run, journal: str, tmp_path: Path) -> None:
    code, out, err = run("copy", journal, "--to", "other.db")
    assert (code, out, err) == (0, "OK other.db\nNext: orchestrator journal replay other.db\n", "")
    assert run("replay", "other.db")[0] == 0
    code, out, _ = run("copy", journal, "--to", "other.db")
    assert (code, out) == (1, "")
    code, out, err = run("export", journal)
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert {"DaemonStarted", "NoticeSeen", "TargetsApplied"} <= {line["kind"] for line in lines}
    assert lines[0]["data"]["epoch"] > 0


def test_an_export_of_one_pool_has_no_events_of_another(run: Run, journal: str) -> None:
    change(journal, "UPDATE events SET pool = 'q' WHERE seq % 2")
    seqs = {}
    for pool in ("p", "q"):
        code, out, err = run("export", journal, "--pool", pool)
        lines = [json.loads(line) for line in out.splitlines()]
        assert (code, err, {line["pool"] for line in lines}) == (0, "", {pool})
        seqs[pool] = {line["seq"] % 2 for line in lines}
    assert seqs == {"p": {0}, "q": {1}}
    code, out, err = run("export", journal, "--pool", "qq")
    assert (code, out) == (2, "")
    assert "there is no pool 'qq'" in err


def test_the_journal_is_found_by_the_configuration_and_in_the_state_directory(
    run: Run, recorded: Path, tmp_path: Path
) -> None:
    shutil.copytree(recorded, tmp_path / "state")
    (tmp_path / "pool.toml").write_text("[pool.p]\nreplicas = 4\n", encoding="utf-8")
    for arguments in ((), ("state",), ("state/journal.db",), ("--config", "pool.toml")):
        assert run("show", *arguments)[0] == 0, arguments


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (
            ("replay", "nothing.db"),
            1,
            "nothing.db: no such file; give the path of a journal, or --config FILE",
        ),
        (("show",), 1, "state: no such file"),
        (("replay", "incident.db", "--config", "pool.toml"), 2, "give a path or --config, not both"),
        (
            ("replay", "incident.db", "--from", "soon"),
            2,
            "--from soon: is neither the number of an event, nor",
        ),
        (("replay", "incident.db", "--turn", "9999"), 1, "incident.db: turn 9999 is not recorded in it"),
        (("replay", "incident.db", "--turn", "1", "--from", "1"), 2, "--turn names one turn: leave --from"),
        (("replay", "incident.db", "--from", "99999"), 1, "incident.db: no turn was recorded there; "),
        (("copy", "incident.db"), 2, "requires an argument"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    run: Run, journal: str, arguments: tuple[str, ...], code: int, says: str
) -> None:
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert len(err.splitlines()) == 1
    assert says in err


def test_a_journal_without_turns_says_why(run: Run, journal: str) -> None:
    change(journal, "DELETE FROM turns")
    change(journal, "DELETE FROM recordings")
    code, _, err = run("replay", journal)
    assert code == 1
    assert err == f'{journal}: holds no recorded turns (with daemon.record_turns = "off" none are)\n'
    change(journal, "UPDATE meta SET value='1' WHERE key='schema'")
    _, _, err = run("replay", journal)
    assert "it was written by a version that recorded none" in err
    assert "none recorded" in run("show", journal)[1]
