"""OpenAI chat requests as the Anthropic Messages requests that stand for the same.

Every field is carried, left out because the answer does not depend on it, or refused by its name. Two things
are left out though the answer may depend on them, and named: what says how tokens are drawn, where the
provider's models take no such word (`sampling` false), and what the provider has no place for without a
change of meaning (`dropped` of `messages_of`). `docs/reference/providers.md` has the table.

Wire format: https://docs.anthropic.com/en/api/messages, the types of the `anthropic` SDK 2.14; the other side
is https://platform.openai.com/docs/api-reference/chat/create with vLLM's additions.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import orjson

from cloud.providers.wire import Fields, Untranslatable

OUTPUT_TOKENS = 4_096
"""`max_tokens` where neither the client nor the price table names one: every model takes it."""

_CARRIED = frozenset(
    {"model", "messages", "stream", "max_tokens", "max_completion_tokens", "stop", "response_format", "tools",
     "tool_choice", "parallel_tool_calls", "reasoning_effort", "thinking_token_budget",
     "chat_template_kwargs", "user", "safety_identifier"}
)  # fmt: skip
_IDLE = frozenset(
    {"metadata", "store", "service_tier", "stream_options", "priority", "cache_salt", "request_id",
     "prediction", "prompt_cache_key", "prompt_cache_retention"}
)  # fmt: skip
"""Fields on which the text of an answer does not depend: bookkeeping, speed, caches."""
_DRAWN = {
    "temperature": (1,),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "seed": (),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
}
"""Fields that say how tokens are drawn, with the values that change nothing."""
_SAMPLING = frozenset({"temperature", "top_p", "top_k"})
_AS_USUAL = {
    "n": 1,
    "modalities": ["text"],
    "verbosity": "medium",
    "add_generation_prompt": True,
    "skip_special_tokens": True,
}
_MESSAGE = frozenset({"role", "content", "name"})
_OF_ROLE = {
    "system": _MESSAGE,
    "developer": _MESSAGE,
    "user": _MESSAGE,
    "tool": _MESSAGE | {"tool_call_id"},
    "assistant": _MESSAGE
    | {"tool_calls", "refusal", "reasoning", "reasoning_content", "annotations", "token_ids", "stop_reason"},
}
"""Of the assistant's, the last five are what clients send back as they got it."""
_EFFORTS = {"minimal": "low", **{name: name for name in ("low", "medium", "high", "xhigh", "max")}}
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}
_CALL_ID = re.compile(r"[^a-zA-Z0-9_-]")
_DATA_URL = re.compile(r"data:(?P<kind>[^;,]+)(?:;[^;,]+)*;base64,(?P<data>.*)", re.S)


def messages_of(
    inner: Fields, *, model: str, stream: bool, sampling: bool, most_output: int
) -> tuple[Fields, tuple[str, ...]]:
    """The Messages request, and the names of what it does not tell although the answer may depend on it.

    `most_output`: the most tokens that the model writes, 0 where unknown. Raises Untranslatable.
    """
    dropped = list(_undrawn(inner, sampling))
    system, turns = _conversation(inner, dropped)
    limit = _limit(inner, most_output)
    out: Fields = {"model": model, "max_tokens": limit, "messages": turns}
    if system:
        out["system"] = _content(system)
    out |= {name: inner[name] for name in _SAMPLING if sampling and _draws(inner, name)}
    if sequences := _stops(inner.get("stop")):
        out["stop_sequences"] = sequences
    out |= _tools(inner) | _thinking(inner, limit)
    if config := _output_config(inner):
        out["output_config"] = config
    if user := inner.get("user") or inner.get("safety_identifier"):
        out["metadata"] = {"user_id": _string(user, "user")}
    if stream:
        out["stream"] = True
    return out, tuple(dropped)


def _undrawn(inner: Fields, sampling: bool) -> Iterator[str]:
    """The fields on drawing tokens that are left out. Refuses what is not known or has no place there."""
    for name, value in inner.items():
        if name in _DRAWN:
            if not _draws(inner, name) or (sampling and name in _SAMPLING):
                continue
            if sampling:
                raise _cannot(name)
            yield name
        elif value and name not in _CARRIED and name not in _IDLE and value != _AS_USUAL.get(name):
            raise _cannot(name)


def _draws(inner: Fields, name: str) -> bool:
    value = inner.get(name)
    return value is not None and value not in _DRAWN[name]


def _limit(inner: Fields, most_output: int) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        if (value := inner.get(name)) is not None:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise Untranslatable(name, "must be a whole number above 0")
            return min(value, most_output or value)
    return most_output or OUTPUT_TOKENS


