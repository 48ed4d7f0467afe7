"""Structured output of the simulated engine: the one text that a JSON schema gets, always the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_DEPTH = 32  # levels of a schema, so that one that contains itself comes to an end
_SCALARS: dict[str, Any] = {
    "string": "some words",
    "integer": 7,
    "number": 1.5,
    "boolean": True,
    "null": None,
}


def instance(schema: Any) -> Any:
    """A value that fits a JSON schema: every property, the first of all choices, the fewest items (at least
    1).
    """
    return _instance(schema, schema, _DEPTH)


def _instance(schema: Any, root: Any, depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth == 0:
        return None
    if isinstance(schema.get("$ref"), str):
        return _instance(_referred(root, schema["$ref"]), root, depth - 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _instance(schema[key][0], root, depth - 1)
    kind = schema.get("type") or ("object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: _instance(of, root, depth - 1) for name, of in properties.items()}
    if kind == "array":
        one = _instance(schema.get("items") or {}, root, depth - 1)
        return [one] * max(1, int(schema.get("minItems") or 1))
    value = _SCALARS.get(kind)
    if isinstance(value, str):
        value = value.ljust(int(schema.get("minLength") or 0), "x")[: schema.get("maxLength")]
    return value


def _referred(root: Any, reference: str) -> Any:
    found = root
    for name in filter(None, reference.removeprefix("#").split("/")):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def text_of(value: Any) -> str:
    """JSON as the simulated model writes it."""
    return json.dumps(value, ensure_ascii=False)


def call_tag(name: str, parameters: Any) -> dict[str, Any]:
    """The call of a tool as a tag of vLLM's structural tags (xgrammar's format)."""
    return {
        "begin": f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": ',
        "content": {"type": "json_schema", "json_schema": parameters},
        "end": "}\n</tool_call>",
    }


class Unknown(Exception):
    """A structured output that the simulated engine does not know."""


def forced_text(structured: Mapping[str, Any]) -> str:
    """The text that a structured output (vLLM's `structured_outputs`) forces. Raises Unknown."""
    if "json" in structured:
        schema = structured["json"]
        return text_of(instance(json.loads(schema) if isinstance(schema, str) else schema))
    if isinstance(structured.get("structural_tag"), str):
        tag = json.loads(structured["structural_tag"])["tags"][0]
        return str(tag["begin"]) + text_of(instance(tag["content"]["json_schema"])) + str(tag["end"])
    if structured.get("json_object"):
        return text_of({"answer": _SCALARS["string"]})
    if structured.get("choice"):
        return str(structured["choice"][0])
    if isinstance(structured.get("regex"), str):
        return _first_match(structured["regex"])
    raise Unknown(
        "structured_outputs: the simulated engine knows json, json_object, choice, regex, structural_tag"
    )


def _first_match(pattern: str) -> str:
    """The first text that fits a pattern of letters, escaped letters and groups of alternatives."""
    text, group, taken = "", False, True
    letters = iter(pattern)
    for letter in letters:
        if letter == "(" and not group:
            group, taken = True, True
        elif letter == "|" and group:
            taken = False
        elif letter == ")" and group:
            group, taken = False, True
        elif letter == "\\":
            escaped = next(letters, "")
            text += {"n": "\n"}.get(escaped, escaped) if taken else ""
        elif letter in "()[]{}|*+?.^$":
            raise Unknown(f"structured_outputs: the simulated engine does not know {letter!r} in a regex")
        elif taken:
            text += letter
    return text
