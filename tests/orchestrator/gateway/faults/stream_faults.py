"""What a node can do wrong with a stream of events: each function plays one fault.

Its docstring is its description. A fault that strikes in the middle waits until the client has its first
text, so that it meets a stream that has begun.
"""

from __future__ import annotations

import asyncio

from tests.orchestrator.gateway.faults.answers import DONE, RESPONSE, chunk, event
from tests.orchestrator.gateway.faults.playing import Fault, Play, error

# -- streams that break before their first text


async def role_then_reset(play: Play) -> None:
    """The role, then a reset."""
    await play.head()
    await play.chunks(play.script.events[0])
    play.reset()


async def role_then_end(play: Play) -> None:
    """The role, then the proper end of the stream."""
    await play.head()
    await play.chunks(play.script.events[0])
    await play.end()


async def role_then_freezes(play: Play) -> None:
    """The role, then the node freezes."""
    await play.head()
    await play.chunks(play.script.events[0])
    await play.freeze()


async def role_then_silent(play: Play) -> None:
    """The role, then nothing; the node answers its checks and does nothing else."""
    await play.head()
    await play.chunks(play.script.events[0])
    await play.leave()


async def empty_stream(play: Play) -> None:
    """A stream without any event."""
    await play.head()
    await play.end()


async def done_at_once(play: Play) -> None:
    """[DONE] for a whole stream."""
    await play.head()
    await play.chunks(DONE)
    await play.end()


async def error_first(play: Play) -> None:
    """An error event of the engine before any text, then [DONE]: how vLLM tells that its engine died."""
    await play.head()
    await play.chunks(event(error(500, "EngineCore encountered an issue")), DONE)
    await play.end()


async def refusal_first(play: Play) -> None:
    """An error event that blames the request (400) before any text."""
    await play.head()
    await play.chunks(event(error(400, "bad schema", "BadRequestError")), DONE)
    await play.end()


async def abort_first(play: Play) -> None:
    """An abort before any text."""
    await play.head()
    await play.chunks(play.script.events[0], chunk({}, "abort"), DONE)
    await play.end()


async def junk_first(play: Play) -> None:
    """An event that is no JSON before any text."""
    await play.head()
    await play.chunks(b"data: Internal Server Error\n\n")
    await play.end()


async def comments_forever(play: Play) -> None:
    """Comments without an end and never a text."""
    await play.head()
    while not play.talk.writer.transport.is_closing():
        await play.chunks(b": still here\n\n" * 20)
        await asyncio.sleep(0.01)


async def event_without_end_first(play: Play) -> None:
    """One event that never ends."""
    await play.head()
    while not play.talk.writer.transport.is_closing():
        await play.chunks(b"data: " + b"x" * 65536)
        await asyncio.sleep(0)


# -- streams that break after their first text


def in_the_middle(then: Fault) -> Fault:
    """A fault that strikes a stream whose client has text already."""

    async def play_it(play: Play) -> None:
        await play.begin()
        await then(play)

    play_it.__name__, play_it.__doc__ = f"text_then_{then.__name__}", f"Text, then: {then.__doc__}"
    return play_it


@in_the_middle
async def reset(play: Play) -> None:
    """the connection is reset."""
    play.reset()


@in_the_middle
async def close(play: Play) -> None:
    """the connection ends in the middle of the chunks."""
    play.close()


@in_the_middle
async def end(play: Play) -> None:
    """the stream ends properly."""
    await play.end()


@in_the_middle
async def half_event_reset(play: Play) -> None:
    """half an event and a reset."""
    await play.chunks(play.script.events[play.middle][:-12])
    play.reset()


@in_the_middle
async def half_event_end(play: Play) -> None:
    """half an event and the proper end of the stream."""
    await play.chunks(play.script.events[play.middle][:-12])
    await play.end()


@in_the_middle
async def bad_chunk(play: Play) -> None:
    """a chunk of a size that is no number, the connection stays open."""
    await play.send(b"zz\r\nnonsense\r\n")
    await play.leave()


@in_the_middle
async def half_chunk(play: Play) -> None:
    """a chunk shorter than its size, the connection ends."""
    await play.send(b"400\r\ndata: {")
    play.close()


@in_the_middle
async def done(play: Play) -> None:
    """[DONE] without a finish_reason."""
    await play.chunks(DONE)
    await play.end()


@in_the_middle
async def error_event(play: Play) -> None:
    """an error event of the engine and [DONE]."""
    await play.chunks(event(error(500, "EngineCore encountered an issue")), DONE)
    await play.end()


@in_the_middle
async def abort(play: Play) -> None:
    """finish_reason abort and [DONE]."""
    await play.chunks(chunk({}, "abort"), DONE)
    await play.end()


@in_the_middle
async def junk(play: Play) -> None:
    """an event that is no JSON, and the rest as if nothing were."""
    await play.chunks(b"data: Internal Server Error\n\n", *play.script.events[play.middle :])
    await play.end()


@in_the_middle
async def a_number(play: Play) -> None:
    """an event that is JSON but no object, and the proper end."""
    await play.chunks(b"data: 17\n\n", DONE)
    await play.end()


@in_the_middle
async def event_without_end(play: Play) -> None:
    """one event that never ends."""
    while not play.talk.writer.transport.is_closing():
        await play.chunks(b"data: " + b"x" * 65536)
        await asyncio.sleep(0)


