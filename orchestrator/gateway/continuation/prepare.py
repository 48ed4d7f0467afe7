"""What is sent to an engine so that its stream can be finished elsewhere, and is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from orchestrator.gateway.continuation.kinds import CHAT_PATH, TEXT_PATH, Capability, Plan, Way

if TYPE_CHECKING:
    from orchestrator.gateway.asked import Asked

RETURN_IDS = "return_token_ids"  # vLLM's field: prompt ids in the first chunk, each chunk's own ids
_OPTIONS, _USAGE = "stream_options", "include_usage"
_COUNTED = frozenset({CHAT_PATH, TEXT_PATH})


def may_ask_usage(asked: Asked) -> bool:
    """Whether its engine has to be asked for the usage of its stream, which its client did not ask for.

    https://platform.openai.com/docs/api-reference/chat/create#chat-create-stream_options
    """
    if asked.inner is None or not asked.stream or asked.inner_path.partition("?")[0] not in _COUNTED:
        return False
    options = asked.inner.get(_OPTIONS)
    return not (isinstance(options, dict) and options.get(_USAGE))


def prepared(asked: Asked, plan: Plan | None, capability: Capability, *, asks: bool) -> bytes:
    """The body to send to a target of this capability: it asks for token ids where they are of use to the
    plan, and for the usage where `asks` says so.

    Nothing else of the request changes. The ids are taken out of what the client sees by `Transcript`.
    """
    body, fields = asked.body(), asked.inner
    if fields is None:
        return body
    ids = plan is not None and plan.by_ids and capability.way is not Way.NONE and not fields.get(RETURN_IDS)
    if not ids and not asks:
        return body
    added = _ADDED[ids, asks]
    if not added.keys() & fields.keys():
        return _PREFIX[ids, asks] + body[body.index(b"{") + 1 :]
    options = {_OPTIONS: _options(fields.get(_OPTIONS))} if asks else {}
    return orjson.dumps({**fields, **added, **options})


_ADDED: dict[tuple[bool, bool], dict[str, Any]] = {
    (ids, asks): ({RETURN_IDS: True} if ids else {}) | ({_OPTIONS: {_USAGE: True}} if asks else {})
    for ids in (False, True)
    for asks in (False, True)
}
_PREFIX = {case: orjson.dumps(added)[:-1] + (b"," if added else b"") for case, added in _ADDED.items()}
"""What is added to a body, and the same as the beginning of one."""


def _options(told: Any) -> dict[str, Any]:
    """The client's options and the usage at the end, which is in no other chunk."""
    options = told if isinstance(told, dict) else {}
    return {**{name: value for name, value in options.items() if name != _EACH}, _USAGE: True}


_EACH = "continuous_usage_stats"  # vLLM's option: the usage so far in every chunk
