"""Connections to engines: they are closed once, and a failed one is told in an operator's words."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from cloud.engines.dialect import DIALECTS
from cloud.engines.wire import Wire, sentence


async def test_a_session_is_closed_with_its_wire_and_once() -> None:
    closed: list[bool] = []

    async def close() -> None:
        closed.append(True)

    wire = Wire(next(iter(DIALECTS.values())), name="m", task="generate")
    await wire.close()
    wire._session = SimpleNamespace(close=close)  # type: ignore[assignment]
    await wire.close()
    await wire.close()
    assert closed == [True]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ECONNREFUSED, "as the system says"), "Connection refused"),
        (OSError(-2, "Name or service not known"), "Name or service not known"),
        (OSError("no route that anybody knows"), "no route that anybody knows"),
    ],
)
def test_why_an_engine_cannot_be_reached(error: OSError, words: str) -> None:
    key: Any = SimpleNamespace(host="h", port=1, ssl=True, is_ssl=False)
    failed = aiohttp.ClientConnectorError(key, error)
    assert sentence(failed, "h:1") == f"cannot connect to h:1: {words}"