@in_the_middle
async def freezes(play: Play) -> None:
    """the node freezes."""
    await play.freeze()


@in_the_middle
async def silent(play: Play) -> None:
    """nothing; the node answers its checks and does nothing else."""
    await play.leave()


@in_the_middle
async def comments(play: Play) -> None:
    """comments without an end and no more text."""
    while not play.talk.writer.transport.is_closing():
        await play.chunks(b": still here\n\n" * 20)
        await asyncio.sleep(0.01)


@in_the_middle
async def response_failed(play: Play) -> None:
    """the event of a response that failed."""
    failure = {"code": "server_error", "message": "EngineCore encountered an issue"}
    response = {**RESPONSE, "status": "failed", "error": failure}
    value = {"type": "response.failed", "sequence_number": 99, "response": response}
    await play.chunks(event(value, "response.failed"))
    await play.end()


@in_the_middle
async def repeats_text(play: Play) -> None:
    """the last piece of text again, and the rest."""
    await play.chunks(*play.script.events[play.middle - 1 :])
    await play.end()


@in_the_middle
async def html_event(play: Play) -> None:
    """a page of HTML without any event in it, and the proper end."""
    await play.chunks(b"<html><body>502 Bad Gateway</body></html>")
    await play.end()


async def role_seen_then_reset(play: Play) -> None:
    """All but the event that ends the answer, then a reset."""
    await play.begin(play.index("finish"))
    play.reset()


async def all_text_then_end(play: Play) -> None:
    """All but the event that ends the answer, then the proper end of the stream."""
    await play.begin(play.index("finish"))
    await play.end()


async def one_text_then_reset(play: Play) -> None:
    """The first text alone, then a reset."""
    await play.begin(play.index("text") + 1)
    play.reset()


async def finish_of_another_choice(play: Play) -> None:
    """Text, then the end of a choice that nobody asked for, and [DONE]."""
    await play.begin()
    await play.chunks(chunk({}, "stop", index=3), DONE)
    await play.end()


# -- streams that are odd after their answer is whole


async def finish_then_reset(play: Play) -> None:
    """The whole answer, then a reset instead of [DONE]."""
    await play.finish()
    await play.part.wait()
    play.reset()


async def finish_then_end(play: Play) -> None:
    """The whole answer and the proper end of the stream without [DONE]."""
    await play.finish()
    await play.end()


async def finish_then_silent(play: Play) -> None:
    """The whole answer, then nothing: no [DONE], no end."""
    await play.finish()
    await play.leave()


async def finish_then_junk(play: Play) -> None:
    """The whole answer, then bytes that are no event."""
    await play.finish()
    await play.chunks(b"\x00\x01 nonsense \xff\n\n", b"data: [1,")
    await play.end()


async def finish_then_error(play: Play) -> None:
    """The whole answer, then an error event and [DONE]."""
    await play.finish()
    await play.chunks(event(error(500, "EngineCore encountered an issue")), DONE)
    await play.end()


async def finish_twice(play: Play) -> None:
    """The event that ends the answer comes twice."""
    await play.finish()
    await play.chunks(*play.script.events[play.index("finish") :])
    await play.end()


async def text_after_finish(play: Play) -> None:
    """More text after the answer has ended."""
    await play.finish()
    await play.chunks(chunk({"content": " and more"}), *play.script.events[play.index("finish") + 1 :])
    await play.end()


async def stream_twice(play: Play) -> None:
    """The whole stream twice in one answer."""
    await play.head()
    await play.chunks(*play.script.events, *play.script.events)
    await play.end()


# -- streams that are unusual and whole


async def carriage_returns(play: Play) -> None:
    """A good stream whose lines end with CR LF."""
    await play.head()
    await play.chunks(*(data.replace(b"\n", b"\r\n") for data in play.script.events))
    await play.end()


async def comments_between(play: Play) -> None:
    """A good stream with comments between its events."""
    await play.head()
    for data in play.script.events:
        await play.chunks(b": ping\n\n", data)
    await play.end()


async def one_block(play: Play) -> None:
    """A good stream in one piece."""
    await play.head()
    await play.chunks(b"".join(play.script.events))
    await play.end()


async def fields_more(play: Play) -> None:
    """A good stream whose events carry ids, retry times and names of their own."""
    await play.head()
    for data in play.script.events:
        await play.chunks(b"id: 7\nretry: 10\n" + data)
    await play.end()


async def chunk_extensions(play: Play) -> None:
    """A good stream whose chunks carry extensions, with trailers at its end."""
    await play.head()
    for data in play.script.events:
        await play.send(b'%x;note="x"\r\n%s\r\n' % (len(data), data))
    await play.send(b"0\r\nX-Took: 3\r\n\r\n")


async def until_close(play: Play) -> None:
    """A good stream without chunks, which the end of the connection ends."""
    await play.send(f"HTTP/1.0 200 OK\r\nContent-Type: {play.script.kind}\r\n\r\n".encode())
    await play.send(b"".join(play.script.events))
    play.close()


async def no_media_type(play: Play) -> None:
    """A good stream that is called application/octet-stream."""
    await play.head(kind="application/octet-stream")
    await play.chunks(*play.script.events)
    await play.end()
