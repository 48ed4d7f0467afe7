"""The answer to a request that is not on disk in time: what holds now, not what usually follows."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from orchestrator.api import api as api_module
from orchestrator.api.api import Api, Refused

pytestmark = pytest.mark.asyncio


class Slow:
    """Never done: the reloader, and the inbox of a loop that writes nothing."""

    def __init__(self, *, taken_up: bool = False) -> None:
        self.config, self._taken_up = "before", taken_up

    async def reload(self, **_: Any) -> None:
        if self._taken_up:
            self.config = "after"
        await asyncio.Event().wait()

    def put(self, _: object) -> int:
        return 1

    async def written(self, _: int) -> None:
        await asyncio.Event().wait()


class Request:
    """A POST without a body, and without a pool."""

    query: ClassVar[dict[str, str]] = {}

    async def read(self) -> bytes:
        return b""


async def said(
    monkeypatch: pytest.MonkeyPatch, call: str, *, durable: bool = True, taken_up: bool = False
) -> str:
    monkeypatch.setattr(api_module, "_WRITTEN_WITHIN", 0.0)
    slow: Any = Slow(taken_up=taken_up)
    last = SimpleNamespace(world=SimpleNamespace(durable=durable))
    runs: Any = {"p": SimpleNamespace(name="p", last=last, inbox=slow)}
    clock: Any = SimpleNamespace(now=lambda: 0.0)
    others: Any = dict.fromkeys(("store", "daemon", "gauges", "outside"))
    api = Api(runs=runs, clock=clock, reloader=slow, **others)
    with pytest.raises(Refused) as caught:
        await getattr(api, call)(Request())
    assert caught.value.status_code == 503
    return str(caught.value)


async def test_a_reload_that_was_not_judged_in_time_changed_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file may yet prove faulty: no answer may say that it is taken up."""
    text = await said(monkeypatch, "_reload")
    assert "what was in force stays in force" in text
    assert "taken up" not in text


async def test_a_reload_that_waits_for_its_turn_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await said(monkeypatch, "_reload", taken_up=True)).startswith("it is in force, but no turn")


async def test_a_request_on_a_full_disk_is_taken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    text = await said(monkeypatch, "_pause", durable=False)
    assert text.startswith("it is taken up, but the journal cannot be written")


async def test_a_request_to_a_loop_that_does_not_turn_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its journal was fine when it turned last; nothing has looked at the request since."""
    text = await said(monkeypatch, "_pause")
    assert text.startswith("it waits for the next turn of the loop")
