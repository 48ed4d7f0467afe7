"""/v1/responses of the simulated engine: plain and streamed, with a store when the server is started with
one.

As in vLLM 0.32 a text that the engine aborted counts as completed, a stream whose engine dies just ends, and
without a store the request's `store` is ignored and no earlier response is found. Thoughts stay in the text,
and background responses are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from cloud.engines.simulated_server.inference import Inference, new_id, reply, request_id
from cloud.engines.simulated_server.outputs import Piece, joined
from cloud.engines.simulated_server.requests import BadRequest, InferenceRequest, parse_chat, read_object

if TYPE_CHECKING:
    from cloud.ports import Clock

_NO_BACKGROUND = (
    "This vLLM engine does not support `store=True` and therefore does not support the background mode. To "
    "enable these features, set the environment variable `VLLM_ENABLE_RESPONSES_API_STORE=1` when launching "
    "the vLLM server."
)
_MOST_STORED = 1_000
_Message = dict[str, Any]


class Responses:
    """The routes. With `stores` they keep the latest responses, in memory."""

    def __init__(self, clock: Clock, inference: Inference, *, stores: bool) -> None:
        self._clock = clock
        self._inference = inference
        self._stores = stores
        self._stored: dict[str, tuple[dict[str, Any], list[_Message]]] = {}

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """The paths."""
        router.add_post("/v1/responses", self._create)
        router.add_get("/v1/responses/{id}", self._retrieve)

    async def _create(self, request: web.Request) -> web.StreamResponse:
        with self._inference.counted():
            data = read_object(await request.read())
            if data.get("background"):
                raise BadRequest(_NO_BACKGROUND, param="background", kind="invalid_request_error")
            messages = self._earlier(data) + _messages(data)
            wanted = parse_chat(_as_chat(data, messages), self._inference.offer)
            name = f"resp_{request_id(request, data.get('request_id'))}"
            answer = ResponsesAnswer(data, wanted, name, int(self._clock.now()))
            reached = await self._inference.answer(request, wanted, answer, {0: name})
            if self._stores and data.get("store") is not False and answer.final is not None:
                self._keep(answer.final, messages)
            return reached

    async def _retrieve(self, request: web.Request) -> web.StreamResponse:
        return reply(self._find(request.match_info["id"])[0])

    def _earlier(self, data: Mapping[str, Any]) -> list[_Message]:
        """The conversation up to the earlier response that the request goes on from."""
        earlier = data.get("previous_response_id")
        if earlier is None:
            return []
        response, messages = self._find(str(earlier))
        texts = [part["text"] for item in response["output"] for part in item.get("content", ())]
        return [*messages, {"role": "assistant", "content": "".join(texts)}]

    def _find(self, name: str) -> tuple[dict[str, Any], list[_Message]]:
        if name not in self._stored:
            message = f"Response with id '{name}' not found."
            raise BadRequest(message, param="response_id", status=404, kind="invalid_request_error")
        return self._stored[name]

    def _keep(self, response: dict[str, Any], messages: list[_Message]) -> None:
        self._stored[response["id"]] = (response, messages)
        while len(self._stored) > _MOST_STORED:
            del self._stored[next(iter(self._stored))]


class ResponsesAnswer:
    """Events and body of one request. `final` is the response once it is whole."""

    def __init__(self, data: Mapping[str, Any], request: InferenceRequest, name: str, created: int) -> None:
        self.final: dict[str, Any] | None = None
        self._data = data
        self._request = request
        self._name = name
        self._created = created
        self._number = 0
        self._pieces: list[Piece] = []
        self._items: list[dict[str, Any]] = []  # of the output, in their order; the last one may be open

    def begin(self) -> bytes:
        """The response exists and is being made."""
        empty = self._response([], "in_progress", None)
        return self._event("response.created", response=empty) + self._event(
            "response.in_progress", response=empty
        )

    def chunk(self, piece: Piece) -> bytes:
        """The events of new text and new parts of calls."""
        self._pieces.append(piece)
        events = self._text(piece.delta.content) if piece.delta.content else b""
        return events + b"".join(map(self._call, piece.delta.calls))

    def end(self) -> bytes:
        """The last item is whole, and so is the response."""
        return self._close() + self._event("response.completed", response=self._whole(joined(self._pieces)))

    def failed(self) -> bytes:
        """Nothing: the stream ends."""
        return b""

    def body(self, pieces: Sequence[Piece]) -> bytes:
        """The whole answer."""
        (piece,) = pieces
        if piece.delta.content or not piece.delta.calls:
            self._text(piece.delta.content)
        for at, call in enumerate(piece.delta.calls):
            self._call({**call, "index": at})
        self._close()
        return orjson.dumps(self._whole(piece))

    def _whole(self, piece: Piece) -> dict[str, Any]:
        prompt, made = len(self._request.prompts[0]), len(piece.tokens)
        status = "incomplete" if piece.finish == "length" else "completed"
        usage = {
            "input_tokens": prompt,
            "input_tokens_details": {
                "cached_tokens": 0,
                "cache_write_tokens": 0,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": made,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": prompt + made,
        }
        self.final = self._response(self._items, status, usage)
        return self.final

    def _response(
        self, output: list[dict[str, Any]], status: str, usage: dict[str, Any] | None
    ) -> dict[str, Any]:
        data = self._data
        return {
            "id": self._name,
            "created_at": self._created,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": data.get("instructions"),
            "metadata": data.get("metadata"),
            "model": self._request.model,
            "object": "response",
            "output": output,
            "parallel_tool_calls": True,
            "temperature": data.get("temperature", 1.0),
            "tool_choice": data.get("tool_choice", "auto") if data.get("tools") else "none",
            "tools": data.get("tools") or [],
            "top_p": data.get("top_p", 1.0),
            "background": False,
            "max_output_tokens": self._request.max_tokens,
            "max_tool_calls": None,
            "previous_response_id": data.get("previous_response_id"),
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": status,
            "text": data.get("text"),
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": usage,
            "user": data.get("user"),
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            **dict.fromkeys(
                ("kv_transfer_params", "ec_transfer_params", "input_messages", "output_messages")
            ),
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = orjson.dumps({**fields, "sequence_number": self._number, "type": kind})
        self._number += 1
        return f"event: {kind}\ndata: ".encode() + data + b"\n\n"

    def _open(self, item: dict[str, Any]) -> bytes:
        closed = self._close()
        self._items.append(item)
        at = len(self._items) - 1
        return closed + self._event("response.output_item.added", item=item, output_index=at)

    def _text(self, text: str) -> bytes:
        """New text, in the message that is open or in a new one."""
        events = b""
        item = self._items[-1] if self._items else {}
        if item.get("type") != "message" or item["status"] != "in_progress":
            item = {"id": f"msg_{new_id()}", "content": [], "role": "assistant", "status": "in_progress"}
            events = self._open(item | {"type": "message", "phase": None})
            item = self._items[-1]
            events += self._part("response.content_part.added", item, part=_part("") | {"logprobs": []})
            item["content"] = [_part("")]
        item["content"][0]["text"] += text
        return events + self._part("response.output_text.delta", item, delta=text, logprobs=[])

    def _call(self, part: Mapping[str, Any]) -> bytes:
        """A part of a call: its name opens a new item, its arguments go into the open one."""
        events = b""
        if "id" in part:
            item = {"arguments": "", "call_id": part["id"], "name": part["function"]["name"]}
            item |= {"type": "function_call", "id": f"fc_{new_id()}", "status": "in_progress"}
            events = self._open(item)
        item = self._items[-1]
        new = part["function"].get("arguments", "")
        item["arguments"] += new
        at = len(self._items) - 1
        kind = "response.function_call_arguments.delta"
        return events + self._event(kind, delta=new, item_id=item["id"], output_index=at)

    def _close(self) -> bytes:
        """The open item, if any, is whole."""
        if not self._items or self._items[-1]["status"] == "completed":
            return b""
        item, at = self._items[-1], len(self._items) - 1
        item["status"] = "completed"
        if item["type"] == "message":
            text = item["content"][0]["text"]
            events = self._part("response.output_text.done", item, text=text, logprobs=[])
            events += self._part("response.content_part.done", item, part=_part(text))
        else:
            kind = "response.function_call_arguments.done"
            arguments = {"arguments": item["arguments"], "name": item["name"]}
            events = self._event(kind, **arguments, item_id=item["id"], output_index=at)
        return events + self._event("response.output_item.done", item=item, output_index=at)

    def _part(self, kind: str, item: Mapping[str, Any], **fields: Any) -> bytes:
        at = len(self._items) - 1
        return self._event(kind, content_index=0, item_id=item["id"], output_index=at, **fields)


def _part(text: str) -> dict[str, Any]:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}


def _messages(data: Mapping[str, Any]) -> list[_Message]:
    """The input as messages of a chat."""
    given = data.get("input")
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given or not all(isinstance(item, dict) for item in given):
        raise BadRequest("input: field required", param="body.input", kind="Bad Request")
    messages: list[_Message] = []
    for item in given:
        if item.get("type") == "function_call_output":
            messages.append({"role": "tool", "content": str(item.get("output", ""))})
        elif item.get("type") == "function_call":
            messages.append({"role": "assistant", "content": "", "tool_calls": [item]})
        else:
            messages.append({"role": item.get("role", "user"), "content": item.get("content")})
    return messages


def _as_chat(data: Mapping[str, Any], messages: list[_Message]) -> dict[str, Any]:
    """The chat that stands for a request, in the fields that chats have."""
    instructions = data.get("instructions")
    first = [{"role": "system", "content": instructions}] if instructions else []
    chat: dict[str, Any] = {"messages": [*first, *messages], "max_tokens": data.get("max_output_tokens")}
    chat |= {key: data.get(key) for key in ("model", "stream", "seed", "ignore_eos", "stop")}
    tools = [tool for tool in data.get("tools") or () if tool.get("type") == "function"]
    if tools:
        functions = [{key: tool[key] for key in ("name", "parameters") if key in tool} for tool in tools]
        chat["tools"] = [{"type": "function", "function": function} for function in functions]
        choice = data.get("tool_choice")
        chat["tool_choice"] = {"function": choice} if isinstance(choice, dict) else choice
    form = (data.get("text") or {}).get("format") or {}
    if form.get("type") == "json_schema":
        chat["response_format"] = {"type": "json_schema", "json_schema": {"schema": form.get("schema")}}
    return chat
