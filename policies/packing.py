"""Whether a model would fit twice into the GPUs it has, if its weights had fewer bits.

What it decides: nothing at run time; it tells `validate` and `doctor` what quantised weights would free.
Why: what 16-bit weights leave of a GPU is what requests share; half of the weights freed is often several
times the cache, and so several times the requests that one machine answers at once.
Never: advice for weights that are quantised, where the model fits twice as it is (then memory is not what it
lacks), or where not even four bits would let it: what that gains is not worth another set of weights.

Which GPUs read which weights is vLLM's documentation, "Quantization": FP8 from compute capability 7.5 on
(computed in it from 8.9 on), AWQ from 7.5 on, GPTQ from 7.0 on.

Example:
    >>> from policies.fit import Gpus, Need
    >>> need = Need(parameters=70e9, bits=16, context=8192)
    >>> packed = pack(need, Gpus(kind="H100", count=8, memory=80.0), parallel=2)
    >>> packed.bits, packed.methods, round(packed.before), round(packed.after), round(packed.gain, 1)
    (4, 'AWQ or GPTQ', 130, 36, 10.8)
    >>> pack(need, Gpus(kind="H100", count=8, memory=80.0), parallel=4) is None
    True
"""

from __future__ import annotations

from policies.fit import Gpus, Need, check, room
from policies.value import replace, value

_ROOMY = 0.9  # share of the permitted memory that two copies may take: the numbers are estimates
_WHOLE = 16  # bits of weights that nobody quantised
_VOLTA = frozenset({"V100"})


@value
class Packed:
    """Weights with fewer bits, of which two copies would fit.

    `methods`: how such weights are called. `before` and `after`: GiB of the weights as they are and as they
    would be. `gain`: how many times the memory for requests there would be.
    """

    bits: int
    methods: str
    before: float
    after: float
    gain: float


def pack(need: Need, gpus: Gpus, *, parallel: int, utilisation: float = 0.9) -> Packed | None:
    """The weights with the most bits of which two copies fit, where one of 16 bits does and two do not.

    `parallel`: how many of the GPUs it uses; `utilisation`: the share of each that the engine takes.
    """
    if need.bits < _WHOLE or not check(need, gpus, parallel=parallel, utilisation=utilisation).fits:
        return None
    if _twice(need, gpus, parallel, utilisation, 1.0):
        return None
    for bits, methods in _formats(gpus.kind):
        smaller = replace(need, bits=bits)
        if _twice(smaller, gpus, parallel, utilisation, _ROOMY):
            left = room(need, gpus, parallel=parallel, utilisation=utilisation)
            more = room(smaller, gpus, parallel=parallel, utilisation=utilisation)
            return Packed(
                bits=bits, methods=methods, before=need.weights, after=smaller.weights, gain=more / left
            )
    return None


def _formats(kind: str) -> tuple[tuple[int, str], ...]:
    """Bits and methods that vLLM reads on such a GPU, most bits first."""
    return ((4, "GPTQ"),) if kind in _VOLTA else ((8, "FP8"), (4, "AWQ or GPTQ"))


def _twice(need: Need, gpus: Gpus, parallel: int, utilisation: float, share: float) -> bool:
    """Whether half of the GPUs it uses would do, or half of its only one."""
    if parallel % 2:
        gpus = replace(gpus, memory=gpus.memory / 2.0)
    else:
        parallel //= 2
    return check(need, gpus, parallel=parallel, utilisation=utilisation).used <= share
