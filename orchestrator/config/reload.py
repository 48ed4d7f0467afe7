"""What a changed key takes to count. It is said at the key, as a mark in its annotation.

    replicas: Annotated[int, SIZE] = Field(ge=1)

A mark on a table holds for all of its keys that have none of their own. A key without any needs a restart.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from orchestrator.config.errors import table_model


class Effect(enum.StrEnum):
    """What a changed key asks for."""

    NOW = "now"
    GATEWAY = "gateway"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Reload:
    """How a change of a key is taken up; in the JSON Schema of the key as `reload`.

    `resizes` is true for what may change how many nodes a pool has, or what they may cost, `gateway` for what
    the gateway reads when it starts.
    """

    effect: Effect
    resizes: bool = False
    gateway: bool = False

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(core), "reload": self.effect.value}


NOW: Final = Reload(Effect.NOW)
"""A running daemon takes it up: policies go by it from the next turn on."""

SIZE: Final = Reload(Effect.NOW, resizes=True)
"""The same for what decides how many nodes there are: a change that may be a mistake asks for --force."""

GATEWAY: Final = Reload(Effect.GATEWAY, gateway=True)
"""The gateway takes it up when it is replaced; the daemon passes over it."""

BOTH: Final = Reload(Effect.NOW, gateway=True)
"""The daemon takes it up at once, and the gateway when it is replaced."""

RESTART: Final = Reload(Effect.RESTART)
"""The daemon made its connections, files or listeners from it."""

SHARED: Final = Reload(Effect.RESTART, gateway=True)
"""The same for what the gateway goes by too."""


def reload_at(root: type[BaseModel], path: Sequence[str | int]) -> Reload:
    """How a change of the key at `path` is taken up."""
    model: type[BaseModel] | None = root
    found, parts = RESTART, iter(path)
    for part in parts:
        field = None if model is None else model.model_fields.get(str(part))
        if field is None:
            break
        found = next((mark for mark in field.metadata if isinstance(mark, Reload)), found)
        model, kind = table_model(field.annotation)
        if kind != "table":
            next(parts, None)
    return found
