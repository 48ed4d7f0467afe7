"""Anthropic Messages requests as the OpenAI chat requests that engines read.

Every field is carried, dropped because the answer does not depend on it, or refused by its name: nothing that
could change an answer is lost in silence. `docs/reference/anthropic.md` has the table.

Wire format: https://docs.anthropic.com/en/api/messages, the types of the `anthropic` SDK 2.14; the other side
is vLLM's `ChatCompletionRequest` and, for counting, `TokenizeChatRequest`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
from multidict import CIMultiDict

from orchestrator.gateway.dialects import Unfit

Fields = dict[str, Any]
Blocks = list[tuple[str, Fields]]  # content blocks, each with its place in the request

_RENAMED = {"stop_sequences": "stop", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}
_CARRIED = frozenset(
    {"model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "metadata", "stream",
     "max_tokens"}
)  # fmt: skip
_DROPPED = frozenset(
    {"cache_control", "context_management", "diagnostics", "inference_geo", "service_tier", "speed",
     "user_profile_id", "workspace_id"}
)  # fmt: skip
_ENGINES = frozenset(
    {"cache_salt", "chat_template_kwargs", "ec_transfer_params", "frequency_penalty", "ignore_eos",
     "kv_transfer_params", "logit_bias", "min_p", "min_tokens", "mm_processor_kwargs", "presence_penalty",
     "priority", "repetition_penalty", "seed", "skip_special_tokens", "stop_token_ids", "structured_outputs",
     "vllm_xargs"}
)  # fmt: skip
_BLOCK_FIELDS = {
    "text": frozenset({"text"}),
    "image": frozenset({"source"}),
    "thinking": frozenset({"thinking", "signature"}),
    "redacted_thinking": frozenset({"data"}),
    "tool_use": frozenset({"id", "name", "input", "caller"}),
    "tool_result": frozenset({"tool_use_id", "content", "is_error"}),
}
_BLOCKS_OF = {
    "user": frozenset({"text", "image", "tool_result"}),
    "assistant": frozenset({"text", "thinking", "redacted_thinking", "tool_use"}),
    "system": frozenset({"text"}),
    "tool_result": frozenset({"text", "image"}),
}
_TOOL_FIELDS = frozenset({"name", "description", "input_schema", "strict", "eager_input_streaming"})
_DIRECT: tuple[Any, ...] = ({"type": "direct"}, ["direct"])  # a call that the client itself makes
_BILLING = "x-anthropic-billing-header"
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_STREAM_OPTIONS = {"include_usage": True, "continuous_usage_stats": True}


def chat_of(body: Fields) -> Fields:
    """The chat request for a Messages request. Raises Unfit, 400, which names what cannot be carried.

    Streams ask for the usage in every chunk, as `message_start` tells the tokens of the prompt.
    """
    _known(body)
    limit = body.get("max_tokens")
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise _bad("max_tokens", "must be a whole number above 0")
    chat = {"model": _text_of(body, "model"), "max_tokens": limit, **_conversation(body)}
    chat |= {new: body[old] for old, new in _RENAMED.items() if body.get(old) is not None}
    if (user := _object(body, "metadata").get("user_id")) is not None:
        chat["user"] = user
    if (choice := _object(body, "tool_choice")) != {}:
        chat |= _tool_choice(choice)
    chat |= _output(_object(body, "output_config"))
    if (budget := _budget(_object(body, "thinking"), limit)) is not None:
        chat["thinking_token_budget"] = budget
    if body.get("stream") not in (None, False, True):
        raise _bad("stream", "must be true or false")
    if body.get("stream"):
        chat |= {"stream": True, "stream_options": _STREAM_OPTIONS}
    return {**{name: body[name] for name in sorted(_ENGINES & body.keys())}, **chat}


def auth_headers(headers: CIMultiDict[str]) -> None:
    """Make the key that Anthropic's clients send in `X-Api-Key` the Bearer token that engines take.

    An Authorization header of the client's own holds.
    """
    keys = headers.popall("X-Api-Key", ())
    if keys and keys[0] and "Authorization" not in headers:
        headers["Authorization"] = f"Bearer {keys[0]}"


def count_of(body: Fields) -> Fields:
    """The request for `/tokenize` that counts the tokens of a `count_tokens` request. Raises Unfit as above.

    That route knows no `reasoning_effort`: it goes to the template, as the engine itself hands it on.
    """
    _known(body)
    count = {"model": _text_of(body, "model"), **_conversation(body)}
    if (effort := _output(_object(body, "output_config")).get("reasoning_effort")) is not None:
        kwargs = {
            "enable_thinking": True,
            **count.get("chat_template_kwargs", {}),
            "reasoning_effort": effort,
        }
        count["chat_template_kwargs"] = kwargs
    return count


def _known(body: Fields) -> None:
    _only("", body, _CARRIED | _RENAMED.keys() | _DROPPED | _ENGINES)


def _conversation(body: Fields) -> Fields:
    """What the prompt is made of: messages, tools, and how the template is to be filled."""
    messages = _messages(body)
    chat: Fields = {"messages": messages}
    if tools := [_tool(f"tools.{at}", tool) for at, tool in enumerate(_list(body, "tools"))]:
        chat["tools"] = tools
    thinking = _thinks(_object(body, "thinking"))
    if messages[-1]["role"] == "assistant":
        _check_prefill(messages[-1], thinking)
        chat |= {"add_generation_prompt": False, "continue_final_message": True}
        thinking = False
    kwargs = {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}
    if kwargs := kwargs | _object(body, "chat_template_kwargs"):
        chat["chat_template_kwargs"] = kwargs
    return chat


def _messages(body: Fields) -> list[Fields]:
    system = _system(_blocks("system", body.get("system") or [], "system"))
    messages = [system] if system else []
    for role, blocks in _turns(body):
        if role == "assistant":
            messages.append(_assistant(blocks))
        elif role == "user":
            messages += _user(blocks)
        elif system := _system(blocks):
            messages.append(system)
    if messages and messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()
    if not any(message["role"] != "system" for message in messages):
        raise _bad("messages", "at least one message is needed")
    return messages


def _turns(body: Fields) -> Iterator[tuple[str, Blocks]]:
    """The turns of a conversation. Messages of the same role that follow each other are one turn."""
    last: tuple[str, Blocks] | None = None
    for at, message in enumerate(_list(body, "messages")):
        where = f"messages.{at}"
        _only(where, message, frozenset({"role", "content"}))
        if (role := _text_of(message, "role", where)) not in ("user", "assistant", "system"):
            raise _bad(f"{where}.role", 'must be "user", "assistant" or "system"')
        blocks = _blocks(f"{where}.content", message.get("content"), role)
        if last and last[0] == role:
            last[1].extend(blocks)
            continue
        if last:
            yield last
        last = (role, blocks)
    if last:
        yield last


def _blocks(where: str, content: Any, holder: str) -> Blocks:
    """Content as blocks that are known to fit `holder`: a role, or a tool's result."""
    if isinstance(content, str):
        return [(where, {"type": "text", "text": content})]
    if not isinstance(content, list):
        raise _bad(where, "must be a string or a list of content blocks")
    blocks = []
    for at, block in enumerate(content):
        place = f"{where}.{at}"
        if not isinstance(block, dict):
            raise _bad(place, "must be an object")
        if (kind := _text_of(block, "type", place)) not in _BLOCKS_OF[holder]:
            raise _cannot(place, f"a block of type {kind!r} in {holder} content")
        _only(place, block, _BLOCK_FIELDS[kind])
        blocks.append((place, block))
    return blocks


