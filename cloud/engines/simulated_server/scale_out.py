"""Routes of the simulated engine that speak ids: vLLM's `--enable-scale-out`, and its tokenizer routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

from cloud.engines.simulated_server.answers import TokensAnswer, error_body
from cloud.engines.simulated_server.derender import Derenderer
from cloud.engines.simulated_server.inference import Inference, new_id, reply, request_id
from cloud.engines.simulated_server.requests import (
    BadRequest,
    InferenceRequest,
    conversation,
    model_of,
    parse_chat,
    parse_completion,
    parse_tokens,
    read_object,
    token_ids,
)
from cloud.engines.simulated_server.tokens import END_OF_TEXT, SPECIAL, START, decode, encode

if TYPE_CHECKING:
    from cloud.ports import Clock

_DISABLED = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ScaleOut:
    """Render, generate, derender and abort; without `enabled` each of them answers 403."""

    def __init__(self, clock: Clock, inference: Inference, *, enabled: bool) -> None:
        self._clock = clock
        self._inference = inference
        self._offer = inference.offer
        self._derenderer = Derenderer(inference.offer, lambda: f"chatcmpl-tool-{new_id()}")
        self._enabled = enabled

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """The paths, all of them POST."""
        routes: dict[str, _Handler] = {
            "/v1/chat/completions/render": self._render_chat,
            "/v1/completions/render": self._render_completion,
            "/v1/chat/completions/derender": self._derender_chat,
            "/v1/completions/derender": self._derender_completion,
            "/inference/v1/generate": self._generate,
            "/inference/v1/abort_requests": self._abort,
        }
        for path, handler in routes.items():
            router.add_post(path, handler if self._enabled else self._disabled)

    async def _disabled(self, _request: web.Request) -> web.StreamResponse:
        return reply(error_body(_DISABLED, "PermissionDeniedError", 403), 403)

    async def _render_chat(self, request: web.Request) -> web.StreamResponse:
        data = read_object(await request.read())
        wanted = parse_chat(data, self._offer)
        return reply(_rendered(data, wanted, 0, f"chatcmpl-{request_id(request, data.get('request_id'))}"))

    async def _render_completion(self, request: web.Request) -> web.StreamResponse:
        data = read_object(await request.read())
        wanted = parse_completion(data, self._offer)
        name = f"cmpl-{request_id(request, data.get('request_id'))}"
        several = len(wanted.prompts) > 1
        return reply(
            [
                _rendered(data, wanted, at, f"{name}-{at}" if several else name)
                for at in range(len(wanted.prompts))
            ]
        )

    async def _derender_chat(self, request: web.Request) -> web.StreamResponse:
        data = read_object(await request.read())
        return reply(self._derenderer.chat(data, model_of(data, self._offer), int(self._clock.now())))

    async def _derender_completion(self, request: web.Request) -> web.StreamResponse:
        data = read_object(await request.read())
        return reply(self._derenderer.completion(data, model_of(data, self._offer), int(self._clock.now())))

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        with self._inference.counted():
            data = read_object(await request.read())
            wanted = parse_tokens(data, self._offer)
            name = request_id(request, data.get("request_id"))
            text = data.get("output_mode") == "text"
            answer = TokensAnswer(wanted, name, int(self._clock.now()), text=text)
            return await self._inference.answer(request, wanted, answer, {0: f"generate-tokens-{name}"})

    async def _abort(self, request: web.Request) -> web.StreamResponse:
        names = read_object(await request.read()).get("request_ids")
        if not isinstance(names, list):
            raise BadRequest("Missing 'request_ids' in request body", kind="Bad Request")
        self._inference.abort(names)
        return web.Response()


class Tokenizing:
    """/tokenize, /detokenize, and with `info` /tokenizer_info."""

    def __init__(self, inference: Inference, *, info: bool) -> None:
        self._offer = inference.offer
        self._info = info

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """The paths."""
        router.add_post("/tokenize", self._tokenize)
        router.add_post("/detokenize", self._detokenize)
        if self._info:
            router.add_get("/tokenizer_info", self._tokenizer_info)

    async def _tokenize(self, request: web.Request) -> web.StreamResponse:
        data = read_object(await request.read())
        model_of(data, self._offer)
        if "messages" in data:
            ids = conversation(data)
        elif isinstance(data.get("prompt"), str):
            ids = encode(data["prompt"])
        else:
            raise BadRequest("prompt: field required", param="body.prompt", kind="Bad Request")
        texts = [decode((token,)) for token in ids] if data.get("return_token_strs") else None
        shown = {"count": len(ids), "max_model_len": self._offer.max_model_len, "tokens": ids}
        return reply({**shown, "token_strs": texts})

    async def _detokenize(self, request: web.Request) -> web.StreamResponse:
        data = read_object(await request.read())
        model_of(data, self._offer)
        return reply({"prompt": decode(token_ids(data, "tokens"))})

    async def _tokenizer_info(self, _request: web.Request) -> web.StreamResponse:
        marks = {str(token): decode((token,)) for token in range(START, START + 5)}
        return reply(
            {
                "tokenizer_class": "SimulatedTokenizer",
                "eos_token": SPECIAL[END_OF_TEXT],
                "additional_special_tokens": [SPECIAL[START]],
                "added_tokens_decoder": {str(END_OF_TEXT): SPECIAL[END_OF_TEXT], **marks},
            }
        )


def _rendered(data: Mapping[str, Any], request: InferenceRequest, position: int, name: str) -> dict[str, Any]:
    """What /inference/v1/generate takes for one prompt: all fields of vLLM's, in its order."""
    return {
        "request_id": name,
        "token_ids": request.prompts[position],
        "token_offsets": None,
        "features": None,
        "content_parts": None,
        "sampling_params": _sampling(data, request),
        "model": data.get("model"),
        "reasoning_ended": None,
        "reasoning_parser_kwargs": {"chat_template_kwargs": {}} if request.parsing.reasoning else None,
        "return_token_ids": None,
        "output_mode": "tokens",
        "stream": request.stream,
        "stream_options": data.get("stream_options") if request.stream else None,
        "cache_salt": None,
        "priority": 0,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
    }


def _sampling(data: Mapping[str, Any], request: InferenceRequest) -> dict[str, Any]:
    """The sampling parameters: vLLM writes few of them when they have their defaults."""
    parameters: dict[str, Any] = {
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
    }
    parameters |= {key: float(data[key]) for key in parameters if isinstance(data.get(key), (int, float))}
    temperature = data.get("temperature")
    parameters["temperature"] = float(temperature) if isinstance(temperature, (int, float)) else 1.0
    parameters |= {"stop": list(request.stops), "stop_token_ids": [], "max_tokens": request.max_tokens}
    given: dict[str, tuple[Any, Any]] = {
        "n": (request.n, 1),
        "seed": (request.seed, None),
        "ignore_eos": (request.ignore_eos, False),
        "logprobs": (request.logprobs, None),
        "structured_outputs": (request.structured, None),
    }
    parameters |= {key: value for key, (value, default) in given.items() if value != default}
    return parameters | {
        "output_kind": 2,
        "skip_clone": True,
        "bad_words": [],
        "skip_reading_prefix_cache": False,
    }
