"""Takes the reports that node agents push: a source of notices, and what each node says of itself.

Nobody on the network is believed. A report is signed with the key of the node that its address names, and
that key follows from the pool's secret and the node's id, so a node can speak for itself only, whatever the
report holds. Reports are numbered within a session, which this receiver draws when it starts: a recorded one
is worth nothing here twice, nor after a restart. Their time must be near this host's. What fails is counted
and answered, nothing else; bodies, rates and what is remembered are bounded, per node and per address.

A node may say what it likes of itself, so its notices are reported, not confirmed, and it may report a
limited number of them.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

import orjson
from aiohttp import web

from cloud.agent_keys import NodeKeys
from cloud.agent_starts import BOOT_STAGES, number, read_start
from cloud.logger import structlog
from cloud.node_agent import SCHEMA, node_key, signature
from cloud.node_metadata import NODE_ID
from cloud.ports import Clock
from policies.gpu_readings import MOST_XIDS, GpuReading, NodeGpus, Xid
from policies.model import Confidence, Notice, NoticeKind
from policies.starts import NodeStart

log = structlog.get_logger("cloud")

MOST_BYTES: Final = 64 * 1024
"""Bytes of one report."""
MOST_NODES: Final = 10_000
"""Nodes that are remembered."""
MOST_TOLD: Final = 64
"""Different notices that one node may report."""
MOST_AT_ONCE: Final = 256
"""Reports that are read at the same time."""
SILENT: Final = 900.0
"""Seconds of silence after which a node that the cloud does not list is forgotten."""
MOST_CHECKS: Final = 16
"""Checks of one boot report."""

_NOTICE_SECONDS = 120.0
_FARTHEST = 60 * 86_400.0
_LONGEST_PAST = 86_400.0
_READ_WITHIN = 5.0
_MOST_ADDRESSES = 1024
_SEQUENCE_MOST = 2**53
_LONGEST_DETAIL = 500
_MOST_COUNTED = 1_000_000
_EVENT = re.compile(r"[A-Za-z0-9-]{1,64}")
_KINDS = {
    "interruption": NoticeKind.INTERRUPTION,
    "rebalance": NoticeKind.REBALANCE,
    "maintenance": NoticeKind.MAINTENANCE,
}

_GPU_TEXTS = ("uuid", "name", "state")
_GPU_NUMBERS = [f.name for f in fields(GpuReading) if f.name not in ("index", *_GPU_TEXTS)]

_Key = tuple[str, float | None, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class BootCheck:
    """One thing that a node looked at before it started its engine. `text`: what it saw, and what to do."""

    name: str
    ok: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BootReport:
    """How far a node came with starting its engine, as it says itself.

    `stage`: one of `BOOT_STAGES`, or empty for one that this version does not know. `at`: when that was, in
    seconds since the epoch by the node's clock, 0 when it does not say. `restarts`: starts of the engine
    that ended early, one after another.
    """

    stage: str
    ok: bool
    detail: str
    checks: tuple[BootCheck, ...]
    at: float
    restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """The last report of a node. `heard_at` is this host's time; the errors are empty where all is well.

    `boot` is None where nothing is known of it: an older agent, or a machine that does not start an engine.
    """

    node: str
    heard_at: float
    life_cycle: str
    gpus: tuple[GpuReading, ...]
    xids: tuple[Xid, ...]
    metadata_error: str
    gpu_error: str
    xid_error: str
    boot: BootReport | None = None
    start: NodeStart | None = None  # in this host's time


@dataclass(slots=True)
class _Bucket:
    """Permissions that grow back with time: `burst` at once, `rate` a second."""

    tokens: float
    at: float

    def take(self, now: float, rate: float, burst: float) -> bool:
        self.tokens = min(burst, self.tokens + max(0.0, now - self.at) * rate)
        self.at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


@dataclass(slots=True)
class _Sender:
    """What is remembered of one node."""

    bucket: _Bucket
    sequence: int = 0
    report: NodeReport | None = None
    told: dict[str, tuple[float | None, bool]] = field(default_factory=dict)  # notice id -> what was said


class _Refused(Exception):
    """A report that is not taken up: HTTP status, a word for the counter, a sentence, and what to do next."""

    def __init__(self, status: int, word: str, text: str, **more: Any) -> None:
        super().__init__(text)
        self.status, self.word, self.more = status, word, more


class AgentReceiver:
    """A `Notices` source, and an HTTP handler for POST /v1/nodes/{node}/report.

    `secret`: of the pool, at least 16 bytes; `node_key` makes each node's key from it. `owned` says False of
    a node that is certainly not ours; who learns that later sets it then. `window`: seconds that a node's
    clock may be off. `rate` and `burst`: reports of one node a second, and at once.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        secret: bytes,
        owned: Callable[[str], bool] = lambda _node: True,
        window: float = 60.0,
        rate: float = 2.0,
        burst: float = 20.0,
        name: str = "node-agent",
    ) -> None:
        if len(secret) < 16:
            raise ValueError("the secret for node reports is too short: give at least 16 random bytes")
        self.name = name
        self.accepted = 0
        self.refused: Counter[str] = Counter()  # by word, a fixed set
        self.owned = owned
        self.keys: NodeKeys | None = None  # where nodes fetch their keys, if anywhere
        self._clock, self._secret = clock, secret
        self._window, self._rate, self._burst = window, rate, burst
        self._session = secrets.token_hex(16)
        self._senders: OrderedDict[str, _Sender] = OrderedDict()  # the longest silent first
        self._strangers: OrderedDict[str, _Bucket] = OrderedDict()  # addresses that sent what was forged
        self._reading = 0
        self._held: dict[_Key, Notice] = {}  # yielded, not acknowledged yet
        self._arrived: deque[Notice] = deque()
        self._wake = asyncio.Event()

    def application(self) -> web.Application:
        """The handler as an application of its own, to be served where nodes reach it.

        Give its runner `lingering_time=0`: a body that is refused need not be waited for.
        """
        app = web.Application(client_max_size=MOST_BYTES)
        app.router.add_post("/v1/nodes/{node}/report", self.handle)
        if self.keys is not None:
            self.keys.add_to(app)
        return app

    async def stream(self) -> AsyncIterator[Notice]:
        """Yield notices for ever, first those that an earlier reader got and did not acknowledge."""
        self._arrived = deque(self._held.values())
        while True:
            while self._arrived:
                yield self._arrived.popleft()
            self._wake.clear()
            await self._wake.wait()

    async def acknowledge(self, notice: Notice) -> None:
        """The notice is not yielded again. Idempotent."""
        self._held.pop((notice.id, notice.deadline, notice.cancelled), None)

    def age(self) -> float:
        """Seconds since the oldest unacknowledged notice was yielded."""
        now = self._clock.now()
        return max((now - notice.seen_at for notice in self._held.values()), default=0.0)

    async def close(self) -> None:
        """Nothing to release: the listener belongs to the application's server."""

    def reports(self) -> Mapping[str, NodeReport]:
        """The last report of every node that was heard."""
        return {node: s.report for node, s in self._senders.items() if s.report is not None}

    def report(self, node: str) -> NodeReport | None:
        """The last report of one node; None when it was not heard."""
        sender = self._senders.get(node)
        return None if sender is None else sender.report

    def gpus(self, node: str) -> NodeGpus | None:
        """What the last report of a node says of its GPUs; None when it was not heard."""
        report = self.report(node)
        if report is None:
            return None
        return NodeGpus(
            node=node,
            at=report.heard_at,
            source="agent",
            gpus=report.gpus,
            xids=report.xids,
            error=report.gpu_error,
        )

    async def started(self, node: str) -> NodeStart | None:
        """What the last report of a node says of its newest start; None when it says nothing."""
        report = self.report(node)
        return None if report is None else report.start

    def ages(self) -> Mapping[str, float]:
        """Seconds since the last report of every node that was heard: the age of its heartbeat."""
        now = self._clock.now()
        return {node: max(0.0, now - report.heard_at) for node, report in self.reports().items()}

    def keep(self, nodes: Collection[str]) -> None:
        """Forget nodes that are not among these and have been silent for long."""
        now = self._clock.now()
        for node in [n for n in self._senders if n not in nodes]:
            report = self._senders[node].report
            if report is None or now - report.heard_at > SILENT:
                del self._senders[node]

    # -- receiving ---------------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.Response:
        """One report: 204, or why not. 409 names the session and the last number; the agent then goes on."""
        node = request.match_info["node"]
        address = request.remote or ""
        if self._reading >= MOST_AT_ONCE:
            return self._answer(_Refused(503, "busy", "too many reports at once; send again"), node)
        self._reading += 1
        try:
            self._check_address(address)
            body = await _body(request)
            self._check_signature(node, request.headers.get("X-Node-Signature", ""), body)
            self._take(node, body)
        except _Refused as refused:
            if refused.word in ("signature", "unknown-node", "replayed"):
                self._charge(address)
            return self._answer(refused, node)
        finally:
            self._reading -= 1
        self.accepted += 1
        return web.Response(status=204)

    def _answer(self, refused: _Refused, node: str) -> web.Response:
        self.refused[refused.word] += 1
        if self.refused[refused.word] & (self.refused[refused.word] - 1) == 0:  # ever more rarely
            log.warning(
                "node_report.refused", node=node[:64], reason=refused.word, total=self.refused[refused.word]
            )
        answer = web.Response(
            status=refused.status,
            body=orjson.dumps({"error": str(refused), **refused.more}),
            content_type="application/json",
        )
        if refused.status in (408, 413, 429, 503):
            answer.force_close()  # what is left of the body is not read
        return answer

    def _check_address(self, address: str) -> None:
        """An address that keeps sending forged or replayed reports is not even read."""
        bucket = self._strangers.get(address)
        if bucket is not None and bucket.tokens + (self._clock.now() - bucket.at) * self._rate < 1.0:
            raise _Refused(429, "address", "too many reports from here were not signed right")

    def _charge(self, address: str) -> None:
        now = self._clock.now()
        bucket = self._strangers.setdefault(address, _Bucket(self._burst, now))
        self._strangers.move_to_end(address)
        bucket.take(now, self._rate, self._burst)
        if len(self._strangers) > _MOST_ADDRESSES:
            self._strangers.popitem(last=False)

    def _check_signature(self, node: str, given: str, body: bytes) -> None:
        right = False
        if NODE_ID.fullmatch(node):
            expected = signature(node_key(self._secret, node), node, body)
            right = hmac.compare_digest(expected.encode(), given.encode("utf-8", "replace"))
        if right and self.owned(node):
            return
        # One answer for both, so that nobody learns which nodes there are.
        raise _Refused(401, "unknown-node" if right else "signature", "not signed with this node's key")

    def _take(self, node: str, body: bytes) -> None:
        """Take up a report that is the node's own."""
        now = self._clock.now()
        sender = self._sender(node, now)
        try:
            report = orjson.loads(body)
        except (ValueError, RecursionError):
            raise _Refused(400, "malformed", "the report is not JSON") from None
        if not isinstance(report, dict) or report.get("schema") != SCHEMA or report.get("node") != node:
            raise _Refused(400, "malformed", f"the report is not a {SCHEMA} of this node")
        sequence, at = report.get("sequence"), number(report.get("at"))
        following = {"session": self._session, "sequence": sender.sequence}
        if report.get("session") != self._session:
            raise _Refused(409, "session", "another session; go on with this one", **following)
        if type(sequence) is not int or not sender.sequence < sequence < _SEQUENCE_MOST:
            raise _Refused(409, "replayed", "a number that was used; go on with the next", **following)
        if at is None or abs(now - at) > self._window:
            off = "unknown" if at is None else f"{at - now:+.0f} s"
            raise _Refused(
                400, "clock", f"the clocks of node and control host differ ({off}); set both by NTP"
            )
        # Only what is fresh counts: replayed reports must not use up the node's own share.
        if not sender.bucket.take(now, self._rate, self._burst):
            raise _Refused(429, "rate", f"more than {self._rate:g} reports a second")
        sender.sequence = sequence
        sender.report = _read(node, report, now)
        self._senders.move_to_end(node)
        self._hear(node, sender, report.get("notices"), now)

    def _sender(self, node: str, now: float) -> _Sender:
        sender = self._senders.get(node)
        if sender is None:
            sender = self._senders[node] = _Sender(_Bucket(self._burst, now))
            if len(self._senders) > MOST_NODES:
                self._senders.popitem(last=False)
        return sender

    def _hear(self, node: str, sender: _Sender, entries: object, now: float) -> None:
        """Tell what is new among the notices of a report. What a report no longer holds is not cancelled."""
        for entry in entries[:MOST_TOLD] if isinstance(entries, list) else []:
            notice = self._notice(node, sender, entry, now)
            if notice is None:
                continue
            said = (notice.deadline, notice.cancelled)
            if sender.told.get(notice.id) == said:
                continue
            if len(sender.told) >= MOST_TOLD and notice.id not in sender.told:
                self.refused["notices"] += 1
                continue
            sender.told[notice.id] = said
            self._held[(notice.id, notice.deadline, notice.cancelled)] = notice
            self._arrived.append(notice)
            self._wake.set()

    def _notice(self, node: str, sender: _Sender, entry: object, now: float) -> Notice | None:
        """One notice of a report; None when it makes no sense. The node is always the sender."""
        kind = _KINDS.get(str(entry.get("kind"))) if isinstance(entry, dict) else None
        if kind is None or not isinstance(entry, dict):
            return None
        deadline = number(entry.get("deadline"))
        # The node says now that it is open: maintenance may be overdue by weeks, and comes all the same.
        longest_past = _FARTHEST if kind is NoticeKind.MAINTENANCE else _LONGEST_PAST
        if deadline is not None and not now - longest_past <= deadline <= now + _FARTHEST:
            deadline = None
        event = entry.get("event")
        same = event if isinstance(event, str) and _EVENT.fullmatch(event) else ""
        if kind is NoticeKind.REBALANCE:
            deadline = None
        which = same or ("-" if deadline is None else f"{deadline:.0f}")
        identity = f"{self.name}/{node}/{kind}/{which}"
        if kind is not NoticeKind.REBALANCE and deadline is None:
            # EC2 announced it without a usable time: two minutes from when it was first heard of.
            deadline = sender.told.get(identity, (now + _NOTICE_SECONDS, False))[0]
        return Notice(
            id=identity,
            kind=kind,
            node=node,
            deadline=deadline,
            source=self.name,
            confidence=Confidence.REPORTED,
            seen_at=now,
            cancelled=kind is NoticeKind.MAINTENANCE and entry.get("cancelled") is True,
        )


