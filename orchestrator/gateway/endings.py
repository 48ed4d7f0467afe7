"""How requests end where no backend brought a whole answer: with an error of ours, a backend's, or a cut."""

from __future__ import annotations

import contextlib

from aiohttp import hdrs, web
from multidict import CIMultiDict

from cloud.logger import structlog
from orchestrator.gateway.dialects import ErrorShape
from orchestrator.gateway.dialects.errors import openai_error
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.job import Job
from orchestrator.gateway.metrics import Outcome
from orchestrator.gateway.replies import NODE, REQUEST_ID, error_response
from policies.routing import Trouble

log = structlog.get_logger("gateway")

BUSY = frozenset({429, 503})
"""Statuses that tell a client to come again later."""

_FIRST_SERVER_ERROR = 500
_UNAVAILABLE = 503
_LONGEST_RETRY_AFTER = 3600.0


class Answer:
    """A whole answer of a backend that has not been sent."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: CIMultiDict[str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def retry_after(self) -> float | None:
        """Seconds after which the backend wants to be asked again; None when it does not say."""
        try:
            seconds = float(self.headers.get(hdrs.RETRY_AFTER, ""))
        except ValueError:
            return None
        return min(seconds, _LONGEST_RETRY_AFTER) if seconds >= 0 else None


class ClientGone(Exception):
    """The client closed its connection while its answer was being written."""


class Turned(Exception):
    """The request ends here with this answer: ours, or an error that a backend gave."""

    def __init__(self, response: web.Response, outcome: Outcome) -> None:
        super().__init__(response.status)
        self.response = response
        self.outcome = outcome


class Unserved(Exception):
    """A backend did not answer, and its client has nothing: another one may.

    `why` says what went wrong in words that follow the backend's name; `turned` is how the request ends where
    nobody else steps in. `said`: that answer is the client's to know, before what other backends met: the
    backend gave it, or the client's own limits are in the way.
    """

    def __init__(self, trouble: Trouble, why: str, turned: Turned, *, said: bool = False) -> None:
        super().__init__(why)
        self.trouble = trouble
        self.why = why
        self.turned = turned
        self.said = said


class Endings:
    """Makes the last answers. `retry_after`: seconds in `Retry-After` of a refusal."""

    def __init__(self, retry_after: int) -> None:
        self.retry_after = retry_after

    def turned(
        self, job: Job, status: int, code: str, message: str, *, node: str = "", param: str = ""
    ) -> Turned:
        """An error of ours; `param` names the field at fault."""
        failed = status >= _FIRST_SERVER_ERROR
        response = error_response(
            status,
            code,
            message,
            request_id=job.exchange.id,
            retry_after=self.retry_after if failed else None,
            shape=shape_for(job),
            param=param,
        )
        if node:
            response.headers[NODE] = node
        if status == _UNAVAILABLE:
            return Turned(response, Outcome.REFUSED)
        return Turned(response, Outcome.FAILED if failed else Outcome.BAD_REQUEST)

    def said(self, job: Job, answer: Answer) -> Turned:
        """A backend's error, in the client's shape."""
        status, headers = answer.status, answer.headers
        body = job.edge.failed(status, answer.body, job.exchange.id)
        headers[REQUEST_ID] = job.exchange.id
        if status in BUSY:
            headers.setdefault(hdrs.RETRY_AFTER, str(self.retry_after))
        if body is not answer.body:
            headers[hdrs.CONTENT_TYPE] = "application/json"
            headers.pop(hdrs.CONTENT_ENCODING, None)
        outcome = Outcome.CLIENT_ERROR if status < _FIRST_SERVER_ERROR else Outcome.UPSTREAM_ERROR
        return Turned(web.Response(status=status, headers=headers, body=body), outcome)

    async def cut(self, job: Job, failure: Failure, detail: str) -> web.StreamResponse:
        """Tell the client that the rest of its answer will not come."""
        out = job.response
        if out is None:
            raise AssertionError(f"request {job.exchange.id}: nothing was begun")
        log.warning("stream.cut", request_id=job.exchange.id, reason=failure.value, detail=detail)
        job.outcome = Outcome.CUT
        if out.content_type == "text/event-stream":
            with contextlib.suppress(ConnectionError):
                await out.write(job.interrupted(failure, detail))
        elif job.request.transport is not None:
            job.request.transport.abort()
        return out


def shape_for(job: Job | None) -> ErrorShape:
    """The shape of errors for a request, OpenAI's before it was read."""
    return openai_error if job is None else job.asked.dialect.error
