"""How the adapters of a [pool.NAME] table become the rules that the policies take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from cloud.engines.dialect import DIALECTS, Kind
from cloud.engines.flags import flag_value
from policies.held import Adapter, AdapterRules

MOST_ADAPTERS: Final = 1000
"""Adapters of a pool, and of a node, at most."""

ROOM: Final = 64
"""Adapters that a node holds at most where nothing else is written."""


def adapter_rules(
    kind: Kind, adapters: Mapping[str, str], slots: int | None, args: Sequence[str]
) -> AdapterRules:
    """The rules of an engine of this kind with these flags. `slots`: as it is written, else None."""
    runtime = DIALECTS[kind].capabilities.adapters == "runtime"
    flags = (flag_value(args, flag) for flag in ("--max-cpu-loras", "--max-loras"))
    given = next((int(value) for value in flags if value is not None and value.isdecimal()), 0)
    return AdapterRules(
        wanted=tuple(Adapter(name=name, source=source) for name, source in adapters.items()),
        slots=(slots or given or ROOM) if runtime and (adapters or slots) else None,
        runtime=runtime,
    )
