"""What a listener makes of requests that are broken: an answer where one can be sent, and few log lines.

A caller that sends garbage, hangs up in the middle of a body or speaks another protocol is no fault of ours,
and may do so ten thousand times a second. It gets 400 and is counted; one line says so at a bounded rate. An
exception in a handler is a fault of ours: its traceback goes to the log, and none of it to the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from cloud.logger import structlog

log = structlog.get_logger("serving")

_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
_NO_TEXT: Final = "surrogates not allowed"
"""Of bytes in a head that are no UTF-8, where aiohttp repeats them: Python keeps such bytes as surrogates."""
_WHAT_MOST: Final = 120
"""Characters of what a caller sent that go into a log line."""

ErrorAnswer = Callable[[int, str], web.Response]
"""Makes an error's answer of a status and a sentence, in the shape of the listener."""


def plain_error(status: int, text: str) -> web.Response:
    """An error as {"error": sentence}."""
    return web.json_response({"error": text}, status=status)


class Complaints:
    """Log lines of one event at a bounded rate: the first at once, then one for all that came meanwhile.

    `say` logs the event with the keys it gets. The pause between two lines doubles from a second to a minute
    while they go on.
    """

    def __init__(self, say: Callable[..., object]) -> None:
        self._say = say
        self._pause, self._more = _PAUSE, 0
        self._last: dict[str, object] = {}
        self._timer: asyncio.TimerHandle | None = None

    def note(self, **values: object) -> None:
        """Say it now, or with the next line."""
        if self._timer is None:
            self._say(**values)
            self._pause = _PAUSE
            self._wait()
        else:
            self._more += 1
            self._last = {name: value for name, value in values.items() if name != "exc_info"}

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._pause, self._over)

    def _over(self) -> None:
        self._timer = None
        if self._more:
            self._say(count=self._more, **self._last)
            self._more, self._pause = 0, min(_LONGEST_PAUSE, 2 * self._pause)
            self._wait()


class Connection(web.RequestHandler):
    """One connection, which speaks of what goes wrong on it to its listener."""

    __slots__ = ("_listener",)

    def __init__(self, manager: Server, **more: Any) -> None:
        super().__init__(manager, **more)
        self._listener = manager

    def data_received(self, data: bytes) -> None:
        """Parse what came. What the parser does not expect itself ends the connection."""
        try:
            super().data_received(data)
        except Exception as error:
            self._note(error)
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to a request that is broken, or that broke a handler of ours."""
        if exc is not None:
            self._note(exc, request)
        if request.writer.output_size > 0:
            raise ConnectionResetError("a part of the answer was sent already")
        if status == 500 and exc is not None and _is_callers(exc, request):
            status, message = 400, "the request is broken"
        if status == 500:
            text = "this request met a fault of the server; its log has the reason"
        else:
            text = " ".join((message or "the request is broken").split())[:_WHAT_MOST]
        answer = self._listener.error_answer(status, text)
        answer.force_close()
        return answer

    def log_exception(self, *args: Any, **more: Any) -> None:
        """What ended the connection beside any request, such as a body that was left unread and then cut."""
        error = more.get("exc_info")
        if isinstance(error, BaseException):
            self._note(error)
        else:
            self._listener.crashed.note(what=str(args[0]) if args else "")

    def _note(self, error: BaseException, request: web.BaseRequest | None = None) -> None:
        if _is_callers(error, request):
            self._listener.malformed.note(peer=peer_name(self.peername), what=_what(error))
        else:
            where = {} if request is None else {"method": request.method, "path": request.path[:_WHAT_MOST]}
            self._listener.crashed.note(**where, exc_info=error)


class Server(web.Server):
    """aiohttp's server with our answers to broken requests. `listener` names it in log lines."""

    def __init__(
        self, *args: Any, listener: str, error_answer: ErrorAnswer = plain_error, **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self.error_answer = error_answer
        self.malformed = Complaints(partial(log.warning, "request.malformed", listener=listener))
        self.crashed = Complaints(partial(log.error, "request.crashed", listener=listener))

    def __call__(self) -> web.RequestHandler:
        """A new connection."""
        return Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application on such a server."""

    def __init__(
        self, app: web.Application, *, listener: str, error_answer: ErrorAnswer = plain_error, **more: Any
    ) -> None:
        super().__init__(app, access_log=None, handle_signals=False, **more)
        self._listener, self._error_answer = listener, error_answer

    @property
    def serving(self) -> Server:
        """The server, after `setup`."""
        return cast(Server, self.server)

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return Server(
            made.request_handler,
            listener=self._listener,
            error_answer=self._error_answer,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            loop=made._loop,
            **made._kwargs,
        )


def _is_callers(error: BaseException, request: web.BaseRequest | None) -> bool:
    """Whether an exception comes of what the caller sent, or of its going away; else the fault is ours."""
    if isinstance(error, HttpProcessingError | web.RequestPayloadError):
        return True
    if isinstance(error, UnicodeEncodeError) and error.reason == _NO_TEXT:
        return True
    if request is None:
        return isinstance(error, ConnectionError)
    return error is request.content.exception() or (
        isinstance(error, ConnectionError) and request.transport is None
    )


def _what(error: BaseException) -> str:
    if isinstance(error, ConnectionError):
        return "hung up in the middle of a request"
    if isinstance(error, UnicodeEncodeError):
        return "a header that is not UTF-8"
    text = getattr(error, "message", "") or str(error) or type(error).__name__
    return " ".join(text.split())[:_WHAT_MOST]


def peer_name(address: object) -> str:
    """An address as the socket gives it, for log lines."""
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "local"
