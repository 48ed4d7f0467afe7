"""What a client asks of the simulated engine: parsing and checking of request bodies, with vLLM's errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from cloud.engines.simulated_server.parser import Parsing
from cloud.engines.simulated_server.schema import Unknown, call_tag, forced_text, text_of
from cloud.engines.simulated_server.tokens import VOCABULARY_SIZE, chat_prompt, encode

_COMPLETION_MAX_TOKENS = 16  # vLLM's default for /v1/completions; all others get the rest of the context
_MAX_OUTPUTS = 128  # of one request
_NO_AUTO_TOOLS = "tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set"


class BadRequest(Exception):
    """A request that is answered with an error body."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, kind: str = "") -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.kind = kind or "BadRequestError"


@dataclass(frozen=True, slots=True)
class Offer:
    """What a server offers. `models`: the served name and then the adapters that it has at this moment;
    `auto_tools` and `reasoning`: it has the parsers for them.
    """

    models: Sequence[str]
    max_model_len: int
    auto_tools: bool = False
    reasoning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRequest:
    """One checked request for text: `n` outputs for each prompt."""

    model: str
    prompts: tuple[tuple[int, ...], ...]  # token ids
    by_ids: bool  # the client gave them as ids
    max_tokens: int  # fits into the context
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    return_token_ids: bool = False
    ignore_eos: bool = False
    seed: int | None = None
    stops: tuple[str, ...] = ()
    stops_included: bool = False
    logprobs: int | None = None  # alternatives wanted; None: no log probabilities
    structured: Mapping[str, Any] | None = None  # what vLLM calls structured outputs
    parsing: Parsing = field(default_factory=Parsing)

    @property
    def grammar(self) -> str:
        """The text that the structured output forces; empty for none."""
        return forced_text(self.structured) if self.structured else ""


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises BadRequest."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"JSON decode error: {error}", param="body", kind="Bad Request") from None
    if not isinstance(data, dict):
        raise BadRequest("the body is not a JSON object", param="body", kind="Bad Request")
    return data


def model_of(data: Mapping[str, Any], offer: Offer) -> str:
    """The model that is asked for; the first without one. Raises BadRequest (404) for an unknown one."""
    model = data.get("model")
    if model is None:
        return offer.models[0]
    if model not in offer.models:
        message = f"The model `{model}` does not exist. Valid aliases: {', '.join(offer.models)}."
        raise BadRequest(message, param="model", status=404, kind="NotFoundError")
    return str(model)


def parse_completion(data: Mapping[str, Any], offer: Offer) -> InferenceRequest:
    """Read a body of /v1/completions. Raises BadRequest."""
    model = model_of(data, offer)
    prompts, by_ids = _prompts(data)
    return _request(
        data,
        offer,
        model=model,
        prompts=prompts,
        by_ids=by_ids,
        asked=("max_tokens", _COMPLETION_MAX_TOKENS),
        logprobs=None if data.get("logprobs") is None else whole(data, "logprobs", 0),
        structured=_structured(data),
    )


def parse_chat(data: Mapping[str, Any], offer: Offer) -> InferenceRequest:
    """Read a body of /v1/chat/completions. Raises BadRequest."""
    model = model_of(data, offer)
    key = "max_tokens" if data.get("max_completion_tokens") is None else "max_completion_tokens"
    parsing, structured = chat_parsing(data, offer)
    return _request(
        data,
        offer,
        model=model,
        prompts=(conversation(data),),
        by_ids=False,
        asked=(key, None),
        logprobs=whole(data, "top_logprobs", 0) if data.get("logprobs") else None,
        structured=structured or _structured(data),
        parsing=parsing,
    )


def parse_tokens(data: Mapping[str, Any], offer: Offer) -> InferenceRequest:
    """Read a body of /inference/v1/generate. Raises BadRequest."""
    model = model_of(data, offer)
    parameters = data.get("sampling_params")
    if not isinstance(parameters, dict):
        raise BadRequest("sampling_params: field required", param="body.sampling_params", kind="Bad Request")
    prompt = token_ids(data, "token_ids")
    if not prompt:
        raise BadRequest("token_ids must not be empty", param="body.token_ids", kind="Bad Request")
    return _request(
        {**parameters, **{key: data.get(key) for key in ("stream", "stream_options", "return_token_ids")}},
        offer,
        model=model,
        prompts=(prompt,),
        by_ids=True,
        asked=("max_tokens", None),
        logprobs=None if parameters.get("logprobs") is None else whole(parameters, "logprobs", 0),
        structured=_structured(parameters),
    )


def _request(
    data: Mapping[str, Any],
    offer: Offer,
    *,
    model: str,
    prompts: tuple[tuple[int, ...], ...],
    by_ids: bool,
    asked: tuple[str, int | None],
    logprobs: int | None,
    structured: Mapping[str, Any] | None,
    parsing: Parsing | None = None,
) -> InferenceRequest:
    """What all routes have in common. `asked`: the field of the most tokens and its default (None: what is
    left).
    """
    n = whole(data, "n", 1)
    if not 1 <= n * len(prompts) <= _MAX_OUTPUTS:
        raise BadRequest(f"n must be from 1 to {_MAX_OUTPUTS // len(prompts)}, got {n}.", param="n")
    options = data.get("stream_options")
    request = InferenceRequest(
        model=model,
        prompts=prompts,
        by_ids=by_ids,
        max_tokens=_max_tokens(data, *asked, max(map(len, prompts)), offer.max_model_len),
        n=n,
        stream=bool(data.get("stream")),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        return_token_ids=bool(data.get("return_token_ids")),
        ignore_eos=bool(data.get("ignore_eos")),
        seed=None if data.get("seed") is None else whole(data, "seed", 0),
        stops=_stops(data),
        stops_included=bool(data.get("include_stop_str_in_output")),
        logprobs=logprobs,
        structured=structured,
        parsing=parsing or Parsing(),
    )
    try:
        _ = request.grammar
    except Unknown as error:
        raise BadRequest(str(error), param="structured_outputs") from None
    return request


