"""Books from a configuration and real files: everything of the period, or of one pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cost_state import HOUR, NOW, config

from orchestrator.config.load import Config
from orchestrator.costs.books import read_books
from orchestrator.costs.view import view_of
from orchestrator.journal.file import JournalError


def lines(config: Config, *by: str, **changes: Any) -> dict[Any, Any]:
    books, missing = read_books(config, **({"since": HOUR - 20, "until": HOUR + 5, "now": NOW} | changes))
    view = view_of(books, by, missing)
    return {tuple(row["group"].values()): row["spent_usd"] for row in view["rows"]}


def test_everything_of_the_period_is_in_the_books(state: Path) -> None:
    assert lines(config(state), "pool", "key") == {
        ("chat", "team-a"): 1.5,
        ("embed", ""): 0.5,
        ("provider/claude", "team-a"): 0.25,
    }


def test_of_one_pool_there_is_nothing_else(state: Path) -> None:
    assert lines(config(state), "pool", pool="chat") == {("chat",): 1.5}
    books, _ = read_books(config(state), since=HOUR, until=HOUR + 5, now=NOW, pool="chat")
    assert [one["pool"] for one in view_of(books, ())["pools"]] == ["chat"]
    assert view_of(books, ())["pools"][0]["compare"] == "claude/m"


def test_nothing_yet_is_said_and_is_no_free_month(tmp_path: Path) -> None:
    books, missing = read_books(config(tmp_path), since=HOUR, until=HOUR + 1, now=NOW)
    notes = view_of(books, (), missing)["notes"]
    assert notes[0].endswith("there is no journal yet, so nothing is known of nodes")
    assert any(note.startswith("nothing was counted yet") for note in notes)


def test_a_journal_in_a_database_is_looked_for_there(state: Path) -> None:
    elsewhere = config(state, store="postgresql://orchestrator@/pool?host=/nowhere")
    with pytest.raises(JournalError, match=r"cannot be reached|is not installed"):
        read_books(elsewhere, since=HOUR, until=HOUR + 5, now=NOW)


def test_a_journal_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"rubbish" * 300)
    with pytest.raises(JournalError):
        read_books(config(tmp_path), since=HOUR, until=HOUR + 1, now=NOW)
