"""Kill -9 at the calls that change AWS, against the stand-in. See `aws_kills.py`, which plays them all."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from aws_kills import LAUNCHES, MOMENTS, campaign, in_all, lowest, points

pytestmark = [pytest.mark.slow, pytest.mark.long]

SHARE = 0.2


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short: unix sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        yield Path(name)


@pytest.mark.timeout(1200)
async def test_killed_at_calls_that_change_aws(
    aws_shim: Any, directory: Path, request: pytest.FixtureRequest
) -> None:
    """Each call and moment, in a scenario that the seed draws; `make test-aws-kills` plays every point."""
    seed = int(request.config.getoption("randomly_seed", 0))
    result = await campaign(aws_shim, directory, pools=3, seed=seed, share=SHARE)
    failed = result.faults()
    lines = [f"python tests/system/aws_kills.py --seed {seed} {p}\n  {why}" for p, why in failed.items()]
    assert not failed, f"{len(failed)} of {len(result.points)} points:\n" + "\n".join(lines)
    kinds = {(p.action, p.moment) for p in result.points}
    assert result.calls.keys() == {p.scenario for p in result.points} == set(LAUNCHES)
    for calls in result.calls.values():
        assert {"RunInstances", "DeregisterTargets", "TerminateInstances"} <= calls.keys()
    assert kinds == {(p.action, p.moment) for p in points(result.calls)}


def test_every_moment_of_every_call_is_a_point() -> None:
    found = points({"reclaim": {"RunInstances": 2, "AddTags": 1}})
    assert len(found) == len(set(found)) == 3 * len(MOMENTS)


def test_points_are_of_what_every_run_does() -> None:
    assert in_all([{"AddTags": 7, "RunInstances": 2}, {"AddTags": 4, "DeregisterTargets": 1}]) == {
        "AddTags": 4
    }


def test_the_floor_is_counted_after_every_change() -> None:
    markets = {"a": "on-demand", "b": "on-demand", "s": "spot"}
    log = [
        {"action": "DeregisterTargets", "subjects": ["a"]},
        {"action": "RegisterTargets", "subjects": ["b"]},
        {"action": "AddTags", "subjects": []},
    ]
    assert lowest({"a", "s"}, markets, log) == 0
    assert lowest({"a", "s"}, markets, [log[1], log[0]]) == 1
