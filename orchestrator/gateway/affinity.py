"""Which requests go to the same target: by session, or by how they begin. Pure.

Rendezvous hashing (Thaler, Ravishankar 1998): each target has a score for a key, and the highest gets it, so
that the loss of a target moves its own keys alone. Bounded load (Mirrokni, Thorup, Zadimoghaddam 2016): a
target that holds more than `BOUND` times the mean passes what comes on to the next, so that one busy session
or one common beginning is no danger to a node. Keys and salts do not change with the process: its heir sends
everybody where he went before.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import Any

import orjson

BOUND = 1.25
"""Times the mean load, of which a target holds no more because of a key."""

_PREFIX = 4096  # bytes of how a request begins
_MASK = (1 << 64) - 1


def key_of(text: str | bytes) -> int:
    """64 bits that stand for a session, a beginning or a target."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


def beginning(fields: dict[str, Any]) -> bytes:
    """How a request begins: all up to the first words of the user, which stay while a conversation grows.

    Empty where it has no text that an engine could know from before.
    """
    messages = fields.get("messages")
    if isinstance(messages, list):
        roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
        end = roles.index("user") + 1 if "user" in roles else 1
        return orjson.dumps(messages[:end])[:_PREFIX] if messages else b""
    text = fields.get("prompt", fields.get("input"))
    return orjson.dumps(text)[:_PREFIX] if text else b""


def score(key: int, salt: int, weight: float) -> float:
    """What a target of this salt and weight has for a key; the highest of all gets it."""
    mixed = (key ^ salt) * 0x9E3779B97F4A7C15 & _MASK
    mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93 & _MASK
    mixed ^= mixed >> 32
    return -weight / math.log((mixed + 0.5) / (_MASK + 1.0))


def bound(held: float, weights: float, weight: float) -> int:
    """How much a target of this weight may hold because of a key, where all hold so much together, the
    request included.
    """
    return math.ceil(BOUND * held * weight / weights)
