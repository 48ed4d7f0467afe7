"""What one request used, as far as whoever answered it told."""

from __future__ import annotations

from dataclasses import dataclass

from policies.spend import Usage


@dataclass(slots=True)
class Meter:
    """Filled by whoever answers a request, read when it is over.

    `usage`: tokens as the engine or provider counted them, None while nobody did. `estimated`: they were
    counted by us, for want of its own count. `backend` is what answered, as `pool/chat` or
    `provider/claude`, and `model` the adapter or the provider's model, empty for the pool's own.
    """

    usage: Usage | None = None
    estimated: bool = False
    backend: str = ""
    model: str = ""
