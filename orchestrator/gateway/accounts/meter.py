"""What one request used, as far as whoever answered it told."""

from __future__ import annotations

from dataclasses import dataclass

from policies.spend import Usage


@dataclass(slots=True)
class Meter:
    """Filled by whoever answers a request, and complete once that is over.

    `usage`: the tokens of its client's answer, None where there are none. `estimated`: nobody told them, and
    they were worked out from what passed. `backend` is what answered, or was asked last, as `pool/chat` or
    `provider/claude`, empty while nobody was; `model` the adapter or the provider's model, empty for the
    pool's own. `first_s`: seconds from the arrival of the request to the first byte of its answer, None
    without one. `pieces`: events of a provider's stream, which may stand for a token each.
    """

    usage: Usage | None = None
    estimated: bool = False
    backend: str = ""
    model: str = ""
    first_s: float | None = None
    pieces: int = 0

    def aim(self, kind: str, name: str, model: str) -> None:
        """A backend gets the request; what one before it told is not its client's."""
        self.backend = f"{kind}/{name}" if name else kind
        self.model = model
        self.usage, self.first_s, self.pieces = None, None, 0
