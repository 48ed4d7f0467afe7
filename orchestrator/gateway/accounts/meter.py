"""What one request used, as far as whoever answered it told."""

from __future__ import annotations

from dataclasses import dataclass

from policies.spend import Usage


@dataclass(slots=True)
class Meter:
    """What a request used. Filled while it is answered, complete once it is over."""

    usage: Usage | None = None  # tokens of the client's answer; None: none
    estimated: bool = False  # nothing reported them: they were worked out from what passed
    backend: str = ""  # what answered, or was asked last: `pool/chat`, `provider/claude`; empty: none yet
    model: str = ""  # the adapter or the provider's model; empty: the pool's own
    first_s: float | None = None  # from the arrival of the request to the first byte of its answer
    pieces: int = 0  # events of a provider's stream, which may stand for a token each

    def aim(self, kind: str, name: str, model: str) -> None:
        """A backend gets the request; what one before it told is not its client's."""
        self.backend = f"{kind}/{name}" if name else kind
        self.model = model
        self.usage, self.first_s, self.pieces = None, None, 0