def _conversation(inner: Fields, dropped: list[str]) -> tuple[list[Fields], list[Fields]]:
    """The system's blocks, and the turns: messages of one role in a row are one turn."""
    system: list[Fields] = []
    turns: list[tuple[str, list[Fields]]] = []
    for at, message in enumerate(_list(inner.get("messages"), "messages")):
        where = f"messages.{at}"
        role, blocks = _message(where, message, dropped)
        if role in ("system", "developer"):
            if turns:
                dropped.append(f"{where}: its place")
            system += blocks
            continue
        role = "user" if role == "tool" else role
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        elif blocks:
            turns.append((role, blocks))
    if not turns:
        raise Untranslatable("messages", "none but the system's says anything")
    if turns[-1][0] == "assistant":
        raise Untranslatable(
            "messages", "the last one is the assistant's (prefill), which newer models refuse"
        )
    return system, [{"role": role, "content": _content(blocks)} for role, blocks in turns]


def _message(where: str, message: Any, dropped: list[str]) -> tuple[str, list[Fields]]:
    """One message's role and blocks."""
    if not isinstance(message, dict):
        raise Untranslatable(where, "must be an object")
    role = message.get("role")
    if not isinstance(role, str) or role not in _OF_ROLE:
        raise Untranslatable(f"{where}.role", f"{role!r} has no place in this provider's form")
    for name in message.keys() - _OF_ROLE[role]:
        if message[name]:
            raise _cannot(f"{where}.{name}")
    if message.get("name") and role != "tool":
        dropped.append(f"{where}.name")
    blocks = _blocks(f"{where}.content", message.get("content"), role, dropped)
    if role == "tool":
        call = _call_id(message.get("tool_call_id"), f"{where}.tool_call_id")
        return role, [{"type": "tool_result", "tool_use_id": call, "content": _content(blocks)}]
    if role == "assistant":
        if refusal := message.get("refusal"):
            blocks.append(_text(_string(refusal, f"{where}.refusal")))
        calls = _list(message.get("tool_calls"), f"{where}.tool_calls")
        blocks += [_use(f"{where}.tool_calls.{at}", call) for at, call in enumerate(calls)]
    return role, blocks


def _blocks(where: str, content: Any, role: str, dropped: list[str]) -> list[Fields]:
    """Content as blocks; an empty text is none, which the API would refuse."""
    if content is None or isinstance(content, str):
        return [_text(content)] if content else []
    if not isinstance(content, list):
        raise Untranslatable(where, "must be a string or a list of parts")
    blocks: list[Fields] = []
    for at, part in enumerate(content):
        place = f"{where}.{at}"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image_url" and role in ("user", "tool"):
            block = _image(place, part, dropped)
        elif kind in ("text", "refusal"):
            if not (text := _string(part.get(kind), f"{place}.{kind}")):
                continue
            block = _text(text)
        else:
            raise Untranslatable(place, f"a part of type {kind!r} has no place in content of the {role}")
        if cache := part.get("cache_control"):
            block["cache_control"] = cache
        blocks.append(block)
    return blocks


def _text(text: str) -> Fields:
    return {"type": "text", "text": text}


def _image(where: str, part: Fields, dropped: list[str]) -> Fields:
    """An image by its address, or its bytes in base64."""
    given = part.get("image_url")
    if isinstance(given, dict) and given.get("detail") not in (None, "", "auto"):
        dropped.append(f"{where}.image_url.detail")
    url = _string(given.get("url") if isinstance(given, dict) else given, f"{where}.image_url.url")
    if url.startswith(("https://", "http://")):
        return {"type": "image", "source": {"type": "url", "url": url}}
    if (found := _DATA_URL.fullmatch(url)) is None:
        raise Untranslatable(f"{where}.image_url.url", "must be of http, or a data URL in base64")
    kind = found["kind"].lower().replace("image/jpg", "image/jpeg")
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": found["data"]}}


