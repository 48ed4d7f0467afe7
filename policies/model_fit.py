"""Whether a model fits into the memory of a machine's GPUs.

What it decides: nothing at run time; `validate` asks it before any money is spent whether an engine could
start on an instance type, and what to change when it could not. Needed on each GPU: its share of the weights,
its share of the key-value cache of one request of full length, the places of its adapters, and a fixed amount
for activations and CUDA graphs. The engine takes `utilisation` of the GPU's memory.
Why: an engine that runs out of memory shows as a node that never becomes ready, after minutes that were paid.
Never: a verdict where the size is not known. Numbers are estimates, so a near miss is only worth a warning:
`tight` says so.

The cache of a token follows from the model's shape (`policies.model_shapes`). Where that is not known it is
estimated from the parameter count: 128 KiB at 8 billion parameters in 16 bits (Llama 3 8B), growing with the
power 0.42, which meets 70 billion (320 KiB) and 32 billion (256 KiB) within about a tenth; what an adapter
takes likewise, from 42 million parameters at rank 16, with the power 0.735. All memory is in GiB, 2^30 bytes.

Example:
    >>> need = Need(parameters=70e9, context=8192)
    >>> machine = Gpus(kind="H100", count=8, memory=80.0)
    >>> print(check(need, machine, Split(tensor=1)).text)
    70B in 16 bits needs about 140 GB for its weights; 1 x H100 has 80 GiB: use 4 bits or tensor parallel 2
    >>> check(need, machine, Split(tensor=2)).fits
    True
"""

from __future__ import annotations

import math
import re

from policies.formats import AWQ, FP8, WHOLE, Format, refuses, weight_only
from policies.model_shapes import Shape
from policies.value import replace, value

GIB = float(2**30)

_ACTIVATIONS = 1.4  # GiB a GPU, with the communication buffers and the context of CUDA
_GRAPHS = 0.6  # GiB a GPU for CUDA graphs
_CACHE_AT_8B = 128 * 1024.0  # bytes a token in 16 bits
_CACHE_POWER = 0.42
_ADAPTER_AT_8B = 42e6  # parameters at rank 16
_ADAPTER_POWER = 0.735
_TIGHT = 0.1  # share of the GPU's memory that an estimate may be wrong by
_ROOMY = 0.9  # share of the permitted memory that smaller weights may take: another model is chosen once
_EASY = 0.96  # the same for more GPUs or shorter requests: each GPU more is paid by the hour
_PACKED = 1.06  # 4-bit weights of no known shape keep some layers in 16 bits
_SMALLER = (FP8, AWQ)
_SHORTEST = 1024  # tokens of a request, below which a request is of no use

_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)b(?![a-z0-9])", re.IGNORECASE)


@value
class Need:
    """What an engine has to hold."""

    parameters: float  # how many
    context: int  # tokens of the longest request
    form: Format = WHOLE  # of the weights
    shape: Shape | None = None
    cache_bits: int = 16  # of a cached value
    slots: int = 0  # places for adapters, taken whether any is loaded or not
    rank: int = 16  # the highest of an adapter
    graphs: bool = True  # it captures CUDA graphs
    blocks: int = 0  # FP8 weights have scales for blocks of so many rows; 0: none
    offload: float = 0.0  # GiB of each GPU's weights that lie in the machine's own memory
    draft: float = 0.0  # GiB of another model that drafts for it, with its cache

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return self.form.bits

    @property
    def weights(self) -> float:
        """GiB of all weights."""
        return self._stored(self.parameters) / GIB

    @property
    def cache(self) -> float:
        """GiB of the cache of one request of full length."""
        if self.shape is not None:
            return self.shape.request(self.context, self.cache_bits) / GIB
        growth: float = (self.parameters / 8e9) ** _CACHE_POWER
        return _CACHE_AT_8B * growth * self.cache_bits / 16.0 * self.context / GIB

    def on_each(self, split: Split) -> float:
        """GiB on the fullest GPU."""
        return (
            max(0.0, self.weights_on(split) - self.offload)
            + self._cache_on(split)
            + self.adapters_on(split)
            + self.draft / split.tensor
            + _ACTIVATIONS
            + (_GRAPHS if self.graphs else 0.0)
        )

    def without_cache(self, split: Split) -> float:
        """GiB on the fullest GPU before any request."""
        return self.on_each(split) - self._cache_on(split)

    def adapters_on(self, split: Split) -> float:
        """GiB of the places of adapters on the fullest GPU."""
        if self.shape is not None:
            one = self.shape.adapter(self.rank, split.tensor)
        else:
            growth: float = (self.parameters / 8e9) ** _ADAPTER_POWER
            one = 2.0 * _ADAPTER_AT_8B * growth * self.rank / 16.0 / split.tensor
        return self.slots * one * self._stage(split) / GIB

    def weights_on(self, split: Split) -> float:
        """GiB of the weights of the fullest GPU, wherever they lie."""
        spread = 0.0 if self.shape is None else min(self.shape.spread, self.parameters)
        kept = self._stored(self.parameters) - self._stored_whole(spread)
        share = kept / split.tensor + self._stored_whole(spread) / (split.tensor * split.data)
        return share * self._stage(split) / GIB

    def _cache_on(self, split: Split) -> float:
        known, share = self.shape, 1.0 / split.tensor
        if known is not None and known.latent:
            share = 1.0  # what is latent belongs to all heads, and each GPU has it
        elif known is not None:
            share = max(known.kv_heads / split.tensor, 1.0) / known.kv_heads
        return self.cache * share * self._stage(split)

    def _stage(self, split: Split) -> float:
        """The share of the layers in the longest stage of the pipeline."""
        layers = split.pipeline if self.shape is None else self.shape.layers
        return math.ceil(layers / split.pipeline) / layers

    def _stored(self, parameters: float) -> float:
        """Bytes of so many parameters, with those that stay in 16 bits."""
        if self.form.bits >= WHOLE.bits:
            return self._stored_whole(parameters)
        if self.shape is None:
            return self._stored_whole(parameters) * (_PACKED if self.form.bits < 8 else 1.0)
        wide = min(self.shape.wide, parameters)
        return self._stored_whole(parameters - wide) + wide * 2.0

    def _stored_whole(self, parameters: float) -> float:
        """Bytes of so many parameters, all of them in its form."""
        return parameters * self.form.stored / 8.0


