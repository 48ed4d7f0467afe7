"""A file with a pool, a provider and two routes, and what the gateway and a status would say of them."""

from __future__ import annotations

import copy
from typing import Any

TOML = """
[daemon]
state_dir = "state"
listen = "off"
[pool.chat]
replicas = 2
model = "llama"
[provider.claude]
kind = "anthropic"
url = "http://127.0.0.1:9"
usd_per_day = "50"
[provider.claude.price.big]
input = "3"
output = "15"
[[route]]
models = ["assistant", "gpt-4o"]
data = "may-leave"
usd_per_day = "20"
to = [{ pool = "chat" }, { provider = "claude", model = "big" }]
[[route]]
models = ["private"]
data = "stays"
to = [{ pool = "chat" }]
"""

_STATUS: dict[str, Any] = {
    "gateway": {"seen_s": 1.0, "error": "", "spend_error": ""},
    "routes": [
        {
            "name": "assistant",
            "models": ["assistant", "gpt-4o"],
            "data": "may-leave",
            "goes_to": "provider claude (big)",
            "left_out": ["pool llama is down"],
            "servable": True,
            "stands_in": "claude",
            "stands_in_since": 1_790_000_000.0,
            "backends": [
                {"backend": "pool llama", "state": "is down", "requests": {"answered": 90, "down": 7}},
                {"backend": "provider claude (big)", "state": "is well", "requests": {"answered": 7}},
            ],
            "requests_today": 7,
            "spent_today_usd": 1.2,
            "held_usd": 0.1,
            "cap_usd": 20.0,
        },
        {
            "name": "private",
            "models": ["private"],
            "data": "stays",
            "goes_to": "pool llama",
            "left_out": [],
            "servable": False,
            "stands_in": None,
            "stands_in_since": None,
            "backends": [{"backend": "pool llama", "state": "is down", "requests": {}}],
            "requests_today": 0,
            "spent_today_usd": 0.0,
            "held_usd": 0.0,
            "cap_usd": None,
        },
    ],
    "providers": [
        {
            "name": "claude",
            "kind": "anthropic",
            "state": "is well",
            "failing_since": None,
            "in_flight": 3,
            "in_flight_limit": 64,
            "failures": 2,
            "requests_today": 7,
            "spent_today_usd": 1.2,
            "held_usd": 0.1,
            "cap_usd": 50.0,
            "days": [{"day": "2026-09-21", "requests": 7, "usd": 1.2}],
        }
    ],
}


def routed(status: dict[str, Any]) -> dict[str, Any]:
    """A status of a daemon whose pool `llama` is down while a provider answers for it."""
    found = copy.deepcopy(status)
    for pool in found["pools"]:
        pool["state"] = "down"
    return found | copy.deepcopy(_STATUS)
