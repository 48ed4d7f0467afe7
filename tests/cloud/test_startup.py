"""What a start saves: garbage is not looked for while modules are imported, and nothing is coloured."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from cloud.startup import importing

PLAIN = """
from cloud.logger import structlog
import sys
assert "rich" not in sys.modules
import rich  # can be imported afterwards, by whoever shows a table
import structlog as same
assert same is structlog and structlog.dev.rich is None
assert structlog.dev.ConsoleRenderer(colors=False)(None, "", {"event": "x"}) == "x"
"""


@pytest.fixture(autouse=True)
def own_collector() -> object:
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize("fails", [False, True])
def test_garbage_is_collected_again_once_all_is_imported(fails: bool) -> None:
    before = gc.get_freeze_count()
    try:
        with importing():
            assert not gc.isenabled()
            made = [[] for _ in range(1000)]  # type: ignore[var-annotated]
            if fails:
                raise ImportError
    except ImportError:
        assert fails
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(made)


def test_log_lines_need_no_colours() -> None:
    subprocess.run([sys.executable, "-c", PLAIN], check=True, timeout=60)
