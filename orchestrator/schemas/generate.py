"""Makes the JSON Schemas that ship with the package: `python -m orchestrator.schemas.generate`.

The answers' schemas come from the types in `orchestrator.views.api` and beside it, the configuration's from
its models. A test asserts that the files beside this module are current.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

import typing_extensions
from pydantic import ConfigDict, Field, TypeAdapter, with_config

from orchestrator.config.tables.file import ConfigFile
from orchestrator.views import api as views
from orchestrator.views import capacity as capacity_views
from orchestrator.views import cost as cost_views
from orchestrator.views import field as field_views
from orchestrator.views import journal as journal_views
from orchestrator.views import keys as key_views
from orchestrator.views import routes as route_views
from orchestrator.views import setup as setup_views
from orchestrator.views import simulate as simulator

DIRECTORY: Final = Path(__file__).parent

VIEWS: Final[dict[str, type]] = {
    "status": views.StatusView,
    "routes": route_views.RoutesView,
    "nodes": views.NodesView,
    "node": views.NodeStory,
    "events": views.EventsView,
    "plan": views.PlanView,
    "explain": views.ExplainView,
    "config-show": setup_views.ConfigShowView,
    "cost": cost_views.CostView,
    "cost-estimate": cost_views.CostEstimateView,
    "capacity-plan": capacity_views.CapacityPlanView,
    "history": views.HistoryView,
    "keys": key_views.KeysView,
    "new-key": key_views.NewKeyView,
    "revoked-key": key_views.RevokedKeyView,
    "support-bundle": setup_views.BundleView,
    "gameday": views.GamedayView,
    "validate": setup_views.ValidateView,
    "doctor": setup_views.DoctorView,
    "field-test": field_views.FieldReportView,
    "reload": views.ReloadView,
    "journal": journal_views.JournalView,
    "replay": journal_views.ReplayView,
    "turn": journal_views.TurnView,
    "bootstrap": setup_views.BootstrapView,
    "simulate": simulator.SimulateView,
    "trace": simulator.TraceView,
}


def schemas() -> dict[str, dict[str, Any]]:
    """Every schema by its name."""
    made = {name: schema_of_view(view) for name, view in VIEWS.items()}
    return made | {"config": schema_of_config()}


def schema_of_config() -> dict[str, Any]:
    """The schema of the configuration file."""
    return _named("config", ConfigFile.model_json_schema())


def schema_of_view(view: type) -> dict[str, Any]:
    """The schema of one answer. Unknown fields are allowed: later versions may add some."""
    name = next(name for name, known in VIEWS.items() if known is view)
    return _named(name, TypeAdapter(_described(view, {})).json_schema())


def text_of(schema: dict[str, Any]) -> str:
    """A schema as it stands in its file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _named(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:spot-orchestrator:{name}",
        **schema,
    }


def _described(annotation: Any, made: dict[type, Any]) -> Any:
    """The same type with the texts of `Annotated[T, "text"]` as descriptions that pydantic understands.

    pydantic takes only typing_extensions' TypedDict before Python 3.12, so each one is made again as such.
    """
    if is_typeddict(annotation):
        if annotation not in made:
            hints = get_type_hints(annotation, include_extras=True)
            fields = {name: _described(hint, made) for name, hint in hints.items()}
            factory: Any = typing_extensions.TypedDict
            twin = factory(annotation.__name__, fields)
            twin.__doc__ = annotation.__doc__
            made[annotation] = with_config(ConfigDict(extra="allow"))(twin)
        return made[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return Annotated[_described(arguments[0], made), Field(description=arguments[1])]
    if origin is NotRequired:
        return NotRequired[_described(arguments[0], made)]
    if origin is list:
        return list[_described(arguments[0], made)]  # type: ignore[misc]
    if arguments and type(None) in arguments:
        inner = next(item for item in arguments if item is not type(None))
        return _described(inner, made) | None
    return annotation


def main() -> None:
    """Write every schema file anew."""
    for name, schema in schemas().items():
        (DIRECTORY / f"{name}.schema.json").write_text(text_of(schema), encoding="utf-8")


if __name__ == "__main__":
    main()
