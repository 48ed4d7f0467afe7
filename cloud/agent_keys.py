"""Hands each node its own key for its reports, once the node has proved which one it is.

Two requests: POST /v1/nodes/{node}/challenge gives a challenge, POST /v1/nodes/{node}/key takes what the node
signed with it and gives the key. Who judges the proof is the provider's affair (`Identify`). Keys go over TLS
only, since its reader can speak for that node; the pool's secret never leaves this host.

A challenge is made of the node's id, the time and the secret, so nothing is stored for those who only ask.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from typing import Any, Final

import orjson
from aiohttp import web

from cloud.errors import CloudError, Denied
from cloud.logger import structlog
from cloud.node_agent import node_key
from cloud.node_metadata import NODE_ID
from cloud.ports import Clock

log = structlog.get_logger("cloud")

CHALLENGE_SECONDS: Final = 60.0
"""How long a challenge is good for."""
MOST_AT_ONCE: Final = 8
"""Proofs that are judged at the same time; each costs a call to the provider."""

CARRIED = {
    "gpus": "from cloud.node_gpus import NVML, Gpus, Xids\n",
    "log": "from cloud.node_log import StartLog\n",
    "notices": "from cloud.node_notices import "
    "CLOUDS, LAST_WORD_SECONDS, is_stopping, read_json, reader_of, told_notice\n",
}
"""Neighbours of the agent that travel in its program, and how it imports them."""
_CHALLENGE_LENGTH = 160
_READ_WITHIN = 5.0

Identify = Callable[[Mapping[str, str], str], Awaitable[str]]
"""The node that signed these headers with that challenge. Raises CloudError; Denied when it is no proof."""


def agent_program() -> str:
    """The agent as one program, with what it carries in the places where it is imported.

    A node has the agent's other neighbours from its user-data, which has no room for these.
    """
    package, future = files("cloud"), "from __future__ import annotations\n"
    program = package.joinpath("node_agent.py").read_text("utf-8")
    for part, imported in CARRIED.items():
        text = package.joinpath(f"node_{part}.py").read_text("utf-8")
        program = program.replace(imported, text.replace(future, ""))
    return program


class NodeKeys:
    """The two handlers. `secret` is the pool's; `owned` says False of a node that is certainly not ours.

    `given` and `refused` count since the start.
    """

    def __init__(
        self, clock: Clock, *, secret: bytes, identify: Identify, owned: Callable[[str], bool]
    ) -> None:
        self.given = 0
        self.refused = 0
        self._clock, self._secret, self._identify, self._owned = clock, secret, identify, owned
        self._judging = 0

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_post("/v1/nodes/{node}/challenge", self._challenge)
        app.router.add_post("/v1/nodes/{node}/key", self._key)

    async def _challenge(self, request: web.Request) -> web.Response:
        node = request.match_info["node"]
        if not NODE_ID.fullmatch(node):
            return self._refuse(400, "that is no node id")
        return web.json_response({"challenge": self._made(node, int(self._clock.now()))})

    async def _key(self, request: web.Request) -> web.Response:
        node = request.match_info["node"]
        if not request.secure:
            return self._refuse(403, "keys are given over TLS only: set agents.tls_cert_file")
        try:
            async with asyncio.timeout(_READ_WITHIN):
                body = await request.read()  # no larger than the application takes
        except TimeoutError:
            return self._refuse(408, f"the request did not arrive within {_READ_WITHIN:g} s")
        if self._judging >= MOST_AT_ONCE:
            return self._refuse(503, "too many at once; ask again")
        self._judging += 1
        try:
            proved = await self._proved(node, body)
        except Denied as error:
            log.warning("node_key.refused", node=node[:64], reason=str(error))
            return self._refuse(401, "not proved to be this node")
        except (CloudError, TimeoutError) as error:
            log.warning("node_key.check_failed", node=node[:64], reason=str(error))
            return self._refuse(503, "the proof cannot be judged now; ask again")
        finally:
            self._judging -= 1
        self.given += 1
        log.info("node_key.issued", node=proved)
        return web.json_response({"key": node_key(self._secret, proved).hex(), "agent": agent_program()})

    async def _proved(self, node: str, body: bytes) -> str:
        """The node, once it is sure. Raises CloudError."""
        try:
            given: Any = orjson.loads(body)
            challenge, headers = given["challenge"], given["headers"]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise Denied("the request is not one of ours") from None
        if not isinstance(headers, dict) or not all(isinstance(v, str) for v in headers.values()):
            raise Denied("the request is not one of ours")
        if not isinstance(challenge, str) or not self._is_ours(node, challenge):
            raise Denied("the challenge is not one that was given to this node lately")
        if not self._owned(node):
            raise Denied("no node of this pool")
        async with asyncio.timeout(10.0):
            proved = await self._identify(headers, challenge)
        if proved != node:
            raise Denied(f"it is {proved}")
        return node

    def _made(self, node: str, at: int) -> str:
        text = f"challenge/1\n{node}\n{at}".encode()
        return f"{at}-{hmac.new(self._secret, text, 'sha256').hexdigest()}"

    def _is_ours(self, node: str, challenge: str) -> bool:
        at = challenge.partition("-")[0]
        if len(challenge) > _CHALLENGE_LENGTH or not challenge.isascii() or not at.isdecimal():
            return False
        fresh = 0 <= self._clock.now() - int(at) <= CHALLENGE_SECONDS
        return fresh and hmac.compare_digest(self._made(node, int(at)), challenge)

    def _refuse(self, status: int, text: str) -> web.Response:
        self.refused += 1
        answer = web.json_response({"error": text}, status=status)
        answer.force_close()
        return answer
