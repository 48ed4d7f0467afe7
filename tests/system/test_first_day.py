"""The page of the first day on AWS leads to a pool: its own text, typed against the stand-in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from doc_blocks import ROOT, blocks

PAGE = ROOT / "docs" / "how-to" / "first-day-on-aws.md"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.debian("curl", package="curl")
@pytest.mark.debian("jq", package="jq")
def test_the_page_leads_to_a_pool() -> None:
    command = [sys.executable, str(ROOT / "tools" / "first_day.py"), "-q", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert found["machines"]["chat"].count("spot") == 2
    assert found["machines"]["llama"] == ["on-demand"]
    assert found["answers"]["llama"]


@pytest.mark.parametrize("name", ["aws-8b-l4.toml", "aws-70b-awq.toml"])
def test_the_files_of_the_page_are_the_examples(name: str) -> None:
    text = (ROOT / "examples" / name).read_text(encoding="utf-8")
    assert text in [block.body for block in blocks(PAGE) if block.language == "toml"]