def whole(data: Mapping[str, Any], key: str, default: int) -> int:
    """A field that is a whole number. Raises BadRequest."""
    value = data.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadRequest(f"{key} must be a whole number", param=key)
    return value


def _max_tokens(
    data: Mapping[str, Any], key: str, default: int | None, prompt_length: int, max_model_len: int
) -> int:
    left = max_model_len - prompt_length
    if left < 1:
        message = (
            f"This model's maximum context length is {max_model_len} tokens. However, the prompt has "
            f"{prompt_length} tokens and leaves no room for output."
        )
        raise BadRequest(message, param="input_tokens")
    asked = whole(data, key, left if default is None else default)
    if asked < 1:
        raise BadRequest(f"{key} must be at least 1, got {asked}.", param=key)
    if asked > max_model_len:
        message = f"{key}={asked} cannot be greater than max_model_len={max_model_len}."
        raise BadRequest(f"{message} Please request fewer output tokens.", param=key)
    return min(asked, left)


def _stops(data: Mapping[str, Any]) -> tuple[str, ...]:
    value = data.get("stop") or []
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise BadRequest("stop must be a string or a list of strings", param="stop")
    return tuple(stops)


def _structured(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Structured outputs, as such or as a response format."""
    wanted = data.get("structured_outputs")
    if isinstance(wanted, dict):
        return {key: value for key, value in wanted.items() if value is not None} or None
    wanted = data.get("response_format")
    if isinstance(wanted, dict) and wanted.get("type") == "json_object":
        return {"json_object": True}
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        return {"json": (wanted.get("json_schema") or {}).get("schema") or {}}
    return None


def token_ids(data: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """A field that is a list of known token ids; empty where it is missing. Raises BadRequest."""
    ids = data.get(key) or []
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        raise BadRequest(f"{key} must be a list of token ids", param=key)
    return _known(ids)


def _known(ids: list[int]) -> tuple[int, ...]:
    for token in ids:
        if not 0 <= token < VOCABULARY_SIZE:
            raise BadRequest(f"Token id {token} is out of vocabulary")
    return tuple(ids)


def _prompts(data: Mapping[str, Any]) -> tuple[tuple[tuple[int, ...], ...], bool]:
    """The prompts of a completion, and whether they came as token ids."""
    prompt = data.get("prompt")
    if not prompt:
        message = "Either prompt or prompt_embeds must be provided and non-empty."
        raise BadRequest(message, param="prompt")
    several = isinstance(prompt, list) and isinstance(prompt[0], (str, list))
    prompts = prompt if several else [prompt]
    if all(isinstance(one, str) and one for one in prompts):
        return tuple(encode(one) for one in prompts), False
    if all(isinstance(one, list) and one and all(isinstance(token, int) for token in one) for one in prompts):
        return tuple(_known(one) for one in prompts), True
    raise BadRequest("prompt must be a text, a list of token ids, or a list of either", param="prompt")


def conversation(data: Mapping[str, Any]) -> tuple[int, ...]:
    """The prompt that a chat's messages and tools become. Raises BadRequest."""
    messages = data.get("messages")
    if not isinstance(messages, list):
        raise BadRequest("messages: field required", param="body.messages", kind="Bad Request")
    if not messages:
        message = "Cannot apply chat template to an empty conversation. Provide at least one message."
        raise BadRequest(message)
    tools = data.get("tools")
    return chat_prompt(
        [_message(message) for message in messages],
        orjson.dumps(tools).decode() if tools else "",
        speak=data.get("add_generation_prompt") is not False,
    )


def _message(message: object) -> tuple[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRequest("every message needs a role", param="messages")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    text = content if isinstance(content, str) else ""
    if message.get("tool_calls"):
        text += orjson.dumps(message["tool_calls"]).decode()
    return message["role"], text


def chat_parsing(data: Mapping[str, Any], offer: Offer) -> tuple[Parsing, Mapping[str, Any] | None]:
    """What to look for in a chat's output, and the structured output that its tool choice means, if any."""
    tools, choice = data.get("tools"), data.get("tool_choice")
    if not tools:
        if choice not in (None, "none", "auto"):
            raise BadRequest("When using `tool_choice`, `tools` must be set.", param="tool_choice")
        return Parsing(offer.reasoning, idle=offer.auto_tools), None
    try:
        functions = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    except (TypeError, KeyError):
        raise BadRequest("every tool needs a function with a name", param="tools") from None
    if choice == "none":
        return Parsing(offer.reasoning, idle=offer.auto_tools), None
    if choice in (None, "auto"):
        if not offer.auto_tools:
            raise BadRequest(f'"auto" {_NO_AUTO_TOOLS}')
        return Parsing(offer.reasoning, tools=True), None
    named = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    if not offer.auto_tools:
        wanted = f'function "{named}"' if named else f'"{choice}"'
        raise BadRequest(f"tool_choice={wanted} requires --tool-call-parser to be set")
    if choice != "required" and named not in functions:
        raise BadRequest("The tool specified in `tool_choice` does not match any of the specified `tools`")
    tags = [call_tag(name, functions[name]) for name in ([named] if named else functions)]
    return Parsing(offer.reasoning, tools=True, named=bool(named)), {
        "structural_tag": text_of({"tags": tags})
    }
