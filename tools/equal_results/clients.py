"""Ask the same things of one server with four client libraries and print what each of them returned, as JSON.

    python clients.py '{"text": URL, "pooling": URL, "kept": URL}'

Runs in the environment that `install.sh` makes. A URL is the root of a server, without `/v1`; cases whose
server is not given are left out. What differs from call to call by design (ids, times) is left out of the
results; everything else that a program would read is in them.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no look-up of prices in the network
os.environ["LITELLM_LOG"] = "ERROR"

import anthropic
import httpx
import litellm
import openai
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

litellm.suppress_debug_info = True  # it prints advice

Case = tuple[str, str, str, str, Callable[[str], Any]]  # server, dialect, client, what is asked, how

ASK = [{"role": "system", "content": "be short"}, {"role": "user", "content": "the quick brown fox"}]
SAY = [{"role": "user", "content": "the quick brown fox"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "strict": True, "parameters": PLACE}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}
COLD: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
KEY = "none"
LINES = ["a small dog", "a big cat"]
CASES: list[Case] = []


def case(server: str, dialect: str, client: str, asked: str) -> Callable[[Callable[[str], Any]], None]:
    """Note a function as a case."""

    def note(function: Callable[[str], Any]) -> None:
        CASES.append((server, dialect, client, asked, function))

    return note


def sdk(url: str) -> openai.OpenAI:
    """OpenAI's client for this server."""
    return openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0, timeout=120)


def claude(url: str) -> anthropic.Anthropic:
    """Anthropic's client for this server."""
    return anthropic.Anthropic(base_url=url, auth_token=KEY, api_key=None, max_retries=0, timeout=120)


def usage(found: Any) -> Any:
    """The counts of tokens, however the client holds them."""
    if found is None:
        return None
    told = (
        found
        if isinstance(found, dict)
        else found.model_dump()
        if hasattr(found, "model_dump")
        else vars(found)
    )
    return {
        name: told[name] for name in sorted(told) if name.endswith("_tokens") and isinstance(told[name], int)
    }


def calls_of(message: Any) -> list[Any]:
    """Names and arguments of the tool calls of a message."""
    return [[call.function.name, call.function.arguments] for call in message.tool_calls or []]


def chat_plain(answer: Any) -> Any:
    """What a chat completion says."""
    choices = [[c.message.content, calls_of(c.message), c.finish_reason] for c in answer.choices]
    return [choices, answer.model, usage(answer.usage)]


def chat_streamed(chunks: Any) -> Any:
    """Text, calls, ends and usage put together from chunks."""
    texts: dict[int, str] = {}
    calls: dict[tuple[int, int], list[str]] = {}
    ends: dict[int, str] = {}
    counted = None
    for chunk in chunks:
        counted = usage(getattr(chunk, "usage", None)) or counted
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            for call in choice.delta.tool_calls or []:
                parts = calls.setdefault((choice.index, call.index), ["", ""])
                parts[0] += call.function.name or ""
                parts[1] += call.function.arguments or ""
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    return [
        sorted(texts.items()),
        sorted((str(key), value) for key, value in calls.items()),
        sorted(ends.items()),
        counted,
    ]


WITH_USAGE = {"include_usage": True}


@case("text", "chat", "openai", "plain")
def _(url: str) -> Any:
    return chat_plain(sdk(url).chat.completions.create(model="tiny", messages=ASK, **COLD))


@case("text", "chat", "openai", "streamed")
def _(url: str) -> Any:
    create = sdk(url).chat.completions.create
    return chat_streamed(create(model="tiny", messages=ASK, stream=True, stream_options=WITH_USAGE, **COLD))


TWICE: dict[str, Any] = {"n": 2, "seed": 1, "temperature": 1.0, "max_tokens": 12}


@case("text", "chat", "openai", "n = 2, logprobs")
def _(url: str) -> Any:
    answer = sdk(url).chat.completions.create(model="tiny", messages=ASK, logprobs=True, **TWICE)
    return [chat_plain(answer), [[t.token for t in c.logprobs.content] for c in answer.choices]]


@case("text", "chat", "openai", "n = 2, streamed")
def _(url: str) -> Any:
    return chat_streamed(sdk(url).chat.completions.create(model="tiny", messages=ASK, stream=True, **TWICE))


@case("text", "chat", "openai", "stop string, streamed")
def _(url: str) -> Any:
    client = sdk(url)
    text = client.chat.completions.create(model="tiny", messages=ASK, **COLD).choices[0].message.content
    return chat_streamed(
        client.chat.completions.create(model="tiny", messages=ASK, stream=True, stop=[text[8:11]], **COLD)
    )


