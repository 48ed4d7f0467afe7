"""What answers requests: a pool's lane, or a provider."""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from orchestrator.gateway.job import Job
from policies.routing import BackendView, Candidate


class Backend(Protocol):
    """One pool or provider, as the router sees it. It serves any number of routes and models at a time."""

    def view(self, model: str = "", /) -> BackendView:
        """How it is now, for a model there: read for every request of a route with several backends.

        What can be had only once it is loaded is no trouble until a request has asked for it: that is told in
        words.
        """
        ...

    async def serve(self, job: Job, candidate: Candidate) -> web.StreamResponse:
        """Answer the request: a whole answer that is still to be sent, or a stream that was.

        `candidate.backend.model` is the model there. The request waits for `candidate.patience` seconds at
        most (None: as long as this backend lets it), and leaves at once on a trouble in `candidate.leaves`.
        What came of the request is left in `job.outcome`, what its client has in `job.response`. A stream
        that breaks is ended here, typed (`Endings.cut`).

        Raises `endings.Unserved` where the client has nothing and another backend may be tried,
        `endings.Turned` where the request ends without, `endings.ClientGone`.
        """
        ...
