"""Reads an engine's own command-line flags, so that what the user wrote wins over what we would add."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Final

from cloud.ports import EngineSpec
from policies.held import beside

RUNTIME_ADAPTERS = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
"""vLLM's variable that lets adapters be loaded while it runs."""

GPUS = "{gpus}"
"""Stands in a flag for the number of GPUs of the machine that the engine starts on."""


_SHORT: Final = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-dpl": "--data-parallel-size-local",
    "-q": "--quantization",
    "-np": "--parallel",
    "-ub": "--ubatch-size",
    "-kvu": "--kv-unified",
}
"""Short forms of flags that are read here, of vLLM and of llama.cpp."""


def _name(word: str) -> str:
    """The flag of a word, in its long form and the spelling with dashes; empty when it is a value."""
    name = word.partition("=")[0]
    return name.replace("_", "-") if name.startswith("--") else _SHORT.get(name, "")


def has_flag(args: Sequence[str], flag: str) -> bool:
    """True when the user gives this flag, as ``--flag value`` or ``--flag=value``."""
    return any(_name(word) == flag for word in args)


def flag_value(args: Sequence[str], flag: str) -> str | None:
    """The value the user gives the flag; the last one counts, as in argparse. None without one."""
    value: str | None = None
    for position, word in enumerate(args):
        if _name(word) != flag:
            continue
        _, equals, inline = word.partition("=")
        if equals:
            value = inline
        elif position + 1 < len(args):
            value = args[position + 1]
    return value


def adapters(args: Sequence[str]) -> tuple[str, ...]:
    """The names of the adapters that the user gives with ``--lora-modules``, as NAME=PATH or as JSON.

    >>> adapters(["--lora-modules", "sql=/lora/sql", '{"name": "law", "path": "/l"}', "--dtype", "auto"])
    ('sql', 'law')
    """
    found: list[str] = []
    inside = False
    for word in args:
        if _name(word):
            inside = _name(word) == "--lora-modules"
            word = word.partition("=")[2]
        if inside and word:
            found.append(_adapter(word))
    return tuple(dict.fromkeys(name for name in found if name))


def _adapter(word: str) -> str:
    if not word.startswith("{"):
        return word.partition("=")[0]
    try:
        return str(json.loads(word).get("name", ""))
    except ValueError:
        return ""  # the engine will say so


def with_defaults(args: Sequence[str], defaults: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Our flags that the user does not give, then the user's words as they are."""
    ours = [word for flag, value in defaults if not has_flag(args, flag) for word in (flag, value)]
    return (*ours, *args)


def overridden(args: Sequence[str], own: Sequence[str]) -> tuple[str, ...]:
    """The words with others on top: a flag that `own` has too goes, with its values. Some engines take the
    last of two and some refuse the second, so there is only one.

    >>> overridden(["--dtype", "auto", "--max-model-len", "8192"], ["--max-model-len=16384", "-tp", "8"])
    ('--dtype', 'auto', '--max-model-len=16384', '-tp', '8')
    """
    named = {_flag(word) for word in own} - {""}
    kept: list[str] = []
    goes = False
    for word in args:
        flag = _flag(word)
        goes = flag in named if flag else goes
        if not goes:
            kept.append(word)
    return (*kept, *own)


def _flag(word: str) -> str:
    """The flag that a word is, also a short one that nobody reads here; empty for a value such as -1."""
    short = word[:1] == "-" and word[1:2].isalpha()
    return _name(word) or (word.partition("=")[0] if short else "")


def with_switches(args: Sequence[str], switches: Sequence[str]) -> tuple[str, ...]:
    """Our switches that the user does not give, then the user's words.

    ``--no-...`` keeps ours away and is left out itself: it is the default, and an engine that does not know
    the switch does not know that either.
    """
    names = [_name(word) for word in args]
    refused = {f"--no-{switch.removeprefix('--')}": switch for switch in switches}
    denied = {refused[name] for name in names if name in refused}
    ours = (switch for switch in switches if switch not in denied and switch not in names)
    return (*ours, *(word for word, name in zip(args, names, strict=True) if name not in refused))


def task_switches(spec: EngineSpec) -> tuple[str, ...]:
    """vLLM's switches for the routes that speak token ids: where there are none, nothing can use them."""
    return ("--enable-scale-out",) if spec.task == "generate" else ()


def task_flags(spec: EngineSpec) -> tuple[tuple[str, str], ...]:
    """vLLM's flags for what the model does."""
    return () if spec.task == "generate" else (("--runner", "pooling"),)


ADAPTERS_AT_ONCE = 8
"""Adapters that vLLM works with at the same time where ``--max-loras`` is not given; their places on the GPU
are taken whether any is loaded or not."""

ADAPTER_RANK = 64
"""The largest rank of an adapter where ``--max-lora-rank`` is not given: vLLM's own 16 is below many."""


def adapter_flags(spec: EngineSpec) -> tuple[tuple[str, str], ...]:
    """vLLM's flags for adapters that come and go. More than a node is to hold fit into its memory, so that
    some can take the place of others."""
    if not spec.adapter_room:
        return ()
    given = flag_value(spec.args, "--max-loras")
    at_once = min(ADAPTERS_AT_ONCE, spec.adapter_room) if given is None else 1
    least = int(given) if given is not None and given.isdecimal() else at_once
    return (
        ("--max-loras", str(at_once)),
        ("--max-cpu-loras", str(max(spec.adapter_room + beside(spec.adapter_room), least))),
        ("--max-lora-rank", str(ADAPTER_RANK)),
    )


def adapter_switches(spec: EngineSpec) -> tuple[str, ...]:
    """vLLM's switch for adapters."""
    return ("--enable-lora",) if spec.adapter_room else ()


def adapter_variables(spec: EngineSpec) -> dict[str, str]:
    """vLLM's variable without which its routes for adapters are not there."""
    return {RUNTIME_ADAPTERS: "True"} if spec.adapter_room else {}


def seconds(text: str | None, default: float) -> float:
    """A flag's value in seconds; the default when it is missing or no number (the engine will say so)."""
    try:
        return default if text is None else max(0.0, float(text))
    except ValueError:
        return default


def drain_seconds(spec: EngineSpec) -> float:
    """How long the engine drains when stopped: the user's ``--shutdown-timeout``, else the budget."""
    return seconds(flag_value(spec.args, "--shutdown-timeout"), math.ceil(spec.drain_budget))
