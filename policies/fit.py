"""Whether a model fits into the memory of a machine's GPUs.

What it decides: nothing at run time; it tells `validate` before any money is spent whether an engine could
start on an instance type, and what to change when it could not. Needed on each GPU: its share of the weights
(parameters times bytes a parameter), its share of the key-value cache of one request of full length, and a
fixed amount for activations and CUDA graphs. The engine takes `utilisation` of the GPU's memory.
Why: an engine that runs out of memory shows as a node that never becomes ready, after minutes that were paid.
Never: a verdict where the size is not known. Numbers are estimates, so a near miss is only worth a warning:
`tight` says so.

The cache of a token is estimated from the parameter count: 128 KiB at 8 billion parameters in 16 bits
(Llama 3 8B), growing with the power 0.42, which meets 70 billion (320 KiB) and 32 billion (256 KiB) within
about a tenth. All memory is in GiB, 2^30 bytes.

Example:
    >>> need = Need(parameters=70e9, bits=16, context=8192)
    >>> machine = Gpus(kind="H100", count=8, memory=80.0)
    >>> print(check(need, machine, parallel=1).text)
    70B in 16 bits needs about 140 GB for its weights; 1 x H100 has 80 GiB: use 4 bits or tensor parallel 2
    >>> check(need, machine, parallel=2).fits
    True
"""

from __future__ import annotations

import re

from policies.value import replace, value

GIB = float(2**30)

_OVERHEAD = 2.0  # GiB a GPU for activations, CUDA graphs and the communication buffers
_CACHE_AT_8B = 128 * 1024.0  # bytes a token in 16 bits
_CACHE_POWER = 0.42
_TIGHT = 0.1  # share of the GPU's memory that an estimate may be wrong by
_ROOMY = 0.9  # share of the permitted memory that smaller weights may take: another model is chosen once
_EASY = 0.96  # the same for more GPUs or shorter requests: each GPU more is paid by the hour
_PACKED = 1.1  # 4-bit weights carry scales and some layers in 16 bits
_SMALLER = (8, 4)
_SHORTEST = 1024  # tokens of a request, below which nobody is served

_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)b(?![a-z0-9])", re.IGNORECASE)
_BITS = (
    (re.compile(r"awq|gptq|4[-_]?bit|int4|w4a16|bnb|bitsandbytes|gpt-oss|nf4|fp4|q4", re.IGNORECASE), 4),
    (re.compile(r"fp8|int8|8[-_]?bit|w8a8|w8a16|q8", re.IGNORECASE), 8),
)


@value
class Need:
    """What an engine has to hold: `parameters` as a count, `bits` of a weight, `context` in tokens of the
    longest request, `cache_bits` of a cached value, `cache_share` of the estimated cache that this model has
    (`policies.families`)."""

    parameters: float
    bits: int
    context: int
    cache_bits: int = 16
    cache_share: float = 1.0

    @property
    def weights(self) -> float:
        """GiB of all weights."""
        packed = _PACKED if self.bits < 8 else 1.0
        return self.parameters * self.bits / 8.0 * packed / GIB

    @property
    def cache(self) -> float:
        """GiB of the cache of one request of full length."""
        growth: float = (self.parameters / 8e9) ** _CACHE_POWER
        per_token = _CACHE_AT_8B * growth * self.cache_share * self.cache_bits / 16.0
        return per_token * self.context / GIB


@value
class Gpus:
    """The GPUs of one machine: their kind, how many, and the memory of each in GiB."""

    kind: str
    count: int
    memory: float


@value
class Verdict:
    """Whether it fits, by how much, and in words. `used` is the share of the permitted memory."""

    fits: bool
    used: float
    text: str

    @property
    def tight(self) -> bool:
        """So near to the limit that the estimate may be wrong either way."""
        return abs(1.0 - self.used) <= _TIGHT


