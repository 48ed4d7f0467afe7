"""What a pool's engine needs by its flags and its model's name: memory, weights, and whether it can start."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from cloud.engines.flags import GPUS, flag_value
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.units import shown
from policies import quantisation
from policies.families import family
from policies.fit import Gpus, Need, Verdict, bits_in, check, parameters_in
from policies.value import replace

_SHORTEST_REQUEST: Final = 2048  # tokens, where nobody knows how long a request may be
_UTILISATION: Final = 0.9  # vLLM's default share of a GPU's memory
_LENGTH: Final = re.compile(r"(\d+)(?:(\.\d+)?([kmgt])|([KMGT]))?")
_MEANT: Final = re.compile(r"\{\s*gpus?\s*\}", re.IGNORECASE)
_POWERS: Final = {"k": 1, "m": 2, "g": 3, "t": 4}

Found = tuple[tuple[str, ...], str]  # key path, sentence


def engine_errors(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """What ends the engine as soon as it starts. `at` ends with the pool's name."""
    doubt = _quantisation(pool)
    if doubt is not None and doubt.certain:
        yield (*at, "engine", "args"), doubt.text
    if pool.cloud.kind != "aws" and any(GPUS in word for word in pool.engine.args):
        yield (
            (*at, "engine", "args"),
            f"{GPUS} is filled in by machines of AWS only; write how many GPUs the engine uses",
        )
    for word in pool.engine.args:
        for meant in _MEANT.findall(word):
            if meant != GPUS:
                yield (*at, "engine", "args"), f"{shown(meant)} is filled in by nobody; write {GPUS}"
    for name, text in pool.engine.env.items():
        if _MEANT.search(text):
            yield (*at, "engine", "env", name), f"{GPUS} is filled in within args alone; write a number"


def model_file_fault(pool: PoolConfig) -> str:
    """What is wrong with a model's file here, where nodes are processes of this machine; empty if nothing."""
    if pool.engine.kind != "llamacpp" or pool.cloud.kind != "local" or not pool.model.endswith(".gguf"):
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
    if pool.cloud.bills and need_of(pool) is not None and not _says_length(pool) and not family(pool.model):
        yield (
            (*at, "engine", "args"),
            "--max-model-len is missing, so the engine takes the model's own maximum, which is not known "
            f"here, and does not start where the cache of one such request does not fit; whether "
            f"{pool.model} fits was judged by {_SHORTEST_REQUEST} tokens. Write --max-model-len",
        )


def need_of(pool: PoolConfig) -> Need | None:
    """What the engine has to hold; None where the model's size is not known. Only vLLM's flags are read."""
    args, known = pool.engine.args, family(pool.model)
    parameters = parameters_in(pool.model)
    if pool.engine.kind != "vllm" or parameters is None:
        return None
    longest = known.context if known is not None and not _fits_itself(pool) else _SHORTEST_REQUEST
    return Need(
        parameters=parameters,
        bits=bits_in(f"{_flag(pool, '--quantization')} {pool.model}"),
        context=tokens(flag_value(args, "--max-model-len")) or longest,
        cache_bits=8 if _flag(pool, "--kv-cache-dtype").startswith("fp8") else 16,
        cache_share=1.0 if known is None else known.cache,
    )


def stored_weights(pool: PoolConfig) -> float | None:
    """GiB of the weights as they are stored: what the engine quantises itself is stored as it was trained.
    None where the model's size is not known."""
    need = need_of(pool)
    if need is None:
        return None
    if quantisation.on_load(_flag(pool, "--quantization")):
        need = replace(need, bits=bits_in(pool.model))
    return need.weights


def verdicts(pool: PoolConfig) -> Iterator[tuple[str, Verdict]]:
    """Whether the model fits, for each type of EC2 of which both sizes are known."""
    need = need_of(pool)
    if need is not None:
        for name, gpus, parallel, utilisation in machines(pool):
            yield name, check(need, gpus, parallel=parallel, utilisation=utilisation)


def machines(pool: PoolConfig) -> Iterator[tuple[str, Gpus, int, float]]:
    """Each type of EC2 of which the size is known: its name, its GPUs, how many of them the engine uses, and
    the share of their memory that it takes."""
    from cloud.aws.catalogue import catalogue

    utilisation = _share(flag_value(pool.engine.args, "--gpu-memory-utilization"))
    for name in pool.cloud.aws.instance_types:
        known = catalogue().types.get(name)
        if known is not None:
            yield name, known.gpus, gpus_of(pool, known.gpus.count), utilisation


def gpus_of(pool: PoolConfig, there: int = 1) -> int:
    """How many GPUs of a machine the engine uses, by vLLM's flags, where so many are there; 0 for an engine
    that needs none."""
    if pool.engine.kind != "vllm":
        return 0
    return _product(pool, ("tensor", "pipeline"), there)


def gpus_in_use(pool: PoolConfig, there: int) -> int:
    """How many of the GPUs that are there the engine keeps busy, copies of the model included; 0 for one that
    needs none, or takes all that it finds."""
    return _product(pool, ("tensor", "pipeline", "data"), there) if pool.engine.kind == "vllm" else 0


def _product(pool: PoolConfig, ways: Iterable[str], there: int) -> int:
    args = pool.engine.args
    given = [flag_value(args, f"--{way}-parallel-size") or flag_after(args, f"-{way[0]}p") for way in ways]
    return math.prod(there if value == GPUS else _whole(value, 1) for value in given)


def flag_after(args: Sequence[str], short: str) -> str | None:
    """The value of a flag in its short form, "-tp 4"; None without one."""
    return next((value for word, value in pairwise(args) if word == short), None)


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
    """Whether vLLM is told to take the longest request that fits."""
    return _flag(pool, "--max-model-len").strip().lower() in ("auto", "-1")


def _flag(pool: PoolConfig, name: str) -> str:
    return flag_value(pool.engine.args, name) or ""


def _whole(text: str | None, default: int) -> int:
    """A flag's whole number; the default when it is missing or none (the engine will say so)."""
    return int(text) if text is not None and text.isdecimal() and int(text) > 0 else default


def _share(text: str | None) -> float:
    try:
        value = float(text) if text is not None else _UTILISATION
    except ValueError:
        return _UTILISATION
    return value if 0.0 < value <= 1.0 else _UTILISATION
