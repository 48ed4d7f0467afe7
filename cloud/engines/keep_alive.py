"""How long an engine's server keeps a connection open between two requests.

A balancer keeps connections to its targets open too, and sends the next request on one of them. It must be
the one to close first: a request that arrives at a connection which the server is closing is lost, and an
Application Load Balancer answers it with 502. vLLM's server closes after 5 s, such a balancer after 60 s.
(vLLM 0.32, vllm/envs.py: a whole number of seconds, uvicorn's ``timeout_keep_alive``.)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cloud.ports import EngineSpec

KEEP_ALIVE: Final = "VLLM_HTTP_TIMEOUT_KEEP_ALIVE"
"""vLLM's variable, which the simulated engine honours too."""

ENGINES_OWN: Final = "5"
"""What vLLM takes where the variable is not set, in seconds."""

AHEAD: Final = 15.0
"""Seconds by which an engine outlasts the balancer: what is sent is on its way for a while."""


def environment(spec: EngineSpec) -> dict[str, str]:
    """The engine's variables: how long it keeps connections, and the user's own, which win."""
    return {KEEP_ALIVE: str(math.ceil(spec.keep_alive)), **spec.env}
