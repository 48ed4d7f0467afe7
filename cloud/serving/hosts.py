"""Whom a listener answers: requests for a name of its own, and changes that no foreign page asks for.

A browser runs the scripts of strangers on the operator's own machine, and sends their requests to whatever it
can reach, with no password needed: a port forwarded to the control socket, or the monitoring port. Two things
tell such a request apart. Its `Host` is a name of the stranger's where that name was made to lead here (DNS
rebinding), so only names of ours are answered, and addresses, which cannot be made to lead elsewhere. And a
page of another origin may send only bodies of a form's types without being allowed to first (CORS), so a
change needs `application/json`; browsers say besides where a request comes from.

Sources: RFC 9110 (7.2 Host, 7.4 misdirected requests), RFC 9112 3.2; the Fetch standard (CORS-safelisted
request headers); W3C Fetch Metadata.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from cloud.logger import structlog
from cloud.serving.requests import Complaints, ErrorAnswer

log = structlog.get_logger("serving")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ANY: Final = "*"
"""Among the names of a listener: it answers to every name."""

_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,254})(?::([0-9]{0,5}))?")
_READING: Final = frozenset({hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS, hdrs.METH_TRACE})
_OWN_SITES: Final = frozenset({"same-origin", "none"})
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}


class Hosts:
    """The names of one listener. Addresses and `localhost` are always among them.

    `table` is that of the configuration whose `allowed_hosts` adds more: with one, the answer to who used
    another name says what to write, and so does a line in the log of `listener`.
    """

    def __init__(self, names: Iterable[str] = (), *, table: str = "", listener: str = "") -> None:
        self.names = {"localhost", *(_plain(name) for name in names if name)}
        self._table = table
        self._refused = Complaints(partial(log.warning, "request.misdirected", listener=listener))

    def add_own_names(self) -> threading.Thread:
        """Answer to the names of this machine too. Its full name may take the resolver a while.

        Returns the thread that asks for it.
        """
        self.names.add(_plain(socket.gethostname()))
        asking = threading.Thread(target=self._ask_resolver, name="own name", daemon=True)
        asking.start()
        return asking

    def _ask_resolver(self) -> None:
        with contextlib.suppress(OSError, UnicodeError):
            for found in socket.getaddrinfo(socket.gethostname(), None, flags=socket.AI_CANONNAME):
                if found[3]:
                    self.names.add(_plain(found[3]))

    def accepts(self, authority: str) -> bool:
        """Whether `host` or `host:port` is a name of this listener's, with any port."""
        match = _AUTHORITY.fullmatch(authority)
        if match is None:
            return False
        name = _plain(match[1])
        return ANY in self.names or name in self.names or _is_address(name)

    def refusal(self, request: web.BaseRequest) -> tuple[int, str] | None:
        """The status and sentence for a request that is for somebody else; None for one that is for us.

        HTTP/1.0 without a `Host` is answered: health checks of balancers send it, browsers never do.
        """
        given = request.headers.getall(hdrs.HOST, [])
        if len(given) > 1 or (not given and request.version >= (1, 1)):
            return 400, "a request has exactly one Host header"
        asked = [*given, *_absolute(request)]
        foreign = next((name for name in asked if not self.accepts(name)), None)
        if foreign is None:
            return None
        match, advice = _AUTHORITY.fullmatch(foreign), "ask for localhost"
        if self._table and match is not None:
            name = _plain(match[1])
            setting = f'allowed_hosts = ["{name}"] in [{self._table}]'
            advice = f"if it should be, write {setting} and restart the listener"
            self._refused.note(host=name, advice=advice)
        return 421, f"{foreign[:80]!r} is not a name of this listener; {advice}"


def cross_site(request: web.BaseRequest) -> tuple[int, str] | None:
    """The status and sentence for a change that a page of another site may have asked for, else None."""
    if request.method in _READING:
        return None
    sites = request.headers.getall("Sec-Fetch-Site", [])
    if sites:
        own = all(site.strip().lower() in _OWN_SITES for site in sites)
    else:
        own = all(_is_origin_of(origin, request) for origin in request.headers.getall(hdrs.ORIGIN, []))
    if not own:
        return 403, "a page of another site asked for this; nothing was done"
    types = request.headers.getall(hdrs.CONTENT_TYPE, [])
    if [text.partition(";")[0].strip().lower() for text in types] != ["application/json"]:
        return 415, "whatever changes something needs the header Content-Type: application/json"
    return None


def guard(hosts: Hosts, error_answer: ErrorAnswer, *, changes: bool = True) -> Middleware:
    """Answers requests for other names with 421, and changes that a foreign page may have asked for.

    `changes`: False where what changes something needs a header that no page can set.
    """

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        refused = hosts.refusal(request)
        if refused is None and changes and request.match_info.http_exception is None:
            refused = cross_site(request)
        if refused is None:
            return await handler(request)
        answer = error_answer(*refused)
        answer.force_close()
        return answer

    return guarded


def _absolute(request: web.BaseRequest) -> list[str]:
    """The authority of a target in absolute form, which takes the place of Host."""
    scheme, found, rest = request.raw_path.partition("://")
    if not found or not scheme.isalnum():
        return []
    return [re.split(r"[/?#]", rest, maxsplit=1)[0]]


def _is_origin_of(origin: str, request: web.BaseRequest) -> bool:
    """Whether an Origin is the very place that the request was sent to."""
    scheme, found, authority = origin.strip().lower().partition("://")
    if not found or scheme not in _DEFAULT_PORTS:
        return False
    default = _DEFAULT_PORTS[scheme]
    place = _place(authority, default)
    return place is not None and place == _place(request.headers.get(hdrs.HOST, ""), default)


def _place(authority: str, default: str) -> tuple[str, str] | None:
    match = _AUTHORITY.fullmatch(authority)
    return None if match is None else (_plain(match[1]), match[2] or default)


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
