"""The JSON of a report of `orchestrator doctor --field-test`, which people send in. It holds no secret.

The rules of `orchestrator.views.api` hold here too.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

FieldLevel = Literal["field", "stand-in", "none"]


class FieldStepView(TypedDict):
    """One step of a field test."""

    step: Annotated[str, "accepted, replayed, listed, running, ..., ended, gone, replayed after the end"]
    state: Literal["ok", "warn", "fail", "skipped"]
    text: str
    seconds: Annotated[float, "since the launch was asked for"]
    took: Annotated[float, "since the step before"]


class FieldNoticeView(TypedDict):
    """A source that told of the preemption."""

    source: str
    after: Annotated[float, "seconds from the request to the notice"]
    left: Annotated[float | None, "seconds from the notice to its deadline; null where it has none"]


class FieldReportView(TypedDict):
    """A report of a field test."""

    schema: Literal["field-test/1"]
    at: Annotated[float, "when it began, in seconds since the epoch"]
    version: Annotated[str, "of this package"]
    provider: Annotated[str, "cloud.kind"]
    cloud: Annotated[str, "the cloud behind it, where that is another; else empty"]
    versions: Annotated[dict[str, str], "of Python and of what speaks to the cloud"]
    region: str
    zone: str
    instance_type: str
    market: str
    usd_per_hour: Annotated[float | None, "null where the price was not known"]
    usd: Annotated[float | None, "about what the machine cost"]
    seconds: Annotated[float, "how long the whole test took"]
    steps: list[FieldStepView]
    notices: list[FieldNoticeView]
    proof: Annotated[FieldLevel, "the level that it supports; none where a needed step failed"]
    shown: Annotated[list[str], "steps that were seen to be well"]
    not_shown: Annotated[list[str], "steps that failed, were doubtful, or were skipped"]
