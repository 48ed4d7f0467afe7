"""Several engines on one machine: what those of the local cloud take of its GPUs together.

A node of the local cloud is a process of this machine, so the nodes of all its pools share the GPUs, and
those of one pool the same ones, since they have the same variables. Each engine takes a share of the memory
when it starts, and ends where less is free. On EC2 a machine runs one engine.

Source: vLLM 0.32, v1/worker/utils.py, `request_memory` ("Free memory on device ... on startup is less than
desired GPU memory utilization"), and v1/worker/cpu_worker.py, which takes the same share of the machine's
memory where there is no GPU, but not with ``--kv-cache-memory-bytes``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from cloud.engines.flags import has_flag
from orchestrator.config.checks.engine import split_of, utilisation_of
from orchestrator.config.checks.listeners import Pools
from orchestrator.config.errors import Found
from orchestrator.config.tables.pool import PoolConfig

_FLAG: Final = "--gpu-memory-utilization"
_ITS_OWN: Final = "--kv-cache-memory-bytes"  # the cache is as large as it says, whatever the share
_CHOICES: Final = ("--gpus", "--device")  # of docker and podman: which GPUs a container sees
_VISIBLE: Final = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_DUST: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What the engines of one pool take of a GPU: so many, each this share of its memory."""

    pool: str
    count: int
    share: float

    def __str__(self) -> str:
        return f"{self.count} x {self.share:g} of pool {self.pool}"


def shared_errors(pools: Pools) -> Iterator[Found]:
    """More than there is of a GPU's memory, at the last pool that takes of it."""
    for gpus, parts in _shared(pools).items():
        taken = sum(part.count * part.share for part in parts)
        if taken > 1.0 + _DUST:
            most = int(100.0 / sum(part.count for part in parts)) / 100.0
            yield (
                ("pool", parts[-1].pool, "engine", "args"),
                f"the engines on {gpus} of this machine take {taken:.0%} of the memory together "
                f"({_all(parts)}), and vLLM ends at once where less is free than {_FLAG} asks for; write "
                f"{most:g} or less for each, or give them other GPUs ({_VISIBLE[0]} in engine.env)",
            )


def shared_warnings(pools: Pools) -> Iterator[Found]:
    """No room for one engine more, which a node that is replaced needs before it goes."""
    for gpus, parts in _shared(pools).items():
        taken = sum(part.count * part.share for part in parts)
        largest = max(parts, key=lambda part: part.share)
        if taken <= 1.0 + _DUST < taken + largest.share:
            yield (
                ("pool", largest.pool, "engine", "args"),
                f"the engines on {gpus} of this machine take {taken:.0%} of the memory ({_all(parts)}), "
                "which leaves no room for one more: a node cannot be replaced before it has gone; write less "
                f"{_FLAG}, so that one engine more fits",
            )


def _shared(pools: Pools) -> Mapping[str, list[_Part]]:
    """What is taken of each GPU, by its name; GPUs of which the same engines take are named together."""
    parts: dict[str, list[_Part]] = {}
    for name, pool in pools.items():
        count = pool.replicas + pool.standby.hot
        if count and _takes_a_share(pool):
            for gpu in _gpus(pool):
                part = _Part(pool=name, count=count, share=utilisation_of(pool))
                parts.setdefault(gpu, []).append(part)
    found: dict[tuple[_Part, ...], list[str]] = {}
    for gpu, taken in parts.items():
        found.setdefault(tuple(taken), []).append(gpu)
    return {f"GPU {', '.join(gpus)}": list(taken) for taken, gpus in found.items()}


def _takes_a_share(pool: PoolConfig) -> bool:
    """Whether its engines are vLLM on this machine and take their share of GPUs that are known."""
    engine = pool.engine
    chosen = any(word.partition("=")[0] in _CHOICES for word in engine.container_args)
    return (
        pool.cloud.here
        and engine.kind == "vllm"
        and bool(pool.model)
        and not has_flag(engine.args, _ITS_OWN)
        and not (engine.run == "container" and chosen)
    )


def _gpus(pool: PoolConfig) -> tuple[str, ...]:
    """The GPUs of this machine that each engine of the pool uses: the first ones that it sees."""
    used = split_of(pool).gpus
    visible = next((pool.engine.env[name] for name in _VISIBLE if pool.engine.env.get(name)), "")
    seen = tuple(part.strip() for part in visible.split(",")) if visible else tuple(map(str, range(used)))
    return seen[:used]


def _all(parts: list[_Part]) -> str:
    return " and ".join(map(str, parts))
