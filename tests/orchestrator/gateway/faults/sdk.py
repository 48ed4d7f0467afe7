"""The requests of the fault suite: each dialect, plain and streamed, judged by the SDK that its clients use.

What a client took an answer for is told in one of these words:

* `whole`: the SDK gave the exact answer of this very request, with its reason for the end;
* `broken`: the SDK gave a true beginning of it and then raised the gateway's typed error;
* `refused`: the SDK raised the engine's own error, which blames the request, out of a stream;
* a number: the SDK raised the error of this status;
* `connection`: the SDK raised because the connection broke, for bytes that have no place for an error;
* anything else is a loss: `cut`, `wrong`, `hung`, `untyped`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anthropic
import httpx2
import openai

from tests.orchestrator.gateway.faults import answers
from tests.orchestrator.gateway.faults.table import Carrier

PATIENCE = 15.0  # s: what takes longer hangs; a mode itself takes parts of a second
TOOLS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
_KEY = "sk-of-a-client"


class FailedResponse(openai.OpenAIError):
    """The event by which a stream of the responses dialect tells that it failed."""


@dataclass(slots=True)
class Got:
    """What a client has in the end. `text` is all that it was shown, `reason` why the answer ended."""

    text: str = ""
    reason: str | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The word for what a client got, and the facts behind it."""

    word: str | int
    got: Got

    def __str__(self) -> str:
        error = self.got.error
        return f"{self.word}: {self.got.text!r} {self.got.reason} {type(error).__name__} {error}"


@dataclass
class Client:
    """One client with one connection, which all its requests share. `on_part` is told of the first text."""

    url: str
    on_part: Callable[[str], None] = lambda marker: None
    http: httpx2.AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        limits = httpx2.Limits(max_connections=1, max_keepalive_connections=1)
        self.http = httpx2.AsyncClient(verify=False, trust_env=False, limits=limits, timeout=2 * PATIENCE)
        self.openai = openai.AsyncOpenAI(
            api_key=_KEY, base_url=f"{self.url}/v1", max_retries=0, http_client=self.http
        )
        self.anthropic = anthropic.AsyncAnthropic(
            api_key=_KEY, base_url=self.url, max_retries=0, http_client=self.http
        )

    async def ask(self, carrier: Carrier, marker: str) -> Got:
        """Send one request and take its answer as the SDK gives it."""
        got = Got()
        ways = _STREAMS if carrier.stream else _PLAIN
        try:
            async with asyncio.timeout(PATIENCE):
                await ways[carrier.dialect](self, carrier, marker, got)
        except TimeoutError as error:
            got.error = error
        except (openai.OpenAIError, anthropic.AnthropicError) as error:
            got.error = error
        except (httpx2.HTTPError, ValueError, TypeError, LookupError, AttributeError) as error:
            got.error = error  # the SDK could make nothing of it, or something else than an answer
        return got

    def hear(self, marker: str, got: Got, text: str | None) -> None:
        if text:
            got.text += text
            self.on_part(marker)


def judge(got: Got, expected: Got) -> Verdict:
    """Say what a client took its answer for."""
    error = got.error
    if error is None:
        same = got.text == expected.text and got.reason == expected.reason
        return Verdict("whole" if same else "cut" if expected.text.startswith(got.text) else "wrong", got)
    if isinstance(error, TimeoutError):
        return Verdict("hung", got)
    if not expected.text.startswith(got.text):
        return Verdict("wrong", got)
    if isinstance(error, openai.APIConnectionError | anthropic.APIConnectionError | httpx2.HTTPError):
        return Verdict("connection", got)
    status = getattr(error, "status_code", None)
    if status is not None and status >= 400:
        return Verdict(status if _is_clear(error) else "untyped", got)
    if isinstance(error, FailedResponse) or _is_typed(error):
        return Verdict("broken", got)
    return Verdict("refused" if not got.text and _blames_request(error) else "untyped", got)


