"""What a node can do wrong with a head, a status or a plain body: each function plays one fault.

Its docstring is its description. Nothing here reads a clock: a fault that waits does so until the gateway
leaves.
"""

from __future__ import annotations

import asyncio
import gzip
import json

from tests.orchestrator.gateway.faults.answers import DONE, chunk, script_for
from tests.orchestrator.gateway.faults.playing import Fault, Play, error

_MANY = 20_000


# -- before the head


async def refuses_connections(play: Play) -> None:
    """The port is closed."""
    raise AssertionError("nothing reaches a closed port")


async def closes_at_once(play: Play) -> None:
    """The connection ends properly before any byte of the answer."""
    play.close()


async def resets_at_once(play: Play) -> None:
    """The connection is reset before any byte of the answer."""
    play.reset()


async def freezes_before_head(play: Play) -> None:
    """The node freezes before any byte: its checks get no answer either."""
    await play.freeze()


async def silent_before_head(play: Play) -> None:
    """The request gets no byte; the node answers its checks and does nothing else."""
    await play.leave()


async def half_head_then_reset(play: Play) -> None:
    """Half a head, then a reset."""
    await play.send(b"HTTP/1.1 200 OK\r\nContent-Ty")
    play.reset()


async def half_head_then_close(play: Play) -> None:
    """Half a head, then a proper end."""
    await play.send(b"HTTP/1.1 200 OK\r\nContent-Ty")
    play.close()


async def half_head_then_freezes(play: Play) -> None:
    """Half a head, then the node freezes."""
    await play.send(b"HTTP/1.1 200 OK\r\nContent-Ty")
    await play.freeze()


async def garbage_for_a_head(play: Play) -> None:
    """What comes is not HTTP."""
    await play.send(b"\x00\x01 this is not HTTP\r\n\r\n")
    play.close()


async def endless_head(play: Play) -> None:
    """A head of more than 64 kB, header after header."""
    await play.send(b"HTTP/1.1 200 OK\r\n" + b"X-More: and more\r\n" * _MANY)
    await play.leave()


async def endless_header(play: Play) -> None:
    """One header of 1 MB."""
    await play.send(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1_000_000)
    await play.leave()


async def two_lengths(play: Play) -> None:
    """Two Content-Lengths that differ."""
    size = len(play.script.body) or 9
    await play.head(more=f"Content-Length: {size}\r\n", length=size + 7)
    await play.send(play.script.body)
    play.close()


async def nonsense_length(play: Play) -> None:
    """A Content-Length that is no number."""
    await play.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: -8\r\n\r\n{}")
    play.close()


async def slow_head(play: Play) -> None:
    """A good answer whose head comes byte by byte."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {play.script.kind}\r\n"
    if play.script.events:
        head += "Transfer-Encoding: chunked\r\n\r\n"
    else:
        head += f"Content-Length: {len(play.script.body)}\r\n\r\n"
    for byte in head.encode():
        await play.send(bytes((byte,)))
        await asyncio.sleep(0)
    if play.script.events:
        await play.chunks(*play.script.events)
        await play.end()
    else:
        await play.send(play.script.body)


async def informs_first(play: Play) -> None:
    """Two interim answers (100, 103), then a good one."""
    await play.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n")
    await play.whole()


async def informs_forever(play: Play) -> None:
    """Interim answers (102) without an end."""
    while not play.talk.writer.transport.is_closing():
        await play.send(b"HTTP/1.1 102 Processing\r\n\r\n" * 20)
        await asyncio.sleep(0.01)


# -- answers that are no answers


def status(line: str, body: object, more: str = "", about: str = "") -> Fault:
    """Every request gets this status at once."""

    async def play_it(play: Play) -> None:
        await play.json(line, body, more)

    play_it.__name__ = f"answers_{line.split()[0]}" + (f"_{about.replace(' ', '_')}" if about else "")
    play_it.__doc__ = f"The answer is {line}" + (f", {about}." if about else ".")
    return play_it


engine_dead = status(
    "500 Internal Server Error", error(500, "EngineCore encountered an issue"), about="engine dead"
)
internal_error = status("500 Internal Server Error", error(500, "list index out of range"))
bad_gateway = status("502 Bad Gateway", {"detail": "bad gateway"})
unavailable = status("503 Service Unavailable", error(503, "busy", "Service Unavailable"))
come_again = status("503 Service Unavailable", error(503, "busy"), "Retry-After: 7\r\n", "with Retry-After")
gateway_timeout = status("504 Gateway Timeout", {"detail": "timeout"})
limited = status("429 Too Many Requests", error(429, "slow down"), "Retry-After: 7\r\n", "with Retry-After")
unauthorized = status("401 Unauthorized", {"error": "Unauthorized"})
forbidden = status("403 Forbidden", error(403, "no", "PermissionDeniedError"))
not_found = status("404 Not Found", error(404, "The model `m` does not exist.", "NotFoundError"))
bad_request = status("400 Bad Request", error(400, "bad schema", "BadRequestError"))
too_long = status("422 Unprocessable Entity", error(422, "too long", "UnprocessableEntityError"))
redirect = status("307 Temporary Redirect", {}, "Location: http://127.0.0.1:9/\r\n")
no_content = status("204 No Content", {})


async def html(play: Play) -> None:
    """200 with a page of HTML."""
    await play.talk.reply("200 OK", b"<html><body>Welcome to nginx!</body></html>", "text/html")


async def empty(play: Play) -> None:
    """200 with an empty body."""
    await play.talk.reply("200 OK", b"", play.script.kind)


async def error_in_200(play: Play) -> None:
    """200 with an error for a body."""
    await play.json("200 OK", error(500, "EngineCore encountered an issue"))


async def other_kind(play: Play) -> None:
    """200 with the JSON of another dialect."""
    await play.json("200 OK", {"object": "list", "models": ["m"]})


async def a_list(play: Play) -> None:
    """200 with JSON that is a list."""
    await play.json("200 OK", [1, 2, 3])


async def half_json(play: Play) -> None:
    """200 with half of the JSON and a Content-Length that fits it."""
    await play.talk.reply("200 OK", play.script.body[: len(play.script.body) // 2])


async def twice(play: Play) -> None:
    """The whole answer twice in one body."""
    await play.talk.reply("200 OK", play.script.body * 2)


async def json_for_a_stream(play: Play) -> None:
    """A plain answer to a request for a stream."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    await play.json("200 OK", {"id": "x", "object": "chat.completion", "choices": [choice]})


