"""Ids to text without an engine: vLLM's derender routes, whole and streamed. All of it is pure.

What a stream needs from one call to the next is plain JSON that the client carries (`stream_state`). As in
vLLM a server without parsers carries the bytes of a character that has begun, and one with parsers carries
all ids and reads them again each time. Special ids: without a parser the id that ends a text is left out,
and the other is shown; with one all of them are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cloud.engines.simulated_server.answers import message_of, usage
from cloud.engines.simulated_server.outputs import Piece, joined
from cloud.engines.simulated_server.parser import Delta, Parser, Parsing
from cloud.engines.simulated_server.requests import BadRequest, Offer, chat_parsing, token_ids, whole
from cloud.engines.simulated_server.tokens import END_OF_TEXT, TextStream

_NEEDS_REQUEST = (
    "chat_request is required when a tool or reasoning parser is configured because plain detokenization "
    "would leak raw parser markup into content."
)
_NEEDS_PROMPT = (
    "prompt_token_ids is required when a tool or reasoning parser is configured. Without it parse_delta "
    "cannot tell whether the prompt left reasoning open (e.g. a chat template that pre-opens <think>) and "
    "would misclassify reasoning content as plain content."
)
_HIDDEN = (END_OF_TEXT,)
_EMPTY_STATE: Mapping[str, Any] = {
    "prev_tokens": [],
    "prefix_offset": 0,
    "read_offset": 0,
    "role_sent": False,
    "logprob_context_token_ids": [],
    "logprob_text_offset": 0,
    "output_token_ids": [],
    "output_chunk_lens": [],
    "tools_streamed": False,
    "last_tool_call_ids": [],
}


class Derenderer:
    """The derender routes of one server. `new_id` makes the id of a call."""

    def __init__(self, offer: Offer, new_id: Callable[[], str]) -> None:
        self._offer = offer
        self._new_id = new_id

    def chat(self, data: Mapping[str, Any], model: str, created: int) -> dict[str, Any]:
        """One call of /v1/chat/completions/derender. Raises BadRequest."""
        parsing = self._parsing(data)
        if data.get("stream"):
            return self._chat_chunk(data, parsing, model, created)
        answer = _object(data, "generate_response")
        choices = []
        for given in _choices(answer):
            parser = Parser(parsing or Parsing(), self._new_id)
            piece = joined([self._piece(given, TextStream(hidden=() if parsing else _HIDDEN), parser)])
            choices.append(
                {
                    "index": piece.index,
                    "message": message_of(piece),
                    "logprobs": None,
                    "finish_reason": piece.finish,
                    "stop_reason": given.get("stop_reason"),
                    "token_ids": None,
                    "routed_experts": None,
                }
            )
        head = _whole(answer, "chat.completion", model, created, choices)
        head["usage"] = usage(whole(data, "prompt_tokens", 0), _count(answer), whole=True)
        none = (
            "prompt_logprobs",
            "prompt_token_ids",
            "prompt_text",
            "kv_transfer_params",
            "ec_transfer_params",
        )
        return head | dict.fromkeys((*none, "metrics"))

    def completion(self, data: Mapping[str, Any], model: str, created: int) -> dict[str, Any]:
        """One call of /v1/completions/derender. Raises BadRequest."""
        if data.get("stream"):
            return self._completion_chunk(data, model, created)
        answers = data.get("generate_responses")
        if not isinstance(answers, list) or not answers:
            raise BadRequest("generate_responses must not be empty")
        choices: list[dict[str, Any]] = []
        for answer in answers:
            for given in _choices(answer):
                piece = self._piece(given, TextStream(hidden=_HIDDEN), None)
                choices.append(
                    {
                        "index": len(choices),
                        "text": piece.delta.content,
                        "logprobs": None,
                        "finish_reason": piece.finish,
                        "stop_reason": given.get("stop_reason"),
                        "token_ids": None,
                        "prompt_logprobs": None,
                        "prompt_token_ids": None,
                        "routed_experts": None,
                    }
                )
        head = _whole(answers[0], "text_completion", model, created, choices)
        head["usage"] = usage(sum(data.get("prompt_tokens") or ()), sum(map(_count, answers)), whole=True)
        return head | dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics"))

    def _parsing(self, data: Mapping[str, Any]) -> Parsing | None:
        """What to look for in a chat; None on a server without parsers."""
        if not (self._offer.auto_tools or self._offer.reasoning):
            return None
        if not isinstance(data.get("chat_request"), dict):
            raise BadRequest(_NEEDS_REQUEST)
        if data.get("stream") and data.get("prompt_token_ids") is None:
            raise BadRequest(_NEEDS_PROMPT)
        return chat_parsing(data["chat_request"], self._offer)[0]

    def _piece(self, given: Mapping[str, Any], text: TextStream, parser: Parser | None) -> Piece:
        """A choice's ids as text, parsed where there is a parser."""
        piece = Piece(
            whole(given, "index", 0), token_ids(given, "token_ids"), finish=given.get("finish_reason")
        )
        _feed(piece.tokens, text, parser, piece.delta)
        if piece.finish is not None and parser is not None:
            parser.finish(text.finish(), piece.delta)
        return piece

    def _completion_chunk(self, data: Mapping[str, Any], model: str, created: int) -> dict[str, Any]:
        state, chunk = _state(data), _object(data, "generate_chunk")
        text = TextStream(hidden=_HIDDEN, pending=_pending(state))
        choices = []
        for given in _one_choice(chunk):
            piece = self._piece(given, text, None)
            state |= _moved(state, piece, text)
            state["logprob_text_offset"] += len(piece.delta.content)
            choice = {"index": piece.index, "text": piece.delta.content, "logprobs": None}
            choice |= {"finish_reason": piece.finish, "stop_reason": given.get("stop_reason")}
            choices.append(choice | {"prompt_token_ids": None, "token_ids": None})
        head = _head(chunk, "text_completion", model, created, choices)
        head |= {"usage": _usage(data, chunk), "system_fingerprint": None, "metrics": None}
        return {"chunk": head, "stream_state": state}

    def _chat_chunk(
        self, data: Mapping[str, Any], parsing: Parsing | None, model: str, created: int
    ) -> dict[str, Any]:
        state, chunk = _state(data), _object(data, "generate_chunk")
        choices = []
        for given in _one_choice(chunk):
            if parsing is None:
                text = TextStream(hidden=_HIDDEN, pending=_pending(state))
                piece = self._piece(given, text, None)
                state |= _moved(state, piece, text)
            else:
                piece = self._replayed(given, parsing, state)
            wants_ids = bool((data.get("chat_request") or {}).get("return_token_ids"))
            choices.append(
                {
                    "index": piece.index,
                    "delta": _full_delta(piece.delta, role=not state["role_sent"]),
                    "logprobs": None,
                    "finish_reason": piece.finish,
                    "stop_reason": given.get("stop_reason"),
                    "token_ids": list(piece.tokens) if wants_ids else None,
                }
            )
            state["role_sent"] = True
        head = _head(chunk, "chat.completion.chunk", model, created, choices)
        head |= {"usage": _usage(data, chunk), "system_fingerprint": None, "prompt_token_ids": None}
        return {"chunk": head | {"prompt_text": None, "metrics": None}, "stream_state": state}

    def _replayed(self, given: Mapping[str, Any], parsing: Parsing, state: dict[str, Any]) -> Piece:
        """Read all earlier ids again with a fresh parser, then this chunk's; brings the state forward."""
        text, parser = TextStream(hidden=()), Parser(parsing, self._new_id)
        _feed(state["output_token_ids"], text, parser, Delta())
        piece = self._piece(given, text, parser)
        if piece.tokens:
            state["output_token_ids"] = [*state["output_token_ids"], *piece.tokens]
            state["output_chunk_lens"] = [*state["output_chunk_lens"], len(piece.tokens)]
        known = list(state["last_tool_call_ids"])
        for call in piece.delta.calls:
            state["tools_streamed"] = True
            if "id" in call and call["index"] < len(known):
                call["id"] = known[call["index"]]
            elif "id" in call:
                known.append(call["id"])
        state["last_tool_call_ids"] = known
        if piece.finish is not None and state["tools_streamed"] and not parsing.named:
            piece.finish = "tool_calls"
        return piece


