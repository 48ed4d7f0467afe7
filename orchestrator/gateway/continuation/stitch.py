"""Finishes a broken stream on another target, as if it had never broken."""

from __future__ import annotations

import copy
from array import array
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any

import aiohttp
import orjson
from multidict import CIMultiDict

from orchestrator.gateway.continuation.calls import Engine
from orchestrator.gateway.continuation.decode import WINDOW, Decoder
from orchestrator.gateway.continuation.kinds import CHAT_PATH, TEXT_PATH, Broken, Capability, Way
from orchestrator.gateway.continuation.parsers import Parsers
from orchestrator.gateway.continuation.prepare import RETURN_IDS
from orchestrator.gateway.continuation.sampling import least_of, limit_of, sampling_of
from orchestrator.gateway.continuation.shape import event_of, told_logprobs
from orchestrator.gateway.continuation.stops import StopStrings
from orchestrator.gateway.continuation.transcript import Transcript
from orchestrator.gateway.failure import Failure
from policies.held import Held

_RENDER = f"{CHAT_PATH}/render"
_GENERATE = "/inference/v1/generate"
_RENDERED = ("priority", "cache_salt")  # what generation takes over from a rendered request, beside sampling
_ENGINES_OWN = ("skip_special_tokens", "stop_token_ids")  # sampling that a chat's parsers and template set
_NOT_RENDERED = ("stream", "stream_options", RETURN_IDS)


