"""The settings of one gateway process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.units import HostPort

_LONGEST_SOCKET_PATH = 107  # bytes a unix socket address holds on Linux


class GatewayError(Exception):
    """The gateway cannot start. The message says what is wrong, where, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Everything one gateway process needs to know. Durations are seconds, sizes bytes, shares fractions.

    Timeouts. `connect_timeout`: to open a connection to a target. `first_token_timeout`: from sending a
    streaming request to its first token. `answer_timeout`: from sending a plain request to its whole answer,
    which an engine sends only once it is finished. `idle_timeout`: longest silence inside a stream.

    Retries. `max_retries`: how often a request that reached a target may be sent again. `retry_budget`:
    retries allowed per request served, over time; `retry_reserve`: retries that may be saved up, so that
    the loss of one busy node can be made good at once.

    Limits. `max_in_flight`: requests per target, for each unit that it serves; more wait in the queue.
    `body_limit`: largest request body. `bodies_limit`: all that are held at one time. `body_timeout`: longest
    silence inside a body, `body_rate`: bytes a second that it must have on the whole once that is over.
    `answer_limit`: largest plain answer held back for a retry; a longer one is passed through.
    `connection_limit`: connections that clients may hold. `head_limit`: largest head of a request,
    `head_timeout`: for all of it. `unread_timeout`: how long a client may leave an answer unread.

    Raises GatewayError when a value makes no sense.
    """

    targets_file: Path
    socket: Path
    host: str = "127.0.0.1"
    port: int = 8000
    metrics_listen: HostPort | None = None  # for Prometheus
    pool: str = ""  # accept only this pool's target sets; empty accepts any

    poll_interval: float = 0.2  # between looks at the targets file
    health_path: str = "/health"
    health_interval: float = 1.0
    health_timeout: float = 5.0
    health_fall: int = 2  # failed checks in a row before a target counts as unhealthy

    queue_limit: int = 1024
    queue_deadline: float = 30.0
    retry_after: int = 2  # s, what a refused client is told to wait
    max_in_flight: int = 512

    connect_timeout: float = 2.0
    first_token_timeout: float = 60.0
    answer_timeout: float = 600.0
    idle_timeout: float = 60.0

    max_retries: int = 2
    retry_budget: float = 0.2
    retry_reserve: int = 200
    breaker_failures: int = 3  # failures in a row that open a target's circuit breaker
    breaker_open: float = 5.0  # time an open breaker keeps requests away before it lets one probe pass

    body_limit: int = 64 * 1024 * 1024
    bodies_limit: int = 512 * 1024 * 1024
    body_timeout: float = 30.0
    body_rate: int = 16 * 1024
    answer_limit: int = 32 * 1024 * 1024
    connection_limit: int = 16_384
    head_limit: int = 64 * 1024
    head_timeout: float = 10.0
    unread_timeout: float = 60.0
    allow_paths: tuple[str, ...] = ("/health", "/version")  # proxied besides /v1/
    allowed_hosts: tuple[str, ...] = ()  # names beside our own; none: any, unless it listens on the loopback
    api_key: str | None = field(default=None, repr=False)  # replaces the client's own; None passes that on

    linger: float = 1.0  # time a stopping gateway still accepts, telling clients to reconnect elsewhere
    drain_timeout: float = 600.0
    seed: int | None = None  # of tie-breaks and request ids; None draws it from the system

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise GatewayError(f"gateway: {name}: {getattr(self, name)!r}: must be more than zero")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise GatewayError(f"gateway: {name}: {getattr(self, name)!r}: must be zero or more")
        if not 0 <= self.port <= 65535:
            raise GatewayError(f"gateway: port: {self.port}: must be 0 (any free port) to 65535")
        for path in (self.health_path, *self.allow_paths):
            if not path.startswith("/"):
                raise GatewayError(f"gateway: path {path!r}: must start with a slash")
        if len(str(self.socket).encode()) > _LONGEST_SOCKET_PATH:
            raise GatewayError(
                f"gateway: socket: {self.socket}: longer than {_LONGEST_SOCKET_PATH} bytes; "
                f"choose a shorter directory"
            )


_POSITIVE = (
    "poll_interval",
    "health_interval",
    "health_timeout",
    "health_fall",
    "queue_deadline",
    "max_in_flight",
    "connect_timeout",
    "first_token_timeout",
    "answer_timeout",
    "idle_timeout",
    "breaker_failures",
    "breaker_open",
    "body_limit",
    "bodies_limit",
    "body_timeout",
    "body_rate",
    "answer_limit",
    "connection_limit",
    "head_limit",
    "head_timeout",
    "unread_timeout",
)
_NOT_NEGATIVE = (
    "queue_limit",
    "retry_after",
    "max_retries",
    "retry_budget",
    "retry_reserve",
    "linger",
    "drain_timeout",
)
