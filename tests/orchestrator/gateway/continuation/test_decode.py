"""Which of the ids that came are whole text, and how few of them an engine is asked about."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.gateway.continuation.decode import WINDOW, Decoder

UNFINISHED = "\ufffd"


class Engine:
    """An engine for whose every id stands a letter, but those above 100: they are inside a character."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    async def post(self, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        tokens = asked["tokens"]
        self.asked.append(tokens)
        return {"prompt": "".join("x" if token < 100 else UNFINISHED for token in tokens)}


@pytest.mark.parametrize("count", [1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
async def test_only_the_last_ids_decide_whether_a_text_is_whole(count: int) -> None:
    engine, ids = Engine(), list(range(count))
    assert await Decoder(engine, "m").whole(ids) == count  # type: ignore[arg-type]
    assert engine.asked == [ids[-WINDOW:]]


@pytest.mark.parametrize("whole", [0, 3, WINDOW, 2 * WINDOW])
async def test_ids_inside_a_character_wait_for_its_end(whole: int) -> None:
    engine, ids = Engine(), [*range(whole), 101, 102]
    assert await Decoder(engine, "m").whole(ids) == whole  # type: ignore[arg-type]
    assert [each[-1] for each in engine.asked] == [102, 101, *([whole - 1] if whole else [])]
    assert all(len(each) <= WINDOW for each in engine.asked)
