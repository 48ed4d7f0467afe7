"""The report of a field test: what it proves, and that it tells nobody whose account it was."""

from __future__ import annotations

import pytest

from orchestrator.doctor.field_report import level, masked
from orchestrator.doctor.field_steps import NEEDED
from orchestrator.doctor.findings import fail, ok, skipped, warn
from orchestrator.doctor.short_lived import Passed


def passed(*findings):
    return [Passed(finding=finding, seconds=1.0) for finding in findings]


WELL = [ok("well", step) for step in NEEDED]


@pytest.mark.parametrize(
    ("findings", "stand_in", "found"),
    [
        (WELL, "", "field"),
        (WELL, "http://127.0.0.1:1", "stand-in"),
        ([*WELL, skipped("not allowed", "", "preempted")], "", "field"),
        ([*WELL, warn("late", "look", "taken")], "", "field"),
        ([*WELL, fail("nobody told", "look", "noticed")], "", "none"),
        (WELL[:-1], "", "none"),
        ([*WELL[1:], warn("doubtful", "look", NEEDED[0])], "", "none"),
        ([], "", "none"),
    ],
)
def test_what_the_steps_prove(findings, stand_in, found):
    assert level(passed(*findings), stand_in) == found


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("arn:aws:sts::123456789012:assumed-role/daemon is not authorized", "123456789012"),
        ("/subscriptions/11111111-2222-3333-4444-555555555555/x", "11111111-2222-3333-4444-555555555555"),
        ("projects/ml-serving/zones/us-central1-a", "ml-serving"),
        ("denied for ops.team+x@example.co.uk", "ops.team+x@example.co.uk"),
        ("at 10.0.12.7:8000", "10.0.12.7"),
        ("Bearer abcdefghijklmnop", "abcdefghijklmnop"),
        ("key AKIAABCDEFGHIJKLMNOP", "AKIAABCDEFGHIJKLMNOP"),
    ],
)
def test_what_names_an_account_is_hidden(text, secret):
    found = masked(text, ["ml-serving", ""])
    assert secret not in found
    assert "(hidden)" in found


@pytest.mark.parametrize(
    "text",
    [
        "i-0123456789abcdef0 is terminated after 2m12s at most",
        "so-e7087ab44244314f19e2: spot Standard_NC24ads_A100_v4 in eastus-1",
        "g2-standard-4 spot in us-central1-a",
        "version 1.44.5 after 121.5s",
    ],
)
def test_what_a_report_is_read_for_stays(text):
    assert masked(text, ["ml-serving"]) == text