@case("text", "chat", "openai", "forced tool")
def _(url: str) -> Any:
    return chat_plain(
        sdk(url).chat.completions.create(
            model="tiny", messages=ASK, tools=[TOOL], tool_choice="required", temperature=0, max_tokens=200
        )
    )


@case("text", "chat", "openai", "forced tool, streamed")
def _(url: str) -> Any:
    return chat_streamed(
        sdk(url).chat.completions.create(
            model="tiny", messages=ASK, tools=[TOOL], tool_choice="required", stream=True, temperature=0,
            max_tokens=200,
        )
    )  # fmt: skip


# What the tool parser reads as a call; a model of random weights makes one only when it is forced to.
FORCED = {
    "structured_outputs": {
        "regex": r'<tool_call>\{"name": "weather", "arguments": \{"city": "(Paris|Rome)"\}\}</tool_call>'
    }
}
CALL: dict[str, Any] = {"tools": [TOOL], "temperature": 0, "max_tokens": 200, "extra_body": FORCED}


@case("text", "chat", "openai", "tool call")
def _(url: str) -> Any:
    return chat_plain(sdk(url).chat.completions.create(model="tiny", messages=ASK, **CALL))


@case("text", "chat", "openai", "tool call, streamed")
def _(url: str) -> Any:
    return chat_streamed(sdk(url).chat.completions.create(model="tiny", messages=ASK, stream=True, **CALL))


@case("text", "chat", "openai", "JSON schema")
def _(url: str) -> Any:
    return chat_plain(
        sdk(url).chat.completions.create(
            model="tiny", messages=ASK, response_format=FORMAT, temperature=0, max_tokens=200
        )
    )


@case("text", "chat", "openai", "unknown model")
def _(url: str) -> Any:
    return chat_plain(sdk(url).chat.completions.create(model="nobody", messages=ASK, **COLD))


@case("text", "chat", "openai", "too many tokens")
def _(url: str) -> Any:
    return chat_plain(sdk(url).chat.completions.create(model="tiny", messages=ASK, max_tokens=10**6))


@case("text", "chat", "openai", "wrong field, streamed")
def _(url: str) -> Any:
    return chat_streamed(
        sdk(url).chat.completions.create(model="tiny", messages=ASK, temperature=-5, stream=True)
    )


@case("text", "chat", "langchain-openai", "plain")
def _(url: str) -> Any:
    return lc_said(lc(url).invoke("the quick brown fox"))


@case("text", "chat", "langchain-openai", "streamed")
def _(url: str) -> Any:
    whole: Any = None
    for chunk in lc(url, stream_usage=True).stream("the quick brown fox"):
        whole = chunk if whole is None else whole + chunk
    return lc_said(whole)


@case("text", "chat", "langchain-openai", "forced tool")
def _(url: str) -> Any:
    return lc_said(lc(url, max_tokens=200).bind_tools([TOOL], tool_choice="any").invoke("go"))


@case("text", "chat", "langchain-openai", "structured output")
def _(url: str) -> Any:
    schema = SCHEMA | {"title": "trip"}
    return lc(url, max_tokens=200).with_structured_output(schema, method="json_schema").invoke("go")


def lc(url: str, **more: Any) -> ChatOpenAI:
    """LangChain's chat model for this server."""
    return ChatOpenAI(model="tiny", base_url=url + "/v1", api_key=KEY, max_retries=0, **(COLD | more))


def lc_said(message: Any) -> Any:
    """What a message of LangChain says."""
    calls = [[call["name"], call["args"]] for call in message.tool_calls]
    end = message.response_metadata.get("finish_reason")
    return [message.content, calls, end, usage(message.usage_metadata)]


def lite(url: str) -> dict[str, Any]:
    """LiteLLM's arguments for this server."""
    return {"model": "openai/tiny", "api_base": url + "/v1", "api_key": KEY, "max_retries": 0}


@case("text", "chat", "litellm", "plain")
def _(url: str) -> Any:
    return chat_plain(litellm.completion(**lite(url), messages=ASK, **COLD))


@case("text", "chat", "litellm", "streamed")
def _(url: str) -> Any:
    return chat_streamed(
        litellm.completion(**lite(url), messages=ASK, stream=True, stream_options=WITH_USAGE, **COLD)
    )


@case("text", "completions", "openai", "plain, two prompts")
def _(url: str) -> Any:
    answer = sdk(url).completions.create(model="tiny", prompt=LINES, **COLD)
    return [[[c.index, c.text, c.finish_reason] for c in answer.choices], usage(answer.usage)]


