"""The report of a field test: what somebody sends in, with nothing in it that tells whose account it was."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cloud.kinds import CloudName
from orchestrator import __version__
from orchestrator.config.load import Config
from orchestrator.doctor.field_kinds import FieldKind
from orchestrator.doctor.field_steps import NEEDED, FieldTest
from orchestrator.doctor.findings import State
from orchestrator.doctor.short_lived import Passed
from orchestrator.redact import HIDDEN, Redactor
from orchestrator.views.field import FieldLevel, FieldReportView, FieldStepView
from orchestrator.words import age, clean, instant, money, short_time

LEFT_OUT: Final = ("console",)
"""Steps that are shown to who runs the test, and not sent in: a machine may write anything."""

_ACCOUNT: Final = re.compile(
    r"(?<![0-9a-zA-Z])\d{12}(?![0-9a-zA-Z])"  # an account of AWS, a number of a project
    r"|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"  # a subscription, a tenant, a request
    r"|[\w.+-]+@[\w-]+(?:\.[\w-]+)+"  # who asks
    r"|(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])"  # an address
)


def masked(text: str, private: Sequence[str]) -> str:
    """One line without secrets, accounts, addresses, and the names that are private."""
    return _ACCOUNT.sub(HIDDEN, Redactor(one for one in private if one).text(clean(text)))


def level(steps: Sequence[Passed], stand_in: str) -> FieldLevel:
    """What the steps prove: nothing, where one failed or one that is needed is missing."""
    well = {one.finding.subject for one in steps if one.finding.state is State.OK}
    bad = any(one.finding.state is State.FAIL for one in steps)
    if bad or not well.issuperset(NEEDED):
        return "none"
    return "stand-in" if stand_in else "field"


def report(test: FieldTest, kind: CloudName, row: FieldKind, config: Config, began: float) -> FieldReportView:
    """The report of a test that has run. `began`: s since the epoch."""
    node, private = test.node, row.private(config)
    steps, before = list[FieldStepView](), 0.0
    for one in node.steps:
        if one.finding.subject in LEFT_OUT:
            continue
        steps.append(
            {
                "step": one.finding.subject,
                "state": one.finding.state.value,
                "text": masked(one.finding.text, private),
                "seconds": round(one.seconds, 3),
                "took": round(max(0.0, one.seconds - before), 3),
            }
        )
        before = one.seconds
    request = node.request
    placement = None if request is None else request.placement
    lived = before if node.machine is not None else 0.0
    well = dict.fromkeys(step["step"] for step in steps if step["state"] == "ok")
    return {
        "schema": "field-test/1",
        "at": began,
        "version": __version__,
        "provider": kind,
        "cloud": row.cloud(config),
        "versions": {"python": platform.python_version(), **row.versions(config)},
        "region": "" if placement is None else placement.region,
        "zone": "" if placement is None else placement.zone,
        "instance_type": "" if placement is None else placement.instance_type,
        "market": "" if placement is None else str(placement.market),
        "usd_per_hour": node.price,
        "usd": None if node.price is None else round(node.price * lived / 3600.0, 4),
        "seconds": round(before, 3),
        "steps": steps,
        "notices": [
            {
                "source": one.source,
                "after": round(one.after, 3),
                "left": None if one.left is None else round(one.left, 3),
            }
            for one in test.heard
        ],
        "proof": level(node.steps, row.stand_in(config)),
        "shown": list(well),
        "not_shown": list(dict.fromkeys(step["step"] for step in steps if step["step"] not in well)),
    }


def text(view: FieldReportView) -> str:
    """The report as people read it."""
    where = f"{view['instance_type']} {view['market']} in {view['zone'] or view['region']}"
    behind = f" on {view['cloud']}" if view["cloud"] else ""
    hourly = "not known" if view["usd_per_hour"] is None else f"{money(view['usd_per_hour'])} an hour"
    paid = "" if view["usd"] is None else f", about {money(view['usd'])} in all"
    lines = [
        f"Field test of {view['provider']}{behind}, {instant(view['at'])}",
        f"orchestrator {view['version']}; {', '.join(f'{n} {v}' for n, v in view['versions'].items())}",
        f"machine: {where}; price: {hourly}{paid}; it took {age(view['seconds'])}",
        f"supports the proof level: {view['proof']}",
        "",
        *(f"{s['seconds']:8.1f} s  {s['state']:7}  {s['step']}: {s['text']}" for s in view["steps"]),
    ]
    for notice in view["notices"]:
        left = (
            "" if notice["left"] is None else f", {short_time(max(0.0, notice['left']))} before its deadline"
        )
        lines.append(f"notice: {notice['source']} after {short_time(notice['after'])}{left}")
    lines += ["", f"not shown: {', '.join(view['not_shown']) or 'nothing'}", ""]
    return "\n".join(lines)


def write(view: FieldReportView, directory: Path) -> list[Path]:
    """Write it as JSON and as text; the files. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    at = datetime.fromtimestamp(view["at"], UTC).strftime("%Y%m%dT%H%M%SZ")
    files = [directory / f"{view['provider']}-{at}.{ending}" for ending in ("json", "txt")]
    for file, content in zip(files, (json.dumps(view, indent=2) + "\n", text(view)), strict=True):
        file.write_text(content, encoding="utf-8")
    return files
