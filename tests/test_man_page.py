"""The man page is sound roff and shows every command."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from orchestrator.cli.app import COMMANDS, HIDDEN

PAGE = Path(__file__).parents[1] / "docs" / "man" / "orchestrator.1"


def groff(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["groff", "-man", "-Kutf8", *flags, str(PAGE)], capture_output=True, text=True, timeout=60, check=True
    )


@pytest.mark.debian("groff", package="groff-base")
def test_it_is_set_without_a_warning() -> None:
    assert groff("-ww", "-z").stderr == ""


@pytest.mark.debian("groff", package="groff-base")
def test_every_command_is_in_it_and_no_line_is_lost() -> None:
    shown = groff("-Tutf8", "-P-cbou").stdout
    for command in set(COMMANDS) - HIDDEN:
        assert f"orchestrator {command}\n" in shown
    assert "orchestrator status -o json | jq '.pools[0].ready'" in shown