def _is_clear(error: Any) -> bool:
    """An error answer is JSON of its dialect, says which request it is about, and when to come back."""
    head = error.response.headers
    try:
        body = error.response.json()
    except ValueError:
        return False
    told = isinstance(body, dict) and bool(body.get("error"))
    again = error.status_code not in (429, 503) or head.get("retry-after", "").isdigit()
    shape = not isinstance(error, anthropic.APIError) or body.get("type") == "error"
    return told and again and shape and bool(head.get("x-request-id"))


def _is_typed(error: Any) -> bool:
    """The last event of a broken stream: says that it was interrupted, and which request it is about."""
    body = getattr(error, "body", None)
    return isinstance(body, dict) and "interrupted" in json.dumps(body) and "request_id" in json.dumps(body)


def _blames_request(error: Any) -> bool:
    """An error event whose code or type says that the request is at fault."""
    body = json.dumps(getattr(error, "body", None))
    return '"code": 400' in body or "invalid_request_error" in body


def expected_of(carrier: Carrier, marker: str) -> Got:
    """The exact answer of a node that is well."""
    if carrier.dialect == "messages":
        return Got(_said(carrier, marker), "tool_use" if carrier.tools else "end_turn")
    if carrier.dialect in ("chat", "completions"):
        return Got(_said(carrier, marker), "tool_calls" if carrier.tools else "stop")
    if carrier.dialect.startswith("responses"):
        return Got(answers.text_of(marker), "completed")
    plain = {
        "embeddings": str(answers.vectors_of(marker)),
        "rerank": str([vector[1] for vector in answers.vectors_of(marker)]),
        "count_tokens": str(answers.count_of(marker)),
        "speech": answers.sound_of(marker).decode(),
        "transcription": answers.text_of(marker),
        "files": f"file-{marker}",
    }
    return Got(plain[carrier.dialect])


def _said(carrier: Carrier, marker: str) -> str:
    return f"look {answers.arguments_of(marker)}" if carrier.tools else answers.text_of(marker)