@case("text", "completions", "openai", "streamed, two prompts")
def _(url: str) -> Any:
    return texts_streamed(
        sdk(url).completions.create(
            model="tiny", prompt=LINES, stream=True, stream_options=WITH_USAGE, **COLD
        )
    )


@case("text", "completions", "openai", "token ids")
def _(url: str) -> Any:
    answer = sdk(url).completions.create(
        model="tiny", prompt=[5, 6, 7], extra_body={"return_token_ids": True}, **COLD
    )
    return [answer.choices[0].text, answer.choices[0].model_extra]


@case("text", "completions", "langchain-openai", "plain")
def _(url: str) -> Any:
    return OpenAI(model="tiny", base_url=url + "/v1", api_key=KEY, max_retries=0, **COLD).invoke(
        "a small dog"
    )


@case("text", "completions", "langchain-openai", "streamed")
def _(url: str) -> Any:
    model = OpenAI(model="tiny", base_url=url + "/v1", api_key=KEY, max_retries=0, **COLD)
    return "".join(model.stream("a small dog"))


@case("text", "completions", "litellm", "plain")
def _(url: str) -> Any:
    asked = lite(url) | {"model": "text-completion-openai/tiny"}
    answer = litellm.text_completion(**asked, prompt="a small dog", **COLD)
    return [[[c.text, c.finish_reason] for c in answer.choices], usage(answer.usage)]


def texts_streamed(chunks: Any) -> Any:
    """Texts, ends and usage put together from the chunks of completions."""
    texts: dict[int, str] = {}
    ends: dict[int, str] = {}
    counted = None
    for chunk in chunks:
        counted = usage(chunk.usage) or counted
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    return [sorted(texts.items()), sorted(ends.items()), counted]


@case("text", "responses", "openai", "plain")
def _(url: str) -> Any:
    return response(
        sdk(url).responses.create(model="tiny", input="a small dog", temperature=0, max_output_tokens=24)
    )


@case("text", "responses", "openai", "streamed")
def _(url: str) -> Any:
    text, last = "", None
    for event in sdk(url).responses.create(
        model="tiny", input="a small dog", temperature=0, max_output_tokens=24, stream=True
    ):
        if event.type == "response.output_text.delta":
            text += event.delta
        last = event
    return [text, last.type if last else None, response(last.response) if last else None]


@case("text", "responses", "openai", "of an unknown id")
def _(url: str) -> Any:
    return response(sdk(url).responses.retrieve("resp_nobody"))


@case("text", "responses", "langchain-openai", "plain")
def _(url: str) -> Any:
    said = lc(url, use_responses_api=True).invoke("a small dog")
    return [said.text, usage(said.usage_metadata)]


@case("text", "responses", "litellm", "plain")
def _(url: str) -> Any:
    answer = litellm.responses(**lite(url), input="a small dog", temperature=0, max_output_tokens=24)
    return [
        answer.status,
        [part.text for item in answer.output for part in item.content],
        usage(answer.usage),
    ]


def response(found: Any) -> Any:
    """What a response says."""
    return [found.status, found.output_text, usage(found.usage)]


def message(found: Any) -> Any:
    """What a message of Anthropic's says."""
    blocks = [block.model_dump(exclude={"id"}, exclude_none=True) for block in found.content]
    counted = {"input": found.usage.input_tokens, "output": found.usage.output_tokens}
    return [found.role, blocks, found.stop_reason, found.stop_sequence, counted]


CLAUDE_TOOL = {"name": "weather", "strict": True, "input_schema": PLACE}


@case("text", "messages", "anthropic", "plain")
def _(url: str) -> Any:
    return message(
        claude(url).messages.create(model="tiny", max_tokens=24, system="be short", messages=SAY, **COOL)
    )


@case("text", "messages", "anthropic", "streamed")
def _(url: str) -> Any:
    with claude(url).messages.stream(
        model="tiny", max_tokens=24, system="be short", messages=SAY, **COOL
    ) as stream:
        text = "".join(stream.text_stream)
        return [text, message(stream.get_final_message())]


CLAUDE_CALL: dict[str, Any] = {
    "tools": [CLAUDE_TOOL],
    "tool_choice": {"type": "tool", "name": "weather"},
    "extra_body": {"temperature": 0},
}


@case("text", "messages", "anthropic", "forced tool")
def _(url: str) -> Any:
    create = claude(url).messages.create
    return message(create(model="tiny", max_tokens=200, messages=SAY, **CLAUDE_CALL))


@case("text", "messages", "anthropic", "forced tool, streamed")
def _(url: str) -> Any:
    begin = claude(url).messages.stream
    with begin(model="tiny", max_tokens=200, messages=SAY, **CLAUDE_CALL) as stream:
        return message(stream.get_final_message())


