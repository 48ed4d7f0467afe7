"""The command line's way to the daemon: HTTP over its unix socket.

Of HTTP no more is spoken than one exchange on a connection that then ends (RFC 1945): a library for it takes
longer to import than the daemon takes to answer.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote, urlencode

from orchestrator.config.sockets import DEFAULT_SOCKET, SERVICE_SOCKET, SOCKET_VARIABLE, reading_socket

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.views.api import EventsView, ExplainView, HistoryView, NodeStory, PlanView, StatusView
    from orchestrator.views.cost import CostView

_TIMEOUT: Final = 10.0  # s for an answer that does not wait for anything
_ADDING_UP: Final = 60.0  # s more for a year of hours, after others' reports
_STATE_DIR: Final = "{state_dir}"
_MAY_OPEN: Final = os.R_OK | os.W_OK
_STATUS: Final = re.compile(rb"HTTP/1\.\d (\d{3})\b")
_LENGTH: Final = re.compile(rb"\ncontent-length: *(\d+)", re.IGNORECASE)
_NOT_FOUND: Final = 404


class ClientError(Exception):
    """The daemon refused, or answered something unusable. The message is one sentence for people."""

    exit_code = 1


class NotKnown(ClientError):
    """The daemon knows nothing by the name that was asked for."""


class Unreachable(ClientError):
    """No daemon answers on the socket."""

    exit_code = 3


def find_socket(given: Path | None, config: Path | None, environment: Mapping[str, str] = os.environ) -> Path:
    """The socket of the daemon: --socket, --config, ORCHESTRATOR_SOCKET, ./state, or that of the service.

    Raises ClientError when the configuration file cannot be read.
    """
    if given is not None:
        return given
    if config is not None:
        return _socket_of(config)
    from_environment = environment.get(SOCKET_VARIABLE)
    if from_environment:
        return Path(from_environment)
    service = SERVICE_SOCKET.parent.is_dir() and not DEFAULT_SOCKET.exists()
    return SERVICE_SOCKET if service else DEFAULT_SOCKET


def _socket_of(file: Path) -> Path:
    """`daemon.socket` of a configuration file, by the rules of `orchestrator.config`, without its checks."""
    from orchestrator.config.toml_text import TomlError, read_toml

    try:
        data, _ = read_toml(file)
    except OSError as error:
        raise ClientError(f"{file}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    except TomlError as error:
        place = f"{file}:{error.line}" if error.line else str(file)
        raise ClientError(f"{place}: {error}; see `orchestrator validate {file}`") from error
    daemon = data.get("daemon", {})
    if not isinstance(daemon, dict):
        raise ClientError(f"{file}: daemon is not a table; see `orchestrator validate {file}`")
    base = file.absolute().parent
    state_dir = base / Path(str(daemon.get("state_dir", "./state"))).expanduser()
    written = str(daemon.get("socket", f"{_STATE_DIR}/orchestrator.sock"))
    if written.startswith(_STATE_DIR):
        return Path(os.path.normpath(f"{state_dir}{written.removeprefix(_STATE_DIR)}"))
    return Path(os.path.normpath(base / Path(written).expanduser()))


class ControlClient:
    """One daemon's control API. Every method raises Unreachable or ClientError with a sentence."""

    def __init__(self, socket_path: Path, timeout: float = _TIMEOUT) -> None:
        self.socket_path = socket_path
        self._timeout = timeout

    def status(self, *, pool: str | None = None) -> StatusView:
        """Every pool, or the one that is named: its nodes, notices and swaps, now."""
        return cast("StatusView", self.get("/v1/status", pool=pool))

    def history(
        self, *, limit: int | None = None, node: str | None = None, pool: str | None = None
    ) -> HistoryView:
        """The newest swaps with the seconds of each stage."""
        return cast("HistoryView", self.get("/v1/history", limit=limit, node=node, pool=pool))

    def cost(self, *, since: float, until: float, by: Sequence[str], pool: str | None = None) -> CostView:
        """What was spent between two instants, grouped."""
        asked = {"since": since, "until": until, "by": ",".join(by), "pool": pool}
        return cast("CostView", self.get("/v1/cost", patience=_ADDING_UP, **asked))

    def plan(self, *, pool: str | None = None) -> PlanView:
        """What the daemon would do now."""
        return cast("PlanView", self.get("/v1/plan", pool=pool))

    def explain(self, subject: str, *, pool: str | None = None) -> ExplainView:
        """Why something is as it is."""
        return cast("ExplainView", self.get("/v1/explain", subject=subject, pool=pool))

    def node(self, node: str) -> NodeStory:
        """One node and its story."""
        return cast("NodeStory", self.get(f"/v1/nodes/{quote(node, safe='')}"))

    def events(
        self,
        *,
        after: int | None = None,
        limit: int | None = None,
        node: str | None = None,
        pool: str | None = None,
        wait: float = 0.0,
    ) -> EventsView:
        """Entries of the journal after number `after`; with `wait`, up to so many seconds for new ones."""
        return cast(
            "EventsView",
            self.get(
                "/v1/events",
                patience=wait,
                after=after,
                limit=limit,
                node=node,
                pool=pool,
                wait=wait or None,
            ),
        )

    def drain(self, node: str, *, reason: str, deadline_s: float | None = None) -> Any:
        """Have a node taken out of service; requests in flight may take `deadline_s` seconds."""
        given = {} if deadline_s is None else {"deadline_s": deadline_s}
        return self.post(f"/v1/nodes/{quote(node, safe='')}/drain", {"reason": reason, **given})

    def undrain(self, node: str, *, reason: str) -> Any:
        """Have a node put back to work that an operator had drained."""
        return self.post(f"/v1/nodes/{quote(node, safe='')}/undrain", {"reason": reason})

    def pause(self, *, pool: str | None = None, **body: object) -> Any:
        """Have nothing launched or ended for a pool, until `resume`: the only pool unless one is named."""
        return self.post(_of_pool("/v1/pause", pool), body)

    def resume(self, *, by: str, pool: str | None = None) -> Any:
        """Let a paused pool act again: the only one unless one is named."""
        return self.post(_of_pool("/v1/resume", pool), {"by": by})

    def text(self, path: str) -> str:
        """The answer to a GET as it came."""
        status, body = self._exchange("GET", path, None, 0.0)
        if status >= 400:
            self._answer(status, body)
        return body.decode("utf-8", errors="replace")

    def get(self, path: str, *, patience: float = 0.0, **query: object) -> Any:
        """The JSON answer to a GET. Queries that are None are left out."""
        given = {key: value for key, value in query.items() if value is not None}
        return self._request("GET", f"{path}?{urlencode(given)}" if given else path, None, patience)

    def post(self, path: str, body: Mapping[str, object] | None = None) -> Any:
        """The JSON answer to a POST."""
        return self._request("POST", path, json.dumps(body or {}).encode(), 0.0)

    def _request(self, method: str, path: str, body: bytes | None, patience: float) -> Any:
        return self._answer(*self._exchange(method, path, body, patience))

    def _exchange(self, method: str, path: str, body: bytes | None, patience: float) -> tuple[int, bytes]:
        """Status and body of one answer."""
        head = f"{method} {path} HTTP/1.0\r\nHost: localhost\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
                _connect(wire, self._place(method), self._timeout)
                wire.settimeout(self._timeout + patience)
                wire.sendall(f"{head}\r\n".encode() + (body or b""))
                with wire.makefile("rb") as answer:
                    return self._parted(answer.read())
        except OSError as error:
            raise self._unreachable(error) from error

    def _place(self, method: str) -> Path:
        """The control socket, or the reading socket beside it for users who may not open that."""
        path, beside = self.socket_path, reading_socket(self.socket_path)
        if method == "GET" and not os.access(path, _MAY_OPEN) and os.access(beside, _MAY_OPEN):
            return beside
        return path

    def _parted(self, answer: bytes) -> tuple[int, bytes]:
        """Status and body of what came until the connection ended."""
        head, _, body = answer.partition(b"\r\n\r\n")
        status, length = _STATUS.match(head), _LENGTH.search(head)
        if not answer or (length is not None and len(body) < int(length[1])):
            raise Unreachable(
                f"the daemon on {self.socket_path} ended before its answer did; look at its log, try again"
            )
        if status is None:
            raise ClientError(
                f"whatever listens on {self.socket_path} does not speak the control API ({answer[:40]!r})"
            )
        return int(status[1]), body

    def _answer(self, status: int, text: bytes) -> Any:
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ClientError(
                f"the daemon on {self.socket_path} answered {status} with something that is not JSON"
            ) from error
        if status < 400:
            return value
        sentence = value.get("error") if isinstance(value, dict) else None
        refusal = NotKnown if status == _NOT_FOUND else ClientError
        raise refusal(str(sentence or f"the daemon answered {status} without saying why"))

    def _unreachable(self, error: OSError) -> Unreachable:
        where = f"the daemon cannot be reached on {self.socket_path}"
        choose = f"or name its socket with --socket, --config or {SOCKET_VARIABLE}"
        start = "start one with `orchestrator run --config FILE`"
        if isinstance(error, FileNotFoundError):
            return Unreachable(f"{where}: there is no such socket; {start}, {choose}")
        if isinstance(error, ConnectionRefusedError):
            return Unreachable(
                f"{where}: nothing listens on it, so the daemon is not running; {start}, {choose}"
            )
        if isinstance(error, PermissionError):
            return Unreachable(f"{where}: this user may not open it; run as the daemon's user, {choose}")
        if isinstance(error, TimeoutError | BlockingIOError):
            return Unreachable(f"{where}: it did not answer in time; look at the daemon's log")
        return Unreachable(f"{where} ({(error.strerror or str(error)).lower()}); {start}, {choose}")


def _of_pool(path: str, pool: str | None) -> str:
    return path if pool is None else f"{path}?{urlencode({'pool': pool})}"


def _connect(wire: socket.socket, path: Path, seconds: float) -> None:
    """Connect, with a place in the queue of those who wait to be accepted. Raises OSError.

    A socket of Python's with a timeout does not block, and is refused at once where the queue is full; the
    system's own timeout has it wait, and ends in BlockingIOError (unix(7), socket(7) SO_SNDTIMEO).
    """
    whole, part = divmod(seconds, 1.0)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(whole), int(part * 1e6)))
    wire.connect(os.fspath(path))
