"""A configuration as it is in force, with where each value comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from orchestrator.config.errors import dotted
from orchestrator.config.load import Config
from orchestrator.config.types import written
from orchestrator.config.values import Setting, settings
from orchestrator.redact import Redactor
from orchestrator.views.setup import ConfigShowView, SettingView

_UNSET = "nothing"
_PLACE: Final = re.compile(r"\[\d+\]$")


def view(config: Config, *, effective: bool, redactor: Redactor) -> ConfigShowView:
    """The keys that the file sets, or with `effective` all of them; secrets hidden."""
    lines = config.source.lines or {}
    return ConfigShowView(
        schema="config-show/1",
        file=config.source.file,
        settings=[
            _setting(setting, lines.get(setting.source), redactor)
            for setting in settings(config)
            if effective or setting.path in lines
        ],
    )


def toml(view: ConfigShowView, *, origin: bool) -> str:
    """The same as a TOML file, with `origin` in comments. A key without a value is a comment itself."""
    return "\n".join(_tables(view["settings"], view["file"], origin)) + "\n"


def _setting(setting: Setting, line: int | None, redactor: Redactor) -> SettingView:
    value = redactor.value(setting.value, str(setting.path[-1]))
    text = _inline(value) if isinstance(value, Mapping) else written(setting.field, value)
    return SettingView(
        key=dotted(setting.path),
        table=dotted(setting.path[:-1]),
        name=str(setting.path[-1]),
        value=None if text == _UNSET else text,
        origin="default" if line is None else "file",
        line=line,
    )


def _inline(table: Mapping[str, str]) -> str:
    """A table in one line; names in quotes, so that any name will do."""
    return (
        "{ " + ", ".join(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in table.items()) + " }"
        if table
        else "{}"
    )


def _tables(shown: Iterable[SettingView], file: str, origin: bool) -> Iterator[str]:
    by_table: dict[str, list[SettingView]] = {}
    for setting in shown:
        by_table.setdefault(setting["table"], []).append(setting)
    for number, (table, rows) in enumerate(by_table.items()):
        yield ("\n" if number else "") + _heading(table)
        for row in rows:
            text = (
                f"# {row['name']} is not set" if row["value"] is None else f"{row['name']} = {row['value']}"
            )
            place = f"{file}:{row['line']}" if row["line"] is not None else "default"
            yield f"{text}  # {place}" if origin else text


def _heading(table: str) -> str:
    """The line with which a table begins: `[pool.llama]`, and `[[route]]` for the table route[0]."""
    listed = _PLACE.sub("", table)
    return f"[{table}]" if listed == table else f"[[{listed}]]"
