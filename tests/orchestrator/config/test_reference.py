"""The reference states what a configuration is without a key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from orchestrator.config.errors import Key, heading, keys_of, table_model, tables
from orchestrator.config.tables.file import ConfigFile
from orchestrator.units import format_duration, format_size

PAGE = (Path(__file__).parents[3] / "docs/reference/config.md").read_text(encoding="utf-8")


def every_key() -> Iterator[Any]:
    for path, model in tables(ConfigFile):
        if path:
            yield pytest.param(path, model, id=heading(path))


def written(default: Any, stated: str) -> bool:
    """Whether the page states this default; durations, sizes and shares have their units there."""
    if default is None:
        return stated in ("not set", '"off"', '"unlimited"')
    if isinstance(default, Path):
        return stated.removeprefix('"').removesuffix('"') in (str(default), f"./{default}")
    forms = [json.dumps(default, default=str, ensure_ascii=False)]
    if isinstance(default, int | float) and not isinstance(default, bool):
        forms += [f'"{form}"' for form in (format_duration(default), f"{default * 100:g}%")]
        forms += [f'"{format_size(default)}"'] if isinstance(default, int) else []
        forms += [f'"{default:g}"']
    return stated in forms


@pytest.mark.parametrize(("path", "model"), every_key())
def test_the_reference_states_the_default_that_is_in_force(path: Key, model: type[BaseModel]) -> None:
    part = PAGE.partition(f"## {heading(path)}\n")[2].partition("\n## ")[0]
    stated = dict(re.findall(r"^\| `(\w+)` \| `?(.*?)`? \|", part, re.MULTILINE))
    for name, field in keys_of(model).items():
        if table_model(field.annotation)[0] is None and not field.is_required():
            default = field.get_default(call_default_factory=True)
            assert written(default, stated[name]), (name, default, stated[name])
