"""A pool's own arithmetic, judged: does a drain fit a notice, what does the loss of a zone leave."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence

from cloud.balancers.proof import BALANCERS
from cloud.engines.dialect import DIALECTS, PROGRAMS, Kind
from cloud.kinds import CloudKind
from cloud.node_container import find, there
from cloud.node_metadata import Refused
from cloud.proof import MEANING, Proof, Proved
from orchestrator.config.tables.engine import EngineConfig
from orchestrator.doctor.findings import Finding, Findings, fail, ok, skipped, warn
from orchestrator.units import format_duration
from orchestrator.words import percent, plural
from policies.model import DrainRules, Pool
from policies.self_or_api import PoolStanding

_LEAST_COUNTED = 24.0  # hours: the night is a part of what is paid for


def drain(rules: DrainRules, notices: Mapping[str, float]) -> Findings:
    """Whether budget, margin and settle fit what each source leaves. `notices`: seconds from the moment a
    source can tell to the end of the node, at worst."""
    needs = rules.budget + rules.margin + rules.settle
    sum_ = (
        f"budget {format_duration(rules.budget)} + margin {format_duration(rules.margin)} + settle "
        f"{format_duration(rules.settle)} = {format_duration(needs)}"
    )
    findings: list[Finding] = []
    for source, seconds in notices.items():
        if needs > seconds:
            text = f"{sum_}, and this source leaves {format_duration(seconds)}: requests are cut"
            findings.append(fail(text, "lower drain.budget", source))
        else:
            findings.append(ok(f"{sum_} of {format_duration(seconds)}", source))
    return findings


def capacity(pool: Pool, zones: int) -> Findings:
    """What is left when spot is taken, if units are spread evenly over so many zones (0: not known)."""
    if not pool.replicas:
        return [ok("none is wanted")]
    ready = pool.replicas + pool.standby.hot
    all_spot = ready - pool.spot_wanted
    findings = [
        _left(pool, ready - min(pool.largest, pool.spot_wanted), "one spot node lost"),
        ok(f"{_count(pool, all_spot)}; the rest comes from on-demand as it is to be had", "all spot lost"),
    ]
    if not pool.spot_wanted:
        return [ok("no node is on spot")]
    if not zones:
        return [*findings, skipped("the cloud's zones are not known here", subject="one zone lost")]
    fullest = math.ceil(pool.spot_wanted / zones)
    return [*findings, _left(pool, ready - fullest, f"one of {plural(zones, 'zone')} lost")]


def engine(engine: EngineConfig, local: bool) -> Findings:
    """Whether the engine can be started here, where nodes are processes of this machine."""
    if engine.run == "container":
        return _contained(engine, local)
    return _started(engine.kind, engine.executable, local)


def proof(clouds: Sequence[CloudKind], balancers: Sequence[str], kind: Kind) -> Findings:
    """How well what a pool uses is proved: its clouds, its balancers, its engine."""
    used = {cloud.title: cloud.proved for cloud in clouds} | {name: BALANCERS[name] for name in balancers}
    engine = DIALECTS[kind]
    watch = "watch its first days closely, and report what differs"
    asks = f"ask one: orchestrator doctor --engine URL --kind {kind}"
    return [
        *(_proved(one, name, watch) for name, one in used.items()),
        _proved(engine.proved, engine.title, asks),
    ]


def _proved(one: Proved, subject: str, advice: str) -> Finding:
    if one.proof is Proof.SOURCE:
        return warn(f"was not run against the real one ({one.by}): {MEANING[one.proof]}", advice, subject)
    return ok(f"{one.proof}: {one.by}", subject)


def _contained(engine: EngineConfig, local: bool) -> Findings:
    """Whether the container's image is here. Asks docker or podman."""
    if not local:
        return [skipped("containers run on the nodes, which look for docker or podman when they boot")]
    try:
        runtime = find(engine.runtime)
        if there(runtime, engine.image):
            return [ok(f"{runtime.program} has {engine.image}")]
    except (Refused, OSError) as error:
        return [fail(str(error), "orchestrator validate names the keys")]
    fetches = f"fetch it once: {runtime.program} pull {engine.image}"
    return [warn(f"{runtime.program} does not have {engine.image}; every first start waits for it", fetches)]


def _started(kind: Kind, program: str, local: bool) -> Findings:
    if not local:
        return [skipped("engines run on the nodes, where the launch template puts them")]
    named = program or PROGRAMS.get(kind, "")
    if not named:
        return [ok("the simulated engine is part of this distribution")]
    found = shutil.which(named)
    if found is None:
        return [fail(f"{named} is no program here", "install it, or set engine.executable to its path")]
    return [ok(found)]


def pays(standing: PoolStanding, hours: float, accepted: bool) -> Findings:
    """Whether the pool was worth its money, against the API that it is compared with. `hours`: as many were
    counted; `accepted`: the file says that it is known."""
    if hours < _LEAST_COUNTED:
        return [skipped(f"a day of history is needed to judge by, and there are {hours:.0f} hours")]
    if standing.cheaper == "unknown":
        return [skipped(standing.advice)]
    if standing.cheaper == "pool" or accepted:
        return [ok(standing.advice)]
    return [
        warn(
            standing.advice,
            "bring it more requests, keep fewer units (`orchestrator plan-capacity`), or let the API answer; "
            f'where that is meant: accepted = ["utilisation"] in [pool.{standing.pool.name}]',
        )
    ]


def _left(pool: Pool, left: int, subject: str) -> Finding:
    text = _count(pool, left)
    if left < pool.replicas * pool.drain.min_serving:
        least = percent(pool.drain.min_serving)
        return warn(
            f"{text}, less than the {least} of drain.min_serving",
            "add zones, a hot standby, or a larger on-demand share",
            subject,
        )
    return ok(text, subject)


def _count(pool: Pool, left: int) -> str:
    wanted = f"{pool.replicas} {pool.noun(pool.replicas)}"
    return f"leaves {left} of {wanted} ({percent(left / pool.replicas)})"
