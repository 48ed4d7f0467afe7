"""The agent follows the engine's log in the journal until it serves, once for each start."""

import json
import stat
import threading

import pytest

from cloud import node_agent as agent

NOW = 1_800_000_000.0
LINES = [
    f"{NOW:.6f} host python3[7]: node-start: start: vllm starts",
    f"{NOW + 20:.6f} host python3[7]: Model loading took 15.0 GiB memory and 8.500000 seconds",
    f"{NOW + 60:.6f} host python3[7]: INFO:     Application startup complete.",
]


@pytest.fixture
def started(tmp_path):
    """An agent whose journal is a program that prints lines, notes its arguments, and then never ends."""

    def make(*lines: str, ends: bool = False):
        program, boot = tmp_path / "journalctl", tmp_path / "boot.json"
        (tmp_path / "lines").write_text("".join(f"{line}\n" for line in lines))
        wait = "" if ends else "exec sleep 1000\n"
        program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncat {tmp_path}/lines\n{wait}')
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
        made = agent.Agent(
            agent.options_of(
                ["--once", "--journalctl", str(program), "--boot-file", str(boot), "--node-id", "i-1"]
            )
        )

        def begins(at: float) -> None:
            boot.write_text(json.dumps({"schema": 1, "stage": "start", "ok": True, "times": {"start": at}}))
            made.look_at_boot()

        return made, begins, lambda: (tmp_path / "asked").read_text().splitlines()

    return make


def test_it_is_read_until_the_engine_serves_and_then_left_alone(started):
    made, begins, asked = started(*LINES)
    begins(NOW)
    made.look_at_engine()
    assert made.report()["engine"] == {"serves": True, "serves_at": NOW + 60, "took": {"load": 8.5}}
    assert asked() == ["-fqb -n 5000 -o short-unix -u orchestrator-engine"]
    made.look_at_engine()
    assert len(asked()) == 1, "nothing is read of what users do"


def test_another_start_is_read_too(started):
    made, begins, asked = started(*LINES, ends=True)
    begins(NOW)
    made.look_at_engine()
    begins(NOW + 900)
    made.look_at_engine()
    assert len(asked()) == 2


def test_what_an_earlier_start_ended_with_is_not_the_end_of_this_one(started):
    """An engine that served and died: its lines are still in the journal."""
    again = [
        f"{NOW + 900:.6f} host python3[9]: node-start: start: vllm starts",
        f"{NOW + 910:.6f} host python3[9]: Model loading took 15.0 GiB memory and 4.250000 seconds",
    ]
    ends = f"{NOW + 940:.6f} host python3[9]: INFO:     Application startup complete."
    made, begins, _ = started(*LINES, *again, ends=True)
    begins(NOW + 899.9)
    made.look_at_engine()
    assert made.report()["engine"] == {"serves": False, "serves_at": None, "took": {"load": 4.25}}
    made, begins, _ = started(*LINES, *again, ends)
    begins(NOW + 899.9)
    made.look_at_engine()
    assert made.report()["engine"] == {"serves": True, "serves_at": NOW + 940, "took": {"load": 4.25}}


def test_before_the_engine_starts_nothing_is_read(started, tmp_path):
    made, _, _ = started(*LINES)
    made.look_at_engine()
    assert made.report()["engine"] is None
    assert not (tmp_path / "asked").exists()


def test_a_journal_that_ends_early_is_read_again(started):
    made, begins, asked = started(*LINES[:2], ends=True)
    begins(NOW)
    made.look_at_engine()
    made.look_at_engine()
    assert len(asked()) == 2
    assert made.report()["engine"] == {"serves": False, "serves_at": None, "took": {"load": 8.5}}


def test_lines_that_are_none_of_a_journal_stop_nothing(started):
    made, begins, _ = started("", "\x00\ufffd", "nan host: Application startup complete")
    begins(NOW)
    made.look_at_engine()
    assert made.report()["engine"] == {"serves": True, "serves_at": None, "took": {}}


def test_an_engine_that_serves_is_told_at_once(started):
    made, begins, _ = started(*LINES)
    begins(NOW)
    made._news = threading.Event()
    made.look_at_engine()
    assert made._news.is_set()


def test_a_node_without_a_journal_says_so_and_goes_on(started, tmp_path):
    made, begins, _ = started(*LINES)
    (tmp_path / "journalctl").unlink()
    begins(NOW)
    with pytest.raises(FileNotFoundError):  # `_repeat` logs it and looks again
        made.look_at_engine()
    assert made.report()["engine"] is None
