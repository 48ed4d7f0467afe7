"""What is sent to an engine so that its stream can be finished elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from orchestrator.gateway.continuation.kinds import Capability, Plan, Way

if TYPE_CHECKING:
    from orchestrator.gateway.asked import Asked

RETURN_IDS = "return_token_ids"  # vLLM's field: prompt ids in the first chunk, each chunk's own ids
_ASK = b'{"return_token_ids":true,'


def prepared(asked: Asked, plan: Plan, capability: Capability) -> bytes:
    """The body to send to a target of this capability: it asks for token ids where they are of use.

    Nothing else of the request changes. The ids are taken out of what the client sees by `Transcript`.
    """
    body = asked.body()
    fields = asked.inner
    if fields is None or not plan.by_ids or capability.way is Way.NONE or fields.get(RETURN_IDS):
        return body
    if RETURN_IDS in fields:
        return orjson.dumps({**fields, RETURN_IDS: True})
    return _ASK + body[body.index(b"{") + 1 :]
