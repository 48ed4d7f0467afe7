"""What a pool's engine needs by its flags and its model's name: memory, weights, and whether it can start."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cloud.engines.dialect import DIALECTS
from cloud.engines.flags import ADAPTER_RANK, ADAPTERS_AT_ONCE, GPUS, flag_value, has_flag
from cloud.kinds import KINDS
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.units import shown
from policies import quantisation
from policies.families import longest_request
from policies.formats import DOUBLE, WHOLE, Format, format_in
from policies.model_fit import Gpus, Need, Split, Verdict, alone, check, parameters_in, too_few
from policies.model_shapes import Shape, shape
from policies.value import replace

_SHORTEST_REQUEST: Final = 2048  # tokens, where the longest request is not known
_UTILISATION: Final = 0.9  # vLLM's default share of a GPU's memory; 0.92 in 0.32, which holds no less
_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of --max-lora-rank (vLLM 0.32, config/lora.py)
_LONGER: Final = ("--hf-overrides", "--rope-scaling")  # with which a model takes longer requests than its own
_LONG: Final = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
_SLOTS: Final = 1  # places of adapters that vLLM makes where --max-loras is not written
_RANK: Final = 16  # of each, where --max-lora-rank is not written
_BLOCKS: Final = frozenset({"qwen", "deepseek-ai", "moonshotai"})
_READS: Final = MappingProxyType({"sglang": "--quantization", "tgi": "--quantize", "trtllm": ""})
"""Engines that hold all weights on the GPUs, with their flag for the form of the weights."""
_LENGTH: Final = re.compile(r"(\d+)(?:(\.\d+)?([kmgt])|([KMGT]))?")
_MEANT: Final = re.compile(r"\{\s*gpus?\s*\}", re.IGNORECASE)
_FILL: Final = ", ".join(row.title for row in KINDS.values() if row.traits.fills_gpus)
_POWERS: Final = {"k": 1, "m": 2, "g": 3, "t": 4}

_OF_ALL: Final = ("--served-model-name", "--lora-modules", "--model", "--revision")

Found = tuple[tuple[str, ...], str]  # key path, sentence
Check = Callable[[tuple[str, ...], PoolConfig], Iterator[Found]]


def engine_errors(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """What ends the engine as soon as it starts. `at` ends with the pool's name."""
    doubt = _quantisation(pool)
    if doubt is not None and doubt.certain:
        yield (*at, "engine", "args"), doubt.text
    if not pool.cloud.traits.fills_gpus and any(GPUS in word for word in pool.engine.args):
        yield (
            (*at, "engine", "args"),
            f"{GPUS} is filled in by machines of {_FILL} only; write how many GPUs the engine uses",
        )
    for word in pool.engine.args:
        for meant in _MEANT.findall(word):
            if meant != GPUS:
                yield (*at, "engine", "args"), f"{shown(meant)} is filled in by nobody; write {GPUS}"
    rank = _flag(pool, "--max-lora-rank")
    if pool.engine.kind == "vllm" and rank.isdecimal() and int(rank) not in _RANKS:
        above = min((known for known in _RANKS if known > int(rank)), default=max(_RANKS))
        yield (
            (*at, "engine", "args"),
            f"--max-lora-rank {rank} ends the engine at once: it takes {', '.join(map(str, _RANKS))}; write "
            f"{above}, which holds smaller ones as well",
        )
    for name, text in pool.engine.env.items():
        if _MEANT.search(text):
            yield (*at, "engine", "env", name), f"{GPUS} is filled in within args alone; write a number"


