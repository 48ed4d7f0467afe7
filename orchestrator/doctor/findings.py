"""What a check finds: a state, a sentence, and what to do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, get_args


class State(StrEnum):
    """How bad a finding is. `skipped` is neither good nor bad: nobody could look, and the text says why."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was found. `subject`: what it is about, when a check looks at several things."""

    state: State
    text: str
    advice: str = ""
    subject: str = ""


Findings = Sequence[Finding]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One look. `needs` names a check, as "group/name", without which this one is of no use; `longer`: the
    seconds that it may take beyond what every check may."""

    group: str
    name: str
    look: Callable[[], Awaitable[Findings]]
    needs: str = ""
    longer: float = 0.0

    @property
    def title(self) -> str:
        """The name that people see."""
        return f"{self.group}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A check with what it found and the seconds it took. `made`: it was, as what it needs was well."""

    check: Check
    findings: tuple[Finding, ...]
    seconds: float
    made: bool = True

    @property
    def failed(self) -> bool:
        """Whether anything is wrong."""
        return any(finding.state is State.FAIL for finding in self.findings)


CheckGroup = Literal[
    "host",
    "config",
    "state",
    "daemon",
    "pool",
    "providers",
    "aws",
    "azure",
    "money",
    "notices",
    "launch",
    "balancer",
    "gcp",
    "skypilot",
    "engine",
]
"""What a check belongs to."""

GROUPS: Final[tuple[CheckGroup, ...]] = get_args(CheckGroup)
"""Every group, in the order in which they are shown."""


def ok(text: str, subject: str = "") -> Finding:
    """All is well."""
    return Finding(state=State.OK, text=text, subject=subject)


def warn(text: str, advice: str, subject: str = "") -> Finding:
    """Doubtful; the daemon works all the same."""
    return Finding(state=State.WARN, text=text, advice=advice, subject=subject)


def fail(text: str, advice: str, subject: str = "") -> Finding:
    """Wrong: something that the daemon promises does not hold."""
    return Finding(state=State.FAIL, text=text, advice=advice, subject=subject)


def skipped(text: str, advice: str = "", subject: str = "") -> Finding:
    """Nobody could look."""
    return Finding(state=State.SKIPPED, text=text, advice=advice, subject=subject)