async def stream_for_plain(play: Play) -> None:
    """A stream of events where a plain answer was asked for."""
    await play.head(kind="text/event-stream")
    await play.chunks(chunk({"content": "x"}), chunk({}, "stop"), DONE)
    await play.end()


async def answer_of_another(play: Play) -> None:
    """The good answer of another request."""
    script = script_for(play.talk.request.path, play.talk.request.body.replace(play.marker, b"q00000000"))
    assert script is not None
    await play.talk.reply("200 OK", script.body)


async def aborted(play: Play) -> None:
    """200 with a choice that the engine aborted."""
    await play.json("200 OK", _with(play, finish_reason="abort"))


async def unfinished(play: Play) -> None:
    """200 with a choice that has no finish_reason."""
    await play.json("200 OK", _with(play, finish_reason=None))


async def no_choices(play: Play) -> None:
    """200 with an empty list of choices."""
    await play.json("200 OK", json.loads(play.script.body) | {"choices": []})


async def too_few(play: Play) -> None:
    """One result fewer than asked for."""
    value = json.loads(play.script.body)
    key = "data" if "data" in value else "results"
    await play.json("200 OK", value | {key: value[key][:-1]})


async def same_vector_twice(play: Play) -> None:
    """The right number of vectors, two of them for the same input."""
    value = json.loads(play.script.body)
    await play.json("200 OK", value | {"data": [value["data"][0]] * 2})


async def no_count(play: Play) -> None:
    """An answer without the count that was asked for."""
    await play.json("200 OK", {"tokens": []})


async def incomplete_response(play: Play) -> None:
    """A response whose status is still in_progress."""
    await play.json("200 OK", json.loads(play.script.body) | {"status": "in_progress"})


async def zipped(play: Play) -> None:
    """A good answer, compressed although plain bytes were asked for."""
    data = gzip.compress(play.script.body or b"".join(play.script.events))
    await play.head("Content-Encoding: gzip\r\n", len(data))
    await play.send(data)


def _with(play: Play, **fields: object) -> dict[str, object]:
    value: dict[str, object] = json.loads(play.script.body)
    choices = value["choices"]
    assert isinstance(choices, list)
    choices[0] |= fields
    return value


# -- bodies that break


async def too_short(play: Play) -> None:
    """Content-Length is more than comes before the connection ends."""
    await play.head(length=len(play.script.body) + 50)
    await play.send(play.script.body)
    play.close()


async def too_short_then_freezes(play: Play) -> None:
    """Content-Length is more than comes before the node freezes."""
    await play.head(length=len(play.script.body) + 50)
    await play.send(play.script.body)
    await play.freeze()


async def too_long_a_body(play: Play) -> None:
    """Content-Length is less than comes; the rest would be the head of the next answer."""
    await play.head(length=len(play.script.body) - 9)
    await play.send(play.script.body)


async def reset_in_body(play: Play) -> None:
    """A reset in the middle of the body."""
    await play.head(length=len(play.script.body))
    await play.send(play.script.body[:20])
    play.reset()


async def bad_chunk_in_body(play: Play) -> None:
    """A body in chunks, one of a size that is no number."""
    await play.head()
    await play.chunks(play.script.body[:20])
    await play.send(b"zz\r\nnonsense\r\n")
    await play.leave()


async def no_last_chunk(play: Play) -> None:
    """All of the body in chunks, and the connection ends without the last, empty one."""
    await play.head()
    await play.chunks(play.script.body)
    play.close()


async def body_until_close(play: Play) -> None:
    """A good body without a length, which the end of the connection ends."""
    await play.send(f"HTTP/1.0 200 OK\r\nContent-Type: {play.script.kind}\r\n\r\n".encode())
    await play.send(play.script.body)
    play.close()


async def half_body_until_close(play: Play) -> None:
    """Half a body without a length; the end of the connection ends it."""
    await play.send(f"HTTP/1.0 200 OK\r\nContent-Type: {play.script.kind}\r\n\r\n".encode())
    await play.send(play.script.body[: len(play.script.body) // 2])
    play.close()


async def dribbles(play: Play) -> None:
    """A good answer, byte by byte."""
    if not play.script.events:
        await play.head(length=len(play.script.body))
        for byte in play.script.body:
            await play.send(bytes((byte,)))
            await asyncio.sleep(0)
        return
    await play.head()
    for byte in b"".join(play.script.events):
        await play.chunks(bytes((byte,)))
        await asyncio.sleep(0)
    await play.end()


async def whole_then_reset(play: Play) -> None:
    """A good answer, then a reset."""
    await play.whole()
    await play.part.wait()
    play.reset()


async def whole_then_close(play: Play) -> None:
    """Good answers; the node closes each connection after one without saying so."""
    await play.whole()
    play.close()
