"""Connections to a provider that it closes without a word cost no request."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from llama_servers import running_llama

from tests.support.provider_stand import client, stand

CHAT: dict[str, Any] = {
    "model": "assistant",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 8,
}


@pytest.mark.llamacpp
@pytest.mark.parametrize("kind", ["anthropic", "openai"])
async def test_no_request_is_lost_to_llamacpp_which_closes_them_after_streams(
    tmp_path: Path, kind: str
) -> None:
    with running_llama(tmp_path) as server:
        async with stand(server, tmp_path, kind=kind) as one, client() as session:

            async def ask(number: int) -> None:
                for turn in range(40):
                    body = CHAT | {"stream": (number + turn) % 3 != 2}
                    async with session.post(f"{one.url}/v1/chat/completions", json=body) as answer:
                        text = await answer.text()
                        assert answer.status == 200, text
                    assert ("[DONE]" in text) is body["stream"]

            await asyncio.gather(*map(ask, range(6)))
            assert one.unserved == []
