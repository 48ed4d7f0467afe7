"""No request is lost through kills, stops and hand-overs; `bench/gateway_kills.py` plays thousands."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "gateway_kills.py"
REQUESTS = 350


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(300)
async def test_no_request_is_lost_whatever_dies(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    seed = int(request.config.getoption("randomly_seed", 0))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(BENCH), "--requests", str(REQUESTS), "--seed", str(seed), "-o", "json"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    result = json.loads(out)
    assert result["faults"] == {}, "\n".join([result["replay"], *result["first_failed"]])
    assert process.returncode == 0
    assert (result["requests"], result["failed"]) == (REQUESTS, 0)
    assert sum(result["kinds"].values()) == REQUESTS
    assert result["disturbances"], "nothing was disturbed"
    assert result["lost_with_the_gateway"] <= result["in_flight_at_kills_of_the_gateway"]
