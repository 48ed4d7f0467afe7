"""Which checks there are for a configuration file, and for none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from cloud.ports import Clock
from orchestrator.config import Config, ConfigError, load_config
from orchestrator.doctor.findings import GROUPS, Check, Finding, Findings, Result, fail, ok, skipped, warn
from orchestrator.doctor.runner import Progress, run
from orchestrator.words import plural

_NEEDS_CONFIG = ("state", "daemon", "pool", "aws")


async def examine(file: Path | None, only: Sequence[str], clock: Clock, progress: Progress) -> list[Result]:
    """Run the checks of these groups (all when empty) for a configuration."""
    config, faults = _read(file)
    checks = [Check(group="config", name="file", look=_found(faults))]
    aws = None
    if config is None:
        why = "no configuration is given" if file is None else "the configuration has errors"
        for group in _NEEDS_CONFIG:
            checks.append(Check(group=group, name="all", look=_found([skipped(why)])))
    elif config.pool.cloud.kind == "aws":
        from orchestrator.doctor.on_aws import AwsDoctor

        aws = AwsDoctor(config, str(file), clock)
        checks += aws.checks()
    else:
        why = f"the pool runs on {config.pool.cloud.kind}"
        checks.append(Check(group="aws", name="all", look=_found([skipped(why)])))
    try:
        wanted = [check for check in checks if not only or check.group in only]
        return await run(sorted(wanted, key=lambda c: GROUPS.index(c.group)), clock, progress)
    finally:
        if aws is not None:
            await aws.close()


def _read(file: Path | None) -> tuple[Config | None, Findings]:
    """The configuration, and what there is to say of it."""
    if file is None:
        advice = "name it with --config FILE"
        return None, [skipped("no configuration is given", advice)]
    try:
        config = load_config(file)
    except ConfigError as error:
        advice = f"mend it; `orchestrator validate {file}` checks it"
        return None, [fail(str(problem), advice) for problem in error.problems]
    warnings: list[Finding] = [warn(str(w), "change it, or leave it knowingly") for w in config.warnings]
    return config, warnings or [ok(f"{file} is valid: {plural(config.wanted.replicas, 'node')} wanted")]


def _found(findings: Findings) -> Callable[[], Awaitable[Findings]]:
    async def look() -> Findings:
        return findings

    return look
