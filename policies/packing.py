"""Whether a model would fit twice into the GPUs it has, if its weights had fewer bits.

What it decides: nothing at run time; `validate` and `doctor` ask it what quantised weights would free.
Why: what 16-bit weights leave of a GPU is what requests share; half of the weights freed is often several
times the cache, and so several times the requests that one machine answers at once.
Never: advice for weights that are quantised or lie outside the GPUs, where the model fits twice as it is
(then memory is not what it lacks), or where not even four bits would let it: what that gains is not worth
another set of weights.

Which GPUs read which weights: `policies.formats`.

Example:
    >>> from policies.model_fit import Gpus, Need
    >>> need = Need(parameters=70e9, context=8192)
    >>> packed = pack(need, Gpus(kind="H100", count=8, memory=80.0), Split(tensor=2))
    >>> packed.bits, packed.methods, round(packed.before), round(packed.after), round(packed.gain, 1)
    (4, 'AWQ or GPTQ', 130, 36, 10.8)
    >>> pack(need, Gpus(kind="H100", count=8, memory=80.0), Split(tensor=4)) is None
    True
"""

from __future__ import annotations

from itertools import groupby

from policies.formats import AWQ, FP8, GPTQ, Format, refuses
from policies.model_fit import Gpus, Need, Split, check, room
from policies.value import replace, value

_ROOMY = 0.9  # share of the permitted memory that two copies may take: the numbers are estimates
_WHOLE = 16  # bits of weights that are not quantised
_FEWER = (FP8, AWQ, GPTQ)


@value
class Packed:
    """Weights with fewer bits, of which two copies would fit."""

    bits: int
    methods: str  # the names of such weights
    before: float  # GiB of the weights as they are
    after: float  # GiB of the weights as they would be
    gain: float  # how many times the memory for requests there would be


def pack(need: Need, gpus: Gpus, split: Split, utilisation: float = 0.9) -> Packed | None:
    """The weights with the most bits of which two copies fit, where one of 16 bits does and two do not.

    `split`: how it is spread over the GPUs; `utilisation`: the share of each that the engine takes.
    """
    if need.bits < _WHOLE or need.offload or not check(need, gpus, split, utilisation).fits:
        return None
    if _twice(need, gpus, split, utilisation, 1.0):
        return None
    for forms in _readable(gpus.kind):
        smaller = replace(need, form=forms[0])
        if _twice(smaller, gpus, split, utilisation, _ROOMY):
            left, more = room(need, gpus, split, utilisation), room(smaller, gpus, split, utilisation)
            return Packed(
                bits=smaller.bits,
                methods=" or ".join(form.word for form in forms),
                before=need.weights,
                after=smaller.weights,
                gain=more / left,
            )
    return None


def _readable(kind: str) -> list[list[Format]]:
    """The forms that vLLM reads on such a GPU, by their bits, most first."""
    read = [form for form in _FEWER if not refuses(form, kind)]
    return [list(forms) for _, forms in groupby(read, key=lambda form: form.bits)]


def _twice(need: Need, gpus: Gpus, split: Split, utilisation: float, share: float) -> bool:
    """Whether half of the GPUs it uses would do, or half of the memory of each."""
    if split.tensor % 2:
        gpus = replace(gpus, memory=gpus.memory / 2.0)
    else:
        split = replace(split, tensor=split.tensor // 2)
    return check(need, gpus, split, utilisation).used <= share
