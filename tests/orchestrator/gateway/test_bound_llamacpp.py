"""The bound of a request against a real server's own counts, of a tokenizer that knows few words."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from policies.spend_bound import BASE_TOKENS, bound
from tests.support.llama_servers import WEATHER, running_llama

pytestmark = pytest.mark.llamacpp

ALPHABETS = (
    "abcdefgh 123",
    "äöüßéñ ",
    "世界你好",
    "🎉👩‍💻🇨🇭",
    "\ufdfa\ufb03½",
    "\x00\x07\u202e",
    '{"\\":[]}',
    "\n\t  ",
)


def requests(draw: random.Random) -> list[tuple[str, dict[str, Any]]]:
    """Requests of all forms, with text of all kinds."""

    def text() -> str:
        return "".join(draw.choices(draw.choice(ALPHABETS), k=draw.randrange(1, 400)))

    found: list[tuple[str, dict[str, Any]]] = []
    for _ in range(40):
        turns = draw.randrange(1, 5)
        roles = ("user", "assistant") * 3
        messages = [{"role": role, "content": text()} for role in roles[: 2 * turns - 1]]
        limit = draw.randrange(1, 12)
        chat: dict[str, Any] = {"messages": messages, "max_tokens": limit}
        found.append(("/v1/messages", {**chat, "system": text()}))
        if draw.random() < 0.4:
            function = {"name": "weather", "description": text(), "parameters": WEATHER}
            chat = {**chat, "tools": [{"type": "function", "function": function}] * draw.randrange(1, 4)}
        found.append(("/v1/chat/completions", chat))
        found.append(("/v1/completions", {"prompt": text(), "max_tokens": limit}))
    return found


def test_a_real_server_never_counts_more_than_the_bound(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed = int(request.config.getoption("randomly_seed", 0))
    with running_llama(tmp_path, name="tiny", task="generate") as server:
        for path, fields in requests(random.Random(seed)):
            status, body = server.ask(path, {"model": "tiny", **fields})
            assert status == 200, (seed, fields, body)
            usage, most = json.loads(body)["usage"], bound(fields)
            prompt = usage.get("prompt_tokens") or sum(
                usage.get(kind, 0) for kind in ("input_tokens", "cache_read_input_tokens")
            )
            output = usage.get("completion_tokens", usage.get("output_tokens"))
            assert most.why == ""
            assert most.output is not None
            # of the constant for what providers add this server needs little: the text bounds the rest
            assert 0 < prompt <= most.prompt - BASE_TOKENS + 64, (seed, fields)
            assert 0 <= output <= most.output * most.choices, (seed, fields)
