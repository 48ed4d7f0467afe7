"""The translation against a real llama.cpp: what `make translate-check` asks of it, and every refusal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.llamacpp
def test_every_difference_is_a_known_one():
    """Plain and streamed, each case gives what the server's own OpenAI route gives."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "translate_check" / "run.py"), "--only", "llama.cpp"],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| llama.cpp |")]
    assert len(rows) >= 19
    assert sum(row.count("| equal") for row in rows) > len(rows)