@case("text", "messages", "anthropic", "tool result and blocks")
def _(url: str) -> Any:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "sunny"}]},
    ]
    return message(
        claude(url).messages.create(model="tiny", max_tokens=24, messages=turns, tools=[CLAUDE_TOOL], **COOL)
    )


@case("text", "messages", "anthropic", "unknown model")
def _(url: str) -> Any:
    return message(claude(url).messages.create(model="nobody", max_tokens=24, messages=SAY))


@case("text", "messages", "litellm", "plain")
def _(url: str) -> Any:
    asked = {"model": "anthropic/tiny", "api_base": url, "api_key": KEY, "max_retries": 0}
    return chat_plain(litellm.completion(**asked, messages=ASK, **COLD))


@case("text", "messages", "litellm", "streamed")
def _(url: str) -> Any:
    asked = {"model": "anthropic/tiny", "api_base": url, "api_key": KEY, "max_retries": 0}
    return chat_streamed(litellm.completion(**asked, messages=ASK, stream=True, **COLD))


COOL = {"extra_body": {"temperature": 0}}


@case("text", "count_tokens", "anthropic", "plain")
def _(url: str) -> Any:
    return claude(url).messages.count_tokens(model="tiny", system="be short", messages=SAY).input_tokens


@case("text", "count_tokens", "anthropic", "with tools")
def _(url: str) -> Any:
    return claude(url).messages.count_tokens(model="tiny", messages=SAY, tools=[CLAUDE_TOOL]).input_tokens


@case("text", "models", "openai", "list")
def _(url: str) -> Any:
    return [[model.id, model.object] for model in sdk(url).models.list()]


@case("text", "tokenize", "httpx", "there and back")
def _(url: str) -> Any:
    told = posted(url, "/tokenize", {"model": "tiny", "prompt": "a small dog"})
    return [told, posted(url, "/detokenize", {"model": "tiny", "tokens": told["tokens"]})]


@case("text", "tokenize", "httpx", "chat")
def _(url: str) -> Any:
    return posted(url, "/tokenize", {"model": "tiny", "messages": SAY})


@case("pooling", "embeddings", "openai", "two texts")
def _(url: str) -> Any:
    return vectors(sdk(url).embeddings.create(model="bert", input=LINES))


@case("pooling", "embeddings", "openai", "floats, token ids")
def _(url: str) -> Any:
    return vectors(sdk(url).embeddings.create(model="bert", input=[[5, 6], [7]], encoding_format="float"))


@case("pooling", "embeddings", "langchain-openai", "documents")
def _(url: str) -> Any:
    model = OpenAIEmbeddings(
        model="bert", base_url=url + "/v1", api_key=KEY, check_embedding_ctx_length=False
    )
    return rounded(model.embed_documents(LINES))


@case("pooling", "embeddings", "litellm", "two texts")
def _(url: str) -> Any:
    answer = litellm.embedding(model="openai/bert", api_base=url + "/v1", api_key=KEY, input=LINES)
    return rounded([row["embedding"] for row in answer.data])


@case("pooling", "embeddings", "httpx", "Cohere's form")
def _(url: str) -> Any:
    told = posted(url, "/v2/embed", {"model": "bert", "texts": LINES, "embedding_types": ["float"]})
    return rounded(told["embeddings"]["float"])


@case("pooling", "score", "httpx", "one against two")
def _(url: str) -> Any:
    told = posted(url, "/score", {"model": "bert", "text_1": "a dog", "text_2": LINES})
    return [round(row["score"], 4) for row in told["data"]]


@case("pooling", "rerank", "httpx", "top_n = 1")
def _(url: str) -> Any:
    told = posted(url, "/rerank", {"model": "bert", "query": "a dog", "documents": LINES, "top_n": 1})
    return [[row["index"], round(row["relevance_score"], 4)] for row in told["results"]]


@case("pooling", "rerank", "litellm", "two documents")
def _(url: str) -> Any:
    answer = litellm.rerank(
        model="hosted_vllm/bert", query="a dog", documents=LINES, api_base=url, api_key=KEY
    )
    return [[row["index"], round(row["relevance_score"], 4)] for row in answer.results]


@case("pooling", "pooling", "httpx", "two texts")
def _(url: str) -> Any:
    told = posted(url, "/pooling", {"model": "bert", "input": LINES, "task": "embed"})
    return rounded([row["data"] for row in told["data"]])


@case("pooling", "classify", "httpx", "of a model that cannot")
def _(url: str) -> Any:
    return posted(url, "/classify", {"model": "bert", "input": LINES})