async def _body(request: web.Request) -> bytes:
    """The body, at most MOST_BYTES of it and within a few seconds."""
    parts, length = [], 0
    try:
        async with asyncio.timeout(_READ_WITHIN):
            async for chunk in request.content.iter_chunked(MOST_BYTES):
                parts.append(chunk)
                length += len(chunk)
                if length > MOST_BYTES:
                    raise _Refused(413, "size", f"more than {MOST_BYTES} bytes")
    except TimeoutError:
        raise _Refused(408, "slow", f"the report did not arrive within {_READ_WITHIN:g} s") from None
    return b"".join(parts)


def _read(node: str, report: Mapping[str, Any], now: float) -> NodeReport:
    """A report's readings; what has the wrong type counts as missing."""
    gpus, xids = report.get("gpus"), report.get("xids")
    return NodeReport(
        node=node,
        heard_at=now,
        life_cycle=_text(report.get("life_cycle")),
        gpus=tuple(
            _gpu(gpu) for gpu in (gpus[:32] if isinstance(gpus, list) else []) if isinstance(gpu, dict)
        ),
        xids=tuple(
            Xid(
                pci=_text(x.get("pci")),
                code=x["code"],
                text=_text(x.get("text")),
                count=_count(x.get("count")),
            )
            for x in (xids[-MOST_XIDS:] if isinstance(xids, list) else [])
            if isinstance(x, dict) and type(x.get("code")) is int and 0 <= x["code"] < 100_000
        ),
        metadata_error=_text(report.get("metadata_error")),
        gpu_error=_text(report.get("gpu_error")),
        xid_error=_text(report.get("xid_error")),
        boot=_boot(report.get("boot")),
        start=read_start(report, now),
    )


