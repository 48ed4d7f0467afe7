"""Who closes idle connections first, the balancer or the engine; and answers for which no balancer waits.

An Application Load Balancer keeps connections to its targets open for as long as its idle timeout says, and
sends requests on them. A target that closes first costs a request now and then: 502. A target that sends
nothing for that long costs the request that is waiting: 504. Source: Elastic Load Balancing, Troubleshoot
your Application Load Balancers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cloud.aws.balancer_settings import idle_command
from cloud.engines.dialect import DIALECTS
from cloud.engines.flags import flag_value
from cloud.engines.keep_alive import AHEAD, KEEP_ALIVE
from cloud.ports import EngineSpec
from orchestrator.config.checks.engine import tokens
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.gateway.config import IDLE
from orchestrator.units import format_duration, shown

_RATE: Final = 50.0
"""Tokens a second that one request of a busy node gets, for the estimate of a long answer."""

Found = tuple[tuple[str, ...], str]  # key path, sentence


def keep_alive(pool: PoolConfig) -> float:
    """How long engines keep idle connections, in seconds: longer than their callers do."""
    usual = EngineSpec(model="", served_name="").keep_alive
    if "aws" not in pool.cloud.kinds:
        return usual
    return max(usual, pool.cloud.aws.balancer_idle_timeout + AHEAD)


def balancer_errors(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """What would cost requests for certain."""
    written = pool.engine.env.get(KEEP_ALIVE)
    kept = _seconds(written, whole=pool.engine.kind == "vllm")
    if written is not None and kept is None:
        yield (
            (*at, "engine", "env", KEEP_ALIVE),
            f"{shown(written)} is not a whole number of seconds, and vLLM does not start with it; "
            f'write "{keep_alive(pool):.0f}" or leave it out',
        )
    if "aws" not in pool.cloud.kinds:
        return
    idle = pool.cloud.aws.balancer_idle_timeout
    row = DIALECTS[pool.engine.kind]
    if pool.cloud.aws.target_group and row.closes_after:
        yield (
            (*at, "cloud", "aws", "target_group"),
            f"sends requests on connections that were idle, and {row.title} closes those after "
            f"{row.closes_after:g} s: clients would get 502; leave it out, and let the gateway carry the "
            "requests",
        )
    if pool.cloud.aws.target_group and kept is not None and kept <= idle:
        yield (
            (*at, "engine", "env", KEEP_ALIVE),
            f"{shown(written)} is not above cloud.aws.balancer_idle_timeout ({format_duration(idle)}): the "
            "engine would close connections on which the balancer is sending, and clients would get 502; "
            f'leave it out, or write "{keep_alive(pool):.0f}"',
        )


def balancer_warnings(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """What may cost requests."""
    by_alb = bool(pool.cloud.target_group)
    kept = _seconds(pool.engine.env.get(KEEP_ALIVE), whole=False)
    if kept is not None and kept <= IDLE and not by_alb:
        yield (
            (*at, "engine", "env", KEEP_ALIVE),
            f"{kept:g} s is not above the {IDLE:g} s for which the gateway keeps connections: requests would "
            "meet connections that the engine is closing, and be sent twice; leave it out",
        )
    idle = pool.cloud.aws.balancer_idle_timeout
    longest, why = _longest_answer(pool)
    if by_alb and longest > idle:
        command = idle_command(next(iter(pool.cloud.aws.regions)), "ARN", _above(longest))
        yield (
            (*at, "cloud", "aws", "balancer_idle_timeout"),
            f"{why}, but after {format_duration(idle)} without a byte the balancer answers 504: let clients "
            f"stream, or raise the balancer's idle timeout ({command}) and write it here",
        )


def _longest_answer(pool: PoolConfig) -> tuple[float, str]:
    """How long a client that does not stream may wait for its answer, in seconds, as far as the settings
    tell, and where that was read. How long requests queue before is not known."""
    found = [(pool.drain.budget, f"drain.budget gives requests {format_duration(pool.drain.budget)}")]
    each = (pool, *map(pool.on, pool.engine.on))
    length = max(tokens(flag_value(one.engine.args, "--max-model-len")) for one in each)
    if pool.engine.kind == "vllm" and length:
        takes = length / _RATE
        found.append(
            (takes, f"the {length} tokens of --max-model-len take about {takes:.0f} s at {_RATE:g} a second")
        )
    return max(found)


def _above(seconds: float) -> float:
    return max(600.0, 60.0 * (seconds // 60.0 + 1.0))


def _seconds(text: str | None, *, whole: bool) -> float | None:
    """What a variable says in seconds; None without it, and where it is no number or not a whole one."""
    try:
        return None if text is None else float(int(text)) if whole else float(text)
    except ValueError:
        return None