@value
class Gpus:
    """The GPUs of one machine: their kind, how many, and the memory of each in GiB. `host`: GiB of the
    machine's own memory."""

    kind: str
    count: int
    memory: float
    host: float = math.inf


@value
class Split:
    """How one engine is spread over GPUs: each layer over `tensor`, the layers over `pipeline` stages, in
    `data` copies that share the experts of a mixture. `whole_experts`: an expert lies on one GPU."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    whole_experts: bool = False

    @property
    def gpus(self) -> int:
        """How many GPUs it takes."""
        return self.tensor * self.pipeline * self.data

    def __str__(self) -> str:
        parts = {"tensor": self.tensor, "pipeline": self.pipeline, "data": self.data}
        said = [f"{word} parallel {count}" for word, count in parts.items() if count > 1]
        return " and ".join(said) or "one GPU"


@value
class Verdict:
    """Whether it fits, by how much, and in words. `used` is the share of the permitted memory. `guessed`:
    what decides it is the cache of a model whose shape is not known."""

    fits: bool
    used: float
    text: str
    guessed: bool = False

    @property
    def tight(self) -> bool:
        """So near to the limit that the estimate may be wrong either way, or by a guess."""
        return self.guessed or abs(1.0 - self.used) <= _TIGHT


def check(need: Need, gpus: Gpus, split: Split, utilisation: float = 0.9) -> Verdict:
    """Whether `need` fits on these GPUs, spread so, with `utilisation` of each for the engine."""
    why = _impossible(need, gpus, split)
    if why:
        return Verdict(fits=False, used=float("inf"), text=why)
    used = _used(need, gpus, split, utilisation)
    machine = f"{split.gpus} x {gpus.kind} has {gpus.memory * split.gpus:.0f} GiB"
    asked = f"{_size(need.parameters)} in {need.bits} bits needs about {need.weights * GIB / 1e9:.0f} GB"
    if need.draft:
        asked += f", and {need.draft:.1f} GiB for the model that drafts,"
    if used <= 1.0:
        adapters = f", {need.slots} adapters of rank {need.rank}" if need.slots else ""
        by = f"weights{adapters} and one full request"
        text = f"{asked} for its weights; {machine}, used to {used:.0%} by {by}"
        if weight_only(need.form, gpus.kind):
            text += f"; {need.form.word} is unpacked to 16 bits there: it saves memory and no time"
        return Verdict(fits=True, used=used, text=text)
    what = "for its weights"
    beside = need.without_cache(split) - need.adapters_on(split) <= gpus.memory * utilisation
    guessed = beside and need.shape is None
    if beside:
        if need.slots:
            places = need.adapters_on(split) * split.gpus
            what += f", {places:.1f} GiB for {need.slots} adapters of rank {need.rank}"
        what += f" and {need.cache:.0f} GiB for one request of {need.context} tokens"
    if guessed:
        what += " (guessed by its size; with linear attention it is a fraction of that)"
    ways = _ways_out(need, gpus, split, utilisation)
    text = f"{asked} {what}; {machine}: {ways}"
    return Verdict(fits=False, used=used, text=text, guessed=guessed)


def room(need: Need, gpus: Gpus, split: Split, utilisation: float = 0.9) -> float:
    """GiB that the weights leave for the cache of requests, on all of these GPUs together.

    >>> l4 = Gpus(kind="L4", count=1, memory=22.4)
    >>> round(room(Need(parameters=8e9, context=8192), l4, Split()), 1)
    3.3
    """
    return (gpus.memory * utilisation - need.without_cache(split)) * split.gpus


def tensor_sizes(shape: Shape, most: int) -> tuple[int, ...]:
    """Among how many GPUs, up to `most`, a model's attention can be divided.

    >>> from policies.model_shapes import shape
    >>> tensor_sizes(shape("Qwen/Qwen2.5-7B-Instruct"), 8)
    (1, 2, 4)
    """
    return tuple(count for count in range(1, most + 1) if shape.splits(count))


def over_all(need: Need, gpus: Gpus) -> Split:
    """How a model is spread over all GPUs of a machine: by tensors as far as its attention can be divided,
    by stages for the rest."""
    sizes = range(1, gpus.count + 1) if need.shape is None else tensor_sizes(need.shape, gpus.count)
    tensor = max(count for count in sizes if gpus.count % count == 0)
    return Split(tensor=tensor, pipeline=gpus.count // tensor)


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


def too_few(gpus: Gpus, split: Split) -> str:
    """That a machine has fewer GPUs than are asked for, whatever the model; empty where it has enough."""
    if split.gpus <= gpus.count:
        return ""
    return (
        f"{split.gpus} GPUs are asked for and the machine has {gpus.count} x {gpus.kind}: lower the "
        "parallelism or choose a larger machine"
    )


def alone(need: Need, gpus: Gpus) -> Verdict:
    """Whether the weights alone fit on all GPUs of a machine: all that can be said of an engine whose flags
    are not known."""
    used = need.weights / (gpus.memory * gpus.count)
    text = (
        f"{_size(need.parameters)} in {need.bits} bits needs about {need.weights * GIB / 1e9:.0f} GB for its "
        f"weights alone; {gpus.count} x {gpus.kind} has {gpus.memory * gpus.count:.0f} GiB"
    )
    return Verdict(fits=used <= 1.0, used=used, text=text)


def _impossible(need: Need, gpus: Gpus, split: Split) -> str:
    """Why such an engine cannot start there whatever the memory; empty where it can."""
    few = too_few(gpus, split)
    if few:
        return few
    outside = min(need.offload, need.weights_on(split)) * split.gpus
    if outside > gpus.host:
        return (
            f"{outside:.0f} GiB of weights are to lie outside the GPUs (--cpu-offload-gb), and the machine "
            f"has {gpus.host:.0f} GiB of memory: lower it or choose a machine with more"
        )
    refused = refuses(need.form, gpus.kind)
    if refused:
        return f"{refused}; name weights in another form or choose other GPUs"
    shape = need.shape
    if shape is None:
        return ""
    if not shape.splits(split.tensor):
        sizes = ", ".join(map(str, tensor_sizes(shape, gpus.count)))
        return (
            f"{shape.heads} attention heads ({shape.kv_heads} of keys and values) cannot be divided among "
            f"{split.tensor} GPUs, and the engine ends at once; use tensor parallel {sizes}, with "
            "--pipeline-parallel-size or --data-parallel-size for the rest"
        )
    slice_of = shape.inner // split.tensor
    if need.blocks and shape.experts and not split.whole_experts and slice_of % need.blocks:
        return (
            f"an expert's {shape.inner} rows in blocks of {need.blocks} (FP8) cannot be divided among "
            f"{split.tensor} GPUs, and the engine ends at once; write --enable-expert-parallel, or less "
            "tensor parallelism"
        )
    return ""


def _used(need: Need, gpus: Gpus, split: Split, utilisation: float) -> float:
    return need.on_each(split) / (gpus.memory * utilisation)


def _ways_out(need: Need, gpus: Gpus, split: Split, utilisation: float) -> str:
    """What would make it fit: the smallest change of each kind, or two changes where one is not enough."""
    ways = _larger_or_smaller(need, gpus, split, utilisation)
    shorter = [need.context >> step for step in range(1, need.context.bit_length())]
    shorter = [context for context in shorter if context >= _SHORTEST]
    for context in shorter:
        if _used(replace(need, context=context), gpus, split, utilisation) <= _EASY:
            ways.append(f"--max-model-len {context}")
            break
    for slots in range(need.slots - 1, 0, -1):
        if _used(replace(need, slots=slots), gpus, split, utilisation) <= _EASY:
            ways.append(f"--max-loras {slots}")
            break
    if ways:
        return f"use {' or '.join(ways)}"
    for context in shorter:
        ways = _larger_or_smaller(replace(need, context=context), gpus, split, utilisation)
        if ways:
            return f"use {' or '.join(ways)}, with --max-model-len {context}"
    return "choose a machine with more GPU memory"


def _larger_or_smaller(need: Need, gpus: Gpus, split: Split, utilisation: float) -> list[str]:
    """Fewer bits of a weight, more GPUs: what alone would do."""
    ways = []
    for form in _SMALLER:
        if form.bits < need.bits and _used(replace(need, form=form), gpus, split, utilisation) <= _ROOMY:
            ways.append(f"{form.bits} bits")
            break
    for more in (replace(split, tensor=split.tensor * 2**step) for step in range(1, 7)):
        if not _impossible(need, gpus, more) and _used(need, gpus, more, utilisation) <= _EASY:
            ways.append(f"tensor parallel {more.tensor}")
            break
    return ways


def _size(parameters: float) -> str:
    return f"{parameters / 1e9:.3g}B"
