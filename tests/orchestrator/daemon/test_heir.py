"""When a gateway is replaced, and what is said when it cannot be."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cloud.serving.sockets import listen_unix
from orchestrator.daemon.heir import Heirs, replace_gateway

SOCKET = Path("gateway.sock")


class Played:
    """A gateway that is replaced when told to, and a pool that may be leaving."""

    def __init__(self, *, why: str = "") -> None:
        self.why, self.leaving = why, False
        self.asked: list[Path] = []
        self.failed: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.heirs = Heirs(self._replace, held_up=lambda: self.leaving, failed=self.failed.append)

    async def _replace(self, control: Path) -> str:
        self.asked.append(control)
        await self.may_answer.wait()
        return self.why

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


async def test_only_what_the_gateway_reads_replaces_it() -> None:
    played = Played()
    played.heirs.want(SOCKET, [])
    await played.settle()
    assert played.asked == []
    played.heirs.want(SOCKET, ["route[0].to"])
    await played.settle()
    assert (played.asked, played.failed) == ([SOCKET], [])


async def test_a_pool_that_leaves_is_served_by_the_old_one_to_its_end() -> None:
    played = Played()
    played.leaving = True
    played.heirs.want(SOCKET, ["pool.q"])
    played.heirs.look()
    await played.settle()
    assert played.asked == []
    played.leaving = False
    played.heirs.look()
    played.heirs.look()
    await played.settle()
    assert played.asked == [SOCKET], "once for all that changed"


async def test_what_changes_while_one_begins_has_another_one_begin() -> None:
    played = Played()
    played.may_answer.clear()
    for keys in (["a"], ["b"], ["c"]):
        played.heirs.want(SOCKET, keys)
        await played.settle()
    assert played.asked == [SOCKET]
    played.may_answer.set()
    await played.settle()
    assert played.asked == [SOCKET, SOCKET]


async def test_an_heir_that_cannot_serve_is_told_of() -> None:
    played = Played(why="key file: cannot be read")
    played.heirs.want(SOCKET, ["provider.a.api_key_file"])
    await played.settle()
    assert played.failed == ["key file: cannot be read"]
    await played.heirs.stop()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (200, {"pid": 7}, ""),
        (409, {"error": "the key file cannot be read"}, "the key file cannot be read"),
        (409, {"error": {"message": "it cannot serve"}}, "it cannot serve"),
        (500, [], "was not replaced"),
        (500, None, "was not replaced"),
    ],
)
async def test_the_gateway_says_whether_it_was_replaced(
    short_dir: Path, status: int, body: Any, says: str
) -> None:
    async def answer(_: web.Request) -> web.Response:
        if body is None:
            return web.Response(text="no JSON", status=status)
        return web.json_response(body, status=status)

    app = web.Application()
    app.router.add_post("/v1/replace", answer)
    runner = await listen_unix(app, short_dir / "g.sock", mode=0o600)
    try:
        said = await replace_gateway(short_dir / "g.sock")
    finally:
        await runner.cleanup()
    assert (says in said) if says else (said == ""), said


async def test_where_no_gateway_runs_there_is_none_to_replace(short_dir: Path) -> None:
    assert await replace_gateway(short_dir / "none.sock") == ""
