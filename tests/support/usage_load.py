"""Requests of every form to a real engine through a gateway, and what their answers tell of their usage."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from cloud.providers.usage import of_anthropic, of_openai
from policies.spend import Usage

CHAT, TEXT, MESSAGES, RESPONSES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
)
ASKS = {"stream_options": {"include_usage": True}}


def forms(words: str, tokens: int) -> list[tuple[str, dict[str, Any]]]:
    """Chats, texts and messages, plain and streamed, with the usage asked for and not; all of one prompt."""
    body: dict[str, Any] = {"model": "tiny", "max_tokens": tokens, "temperature": 0}
    turns = {**body, "messages": [{"role": "user", "content": words}]}
    text = {**body, "prompt": words}
    found: list[tuple[str, dict[str, Any]]] = []
    for path, fields in ((CHAT, turns), (TEXT, text)):
        found += [
            (path, fields),
            (path, {**fields, "stream": True}),
            (path, {**fields, "stream": True, **ASKS}),
        ]
    return [*found, (MESSAGES, turns), (MESSAGES, {**turns, "stream": True})]


@dataclass
class Told:
    """What clients read of usage, over all their answers; `silent` counts those without one."""

    prompt: int = 0
    cached: int = 0
    output: int = 0
    requests: int = 0
    silent: list[str] = field(default_factory=list)

    async def ask(self, client: aiohttp.ClientSession, url: str, path: str, body: dict[str, Any]) -> None:
        """Send one and read all of its answer."""
        async with client.post(url + path, json=body, headers={"Connection": "close"}) as answer:
            text = await answer.text()
            assert answer.status == 200, text
        self.requests += 1
        usage = _usage_of(path, text, stream=bool(body.get("stream")))
        if usage is None:
            self.silent.append(path)
            return
        self.prompt += usage.prompt
        self.cached += usage.cached
        self.output += usage.output


def _usage_of(path: str, text: str, *, stream: bool) -> Usage | None:
    """The last usage that an answer tells."""
    rows = (
        [json.loads(text)]
        if not stream
        else [
            json.loads(line.removeprefix("data: "))
            for line in text.splitlines()
            if line.startswith("data: {")
        ]
    )
    told: dict[str, Any] = {}
    for row in rows:
        inner = row.get("message") or row.get("response") or {}
        told |= inner.get("usage") or row.get("usage") or {}
    return of_anthropic(told) if path == MESSAGES else of_openai(told)