def vectors(answer: Any) -> Any:
    """The vectors and the usage of embeddings."""
    return [rounded([row.embedding for row in answer.data]), usage(answer.usage)]


def rounded(lists: Any) -> Any:
    """Vectors to four digits: the same text twice may differ in the last bits by how it was batched."""
    return [[round(value, 4) for value in row] for row in lists]


def posted(url: str, path: str, fields: dict[str, Any]) -> Any:
    """The answer to plain JSON, for dialects that no client of the four speaks."""
    answer = httpx.post(url + path, json=fields, timeout=120)
    told = answer.json()
    if answer.status_code != 200:
        return [answer.status_code, told["error"]["message"] if "error" in told else told]
    return {name: value for name, value in told.items() if name not in ("id", "created")}


@case("kept", "audio", "openai", "transcript")
def _(url: str) -> Any:
    return sdk(url).audio.transcriptions.create(model="ear", file=("a.wav", b"RIFF" * 5000)).text


@case("kept", "audio", "openai", "transcript, streamed")
def _(url: str) -> Any:
    create = sdk(url).audio.transcriptions.create
    events = create(model="ear", file=("a.wav", b"RIFF" * 5000), stream=True)
    return [[event.type, getattr(event, "text", getattr(event, "delta", None))] for event in events]


@case("kept", "audio", "openai", "speech")
def _(url: str) -> Any:
    return digest(sdk(url).audio.speech.create(model="mouth", voice="alloy", input="hello").content)


@case("kept", "audio", "litellm", "transcript")
def _(url: str) -> Any:
    file = io.BytesIO(b"RIFF" * 5000)
    file.name = "a.wav"
    return litellm.transcription(model="openai/whisper-1", file=file, api_base=url + "/v1", api_key=KEY).text


@case("kept", "images", "openai", "two")
def _(url: str) -> Any:
    answer = sdk(url).images.generate(model="brush", prompt="a dog", n=2, response_format="b64_json")
    return [digest(base64.b64decode(row.b64_json)) for row in answer.data]


@case("kept", "images", "openai", "edit")
def _(url: str) -> Any:
    answer = sdk(url).images.edit(model="brush", image=("a.png", b"PNG" * 9000), prompt="more")
    return [digest(base64.b64decode(row.b64_json)) for row in answer.data]


@case("kept", "images", "litellm", "one")
def _(url: str) -> Any:
    answer = litellm.image_generation(
        model="openai/dall-e-2", prompt="a dog", n=1, api_base=url + "/v1", api_key=KEY
    )
    return [digest(base64.b64decode(row.b64_json)) for row in answer.data]


@case("kept", "files", "openai", "made, read, listed, deleted")
def _(url: str) -> Any:
    files = sdk(url).files
    made = files.create(file=("in.jsonl", b'{"a":1}\n' * 2000), purpose="batch")
    read = files.content(made.id).content
    told = [made.filename, made.bytes, digest(read), files.retrieve(made.id).id == made.id]
    return [told, made.id in [file.id for file in files.list()], files.delete(made.id).deleted]


@case("kept", "batches", "openai", "made, looked at, cancelled")
def _(url: str) -> Any:
    client = sdk(url)
    file = client.files.create(file=("in.jsonl", b'{"a":1}\n'), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    seen = client.batches.retrieve(made.id)
    return [made.status, seen.id == made.id, client.batches.cancel(made.id).status]


@case("kept", "responses", "openai", "stored: made, followed, read")
def _(url: str) -> Any:
    client = sdk(url)
    first = client.responses.create(model="any", input="one", store=True)
    second = client.responses.create(model="any", input="two", previous_response_id=first.id)
    return [client.responses.retrieve(first.id).output_text, second.output_text]


def digest(data: bytes) -> list[Any]:
    """Length and beginning of bytes."""
    return [len(data), data[:8].hex()]


def failed(error: Exception) -> Any:
    """What a program would see of an error: its class, the status and the words."""
    status = getattr(error, "status_code", None)
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else body
    words = inner.get("message") if isinstance(inner, dict) else str(error)
    return {"error": type(error).__name__, "status": status, "message": words}


def main() -> None:
    """Run every case whose server is named, one after the other."""
    servers: dict[str, str] = json.loads(sys.argv[1])
    results = []
    for server, dialect, client, asked, function in CASES:
        if server not in servers:
            continue
        try:
            found = function(servers[server])
        except Exception as error:
            found = failed(error)
        results.append(
            {"server": server, "dialect": dialect, "client": client, "asked": asked, "found": found}
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