def _feed(tokens: Sequence[int], text: TextStream, parser: Parser | None, delta: Delta) -> None:
    for token in tokens:
        new = text.feed(token)
        if parser is None:
            delta.content += new
        else:
            parser.feed(token, new, delta)


def _object(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = data.get(key)
    if not isinstance(found, dict):
        raise BadRequest(f"{key}: field required", param=f"body.{key}", kind="Bad Request")
    return found


def _choices(answer: object) -> list[Mapping[str, Any]]:
    """The choices of a whole answer of /inference/v1/generate; none of them may be empty."""
    found = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(found, list) or not all(
        isinstance(one, dict) and one.get("token_ids") for one in found
    ):
        raise BadRequest("choice 0 has empty or null token_ids")
    return found


def _one_choice(chunk: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = chunk.get("choices")
    if not isinstance(found, list):
        raise BadRequest("generate_chunk.choices: field required", param="body.choices", kind="Bad Request")
    if len(found) > 1:
        raise BadRequest(f"derender_chat_stream expects at most one choice per chunk (got {len(found)}).")
    return found


def _state(data: Mapping[str, Any]) -> dict[str, Any]:
    """The state that the client carries, whole and checked. Raises BadRequest."""
    given = data.get("stream_state")
    state = dict(_EMPTY_STATE) | (given if isinstance(given, dict) else {})
    ids = token_ids(state, "output_token_ids")
    lengths = sum(state["output_chunk_lens"])
    if lengths != len(ids):
        message = (
            "Value error, output_chunk_lens must sum to len(output_token_ids) "
            f"(got sum={lengths}, len(output_token_ids)={len(ids)})"
        )
        raise BadRequest(message, param="body.stream_state", kind="Bad Request")
    return state


def _pending(state: Mapping[str, Any]) -> bytes:
    """The bytes of a character that has begun: carried as letters, in the window of earlier tokens."""
    return "".join(state["prev_tokens"]).encode("latin-1", errors="ignore")


def _moved(state: Mapping[str, Any], piece: Piece, text: TextStream) -> dict[str, Any]:
    context = [*state["logprob_context_token_ids"], *piece.tokens][-4:]
    return {
        "prev_tokens": [chr(byte) for byte in text.pending],
        "prefix_offset": 0,
        "read_offset": 0,
        "logprob_context_token_ids": context,
    }


def _full_delta(delta: Delta, *, role: bool) -> dict[str, Any]:
    """A delta with all its fields."""
    full: dict[str, Any] = {"role": "assistant" if role else None, "content": delta.content or None}
    full["reasoning"] = delta.reasoning or None
    if delta.calls:
        full["tool_calls"] = [
            {
                "id": call.get("id"),
                "type": call.get("type"),
                "index": call["index"],
                "function": {"name": None, "arguments": None} | call["function"],
            }
            for call in delta.calls
        ]
    return full


def _count(answer: Mapping[str, Any]) -> int:
    return sum(len(choice["token_ids"]) for choice in answer["choices"])


def _head(
    source: Mapping[str, Any], kind: str, model: str, created: int, choices: list[dict[str, Any]]
) -> dict[str, Any]:
    name = source.get("request_id")
    return {"id": name, "object": kind, "created": created, "model": model, "choices": choices}


def _whole(
    source: Mapping[str, Any], kind: str, model: str, created: int, choices: list[dict[str, Any]]
) -> dict[str, Any]:
    return _head(source, kind, model, created, choices) | {"service_tier": None, "system_fingerprint": None}


def _usage(data: Mapping[str, Any], chunk: Mapping[str, Any]) -> dict[str, Any] | None:
    given = chunk.get("usage")
    if not isinstance(given, dict):
        return None
    prompt = whole(data, "prompt_tokens", given.get("prompt_tokens") or 0)
    return usage(prompt, given.get("completion_tokens") or 0, whole=True)