def check(need: Need, gpus: Gpus, *, parallel: int, utilisation: float = 0.9) -> Verdict:
    """Whether `need` fits on `parallel` of these GPUs, with `utilisation` of each for the engine."""
    if parallel > gpus.count:
        text = (
            f"{parallel} GPUs are asked for and the machine has {gpus.count} x {gpus.kind}: "
            "lower the tensor parallelism or choose a larger machine"
        )
        return Verdict(fits=False, used=float("inf"), text=text)
    used = _used(need, gpus, parallel, utilisation)
    machine = f"{parallel} x {gpus.kind} has {gpus.memory * parallel:.0f} GiB"
    asked = f"{_size(need.parameters)} in {need.bits} bits needs about {need.weights * GIB / 1e9:.0f} GB"
    if used <= 1.0:
        text = f"{asked} for its weights; {machine}, used to {used:.0%} by weights and one full request"
        return Verdict(fits=True, used=used, text=text)
    what = "for its weights"
    if need.weights / parallel + _OVERHEAD <= gpus.memory * utilisation:
        what += f" and {need.cache:.0f} GiB for one request of {need.context} tokens"
    ways = _ways_out(need, gpus, parallel, utilisation)
    return Verdict(fits=False, used=used, text=f"{asked} {what}; {machine}: {ways}")


def room(need: Need, gpus: Gpus, *, parallel: int, utilisation: float = 0.9) -> float:
    """GiB that the weights leave for the cache of requests, on all of these GPUs together.

    >>> l4 = Gpus(kind="L4", count=1, memory=22.4)
    >>> round(room(Need(parameters=8e9, bits=16, context=8192), l4, parallel=1), 1)
    3.3
    """
    return (gpus.memory * utilisation - _OVERHEAD) * parallel - need.weights


def parameters_in(name: str) -> float | None:
    """The parameter count that a model's name states, such as 70e9 in "Llama-3.1-70B"; None without one.

    Experts multiply ("8x7B" is 56e9, somewhat more than such models have); the active parameters of a
    mixture ("A3B") say nothing about memory and are not taken.

    >>> parameters_in("meta-llama/Llama-3.1-70B-Instruct"), parameters_in("Qwen3-30B-A3B")
    (70000000000.0, 30000000000.0)
    >>> parameters_in("gpt2") is None
    True
    """
    found = [int(experts or 1) * float(count) for experts, count in _SIZE.findall(name)]
    return max(found) * 1e9 if found else None


def bits_in(name: str) -> int:
    """Bits of a weight that a model's name or quantisation states; 16 where it states none.

    >>> bits_in("Llama-3.1-70B-Instruct-AWQ-INT4"), bits_in("fp8"), bits_in("Llama-3.1-8B")
    (4, 8, 16)
    """
    return next((bits for pattern, bits in _BITS if pattern.search(name)), 16)


def _used(need: Need, gpus: Gpus, parallel: int, utilisation: float) -> float:
    share = (need.weights + need.cache) / parallel + _OVERHEAD
    return share / (gpus.memory * utilisation)


def _ways_out(need: Need, gpus: Gpus, parallel: int, utilisation: float) -> str:
    """What would make it fit: the smallest change of each kind, or two changes where one is not enough."""
    ways = _larger_or_smaller(need, gpus, parallel, utilisation)
    shorter = [need.context >> step for step in range(1, need.context.bit_length())]
    shorter = [context for context in shorter if context >= _SHORTEST]
    for context in shorter:
        if _used(replace(need, context=context), gpus, parallel, utilisation) <= _EASY:
            ways.append(f"--max-model-len {context}")
            break
    if ways:
        return f"use {' or '.join(ways)}"
    for context in shorter:
        ways = _larger_or_smaller(replace(need, context=context), gpus, parallel, utilisation)
        if ways:
            return f"use {' or '.join(ways)}, with --max-model-len {context}"
    return "choose a machine with more GPU memory"


def _larger_or_smaller(need: Need, gpus: Gpus, parallel: int, utilisation: float) -> list[str]:
    """Fewer bits of a weight, more GPUs: what alone would do."""
    ways = []
    for bits in _SMALLER:
        if bits < need.bits and _used(replace(need, bits=bits), gpus, parallel, utilisation) <= _ROOMY:
            ways.append(f"{bits} bits")
            break
    for more in (parallel * 2**step for step in range(1, 7)):
        if more <= gpus.count and _used(need, gpus, more, utilisation) <= _EASY:
            ways.append(f"tensor parallel {more}")
            break
    return ways


def _size(parameters: float) -> str:
    return f"{parameters / 1e9:g}B"
