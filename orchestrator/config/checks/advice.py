"""Advice: what runs as it is written and is a mistake more often than not, each with its number.

`validate` and `doctor` say it; a daemon starts without a word of it. The name of what is meant as it is goes
into the pool's `accepted`, and it is not said again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from cloud.engines.flags import flag_value
from orchestrator.config.checks.engine import machines
from orchestrator.config.checks.listeners import Pools, takes_requests
from orchestrator.config.checks.routes import served_names
from orchestrator.config.errors import Found
from orchestrator.config.tables.pool import Advice, PoolConfig
from orchestrator.config.tables.provider import ProviderConfig
from orchestrator.config.tables.route import RouteConfig
from orchestrator.units import format_duration, shown
from orchestrator.words import plural
from policies.formats import AWQ, FP8
from policies.model_fit import Need, check, over_all
from policies.packing import pack
from policies.value import replace

_SLOTS: Final = 4  # of llama.cpp where --parallel is not written (tools/server/README.md, "auto")
_BATCH: Final = 256  # requests that vLLM computes at once where --max-num-seqs is not written, or more
_DATED: Final = frozenset({"T4", "T4g", "V100"})  # without bfloat16: nobody is sent there
_FORMS: Final = {FP8.bits: FP8, AWQ.bits: AWQ}
_ROOMY: Final = 0.9  # share of the permitted memory that is enough: the numbers are estimates
_OLLAMA_PORT: Final = 11434
_OLLAMA_SLOTS: Final = 1  # where OLLAMA_NUM_PARALLEL is not set (docs/faq, "concurrent requests")


def advice(
    pools: Pools, routes: Sequence[RouteConfig], providers: Mapping[str, ProviderConfig]
) -> Iterator[Found]:
    """Every warning about a file of these tables, except those that its pools accept."""
    for name, pool in pools.items():
        for kind, (path, text) in _of_pool(name, pool, routes):
            if kind not in pool.accepted:
                yield path, f'{text} (where that is meant: accepted = ["{kind}"] in [pool.{name}])'
    for name, provider in providers.items():
        yield from _ollama(name, provider)


def _of_pool(name: str, pool: PoolConfig, routes: Sequence[RouteConfig]) -> Iterator[tuple[Advice, Found]]:
    checks: dict[Advice, Iterator[Found]] = {
        "16-bit": _would_fit_twice(name, pool),
        "slots": _slots(name, pool),
        "no-fallback": _no_fallback(name, pool, routes),
    }
    for kind, found in checks.items():
        for one in found:
            yield kind, one


def _would_fit_twice(name: str, pool: PoolConfig) -> Iterator[Found]:
    """Weights of which two copies would fit with fewer bits, on the first type where that is so."""
    if pool.engine.task != "generate":
        return
    for kind, need, gpus, split, utilisation in machines(pool):
        packed = pack(need, gpus, split, utilisation)
        if packed is None:
            continue
        by_itself = ", or write --quantization fp8" if packed.bits == 8 else ""
        smaller = _smaller(replace(need, form=_FORMS[packed.bits]), kind, gpus.memory * split.gpus)
        yield (
            ("pool", name, "model"),
            f"{pool.model} in {need.bits} bits takes {packed.before:.1f} GiB of the "
            f"{gpus.memory * split.gpus:.0f} GiB of {split.gpus} x {gpus.kind} ({kind}); in "
            f"{packed.bits} bits ({packed.methods}) {packed.after:.1f} GiB: it would fit twice{smaller}, or "
            f"leave {packed.gain:.1f} times the memory for requests; name such weights{by_itself}",
        )
        return


def _smaller(need: Need, kind: str, memory: float) -> str:
    """The machine with the least memory that holds such weights, where it has less than the GPUs in use now;
    in words, empty for none."""
    from cloud.aws.catalogue import catalogue

    types = catalogue().types
    fitting = [
        (one.gpus.count * one.gpus.memory, one.vcpus, one.name)
        for one in types.values()
        if one.architecture == types[kind].architecture
        and one.gpus.kind not in _DATED
        and check(need, one.gpus, over_all(need, one.gpus)).used <= _ROOMY
    ]
    least, _, name = min(fitting, default=(memory, 0, ""))
    return f", or on a {name} ({types[name].gpus.count} x {types[name].gpus.kind})" if least < memory else ""


def _slots(name: str, pool: PoolConfig) -> Iterator[Found]:
    """An engine that answers few requests at once, behind a gateway that sends it many."""
    if pool.engine.kind != "llamacpp" or pool.engine.task != "generate" or not takes_requests(pool):
        return
    args, sent = pool.engine.args, pool.gateway.max_in_flight
    written = flag_value(args, "--parallel") or ""
    slots = int(written) if written.isdecimal() and int(written) > 0 else _SLOTS
    if sent > slots:
        yield (
            ("pool", name, "engine", "kind"),
            f"llama.cpp answers {plural(slots, 'request')} at once (--parallel) and divides --ctx-size by "
            f"them; the gateway sends a node up to {sent} (gateway.max_in_flight), and the rest wait inside "
            f"it. For several users take vLLM, which computes {_BATCH} at once and gives each the cache it "
            f"needs; for few write max_in_flight = {slots}, so that they wait where another node can take "
            "them",
        )


def _no_fallback(name: str, pool: PoolConfig, routes: Sequence[RouteConfig]) -> Iterator[Found]:
    """A pool that nothing stands in for once neither market has machines."""
    if not pool.cloud.bills or not takes_requests(pool) or not pool.replicas:
        return
    here = [route for route in routes if any(backend.pool == name for backend in route.to)]
    if any(backend.pool != name for route in here for backend in route.to):
        return
    wanted, gateway = pool.as_pool(name), pool.gateway
    floor, names = wanted.on_demand_floor, here[0].models if here else served_names(pool)
    if not wanted.spot_wanted:
        return
    left = (
        f"{floor} of {pool.replicas} {wanted.noun(pool.replicas)} are left to serve"
        if floor
        else f"requests get 503 after {format_duration(gateway.no_target_wait)}"
    )
    other = (
        "another pool of the same model"
        if pool.engine.task != "generate"
        else '{ provider = "NAME", model = "MODEL" } or another pool'
    )
    yield (
        ("pool", name),
        f"nothing stands in for it: when spot is taken and on-demand is refused as well, {left}; write a "
        f'[[route]] with models = [{shown(names[0])}] and to = [{{ pool = "{name}" }}, ...], followed by '
        f"{other}",
    )


def _ollama(name: str, provider: ProviderConfig) -> Iterator[Found]:
    """Ollama behind a route, by its port. Who writes in_flight has thought of it."""
    if urlsplit(provider.address).port != _OLLAMA_PORT or "in_flight" in provider.model_fields_set:
        return
    yield (
        ("provider", name, "in_flight"),
        f"port {_OLLAMA_PORT} is Ollama's, which answers {plural(_OLLAMA_SLOTS, 'request')} of a model at "
        f"once unless OLLAMA_NUM_PARALLEL says more, and it would be sent {provider.in_flight}; write "
        f"in_flight = {_OLLAMA_SLOTS}, or for several users a pool of vLLM, which computes {_BATCH} at once",
    )