class Continuation:
    """One continuation of one stream on one target.

    What comes is recorded in the stream's `transcript`, so that a continuation that breaks can be continued
    too. Ask `transcript.obstacle(capability)` first. `moved` is called whenever bytes come. `held`: the
    adapter that it uses there.
    """

    def __init__(
        self,
        *,
        session: aiohttp.ClientSession,
        address: str,
        headers: CIMultiDict[str],
        capability: Capability,
        transcript: Transcript,
        moved: Callable[[], None],
        held: Held | None = None,
    ) -> None:
        self._engine = Engine(session, address, headers, moved, held)
        self._capability = capability
        self._transcript = transcript
        self._fields = transcript.fields
        self._model = str(self._fields.get("model") or transcript.head.get("model") or "")
        self._decoder = Decoder(self._engine, self._model)

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """Whole events for the client, up to the finish_reason and the usage, without `[DONE]`.

        Raises Broken, aiohttp.ClientError, OSError.
        """
        transcript = self._transcript
        if transcript.obstacle_by_ids(self._capability):
            way = self._again()
        elif transcript.needs_parser(self._capability):
            way = self._parsed()
        else:
            way = self._text()
        try:
            async with aclosing(way) as blocks:
                async for block in blocks:
                    if block:
                        yield block
        except (Broken, aiohttp.ClientError, OSError):
            if not transcript.finish:
                raise
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise Broken(Failure.BAD_RESPONSE, f"an answer of another shape than vLLM's: {error!r}") from None
        if not transcript.finish:
            raise Broken(Failure.INCOMPLETE, "the continuation ended without a finish_reason")
        if owed := transcript.closing():
            yield owed

    async def _text(self) -> AsyncGenerator[bytes, None]:
        """Plain text: the ids go on as a prompt, and the engine's own text is passed on.

        Ids behind the last text have shown nothing, since engines hold back what is no whole character: they
        are generated again, and not sent again to a client that asked for ids.
        """
        transcript, fields = self._transcript, self._fields
        sampling, limit = await self._sampling()
        full = transcript.tokens >= limit
        solid = transcript.solid
        if transcript.lumped and (transcript.plan.stops or not full):
            solid = await self._decoder.whole(transcript.ids[:solid])
        stops, held = await self._stops(transcript.ids[:solid], sampling)
        if full:
            yield self._event(self._said(held), [], "length")
            return
        told = transcript.keep(solid)
        offset = transcript.length
        body = {
            **sampling,
            "model": self._model,
            "prompt": [*(transcript.prompt or ()), *transcript.ids],
            "max_tokens": limit - transcript.tokens,
            "min_tokens": least_of(fields, transcript.tokens),
            "stream": True,
            RETURN_IDS: True,
        }
        async with aclosing(self._portions(TEXT_PATH, body)) as portions:
            async for choices in portions:
                for choice in choices:
                    ids, text = _ids(choice), choice.get("text") or ""
                    finish, reason = choice.get("finish_reason"), choice.get("stop_reason")
                    if stops is not None:
                        text, match, ids = await self._searched(stops, text, ids)
                        if match:
                            finish, reason = "stop", match
                        elif finish:
                            text += stops.flush()
                    again = min(told, len(ids))
                    told -= again
                    logprobs = told_logprobs(choice.get("logprobs"), again, offset, chat=transcript.chat)
                    yield self._event(self._said(text), ids, finish, reason, logprobs, again)
                    if finish:
                        return

    async def _parsed(self) -> AsyncGenerator[bytes, None]:
        """Tool calls and reasoning: ids are generated, and the target's parsers run over them.

        The state of the parsers is rebuilt from the ids, in the portions in which they came.
        """
        transcript = self._transcript
        rendered = await self._rendered()
        sampling = rendered["sampling_params"]
        if rendered["token_ids"] != transcript.prompt:
            raise Broken(Failure.REFUSED_HERE, "the target renders another prompt")
        if sampling.get("structured_outputs"):
            raise Broken(Failure.REFUSED_HERE, "the target ties this answer to a grammar, which starts anew")
        hides = bool(sampling.get("skip_special_tokens", True))
        parsers = Parsers(self._engine, self._decoder, self._renderable(), transcript, hides=hides)
        left = (sampling.get("max_tokens") or self._room()) - transcript.tokens
        if left <= 0:
            yield self._parsed_event(*(await parsers.feed([], "length", None)))
            return
        least = least_of(self._fields, transcript.tokens)
        body = {name: rendered[name] for name in _RENDERED if rendered.get(name) is not None} | {
            "model": self._model,
            "token_ids": [*rendered["token_ids"], *transcript.ids],
            "sampling_params": {**sampling, "max_tokens": left, "min_tokens": least},
            "stream": True,
        }
        async with aclosing(self._portions(_GENERATE, body)) as portions:
            async for choices in portions:
                for choice in choices:
                    ids, finish = _ids(choice), choice.get("finish_reason")
                    told, taken = await parsers.feed(ids, finish, choice.get("stop_reason"))
                    if taken or finish:
                        yield self._parsed_event(told, taken)
                    if finish:
                        return

    async def _again(self) -> AsyncGenerator[bytes, None]:
        """The whole request once more: the client has white space at most, which is not sent twice."""
        transcript = self._transcript
        skip = transcript.length
        transcript.restart()
        body = transcript.body_for(self._capability)
        async with aclosing(self._engine.stream(transcript.path, body)) as portions:
            async for chunks in portions:
                for chunk in chunks:
                    _check(chunk.get("choices") or ())
                    chunk |= transcript.head
                    skip -= _skip(chunk, skip)
                    yield transcript.take(event_of(chunk), chunk)

    async def _portions(self, path: str, body: dict[str, Any]) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The choices of a stream, those together that came together. Raises Broken for an abort."""
        async with aclosing(self._engine.stream(path, orjson.dumps(body))) as portions:
            async for chunks in portions:
                choices = [choice for chunk in chunks for choice in (chunk.get("choices") or ())[:1]]
                _check(choices)
                if any(choice.get("index") for choice in choices):
                    raise Broken(Failure.BAD_RESPONSE, "a choice came that nobody asked for")
                if choices:
                    yield choices

    async def _stops(self, ids: Sequence[int], sampling: dict[str, Any]) -> tuple[StopStrings | None, str]:
        """The search for stop strings, and the text that the first engine held back for its own.

        That is always as much as the longest stop string lacks one character of, once any text came.
        """
        transcript, decoder = self._transcript, self._decoder
        if not transcript.plan.stops:
            return None, ""
        included = bool(self._fields.get("include_stop_str_in_output"))
        if sampling.get("skip_special_tokens", True):
            await decoder.find_special(ids)
        text = await decoder.text(transcript.prompt or (), ids)
        stops = StopStrings(transcript.plan.stops, included=included, before=transcript.tail)
        end = max(0, len(text) - stops.hold)
        if not text[:end].endswith(transcript.tail):
            raise Broken(Failure.REFUSED_HERE, "the text so far is not what its ids say")
        stops.feed(text[end:], search=False)
        return stops, text[end:]

    async def _searched(self, stops: StopStrings, text: str, ids: list[int]) -> tuple[str, str, list[int]]:
        """What may be shown of new text, the stop string that ends it, the ids up to that."""
        transcript = self._transcript
        before = copy.copy(stops)
        search = not least_of(self._fields, transcript.tokens + len(ids) - 1)
        shown, match = stops.feed(text, search=search)
        if match:
            ids = ids[: await self._decoder.up_to(before, transcript.ids[-WINDOW:], ids)]
        return shown, match, ids

    async def _sampling(self) -> tuple[dict[str, Any], int]:
        """The sampling of the request, and the most tokens of the whole answer.

        What a request leaves to the engine is asked of the engine, where it tells.
        """
        transcript = self._transcript
        sampling = sampling_of(self._fields, chat=transcript.chat)
        limit = limit_of(self._fields, chat=transcript.chat)
        if transcript.chat and self._capability.way is Way.DERENDER:
            told = (await self._rendered())["sampling_params"]
            sampling |= {name: told[name] for name in _ENGINES_OWN if told.get(name) is not None}
            limit = limit or told.get("max_tokens")
        room = self._room()
        return sampling, room if limit is None else min(limit, room)

    def _room(self) -> int:
        """Tokens that the context has for the answer."""
        return self._capability.max_model_len - len(self._transcript.prompt or ())

    async def _rendered(self) -> Any:
        """The request as the target reads it: prompt ids and sampling."""
        return await self._engine.post(_RENDER, self._renderable())

    def _renderable(self) -> dict[str, Any]:
        return {name: value for name, value in self._fields.items() if name not in _NOT_RENDERED}

    def _said(self, text: str) -> dict[str, Any]:
        if not self._transcript.chat:
            return {"text": text}
        return {"delta": {"content": text} if text else {}}

    def _event(
        self,
        said: dict[str, Any],
        ids: list[int],
        finish: str | None = None,
        reason: int | str | None = None,
        logprobs: dict[str, Any] | None = None,
        again: int = 0,
    ) -> bytes:
        """Record a part of the answer and give its event; none where the client would see nothing.

        The client knows the first `again` of the ids already.
        """
        transcript = self._transcript
        choice = {"index": 0, **said, "logprobs": logprobs, "finish_reason": finish}
        transcript.note(choice, ids)
        if not (
            finish or logprobs or (ids and transcript.wants_ids) or said.get("text") or said.get("delta")
        ):
            return b""
        if finish or not transcript.chat:
            choice["stop_reason"] = reason
        if not transcript.chat:
            choice["prompt_token_ids"] = None
        choice["token_ids"] = list(ids[again:]) if transcript.wants_ids else None
        chunk = {**transcript.head, "choices": [choice]}
        return event_of(chunk | {"usage": transcript.used()} if transcript.usage_always else chunk)

    def _parsed_event(self, told: dict[str, Any], ids: list[int]) -> bytes:
        said = {"delta": told.get("delta", {})}
        return self._event(said, ids, told.get("finish_reason"), told.get("stop_reason"))


def _check(choices: Iterable[dict[str, Any]]) -> None:
    """Raise Broken where the engine cut a choice short."""
    if any(choice.get("finish_reason") == "abort" for choice in choices):
        raise Broken(Failure.ABORTED, "the engine aborted the request")


def _ids(choice: dict[str, Any]) -> list[int]:
    """The token ids of a choice, all sound. Raises Broken where text stands for none, or is no text."""
    ids, text = choice.get("token_ids") or [], choice.get("text") or ""
    array("I", ids)
    if not isinstance(text, str) or (text and not ids and not choice.get("finish_reason")):
        raise Broken(Failure.BAD_RESPONSE, "text came without its token ids")
    return ids


def _skip(chunk: dict[str, Any], most: int) -> int:
    """Take the role and up to that many characters of white space at the start out of a chunk."""
    choices = chunk.get("choices")
    if not choices:
        return 0
    holder = choices[0].get("delta", choices[0])
    holder.pop("role", None)
    name = "content" if "delta" in choices[0] else "text"
    text = holder.get(name) or ""
    skipped = min(most, len(text) - len(text.lstrip()))
    if name in holder:
        holder[name] = text[skipped:]
    return skipped
