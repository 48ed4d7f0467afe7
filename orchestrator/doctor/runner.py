"""Runs checks beside each other, each within its time; one that breaks is a finding of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from cloud.errors import CloudError
from cloud.ports import Clock
from orchestrator.doctor.findings import Check, Findings, Result, fail, skipped

Progress = Callable[[int, Sequence[str]], None]
"""Told how many checks are done and which are still being waited for, whenever that changes."""

TIMEOUT: Final = 30.0
"""Seconds that one check may take."""


async def run(
    checks: Sequence[Check], clock: Clock, progress: Progress, *, timeout: float = TIMEOUT
) -> list[Result]:
    """Every check's result, in the order of the checks. Never raises for what a check does."""
    tasks: dict[str, asyncio.Task[Result]] = {}
    for check in checks:
        if check.title in tasks:
            raise ValueError(f"two checks are called {check.title}")
        tasks[check.title] = asyncio.create_task(_result(check, tasks, clock, timeout), name=check.title)
    pending = set(tasks.values())
    while pending:
        progress(len(tasks) - len(pending), sorted(task.get_name() for task in pending))
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    return [task.result() for task in tasks.values()]


async def _result(
    check: Check, tasks: Mapping[str, asyncio.Task[Result]], clock: Clock, timeout: float
) -> Result:
    if check.needs in tasks:
        needed = await tasks[check.needs]
        if needed.failed or not needed.made:
            text = f"{check.needs} failed" if needed.made else f"{check.needs} was not made"
            return Result(check=check, findings=(skipped(text),), seconds=0.0, made=False)
    begun = clock.now()
    findings = await _looked(check, timeout + check.longer)
    return Result(check=check, findings=tuple(findings), seconds=max(0.0, clock.now() - begun))


async def _looked(check: Check, timeout: float) -> Findings:
    try:
        async with asyncio.timeout(timeout):
            return await check.look()
    except TimeoutError:
        text = f"there was no answer within {timeout:g} s"
        return [fail(text, "look at what it asks: a network that drops packets, a disk that hangs")]
    except CloudError as error:
        return [fail(str(error), "fix what it says, then run the check again")]
    except Exception as error:  # one broken check must not hide what the others find
        return [fail(f"the check broke: {type(error).__name__}: {error}", "report it; the others stand")]
