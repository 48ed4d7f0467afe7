"""What else could serve a pool: the other types of its file, and the smallest machine of each GPU that fits.

The speed of another GPU is unknown before it has run. Where the file counts its units, that holds; else it
is estimated by the bandwidth of the GPUs' memory, which bounds how fast tokens are generated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cloud.aws.catalogue import GpuType, catalogue
from orchestrator.config.checks.engine import gpus_of, need_of
from orchestrator.config.tables.pool import PoolConfig
from policies.capacity_past import Past
from policies.capacity_plan import Alternative
from policies.model_fit import check, over_all


def present(pool: PoolConfig, past: Past) -> str:
    """The instance type that runs most, else the first one of the file; empty where none is known."""
    return next(iter((*past.kinds, *pool.cloud.types(), *pool.units)), "")


def alternatives(pool: PoolConfig, past: Past, prices: Mapping[str, float]) -> list[Alternative]:
    """What runs, then what else might. `prices`: USD/h of a node on demand, by type, that are known beside
    those of the file and of the past."""
    here = present(pool, past)
    if not here:
        return []
    known = {**past.on_demand_kinds, **_stated(pool), **prices}
    found = [Alternative(name=here, share=1.0, gpus=_gpus(here), price=known.get(here), stated=True)]
    own = dict.fromkeys((*pool.cloud.types(), *pool.units, *past.kinds))
    for kind in own:
        if kind != here and (kind in pool.units or here in pool.units):
            share = pool.units.get(kind, 1) / pool.units.get(here, 1)
            found.append(
                Alternative(name=kind, share=share, gpus=_gpus(kind), price=known.get(kind), stated=True)
            )
    named = {each.name for each in found}
    if "aws" in pool.cloud.kinds and here in catalogue().types:
        for name, share in _by_bandwidth(pool, catalogue().types[here], tuple(own)):
            if name not in named:
                found.append(Alternative(name=name, share=share, gpus=_gpus(name), price=known.get(name)))
    return found


def _by_bandwidth(pool: PoolConfig, here: GpuType, own: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """The pool's own types, and the smallest machine of each other GPU, that hold the model on all of their
    GPUs; each with what it does as a share of what runs."""
    need = need_of(pool)
    if need is None:
        return
    used = gpus_of(pool.on(here.name), here.gpus.count) or here.gpus.count
    seen: set[str] = {here.gpus.kind}
    ordered = sorted(catalogue().types.values(), key=lambda kind: (kind.gpus.count, kind.vcpus, kind.name))
    for kind in ordered:
        if kind.name not in own and kind.gpus.kind in seen:
            continue
        if kind.architecture == here.architecture and check(need, kind.gpus, over_all(need, kind.gpus)).fits:
            seen.add(kind.gpus.kind)
            yield kind.name, kind.bandwidth * kind.gpus.count / (here.bandwidth * used)


def _stated(pool: PoolConfig) -> dict[str, float]:
    """The lowest on-demand price that the file states for each type."""
    found: dict[str, float] = {}
    for prices in pool.cloud.prices().values():
        for kind, price in prices.items():
            found[kind] = min(price, found.get(kind, price))
    return found


def _gpus(kind: str) -> str:
    known = catalogue().types.get(kind)
    return f"{known.gpus.count} x {known.gpus.kind}" if known is not None else ""
