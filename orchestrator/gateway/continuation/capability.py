"""What a target can do for streams that broke elsewhere, found by asking it. Read on vLLM 0.32.

| asked | tells |
|---|---|
| `GET /version`, `GET /v1/models` | engine, model, length of context |
| `POST /tokenize` of a fixed chat and a fixed text | whether tokenizer and chat template are the same |
| `POST /detokenize` | whether text can be finished: the text of ids is known |
| `POST /v1/chat/completions/render` | `--enable-scale-out`; whether a reasoning parser is at work |
| `POST /v1/chat/completions/derender` | whether text without markup passes the parsers as it is |

Nothing is generated. No route shows the data type of the weights.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import aiohttp
import orjson
from multidict import CIMultiDict

from orchestrator.gateway.continuation.calls import Engine
from orchestrator.gateway.continuation.kinds import Broken, Capability, Way

_LIMIT = 10.0  # s for all calls of a probe
_TEXT = "Grüße, 世界! 🙂 a1b2  \n\tdef f(x): return x"
_MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": _TEXT}]
_TOKENIZE, _DETOKENIZE = "/tokenize", "/detokenize"
_RENDER, _DERENDER = "/v1/chat/completions/render", "/v1/chat/completions/derender"


async def probe(session: aiohttp.ClientSession, address: str, headers: CIMultiDict[str]) -> Capability:
    """Find a target's capability. Raises nothing: a target that does not answer has none, with the reason."""
    engine = Engine(session, address, headers)
    try:
        async with asyncio.timeout(_LIMIT):
            return await _found(engine)
    except Broken as broken:
        return Capability(why=broken.detail)
    except TimeoutError:
        return Capability(why=f"no answer within {_LIMIT:g} s", answered=False)
    except (aiohttp.ClientError, OSError) as error:
        return Capability(why=str(error) or type(error).__name__, answered=False)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return Capability(why=f"an answer of another shape than vLLM's: {error!r}"[:200])


async def _found(engine: Engine) -> Capability:
    version = (await engine.get("/version"))["version"]
    model = next(row for row in (await engine.get("/v1/models"))["data"] if not row.get("parent"))
    name, context = model["id"], model.get("max_model_len") or 0
    text = (await engine.post(_TOKENIZE, {"model": name, "prompt": _TEXT}))["tokens"]
    told = await engine.post(_DETOKENIZE, {"model": name, "tokens": text})
    if not isinstance(told.get("prompt"), str):
        return Capability(why=f"{_DETOKENIZE} tells no text")
    chat = await _chat_ids(engine, name)
    shown = orjson.dumps([version, name, model.get("root"), context, text, chat])
    identity = f"{name} {version} {hashlib.sha256(shown).hexdigest()[:12]}"
    try:
        reasons = await _reasons(engine, name, text)
    except Broken as broken:
        return Capability(Way.CLEAN, identity, broken.detail, False, context)
    return Capability(Way.DERENDER, identity, "", reasons, context)


async def _chat_ids(engine: Engine, model: str) -> Any:
    """The ids of a fixed chat; None for a model without a chat template."""
    try:
        answer = await engine.post(_TOKENIZE, {"model": model, "messages": _MESSAGES})
    except Broken:
        return None
    return answer["tokens"]


async def _reasons(engine: Engine, model: str, ids: list[int]) -> bool:
    """Whether plain text passes a parser that may change it. Raises Broken without `--enable-scale-out`."""
    chat = {"model": model, "messages": _MESSAGES, "max_tokens": 1}
    rendered = await engine.post(_RENDER, chat)
    if rendered.get("reasoning_parser_kwargs") is not None:
        return True
    answer = await engine.post(
        _DERENDER,
        {
            "stream": True,
            "model": model,
            "chat_request": {**chat, "stream": True},
            "prompt_token_ids": rendered["token_ids"],
            "generate_chunk": {"request_id": "probe", "choices": [{"index": 0, "token_ids": ids}]},
        },
    )
    return bool(answer["chunk"]["choices"][0]["delta"].get("content") != _TEXT)
