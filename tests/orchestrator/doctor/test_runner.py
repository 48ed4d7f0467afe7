"""Checks run beside each other, each within its time, and one that breaks is a finding of its own."""

import asyncio

import pytest

from cloud.clock import SystemClock
from cloud.errors import CloudError
from orchestrator.doctor.findings import Check, State, fail, ok
from orchestrator.doctor.runner import run


def check(name, look, needs=""):
    return Check(group="host", name=name, look=look, needs=needs)


def saying(*findings):
    async def look():
        return findings

    return look


def raising(error):
    async def look():
        raise error

    return look


async def results(*checks, timeout=30.0, heard=None):
    said = heard if heard is not None else []
    found = await run(
        checks, SystemClock(), lambda done, waiting: said.append((done, waiting)), timeout=timeout
    )
    return {result.check.name: result for result in found}


async def test_results_come_in_the_order_of_the_checks_and_progress_is_told():
    gate = asyncio.Event()

    async def last():
        gate.set()
        return [ok("second")]

    async def first():
        await gate.wait()
        return [ok("first")]

    heard = []
    found = await results(check("a", first), check("b", last), heard=heard)
    assert [result.findings[0].text for result in found.values()] == ["first", "second"]
    assert heard[0] == (0, ["host/a", "host/b"])


async def test_a_check_that_hangs_fails_in_its_time_and_holds_up_no_other():
    found = await results(check("hangs", asyncio.Event().wait), check("fine", saying(ok("x"))), timeout=0.05)
    (finding,) = found["hangs"].findings
    assert (finding.state, "no answer within 0.05 s" in finding.text) == (State.FAIL, True)
    assert not found["fine"].failed


@pytest.mark.parametrize(
    ("error", "text"),
    [(CloudError("the cloud is away"), "the cloud is away"), (KeyError("Zone"), "the check broke: KeyError")],
)
async def test_a_check_that_raises_is_a_failure(error, text):
    found = await results(check("raises", raising(error)))
    assert found["raises"].failed
    assert text in found["raises"].findings[0].text
    assert found["raises"].findings[0].advice


async def test_what_needs_a_check_that_failed_is_skipped():
    bad, fine = saying(fail("no", "fix")), saying(ok("yes"))
    found = await results(
        check("after-bad", fine, "host/bad"),
        check("bad", bad),
        check("good", fine),
        check("after-good", fine, "host/good"),
        check("alone", fine, "host/not-asked-for"),
    )
    (finding,) = found["after-bad"].findings
    assert (finding.state, finding.text) == (State.SKIPPED, "host/bad failed")
    assert [found[name].findings[0].state for name in ("after-good", "alone")] == [State.OK, State.OK]


async def test_two_checks_of_one_name_are_a_mistake():
    with pytest.raises(ValueError, match="host/a"):
        await results(check("a", saying()), check("a", saying()))
