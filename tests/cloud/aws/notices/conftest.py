"""What the tests of AWS's notice sources share."""

import json
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def malformed() -> list[tuple[str, str]]:
    """(what is wrong, body) of every body in the corpus, and of the large ones that are made here."""
    lines = (HERE / "malformed.jsonl").read_text(encoding="utf-8").splitlines()
    listed = [(entry["why"], entry["body"]) for entry in map(json.loads, lines)]
    spot = json.dumps(
        {
            "id": "1",
            "source": "aws.ec2",
            "detail-type": "EC2 Spot Instance Interruption Warning",
            "time": "2026-01-01T00:00:00Z",
            "detail": {"instance-id": "i-1234567890abcdef0", "instance-action": "terminate"},
        }
    )
    made = [
        ("half a megabyte of one letter", "x" * 500_000),
        ("a sound event after too much white space", " " * 300_000 + spot),
        ("lists nested without end", "[" * 200_000),
        ("objects nested without end", '{"a":' * 50_000),
        ("a time that is nested", spot.replace('"2026-01-01T00:00:00Z"', "[" * 900 + "]" * 900)),
        ("a number of a hundred thousand digits", "9" * 100_000),
        (
            "an instance id that is nested",
            spot.replace('"i-1234567890abcdef0"', '{"a":' * 900 + "1" + "}" * 900),
        ),
        ("an instance id of a hundred kilobytes", spot.replace("i-1234567890abcdef0", "i-" + "a" * 100_000)),
        ("a time of a hundred kilobytes", spot.replace("2026-01-01T00:00:00Z", "1" * 100_000)),
        ("a lone surrogate", spot.replace("terminate", "\ud800")),
        ("zero bytes", "\0" * 1000),
        *((f"cut off after {n} characters", spot[:n]) for n in range(1, len(spot), 7)),
    ]
    return listed + made
