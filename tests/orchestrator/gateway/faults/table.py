"""The mode table: what the clients of a gateway get when nodes do something wrong.

A row is one fault, the requests it is played on, and the outcomes that are right: for a request that met the
fault while one or two of three nodes have it, and for every request while all three have it. A request that
did not meet the fault gets its whole answer, always. Several outcomes: any of them is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.orchestrator.gateway.faults import plain_faults as p
from tests.orchestrator.gateway.faults import stream_faults as s
from tests.orchestrator.gateway.faults.playing import Fault

Outcome = str | int


@dataclass(frozen=True, slots=True)
class Carrier:
    """One kind of request. `ids`: its nodes tell token ids, so that a broken stream goes on elsewhere."""

    dialect: str
    stream: bool = False
    tools: bool = False
    ids: bool = False

    def __str__(self) -> str:
        words = (self.dialect, "tools" * self.tools, "stream" * self.stream, "ids" * self.ids)
        return "-".join(word for word in words if word)


CHAT, CHAT_STREAM = Carrier("chat"), Carrier("chat", stream=True)
TOOLS, TOOLS_STREAM = Carrier("chat", tools=True), Carrier("chat", stream=True, tools=True)
COMPLETION, COMPLETION_STREAM = Carrier("completions"), Carrier("completions", stream=True)
MESSAGES, MESSAGES_STREAM = Carrier("messages"), Carrier("messages", stream=True)
MESSAGES_TOOLS = Carrier("messages", stream=True, tools=True)
RESPONSES, RESPONSES_STREAM = Carrier("responses"), Carrier("responses", stream=True)
STORED, FILES = Carrier("responses_stored"), Carrier("files")
EMBEDDINGS, RERANK, COUNT = Carrier("embeddings"), Carrier("rerank"), Carrier("count_tokens")
SPEECH, TRANSCRIPTION = Carrier("speech"), Carrier("transcription")
CHAT_IDS = Carrier("chat", stream=True, ids=True)
COMPLETION_IDS = Carrier("completions", stream=True, ids=True)
MESSAGES_IDS = Carrier("messages", stream=True, ids=True)

PLAIN = (CHAT, COMPLETION, MESSAGES, RESPONSES, EMBEDDINGS, RERANK, COUNT, SPEECH, TRANSCRIPTION)
STREAMS = (CHAT_STREAM, COMPLETION_STREAM, MESSAGES_STREAM, RESPONSES_STREAM)
MIXED = (CHAT, CHAT_STREAM, MESSAGES_STREAM, EMBEDDINGS)
PAIR = (CHAT, CHAT_STREAM)
CHATS = (CHAT_STREAM, COMPLETION_STREAM, MESSAGES_STREAM)
WITH_IDS = (CHAT_IDS, COMPLETION_IDS, MESSAGES_IDS)

# Outcomes where every node is faulty and nothing tells which of the errors it has to be.
GONE: tuple[Outcome, ...] = (502, 503, 504)
ENGINE: tuple[Outcome, ...] = (500, 502, 503)
WHOLE: tuple[Outcome, ...] = ("whole",)
BROKEN: tuple[Outcome, ...] = ("broken",)

# Times scaled down, for the modes that wait for them.
CHECKS = {"health_interval": 0.05, "health_timeout": 0.4, "idle_timeout": 1.0}
TOKEN = {"health_interval": 0.05, "health_timeout": 0.4, "first_token_timeout": 0.6, "answer_timeout": 1.5}
IDLE = {"idle_timeout": 0.4}
QUIET = {"breaker_open": 0.1, "breaker_longest": 0.5}  # where all are faulty: for those that follow
EVENT = {"answer_limit": 256 * 1024}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One row. `settings` are those that differ from the defaults, because the mode waits for them.

    `sent` bounds how often one request is sent when no node can answer it. `after`: what those get that
    follow once all nodes were faulty and are well: it is not the whole answer where nodes asked for a pause.
    """

    fault: Fault
    on: tuple[Carrier, ...]
    one: tuple[Outcome, ...] = WHOLE
    two: tuple[Outcome, ...] = ()
    all: tuple[Outcome, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    sent: int = 3
    after: tuple[Outcome, ...] = WHOLE

    @property
    def name(self) -> str:
        return self.fault.__name__

    @property
    def reaches(self) -> bool:
        """Whether a request gets to a node that has the fault, so that it can be seen to meet it."""
        return self.fault is not p.refuses_connections

    @property
    def about(self) -> str:
        return " ".join((self.fault.__doc__ or "").split())

    def right(self, faulty: int) -> tuple[Outcome, ...]:
        """The right outcomes with so many of three nodes faulty."""
        return {1: self.one, 2: self.two or self.one, 3: self.all}[faulty]


def early(fault: Fault, on: tuple[Carrier, ...] = MIXED, **row: Any) -> Mode:
    """The client has nothing yet: the request goes elsewhere, and fails clearly where nobody can answer."""
    return Mode(fault=fault, on=on, **({"all": (502,)} | row))


def harmless(fault: Fault, on: tuple[Carrier, ...], **row: Any) -> Mode:
    """Odd, and yet the answer is whole, whoever gives it."""
    return Mode(fault=fault, on=on, **({"all": WHOLE} | row))


def late(fault: Fault, on: tuple[Carrier, ...] = CHATS, **row: Any) -> Iterator[Mode]:
    """The client has a part: finished elsewhere where nodes tell ids, ended by a typed error where not."""
    yield Mode(fault=fault, on=on, **({"one": BROKEN, "all": BROKEN} | row))
    yield Mode(
        fault=fault, on=WITH_IDS, **({"all": ("whole", "broken")} | row | {"one": WHOLE, "two": WHOLE})
    )


_HEADS = (
    early(p.refuses_connections, (*MIXED, RESPONSES, FILES, STORED), all=(503,)),
    early(p.closes_at_once, (*PLAIN, *STREAMS)),
    early(p.resets_at_once, (*PLAIN, *STREAMS)),
    early(p.freezes_before_head, MIXED, all=GONE, settings=CHECKS),
    early(p.silent_before_head, (CHAT_STREAM, MESSAGES_STREAM), all=(504,), settings=TOKEN),
    early(p.silent_before_head, (CHAT, EMBEDDINGS), one=(504,), all=(504,), settings=TOKEN),
    early(p.half_head_then_reset),
    early(p.half_head_then_close),
    early(p.half_head_then_freezes, PAIR, all=GONE, settings=CHECKS),
    early(p.garbage_for_a_head),
    early(p.endless_head, PAIR),
    early(p.endless_header, PAIR),
    early(p.two_lengths, (CHAT, EMBEDDINGS)),
    early(p.nonsense_length, PAIR),
    harmless(p.slow_head, MIXED),
    harmless(p.informs_first, PAIR),
    early(p.informs_forever, (CHAT_STREAM,), all=(502, 504), settings=TOKEN),
    early(p.informs_forever, (CHAT,), one=(504,), all=(504,), settings=TOKEN),
)

# Nothing may run twice: the one node that has it decides.
_ONCE = (
    Mode(fault=p.resets_at_once, on=(FILES, STORED), one=(502,), all=(502,), sent=1),
    Mode(fault=p.reset_in_body, on=(FILES, STORED), one=(502,), all=(502,), sent=1),
)

_STATUSES = (
    early(p.engine_dead, MIXED, all=ENGINE),
    early(p.internal_error, (*MIXED, COUNT, RESPONSES), all=(500, 502)),
    early(p.bad_gateway, MIXED, all=(502,)),
    early(p.unavailable, (*MIXED, COUNT), all=(503,)),
    early(p.come_again, MIXED, all=(503,), after=("whole", 503)),
    early(p.gateway_timeout, MIXED, all=(502, 504)),
    early(p.limited, (*MIXED, RERANK), all=(429,), after=("whole", 503)),
    early(p.unauthorized, MIXED, all=(401,), two=("whole", 401)),
    early(p.forbidden, MIXED, all=(403,), two=("whole", 403)),
    early(p.not_found, MIXED, all=(404,), two=("whole", 404)),
    early(p.bad_request, MIXED, all=(400,), two=("whole", 400)),
    early(p.too_long, MIXED, all=(422,), two=("whole", 422)),
    early(p.redirect, MIXED),
    early(p.no_content, MIXED),
)

_NONSENSE = (
    early(p.html, (*PLAIN, CHAT_STREAM, MESSAGES_STREAM)),
    early(p.empty, (*PLAIN, CHAT_STREAM, MESSAGES_STREAM)),
    early(p.error_in_200, (CHAT, EMBEDDINGS, MESSAGES, RERANK, CHAT_STREAM), all=ENGINE),
    early(p.other_kind, (CHAT, COMPLETION, EMBEDDINGS, MESSAGES, RERANK, COUNT, RESPONSES)),
    early(p.a_list, (CHAT, EMBEDDINGS, MESSAGES, RESPONSES)),
    early(p.half_json, (CHAT, COMPLETION, EMBEDDINGS, MESSAGES, RESPONSES, RERANK)),
    early(p.twice, (CHAT, COMPLETION, EMBEDDINGS, MESSAGES, RESPONSES, RERANK)),
    early(p.json_for_a_stream, CHATS),
    early(p.stream_for_plain, (CHAT, EMBEDDINGS, MESSAGES)),
    Mode(fault=p.answer_of_another, on=(CHAT,), one=("wrong",), all=("wrong",)),
    early(p.aborted, (CHAT, COMPLETION, MESSAGES, TOOLS), all=ENGINE),
    early(p.unfinished, (CHAT, COMPLETION, MESSAGES, TOOLS)),
    early(p.no_choices, (CHAT, COMPLETION, MESSAGES)),
    early(p.too_few, (EMBEDDINGS, RERANK)),
    early(p.same_vector_twice, (EMBEDDINGS,)),
    early(p.no_count, (COUNT,)),
    early(p.incomplete_response, (RESPONSES,)),
    early(p.zipped, (CHAT, EMBEDDINGS, CHAT_STREAM), all=("whole", 502)),
)

_BODIES = (
    early(p.too_short, PLAIN),
    early(p.too_short_then_freezes, (CHAT, EMBEDDINGS), all=GONE, settings=CHECKS),
    early(p.too_long_a_body, (CHAT, EMBEDDINGS)),
    early(p.reset_in_body, PLAIN),
    early(p.bad_chunk_in_body, (CHAT, EMBEDDINGS)),
    early(p.no_last_chunk, (CHAT, EMBEDDINGS), all=("whole", 502)),
    harmless(p.body_until_close, (CHAT, EMBEDDINGS)),
    early(p.half_body_until_close, (CHAT, EMBEDDINGS)),
    harmless(p.dribbles, (CHAT, EMBEDDINGS, *CHATS, RESPONSES_STREAM, TOOLS_STREAM)),
    harmless(p.whole_then_close, (CHAT, EMBEDDINGS, *STREAMS)),
    harmless(p.whole_then_reset, (CHAT_STREAM, RESPONSES_STREAM)),
)

_BEFORE_TEXT = (
    early(s.role_then_reset, (CHAT_STREAM, MESSAGES_STREAM, RESPONSES_STREAM)),
    early(s.role_then_end, (CHAT_STREAM, MESSAGES_STREAM, RESPONSES_STREAM)),
    early(s.role_then_freezes, (CHAT_STREAM, MESSAGES_STREAM), all=GONE, settings=CHECKS),
    early(s.role_then_silent, (CHAT_STREAM, MESSAGES_STREAM), all=(504,), settings=TOKEN),
    early(s.empty_stream, STREAMS),
    early(s.done_at_once, CHATS),
    early(s.error_first, CHATS, all=ENGINE),
    early(s.refusal_first, CHATS, one=("whole", "refused", 400), all=("refused", 400)),
    early(s.abort_first, (CHAT_STREAM, MESSAGES_STREAM), all=ENGINE),
    early(s.junk_first, CHATS),
    early(s.comments_forever, (CHAT_STREAM, MESSAGES_STREAM), all=(502, 504), settings=TOKEN),
    early(s.event_without_end_first, (CHAT_STREAM, MESSAGES_STREAM), settings=EVENT),
)

_AFTER_TEXT = (
    *late(s.reset, (*STREAMS, TOOLS_STREAM, MESSAGES_TOOLS)),
    *late(s.close, STREAMS),
    *late(s.end, (*STREAMS, TOOLS_STREAM, MESSAGES_TOOLS)),
    *late(s.half_event_reset, STREAMS),
    *late(s.half_event_end, STREAMS),
    *late(s.bad_chunk, STREAMS),
    *late(s.half_chunk, CHATS),
    *late(s.done, CHATS),
    *late(s.error_event, CHATS),
    *late(s.abort, (CHAT_STREAM, MESSAGES_STREAM)),
    *late(s.junk, CHATS),
    *late(s.a_number, CHATS),
    *late(s.html_event, CHATS),
    *late(s.event_without_end, (CHAT_STREAM, MESSAGES_STREAM), settings=EVENT),
    *late(s.freezes, CHATS, settings=CHECKS),
    *late(s.silent, CHATS, settings=IDLE),
    *late(s.comments, (CHAT_STREAM, MESSAGES_STREAM), settings=IDLE),
    Mode(fault=s.response_failed, on=(RESPONSES_STREAM,), one=BROKEN, all=BROKEN),
    Mode(fault=s.repeats_text, on=(CHAT_STREAM,), one=("wrong",), all=("wrong",)),
    *late(s.finish_of_another_choice, (CHAT_STREAM, MESSAGES_STREAM)),
    *late(s.one_text_then_reset, STREAMS),
    *late(s.role_seen_then_reset, (*STREAMS, TOOLS_STREAM, MESSAGES_TOOLS)),
    *late(s.all_text_then_end, (*STREAMS, TOOLS_STREAM, MESSAGES_TOOLS)),
)

_AFTER_FINISH = (
    harmless(s.finish_then_reset, (*CHATS, TOOLS_STREAM, MESSAGES_TOOLS, RESPONSES_STREAM, CHAT_IDS)),
    harmless(s.finish_then_end, (*CHATS, RESPONSES_STREAM, CHAT_IDS)),
    harmless(s.finish_then_silent, (*CHATS, RESPONSES_STREAM, CHAT_IDS), settings=IDLE),
    harmless(s.finish_then_junk, (*CHATS, CHAT_IDS)),
    harmless(s.finish_then_error, (*CHATS, CHAT_IDS)),
    harmless(s.finish_twice, (*CHATS, CHAT_IDS)),
    harmless(s.text_after_finish, (CHAT_STREAM, MESSAGES_STREAM)),
    harmless(s.stream_twice, CHATS),
)

_UNUSUAL = (
    harmless(s.carriage_returns, (*STREAMS, CHAT_IDS)),
    harmless(s.comments_between, (*STREAMS, CHAT_IDS)),
    harmless(s.one_block, (*STREAMS, CHAT_IDS)),
    harmless(s.fields_more, CHATS),
    harmless(s.chunk_extensions, (CHAT_STREAM, RESPONSES_STREAM)),
    harmless(s.until_close, (CHAT_STREAM, MESSAGES_STREAM)),
    early(s.no_media_type, CHATS, all=("whole", 502)),
)

SECTIONS: dict[str, tuple[Mode, ...]] = {
    "Before the head": _HEADS,
    "Requests that must not run twice": _ONCE,
    "Other statuses": _STATUSES,
    "200 with nonsense": _NONSENSE,
    "Bodies that break": _BODIES,
    "Streams that break before their first text": _BEFORE_TEXT,
    "Streams that break after their first text": _AFTER_TEXT,
    "Streams that are odd after the end of their answer": _AFTER_FINISH,
    "Streams that are unusual and whole": _UNUSUAL,
}
MODES: tuple[Mode, ...] = tuple(mode for modes in SECTIONS.values() for mode in modes)


def cases(*dialects: str) -> list[tuple[Mode, Carrier, int]]:
    """Every row with each of its kinds of request, and one, two or all of three nodes faulty.

    All three counts are played on the first kind of a row, one on the others, and three where the error has
    the shape of another dialect: what happens then does not depend on the dialect.
    """
    return [
        (mode, carrier, faulty)
        for mode in MODES
        for carrier in mode.on
        if carrier.dialect in dialects
        for faulty in _counts(mode, carrier)
    ]


def _counts(mode: Mode, carrier: Carrier) -> tuple[int, ...]:
    if carrier == mode.on[0]:
        return (1, 2, 3)
    shaped = carrier.dialect == "messages" and any(isinstance(outcome, int) for outcome in mode.all)
    return (1, 3) if shaped else (1,)


def name_of(value: object) -> str:
    """How a part of a case shows in the name of its test."""
    return (
        value.name if isinstance(value, Mode) else f"{value}-faulty" if isinstance(value, int) else str(value)
    )
