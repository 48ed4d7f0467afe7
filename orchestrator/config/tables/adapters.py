"""How the adapters of a [pool.NAME] table become the rules that the policies take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from cloud.engines.dialect import DIALECTS, Kind
from cloud.engines.flags import flag_value, has_flag
from cloud.ports import Task
from policies.held import Adapter, AdapterRules

MOST_ADAPTERS: Final = 1000
"""Adapters of a pool, and of a node, at most."""

ROOM: Final = 64
"""Adapters that a node holds at most where nothing else is written."""


OWN_NUMBERS: Final = ("--lora", "--lora-scaled")
"""Flags of llama.cpp that number adapters, before those of the pool."""


def numbers_adapters(kind: Kind, task: Task, args: Sequence[str]) -> bool:
    """Whether its engines know by number which adapters a request is to use, all of them the pool's.

    `args`: the flags of all its nodes. With flags for adapters of their own, those are always applied.
    """
    numbered = DIALECTS[kind].capabilities.adapters == "request" and task == "generate"
    return numbered and not any(has_flag(args, flag) for flag in OWN_NUMBERS)


def adapter_rules(
    kind: Kind, adapters: Mapping[str, str], slots: int | None, args: Sequence[str], *, numbered: bool
) -> AdapterRules:
    """The rules of an engine of this kind with these flags. `slots`: as it is written, else None.

    `numbered`: see `numbers_adapters`.
    """
    runtime = DIALECTS[kind].capabilities.adapters == "runtime"
    flags = (flag_value(args, flag) for flag in ("--max-cpu-loras", "--max-loras"))
    given = next((int(value) for value in flags if value is not None and value.isdecimal()), 0)
    return AdapterRules(
        wanted=tuple(Adapter(name=name, source=source) for name, source in adapters.items()),
        slots=(slots or given or ROOM) if runtime and (adapters or slots) else None,
        runtime=runtime,
        numbered=numbered,
    )