def _use(where: str, call: Any) -> Fields:
    """A tool call of an earlier answer."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise Untranslatable(where, "only calls of functions have a place in this provider's form")
    try:
        given = orjson.loads(function.get("arguments") or "{}")
    except (orjson.JSONDecodeError, TypeError):
        given = None
    if not isinstance(given, dict):
        raise Untranslatable(f"{where}.function.arguments", "must be a JSON object in a string")
    name = _string(function.get("name"), f"{where}.function.name")
    return {"type": "tool_use", "id": _call_id(call.get("id"), f"{where}.id"), "name": name, "input": given}


def _call_id(value: Any, where: str) -> str:
    """The id of a call, in the letters that the API takes. Some engines make others (`functions.f:0`)."""
    text = _string(value, where)
    plain = _CALL_ID.sub("_", text)
    return plain if plain == text else f"{plain}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _content(blocks: list[Fields]) -> str | list[Fields]:
    """Blocks, as a string where they are one plain text or none."""
    if not blocks:
        return ""
    return blocks[0]["text"] if len(blocks) == 1 and blocks[0].keys() == {"type", "text"} else blocks


def _stops(stop: Any) -> list[str]:
    given = [stop] if isinstance(stop, str) else _list(stop, "stop")
    for text in given:
        if not _string(text, "stop").strip():
            raise Untranslatable("stop", "one of nothing but white space is refused by this provider")
    return given


def _tools(inner: Fields) -> Fields:
    """Tools and what is to be done with them."""
    tools, choice = _list(inner.get("tools"), "tools"), inner.get("tool_choice")
    if not tools:
        if choice not in (None, "auto", "none"):
            raise Untranslatable("tool_choice", "there are no tools")
        return {}
    out: Fields = {"tools": [_tool(f"tools.{at}", tool) for at, tool in enumerate(tools)]}
    chosen = _choice("auto" if choice is None else choice)
    if inner.get("parallel_tool_calls") is False and chosen["type"] != "none":
        chosen["disable_parallel_tool_use"] = True
    elif choice is None:
        return out
    return {**out, "tool_choice": chosen}


def _tool(where: str, tool: Any) -> Fields:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    if not isinstance(function, dict):
        raise Untranslatable(where, "only functions have a place in this provider's form")
    out: Fields = {"name": _string(function.get("name"), f"{where}.function.name")}
    out |= {name: function[name] for name in ("description", "strict") if function.get(name)}
    schema = function.get("parameters") or {"properties": {}}
    if not isinstance(schema, dict):
        raise Untranslatable(f"{where}.function.parameters", "must be an object")
    out["input_schema"] = {"type": "object", **schema}
    if cache := tool.get("cache_control") or function.get("cache_control"):
        out["cache_control"] = cache
    return out


def _choice(choice: Any) -> Fields:
    if isinstance(choice, str) and choice in _CHOICES:
        return {"type": _CHOICES[choice]}
    function = choice.get("function") if isinstance(choice, dict) else None
    if not isinstance(function, dict):
        raise Untranslatable("tool_choice", f"{choice!r} has no place in this provider's form")
    return {"type": "tool", "name": _string(function.get("name"), "tool_choice.function.name")}


def _output_config(inner: Fields) -> Fields:
    """Effort, and the schema that the answer has to follow."""
    config: Fields = {}
    if (effort := inner.get("reasoning_effort")) not in (None, "none"):
        if not isinstance(effort, str) or effort not in _EFFORTS:
            raise Untranslatable("reasoning_effort", f"{effort!r} is not known")
        config["effort"] = _EFFORTS[effort]
    form = inner.get("response_format") or {}
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "json_schema":
        given = form.get("json_schema")
        schema = given.get("schema") if isinstance(given, dict) else None
        if not isinstance(schema, dict):
            raise Untranslatable("response_format.json_schema.schema", "must be an object")
        config["format"] = {"type": "json_schema", "schema": schema}
    elif form and kind != "text":
        raise Untranslatable("response_format", f"type {kind!r} has no place in this provider's form")
    return config


def _thinking(inner: Fields, limit: int) -> Fields:
    """Whether and how much to think: by effort "none", by vLLM's budget, by its template's switch."""
    switches = inner.get("chat_template_kwargs") or {}
    if not isinstance(switches, dict) or switches.keys() - {"enable_thinking", "thinking"}:
        raise _cannot("chat_template_kwargs")
    if (budget := inner.get("thinking_token_budget")) is not None:
        if not isinstance(budget, int) or isinstance(budget, bool) or not 0 < budget < limit:
            raise Untranslatable("thinking_token_budget", "must be above 0 and below the most tokens")
        return {"thinking": {"type": "enabled", "budget_tokens": budget}}
    if inner.get("reasoning_effort") == "none" or False in switches.values():
        return {"thinking": {"type": "disabled"}}
    return {"thinking": {"type": "adaptive"}} if switches else {}


def _list(value: Any, where: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise Untranslatable(where, "must be a list")
    return value or []


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise Untranslatable(where, "must be a string")
    return value


def _cannot(name: str) -> Untranslatable:
    return Untranslatable(name, "has no place in this provider's form")
