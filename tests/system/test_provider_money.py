"""Nothing is booked but what is owed, and no cap overshot; `bench/provider_money.py` plays a thousand."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "provider_money.py"
REQUESTS, KILLS = 160, 3


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_booked_is_billed_whatever_dies(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    seed = int(request.config.getoption("randomly_seed", 0))
    words = ("--requests", str(REQUESTS), "--kills", str(KILLS), "--seed", str(seed), "-o", "json")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(BENCH), *words), cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    result = json.loads(out)
    assert (result["wrong_pico"], result["overshot"]) == (0, []), result
    assert process.returncode == 0
    assert sum(result["kinds"].values()) == REQUESTS
    assert sum(result["disturbances"].values()) == KILLS
    assert sum(result["answers"].values()) + result["lost_with_the_gateway"] == REQUESTS
    assert all(row["requests_billed"] for row in result["providers"].values()), "nothing was paid for"
