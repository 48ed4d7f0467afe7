"""Every fault of a configuration file as one line: `file:line: key: what, and what to do`."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from orchestrator.config.toml_lines import KeyPath, line_of
from orchestrator.units import shown
from orchestrator.views.api import ProblemView

Key = tuple[str | int, ...]
"""The path of a key: names of tables and keys, and places in lists."""

Found = tuple[Key, str]
"""A key and what is wrong with it, as a sentence."""

Kind = Literal["table", "named", "listed"]
"""How tables of one model stand in a file: as `[name]`, each with a name as `[name.NAME]`, as `[[name]]`."""

PROBLEMS_MOST: Final = 100
_NAMED: Final = re.compile(r"'([^']*)'")
_NAMES: Final = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text in quotes",
    "bool_type": "true or false",
    "float_type": "a number",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dict_type": "a table",
    "tuple_type": "a list",
}


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One fault and its place. `line` is 0 where the whole file is meant."""

    file: str
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.text}" if self.key else f"{place}: {self.text}"

    def view(self) -> ProblemView:
        """The same as JSON."""
        return {"file": self.file, "line": self.line, "key": self.key, "text": self.text}


class ConfigError(Exception):
    """The configuration cannot be used. `problems` holds every fault, in the order of the file.

    Of more than `PROBLEMS_MOST` the first are named and the others counted.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        found = sorted(set(problems))
        self.problems = tuple(found[:PROBLEMS_MOST])
        if (more := len(found) - PROBLEMS_MOST) > 0:
            text = f"and {more} more faults; is it the right file?"
            self.problems += (Problem(found[-1].file, 0, "", text),)
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(frozen=True, slots=True)
class Source:
    """The file that faults are reported against, with the line of each key; None for one in memory."""

    file: str
    lines: Mapping[KeyPath, int] | None

    def problem(self, path: Sequence[str | int], text: str) -> Problem:
        """A fault of the key at `path`."""
        line = 0 if self.lines is None else line_of(self.lines, path)
        return Problem(file=self.file, line=line, key=dotted(path), text=text)


def dotted(path: Sequence[str | int]) -> str:
    """A key path as people write it: `pool.llama.engine.args[2]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (
                part if part.replace("-", "").replace("_", "").isalnum() else f'"{part}"'
            )
    return text


def problems_of(error: ValidationError, source: Source, root: type[BaseModel]) -> list[Problem]:
    """Every fault that the models found, as sentences."""
    return [
        source.problem(item["loc"], _sentence(dict(item), root))
        for item in error.errors(include_url=False)
        if item["type"] != "default_factory_not_called"
    ]


def _sentence(item: Mapping[str, Any], root: type[BaseModel]) -> str:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing":
        return "is missing; " + _write(item["loc"], root)
    if kind == "extra_forbidden":
        return _unknown(item["loc"], root)
    if kind in ("greater_than_equal", "greater_than"):
        bound = context.get("ge", context.get("gt"))
        word = "at least" if kind == "greater_than_equal" else "more than"
        return f"{shown(value)} is too small; write {word} {bound}"
    if kind in ("less_than_equal", "less_than"):
        bound = context.get("le", context.get("lt"))
        word = "at most" if kind == "less_than_equal" else "less than"
        return f"{shown(value)} is too large; write {word} {bound}"
    if kind in ("literal_error", "enum"):
        close = meant(str(value), _NAMED.findall(context["expected"]))
        return f"{shown(value)} is not known{close}; write {context['expected']}"
    if kind == "string_pattern_mismatch":
        return f"{shown(value)} does not match {context['pattern']}; {_write(item['loc'], root)}"
    if kind in _NAMES:
        return f"{shown(value)} is not {_NAMES[kind]}; {_write(item['loc'], root)}"
    return f"{shown(value)}: {item['msg']}; {_write(item['loc'], root)}"


def _write(path: Sequence[str | int], root: type[BaseModel]) -> str:
    """What to write at `path`, from the help text of that key."""
    model = model_at(root, path[:-1])
    if model is not None and isinstance(path[-1], str) and path[-1] in model.model_fields:
        field = model.model_fields[path[-1]]
        inner, kind = table_model(field.annotation)
        if inner is not None:
            return f"write a table {heading(_below(path, kind))}: {field.description}"
        examples = field.examples or ([field.default] if isinstance(field.default, bool) else [])
        example = f"{path[-1]} = {json.dumps(examples[0])}" if examples else path[-1]
        return f"write {example}: {field.description}"
    return f"see `orchestrator schema config` for {dotted(path)}"


def _unknown(path: Sequence[str | int], root: type[BaseModel]) -> str:
    model = model_at(root, path[:-1])
    known = sorted(model.model_fields) if model is not None else []
    close = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.6)
    if close:
        return f"is not a key; did you mean {close[0]}?"
    elsewhere = _elsewhere(str(path[-1]), root)
    if elsewhere:
        return f"is not a key here; it belongs in {elsewhere}"
    return f"is not a key; write one of {', '.join(known)}" if known else "is not a key; remove it"


def _elsewhere(name: str, root: type[BaseModel]) -> str:
    """The heading of the table that knows a key called `name`; empty when none or more than one does."""
    found = [heading(path) for path, model in tables(root) if name in keys_of(model) and path]
    return found[0] if len(found) == 1 else ""


def meant(name: str, known: Iterable[str]) -> str:
    """What was probably meant by a name that is not known, in brackets; empty where nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def heading(path: Sequence[str | int]) -> str:
    """The line with which a table begins: `[pool.NAME.gateway]`, `[[route]]`."""
    text = dotted([part for part in path if not isinstance(part, int)])
    return f"[[{text}]]" if path and isinstance(path[-1], int) else f"[{text}]"


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys of a table that belong there. `elsewhere` of a model names those that it takes besides."""
    others: frozenset[str] = getattr(model, "elsewhere", frozenset())
    return {name: field for name, field in model.model_fields.items() if name not in others}


def tables(root: type[BaseModel], path: Key = ()) -> list[tuple[Key, type[BaseModel]]]:
    """Every table of the file with its model. `NAME` stands for names that the user chooses, 0 for a place in
    a list."""
    found: list[tuple[Key, type[BaseModel]]] = [(path, root)]
    for name, field in root.model_fields.items():
        inner, kind = table_model(field.annotation)
        if inner is not None:
            found += tables(inner, _below((*path, name), kind))
    return found


def _below(path: Sequence[str | int], kind: Kind) -> Key:
    below: Mapping[Kind, Key] = {"table": (), "named": ("NAME",), "listed": (0,)}
    return (*path, *below[kind])


def model_at(root: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel] | None:
    """The model of the table at `path`, None where there is no such table."""
    model: type[BaseModel] | None = root
    parts = iter(path)
    for part in parts:
        field = model.model_fields.get(str(part)) if model is not None else None
        if field is None:
            return None
        model, kind = table_model(field.annotation)
        if kind != "table":
            next(parts, None)
    return model


def table_model(annotation: object) -> tuple[type[BaseModel] | None, Kind]:
    """The model behind a field, None where it is no table, and how its tables stand in a file."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, "table"
    arguments, origin = get_args(annotation), get_origin(annotation)
    if origin in (dict, tuple) and len(arguments) == 2:
        inner, _ = table_model(arguments[1] if origin is dict else arguments[0])
        return inner, "table" if inner is None else "named" if origin is dict else "listed"
    return None, "table"
