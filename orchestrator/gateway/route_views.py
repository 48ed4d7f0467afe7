"""What GET /v1/routes tells: where the requests of each route go at this moment, why, and where they went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from policies.routing import Backend, BackendView, Choice, Route

ROUTES_SCHEMA: Final = "gateway-routes/1"


def route_view(
    route: Route,
    views: Sequence[BackendView],
    choice: Choice,
    counts: Mapping[tuple[str, str, str], int],
) -> dict[str, Any]:
    """One route. `counts` are requests by name of the route, backend and result, since the process began."""
    goes_to = None if choice.candidate is None else str(choice.candidate.backend)
    return {
        "name": route.name,
        "models": list(route.models),
        "data": "stays" if route.stays else "may-leave",
        "task": route.task.value,
        "priority": route.priority,
        "most_tokens": route.most_tokens,
        "affinity": route.affinity.value,
        "goes_to": goes_to,
        "left_out": [str(each) for each in choice.left_out],
        "servable": any(view.sound for view in views),
        "backends": [
            _backend(route, backend, view, counts)
            for backend, view in zip(route.backends, views, strict=True)
        ],
    }


def _backend(
    route: Route, backend: Backend, view: BackendView, counts: Mapping[tuple[str, str, str], int]
) -> dict[str, Any]:
    went = {
        result: count for (name, where, result), count in counts.items()
        if (name, where) == (route.name, str(backend))
    }  # fmt: skip
    return {
        "kind": backend.kind.value,
        "name": backend.name,
        "model": backend.model,
        "when": sorted(each.value for each in backend.conditions),
        "waited": backend.waited,
        "weight": backend.weight,
        "state": view.words,
        "hopeful": view.hopeful,
        "sound": view.sound,
        "saturated": view.saturated,
        "requests": went,
    }