def _system(blocks: Blocks) -> Fields | None:
    """A system message, without Claude Code's billing line, which would defeat the engine's prefix cache."""
    texts = [_text_of(block, "text", where) for where, block in blocks]
    text = "".join(text for text in texts if not text.startswith(_BILLING))
    return {"role": "system", "content": text} if text else None


def _user(blocks: Blocks) -> list[Fields]:
    """Results of tools first, right behind their calls; their images lead the user's own message."""
    results: list[Fields] = []
    parts: list[Fields] = []
    for where, block in blocks:
        if block["type"] == "tool_result":
            result, images = _result(where, block)
            results.append(result)
            parts += images
        else:
            parts += _parts(where, block)
    if parts or not results:
        results.append({"role": "user", "content": _content(parts)})
    return results


def _assistant(blocks: Blocks) -> Fields:
    """A turn of the model. Its texts are one text, as chat has no place for what stood between them."""
    said: dict[str, list[str]] = {"text": [], "thinking": []}
    calls = []
    for where, block in blocks:
        kind = block["type"]
        if kind in said:
            said[kind].append(_text_of(block, kind, where))
        elif kind == "tool_use":
            calls.append(_call(where, block))
    message: Fields = {"role": "assistant", "content": "".join(said["text"])}
    if reasoning := "".join(said["thinking"]):
        message["reasoning"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def _call(where: str, block: Fields) -> Fields:
    if block.get("caller") not in (None, *_DIRECT):
        raise _cannot(f"{where}.caller", "a call made by a server tool")
    arguments = orjson.dumps(_object(block, "input", where)).decode()
    function = {"name": _text_of(block, "name", where), "arguments": arguments}
    return {"id": _text_of(block, "id", where), "type": "function", "function": function}


def _result(where: str, block: Fields) -> tuple[Fields, list[Fields]]:
    """A tool's result as its message, and its images. Chat has no field for a failure: the text says so."""
    parts: list[Fields] = []
    for place, inner in _blocks(f"{where}.content", block.get("content") or [], "tool_result"):
        parts += _parts(place, inner)
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    message = {
        "role": "tool",
        "tool_call_id": _text_of(block, "tool_use_id", where),
        "content": f"Error: {text}" if block.get("is_error") else text,
    }
    return message, [part for part in parts if part["type"] != "text"]


def _parts(where: str, block: Fields) -> list[Fields]:
    """A text or an image as parts of a message, none for an empty text."""
    if block["type"] == "image":
        return [{"type": "image_url", "image_url": {"url": _image(f"{where}.source", block.get("source"))}}]
    text = _text_of(block, "text", where)
    return [{"type": "text", "text": text}] if text else []


def _image(where: str, source: Any) -> str:
    kind = source.get("type") if isinstance(source, dict) else None
    if kind == "url":
        return _text_of(source, "url", where)
    if kind == "base64":
        return f"data:{_text_of(source, 'media_type', where)};base64,{_text_of(source, 'data', where)}"
    raise _cannot(where, f"an image of source type {kind!r}")


def _content(parts: list[Fields]) -> str | list[Fields]:
    if not parts:
        return ""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _tool(where: str, tool: Any) -> Fields:
    if not isinstance(tool, dict):
        raise _bad(where, "must be an object")
    if (kind := tool.get("type")) not in (None, "custom"):
        raise _cannot(where, f"a tool of type {kind!r}, which only Anthropic's servers or models know,")
    if tool.get("allowed_callers") not in (None, *_DIRECT):
        raise _cannot(f"{where}.allowed_callers", "a tool for server tools")
    _only(where, tool, _TOOL_FIELDS | {"type", "allowed_callers"})
    function = {
        "name": _text_of(tool, "name", where),
        "parameters": {"type": "object", **_object(tool, "input_schema", where)},
    }
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: Fields) -> Fields:
    _only("tool_choice", choice, frozenset({"type", "name", "disable_parallel_tool_use"}))
    kind = _text_of(choice, "type", "tool_choice")
    if kind == "tool":
        name = _text_of(choice, "name", "tool_choice")
        chat: Fields = {"tool_choice": {"type": "function", "function": {"name": name}}}
    elif kind in _CHOICES:
        chat = {"tool_choice": _CHOICES[kind]}
    else:
        raise _bad("tool_choice.type", 'must be "auto", "any", "tool" or "none"')
    if choice.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False
    return chat


