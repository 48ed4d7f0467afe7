"""SDK clients get the answers of uncut streams, from real vLLM servers whose connections break, or that die.

Needs what tools/vllm/install.sh makes. Skipped without it, unless ORCHESTRATOR_REQUIRE_VLLM=1 makes its
absence a failure. The same bench runs with simulated engines wherever every bench has its quick run.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[4]
VLLM = Path(os.environ.get("VLLM_VENV", ROOT / ".venv-vllm")) / "bin" / "vllm"


async def test_cut_streams_are_those_of_an_uncut_stream() -> None:
    if not VLLM.exists():
        reason = f"no real vLLM: {VLLM} is missing (tools/vllm/install.sh makes it)"
        if os.environ.get("ORCHESTRATOR_REQUIRE_VLLM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, ROOT / "bench" / "gateway_cuts.py", "--engine", "vllm", "--cuts", "66"),
        *("--streams", "20", "--output", "json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, progress = await process.communicate()
    assert said, progress.decode()[-2000:]
    result = json.loads(said)
    assert result["different"] == []
    assert result["equal"] == result["cuts"] > 0
    assert result["connections_cut"] > 0
    assert result["continuations"] > 0
    assert result["killed"]["whole"] == result["killed"]["streams"] > 0