def _boot(boot: object) -> BootReport | None:
    if not isinstance(boot, dict) or boot.get("schema") != 1:
        return None
    checks, restarts = boot.get("checks"), boot.get("restarts")
    return BootReport(
        stage=stage if (stage := _text(boot.get("stage"))) in BOOT_STAGES else "",
        ok=boot.get("ok") is True,
        detail=_text(boot.get("detail"), _LONGEST_DETAIL),
        checks=tuple(
            BootCheck(
                name=_text(c.get("name"))[:32],
                ok=c.get("ok") is True,
                text=_text(c.get("text"), _LONGEST_DETAIL),
            )
            for c in (checks[:MOST_CHECKS] if isinstance(checks, list) else [])
            if isinstance(c, dict)
        ),
        at=number(boot.get("at")) or 0.0,
        restarts=min(restarts, _MOST_COUNTED) if type(restarts) is int and restarts > 0 else 0,
    )


def _gpu(gpu: Mapping[str, Any]) -> GpuReading:
    """One GPU; an agent of an older version does not tell all."""
    index = number(gpu.get("index"))
    told: dict[str, Any] = {name: _text(gpu.get(name)) for name in _GPU_TEXTS}
    told |= {name: number(gpu.get(name)) for name in _GPU_NUMBERS}
    return GpuReading(index=int(index) if index is not None else -1, **told)


def _count(value: object) -> int:
    """How often; once where an agent of an older version does not say."""
    return min(value, _MOST_COUNTED) if type(value) is int and value > 0 else 1


def _text(value: object, longest: int = 200) -> str:
    """A short printable text, empty for anything else."""
    return "".join(c for c in value[:longest] if c.isprintable()) if isinstance(value, str) else ""