def _output(config: Fields) -> Fields:
    """Effort and a schema that the answer has to follow."""
    _only("output_config", config, frozenset({"effort", "format"}))
    chat = {} if config.get("effort") is None else {"reasoning_effort": config["effort"]}
    if form := _object(config, "format", "output_config"):
        if form.get("type") != "json_schema":
            raise _cannot("output_config.format", f"a format of type {form.get('type')!r}")
        _only("output_config.format", form, frozenset({"schema"}))
        schema = _object(form, "schema", "output_config.format")
        chat["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        }
    return chat


def _thinks(thinking: Fields) -> bool | None:
    """Whether the model is to think, None where it is left to the model or its template."""
    if not thinking:
        return None
    _only("thinking", thinking, frozenset({"budget_tokens", "display"}))
    kinds = {"enabled": True, "disabled": False, "adaptive": None}
    if (kind := _text_of(thinking, "type", "thinking")) not in kinds:
        raise _bad("thinking.type", 'must be "enabled", "disabled" or "adaptive"')
    return kinds[kind]


def _budget(thinking: Fields, limit: int) -> int | None:
    """The tokens that thinking may take, of the `limit` for all."""
    if thinking.get("type") != "enabled":
        return None
    budget = thinking.get("budget_tokens")
    if not isinstance(budget, int) or isinstance(budget, bool) or not 0 < budget < limit:
        raise _bad("thinking.budget_tokens", "must be a whole number above 0 and below max_tokens")
    return budget


def _check_prefill(message: Fields, thinking: bool | None) -> None:
    """The engine goes on with the last message exactly as it stands, if it is plain text without a space at
    its end, which templates cut off.
    """
    if thinking or "tool_calls" in message or "reasoning" in message:
        raise _cannot("messages", "a last assistant message that is more than text, or with thinking,")
    text = message["content"]
    if text != text.rstrip():
        raise _bad("messages", "the last assistant message must not end with whitespace")


def _only(where: str, value: Any, names: frozenset[str] | set[str]) -> None:
    """Refuse what is not among `names`, unless it is empty and so asks for nothing."""
    if not isinstance(value, dict):
        raise _bad(where, "must be an object")
    for name in sorted(value.keys() - names - {"type", "cache_control"}):
        if value[name]:
            raise _cannot(_at(where, name), "this field")


def _text_of(fields: Fields, name: str, where: str = "") -> str:
    if not isinstance(text := fields.get(name), str):
        raise _bad(_at(where, name), "must be a string")
    return text


def _object(fields: Fields, name: str, where: str = "") -> Fields:
    """An object, empty where none is given."""
    value = fields.get(name)
    if value is not None and not isinstance(value, dict):
        raise _bad(_at(where, name), "must be an object")
    return value or {}


def _list(fields: Fields, name: str) -> list[Any]:
    value = fields.get(name)
    if value is not None and not isinstance(value, list):
        raise _bad(name, "must be a list")
    return value or []


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _bad(where: str, rule: str) -> Unfit:
    return Unfit(400, "invalid_request", f"{where}: {rule}", where)


def _cannot(where: str, what: str) -> Unfit:
    return Unfit(400, "not_carried", f"{where}: {what} cannot be carried to the engine", where)
