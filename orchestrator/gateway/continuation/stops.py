"""Stop strings, as vLLM 0.32 looks for them (`vllm/v1/engine/detokenizer.py`)."""

from __future__ import annotations


class StopStrings:
    """Finds the first of several stop strings in a text that comes in parts. Pure.

    `before` is the end of the text that the client has already: a match may begin in it. Unless the match
    itself is part of the answer, characters that may be the beginning of one are held back: always `hold` of
    them, once so many came.
    """

    def __init__(self, stops: tuple[str, ...], *, included: bool, before: str = "") -> None:
        self._stops = stops
        self._included = included
        self._longest = max(len(stop) for stop in stops)
        self.hold = 0 if included else self._longest - 1
        self._text = before
        self._given = len(before)
        self._searched = len(before)

    def feed(self, text: str, *, search: bool = True) -> tuple[str, str]:
        """What may be shown now, and the stop string that ended the text, empty while none did.

        Of several the one that ends first wins, then the first in the list. No match ends in text that was
        fed with `search` false.
        """
        self._text += text
        if search and (found := self._first()) is not None:
            stop, start = found
            return self._give(start + len(stop) if self._included else start), stop
        self._searched = len(self._text)
        shown = self._give(len(self._text) - self.hold)
        dead = min(self._given, self._searched - self._longest + 1)
        if dead > 0:
            self._text = self._text[dead:]
            self._given -= dead
            self._searched -= dead
        return shown, ""

    def flush(self) -> str:
        """What was held back, once the text has ended without a match."""
        return self._give(len(self._text))

    def _first(self) -> tuple[str, int] | None:
        best, end = None, len(self._text) + 1
        for stop in self._stops:
            start = self._text.find(stop, max(0, self._searched - len(stop) + 1))
            if start >= 0 and start + len(stop) < end:
                best, end = (stop, start), start + len(stop)
        return best

    def _give(self, end: int) -> str:
        if end <= self._given:
            return ""
        shown = self._text[self._given : end]
        self._given = end
        return shown