def on_each_type(check: Check, at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """What a check finds of a pool, and what else of its engine as single instance types have it."""
    found = list(check(at, pool))
    yield from found
    args = (*at, "engine", "args")
    for kind in pool.engine.on:
        for path, text in check(at, pool.on(kind)):
            if (path, text) not in found:
                yield ((*at, "engine", "on", kind, "args") if path == args else path), text


def type_errors(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """Flags of single instance types that must be those of all nodes, and types that the pool has not."""
    for kind, own in pool.engine.on.items():
        there = (*at, "engine", "on", kind)
        for flag in _OF_ALL:
            if has_flag(own.args, flag):
                yield (*there, "args"), f"{flag} must be the same on all nodes; write it into engine.args"
        types = pool.cloud.types()
        if types and kind not in types:
            where = " or ".join(f"cloud.{name}.instance_types" for name in pool.cloud.kinds)
            yield there, f"is none of {where}; correct the name, or add it there"


def model_file_fault(pool: PoolConfig) -> str:
    """What is wrong with a model's file here, where nodes are processes of this machine; empty if nothing."""
    here = pool.cloud.here and pool.engine.run == "process"
    if pool.engine.kind != "llamacpp" or not here or not pool.model.endswith(".gguf"):
        return ""
    if not Path(pool.model).is_absolute():
        return f"{pool.model} is looked up in each node's own directory; write its whole path"
    if not Path(pool.model).is_file():
        return f"there is no file {pool.model}; correct the path or fetch the model"
    return ""


def engine_warnings(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """What may end the engine as soon as it starts."""
    doubt = _quantisation(pool)
    if doubt is not None and not doubt.certain:
        yield (*at, "engine", "args"), doubt.text
    yield from _unknown(at, pool)
    longest, wanted = longest_request(pool.model), tokens(_flag(pool, "--max-model-len"))
    longer = any(has_flag(pool.engine.args, flag) for flag in _LONGER) or _LONG in pool.engine.env
    if pool.engine.kind == "vllm" and longest is not None and wanted > longest and not longer:
        yield (
            (*at, "engine", "args"),
            f"--max-model-len {wanted} is more than the {longest} tokens of {pool.model}, and the engine "
            f"ends at once unless its files say more; write {longest} or less, or how it is stretched "
            f"({_LONGER[0]})",
        )
    if (
        pool.cloud.bills
        and need_of(pool) is not None
        and not _says_length(pool)
        and not longest_request(pool.model)
    ):
        yield (
            (*at, "engine", "args"),
            "--max-model-len is missing, so the engine takes the model's own maximum, which is not known "
            f"here, and does not start where the cache of one such request does not fit; whether "
            f"{pool.model} fits was judged by {_SHORTEST_REQUEST} tokens. Write --max-model-len",
        )


def _unknown(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """That nobody has judged whether the model fits, which is not to be taken for a yes."""
    kind, row = pool.engine.kind, DIALECTS[pool.engine.kind]
    if not pool.cloud.bills or pool.engine.task != "generate" or kind not in ("vllm", *_READS):
        return
    try_it = f"try one node: orchestrator doctor --config FILE --pool {at[-1]} --try-node on-demand"
    if _sized(pool.model) is None:
        yield (
            (*at, "model"),
            f"whether {pool.model} fits is not known: neither its shape nor a size in its name is known "
            f"here; {try_it}",
        )
    elif kind != "vllm":
        yield (
            (*at, "engine", "kind"),
            f"of {row.title} only the weights were held against the memory of the GPUs: its flags are not "
            f"read, so whether {pool.model} fits beside its cache is not known; {try_it}",
        )


def _sized(model: str) -> float | None:
    """How many parameters a model has, by its name; None where that is not known."""
    known = shape(model)
    return parameters_in(model) if known is None else known.parameters


def need_of(pool: PoolConfig) -> Need | None:
    """What the engine has to hold; None where the model's size is not known. Only vLLM's flags are read."""
    known, longest, parameters = shape(pool.model), longest_request(pool.model), _sized(pool.model)
    if pool.engine.kind != "vllm" or parameters is None:
        return None
    ours = bool(pool.adapters) or pool.adapter_slots is not None
    adapts = ours or has_flag(pool.engine.args, "--enable-lora")
    own = longest if longest is not None and not _fits_itself(pool) else _SHORTEST_REQUEST
    context = tokens(_flag(pool, "--max-model-len")) or own
    form = _form(f"{_flag(pool, '--quantization')} {pool.model}", known)
    wide = _flag(pool, "--dtype") in ("float", "float32")
    places = min(ADAPTERS_AT_ONCE, pool.as_pool("").adapters.slots or 1) if ours else _SLOTS
    return Need(
        parameters=parameters,
        context=context,
        form=DOUBLE if form is WHOLE and wide else form,
        shape=known,
        cache_bits=8 if _flag(pool, "--kv-cache-dtype").startswith("fp8") else 32 if wide else 16,
        slots=_whole(_flag(pool, "--max-loras"), places) if adapts else 0,
        rank=_whole(_flag(pool, "--max-lora-rank"), ADAPTER_RANK if ours else _RANK),
        graphs=not has_flag(pool.engine.args, "--enforce-eager"),
        blocks=known.block if known is not None and _in_blocks(pool.model) else 0,
        offload=_number(_flag(pool, "--cpu-offload-gb")),
        draft=_draft(pool, context),
    )


def _draft(pool: PoolConfig, context: int) -> float:
    """GiB of the weights and of the cache of the model that drafts for this one; 0 where none of known size
    does: n-grams take nothing, heads of its own little."""
    try:
        model = str(json.loads(_flag(pool, "--speculative-config") or "{}").get("model") or "")
    except (ValueError, AttributeError):
        return 0.0  # the engine will say so
    known, parameters = shape(model), _sized(model)
    if parameters is None:
        return 0.0
    need = Need(parameters=parameters, context=context, form=_form(model, known), shape=known)
    return need.weights + need.cache


def _form(said: str, known: Shape | None) -> Format:
    """The form of the weights: as it is said, else as their publisher's are."""
    form = format_in(said)
    return format_in(known.native) if form is WHOLE and known is not None else form


def _in_blocks(model: str) -> bool:
    """Whether these are FP8 weights of a publisher that gives blocks of rows a scale of their own."""
    publisher, _, name = model.lower().rpartition("/")
    return publisher in _BLOCKS and ("fp8" in name or publisher == "deepseek-ai")


def stored_weights(pool: PoolConfig) -> float | None:
    """GiB of the weights as they are stored: what the engine quantises itself is stored as it was trained.
    None where the model's size is not known."""
    need = need_of(pool)
    if need is None:
        return None
    if quantisation.on_load(_flag(pool, "--quantization")):
        need = replace(need, form=_form(pool.model, need.shape))
    return need.weights


def verdicts(pool: PoolConfig) -> Iterator[tuple[str, Verdict]]:
    """Whether the model fits, for each type of EC2 of which both sizes are known. Where only the type's is,
    or the engine is another one than vLLM, what cannot be judged is said, and nothing else."""
    for name, need, gpus, split, utilisation in machines(pool):
        yield name, check(need, gpus, split, utilisation)
    for name, gpus in _gpus(pool):
        there = pool.on(name)
        verdict = _impossible(there, gpus) if need_of(there) is None else None
        if verdict is not None and not verdict.fits:
            yield name, verdict


def _impossible(pool: PoolConfig, gpus: Gpus) -> Verdict | None:
    """What is certain without knowing all that the engine has to hold; None for nothing."""
    kind, parameters = pool.engine.kind, _sized(pool.model)
    if kind == "vllm":
        few = too_few(gpus, split_of(pool, gpus.count))
        return Verdict(fits=False, used=math.inf, text=few) if few else None
    if kind not in _READS or parameters is None or has_flag(pool.engine.args, "--cpu-offload-gb"):
        return None
    known = shape(pool.model)
    form = _form(f"{_flag(pool, _READS[kind])} {pool.model}", known)
    return alone(Need(parameters=parameters, context=0, form=form, shape=known), gpus)


def machines(pool: PoolConfig) -> Iterator[tuple[str, Need, Gpus, Split, float]]:
    """Each type of EC2 of which both sizes are known: its name, what the engine has to hold there, its GPUs,
    how the engine is spread over them, and the share of their memory that it takes."""
    for name, gpus in _gpus(pool):
        there = pool.on(name)
        need = need_of(there)
        if need is not None:
            yield name, need, gpus, split_of(there, gpus.count), utilisation_of(there)


def _gpus(pool: PoolConfig) -> Iterator[tuple[str, Gpus]]:
    """Each type of EC2 whose GPUs are known."""
    from cloud.aws.catalogue import catalogue

    for name in pool.cloud.aws.instance_types:
        known = catalogue().types.get(name)
        if known is not None:
            yield name, known.gpus


def utilisation_of(pool: PoolConfig) -> float:
    """The share of each GPU's memory that vLLM takes."""
    return _share(flag_value(pool.engine.args, "--gpu-memory-utilization"))


def split_of(pool: PoolConfig, there: int = 1) -> Split:
    """How vLLM spreads the model by its flags, on a machine with so many GPUs."""

    def size(way: str) -> int:
        given = flag_value(pool.engine.args, f"--{way}")
        return there if given == GPUS else _whole(given, 1)

    local = "data-parallel-size-local"
    return Split(
        tensor=size("tensor-parallel-size"),
        pipeline=size("pipeline-parallel-size"),
        data=size(local if has_flag(pool.engine.args, f"--{local}") else "data-parallel-size"),
        whole_experts=has_flag(pool.engine.args, "--enable-expert-parallel"),
    )


def gpus_of(pool: PoolConfig, there: int = 1) -> int:
    """How many GPUs of a machine the engine uses, copies of the model included, where so many are there; 0
    for an engine that needs none, or takes all that it finds."""
    return split_of(pool, there).gpus if pool.engine.kind == "vllm" else 0


def tokens(text: str | None) -> int:
    """A length as vLLM reads it: 16384, 16k (thousands) or 16K (1,024 each); 0 for none, and for what is
    none: "auto", -1, or what the engine refuses itself.

    >>> tokens("16384"), tokens("16k"), tokens("16K"), tokens("1.5k"), tokens("auto"), tokens("1.5K")
    (16384, 16000, 16384, 1500, 0, 0)
    """
    found = _LENGTH.fullmatch(text.strip()) if text is not None else None
    if found is None:
        return 0
    whole, rest, thousands, binary = found.groups()
    base = 1024.0 if binary else 1000.0
    power = _POWERS.get((binary or thousands or "").lower(), 0)
    return int(float(whole + (rest or "")) * base**power)


def _quantisation(pool: PoolConfig) -> quantisation.Doubt | None:
    if pool.engine.kind != "vllm":
        return None
    return quantisation.judge(pool.model, _flag(pool, "--quantization"), _flag(pool, "--dtype"))


def _says_length(pool: PoolConfig) -> bool:
    return flag_value(pool.engine.args, "--max-model-len") is not None


def _fits_itself(pool: PoolConfig) -> bool:
    """Whether vLLM chooses the longest request that fits."""
    return _flag(pool, "--max-model-len").strip().lower() in ("auto", "-1")


def _flag(pool: PoolConfig, name: str) -> str:
    return flag_value(pool.engine.args, name) or ""


def _whole(text: str | None, default: int) -> int:
    """A flag's whole number; the default when it is missing or none (the engine will say so)."""
    return int(text) if text is not None and text.isdecimal() and int(text) > 0 else default


def _number(text: str) -> float:
    """A flag's number; 0 when it is missing or none (the engine will say so)."""
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0


def _share(text: str | None) -> float:
    try:
        value = float(text) if text is not None else _UTILISATION
    except ValueError:
        return _UTILISATION
    return value if 0.0 < value <= 1.0 else _UTILISATION