def _chat_fields(carrier: Carrier, marker: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": marker}]}
    if carrier.tools:
        fields["tools"] = [{"type": "function", "function": {"name": "look", "parameters": TOOLS}}]
    if carrier.ids:
        fields["max_tokens"] = 24
    return fields


async def _chat(client: Client, carrier: Carrier, marker: str, got: Got) -> None:
    answer = await client.openai.chat.completions.create(**_chat_fields(carrier, marker))
    choice = answer.choices[0]
    got.text, got.reason = choice.message.content or "", choice.finish_reason
    for call in choice.message.tool_calls or []:
        got.text += f"{call.function.name} {call.function.arguments}"


async def _chat_stream(client: Client, carrier: Carrier, marker: str, got: Got) -> None:
    options = {"include_usage": True}
    stream = await client.openai.chat.completions.create(
        **_chat_fields(carrier, marker), stream=True, stream_options=options
    )
    async for part in stream:
        for choice in part.choices:
            got.reason = choice.finish_reason or got.reason
            client.hear(marker, got, choice.delta.content)
            for call in choice.delta.tool_calls or []:
                name = f"{call.function.name} " if call.function.name else ""
                client.hear(marker, got, name + (call.function.arguments or ""))


async def _completions(client: Client, carrier: Carrier, marker: str, got: Got) -> None:
    answer = await client.openai.completions.create(model="m", prompt=marker)
    got.text, got.reason = answer.choices[0].text, answer.choices[0].finish_reason


async def _completions_stream(client: Client, carrier: Carrier, marker: str, got: Got) -> None:
    limit = {"max_tokens": 24} if carrier.ids else {}
    stream = await client.openai.completions.create(model="m", prompt=marker, stream=True, **limit)
    async for part in stream:
        for choice in part.choices:
            got.reason = choice.finish_reason or got.reason
            client.hear(marker, got, choice.text)


async def _embeddings(client: Client, carrier: Carrier, marker: str, got: Got) -> None:
    inputs = [f"{marker} {number}" for number in range(answers.VECTORS)]
    answer = await client.openai.embeddings.create(model="m", input=inputs, encoding_format="float")
    got.text = str([row.embedding for row in answer.data])


async def _rerank(client: Client, carrier: Carrier, marker: str, got: Got) -> None:
    body = {"model": "m", "query": marker, "documents": ["one", "two"]}
    answer: Any = await client.openai.post("/rerank", body=body, cast_to=object)
    got.text = str([row["relevance_score"] for row in answer["results"]])


async def _responses(client: Client, carrier: Carrier, marker: str, got: Got) -> None:
    stored = carrier.dialect == "responses_stored"
    answer = await client.openai.responses.create(model="m", input=marker, store=stored)
    got.text, got.reason = answer.output_text, answer.status


async def _responses_stream(client: Client, carrier: Carrier, marker: str, got: Got) -> None:
    stream = await client.openai.responses.create(model="m", input=marker, store=False, stream=True)
    async for part in stream:
        if part.type == "response.output_text.delta":
            client.hear(marker, got, part.delta)
        elif part.type == "response.completed":
            got.reason = part.response.status
        elif part.type in ("response.failed", "error"):
            raise FailedResponse(part.type)


def _messages_fields(carrier: Carrier, marker: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": marker}]}
    if carrier.tools:
        fields["tools"] = [{"name": "look", "input_schema": TOOLS}]
    return fields


def _blocks(content: Any) -> str:
    """The blocks of a message as one text. A tool's arguments are written as they were asked for."""
    return "".join(
        block.text if block.type == "text" else f"{block.name} {json.dumps(block.input)}" for block in content
    )


async def _messages(client: Client, carrier: Carrier, marker: str, got: Got) -> None:
    answer = await client.anthropic.messages.create(**_messages_fields(carrier, marker), max_tokens=24)
    got.text, got.reason = _blocks(answer.content), answer.stop_reason


async def _messages_stream(client: Client, carrier: Carrier, marker: str, got: Got) -> None:
    fields = _messages_fields(carrier, marker)
    async with client.anthropic.messages.stream(**fields, max_tokens=24) as stream:
        async for part in stream:
            if part.type == "text":
                client.hear(marker, got, part.text)
            elif part.type == "content_block_start" and part.content_block.type == "tool_use":
                client.hear(marker, got, f"{part.content_block.name} ")
            elif part.type == "input_json":
                client.hear(marker, got, part.partial_json)
        answer = await stream.get_final_message()
    got.text, got.reason = _blocks(answer.content), answer.stop_reason


async def _count_tokens(client: Client, carrier: Carrier, marker: str, got: Got) -> None:
    fields = _messages_fields(carrier, marker)
    got.text = str((await client.anthropic.messages.count_tokens(**fields)).input_tokens)


async def _speech(client: Client, carrier: Carrier, marker: str, got: Got) -> None:
    answer = await client.openai.audio.speech.create(model="m", input=marker, voice="alloy")
    got.text = answer.content.decode()


async def _transcription(client: Client, carrier: Carrier, marker: str, got: Got) -> None:
    recording = ("a.wav", f"RIFF {marker}".encode())
    got.text = (await client.openai.audio.transcriptions.create(model="m", file=recording)).text


async def _files(client: Client, carrier: Carrier, marker: str, got: Got) -> None:
    upload = ("a.jsonl", f'{{"custom_id":"{marker}"}}'.encode())
    got.text = (await client.openai.files.create(file=upload, purpose="batch")).id


_Way = Callable[[Client, Carrier, str, Got], Awaitable[None]]
_PLAIN: dict[str, _Way] = {
    "chat": _chat,
    "completions": _completions,
    "embeddings": _embeddings,
    "rerank": _rerank,
    "responses": _responses,
    "responses_stored": _responses,
    "messages": _messages,
    "count_tokens": _count_tokens,
    "speech": _speech,
    "transcription": _transcription,
    "files": _files,
}
_STREAMS: dict[str, _Way] = {
    "chat": _chat_stream,
    "completions": _completions_stream,
    "responses": _responses_stream,
    "messages": _messages_stream,
}
