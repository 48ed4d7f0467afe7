"""The shipped JSON Schemas say what the views say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator import schemas
from orchestrator.schemas import generate


@pytest.mark.parametrize("name", sorted(generate.schemas()))
def test_schema_file_is_current(name: str) -> None:
    assert schemas.read(name) == generate.text_of(generate.schemas()[name]), (
        "run `python -m orchestrator.schemas.generate`"
    )


def test_no_schema_file_is_left_over() -> None:
    assert schemas.names() == sorted(generate.schemas())


def test_unknown_schema() -> None:
    with pytest.raises(KeyError):
        schemas.read("../schemas/status")


@pytest.mark.parametrize(
    "name", ["status", "plan", "explain", "node", "nodes", "validate", "capacity-plan", "cost"]
)
def test_versioned_answers_name_their_schema(name: str) -> None:
    schema = json.loads(schemas.read(name))
    assert schema["properties"]["schema"]["const"] == f"{name}/1"
    assert "schema" in schema["required"]


def test_every_object_takes_fields_of_later_versions() -> None:
    def objects(value: Any) -> list[dict[str, Any]]:
        if isinstance(value, list):
            return [found for item in value for found in objects(item)]
        if not isinstance(value, dict):
            return []
        own = [value] if value.get("type") == "object" else []
        return own + [found for item in value.values() for found in objects(item)]

    for name in generate.VIEWS:
        found = objects(json.loads(schemas.read(name)))
        assert found
        assert all(item.get("additionalProperties", True) is not False for item in found)


def test_descriptions_reach_the_schema() -> None:
    status = json.loads(schemas.read("status"))
    remaining = status["$defs"]["NoticeView"]["properties"]["remaining_s"]
    assert remaining["description"].startswith("seconds to the deadline")
    config = json.loads(schemas.read("config"))
    tick = config["$defs"]["DaemonConfig"]["properties"]["tick"]
    assert (tick["default"], tick["type"]) == ("1s", "string")
