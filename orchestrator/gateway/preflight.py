"""The question that a browser asks before it sends what a page wants (Fetch, 3.3.2 and 4.8).

It comes without the key that the page will send, so where clients need keys it is answered here: nobody
without one reaches a node, or waits in a queue for it. It is always allowed, since the request itself needs
the key; whether the page may read the answer is for the engine to say, in that.
"""

from __future__ import annotations

import re
from typing import Final

from aiohttp import hdrs, web

from orchestrator.gateway.replies import REQUEST_ID

_REMEMBERED: Final = "600"  # s in which a browser does not ask again
_NAMES: Final = re.compile(r"[A-Za-z0-9_-]+(?: ?, ?[A-Za-z0-9_-]+)*")


def is_preflight(request: web.BaseRequest) -> bool:
    """Whether a browser asks for what a page may send."""
    headers = request.headers
    return (
        request.method == hdrs.METH_OPTIONS
        and hdrs.ORIGIN in headers
        and hdrs.ACCESS_CONTROL_REQUEST_METHOD in headers
        and not request.body_exists
    )


def allowed(request: web.BaseRequest, methods: str, request_id: str) -> web.Response:
    """The answer: any page may send these methods, and the headers that it asks for."""
    wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
    headers = {
        REQUEST_ID: request_id,
        hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*",
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: methods,
        hdrs.ACCESS_CONTROL_MAX_AGE: _REMEMBERED,
        hdrs.VARY: hdrs.ACCESS_CONTROL_REQUEST_HEADERS,
    }
    if _NAMES.fullmatch(wanted):
        headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = wanted
    return web.Response(status=204, headers=headers)
