"""Two independent `Notices` sources of a local cloud: its event feed and the metadata of each node."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from datetime import datetime

import aiohttp

from cloud.errors import CloudError
from cloud.local.connection import LocalCloud, parsed
from cloud.local.wire import PAGE, FeedEvent
from cloud.ports import Clock
from policies.model import Confidence, Instance, InstanceState, Notice, NoticeKind

_LONG_POLL = 20.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0
_TOKEN_SECONDS = 21600


class LocalEventFeed:
    """Notices from the cloud itself, as EventBridge and a queue give them on AWS.

    Kept by the cloud until acknowledged: a daemon that starts again gets them again. One cloud serves several
    pools; each gets the notices of its own machines, and of those that the cloud does not know.
    """

    def __init__(self, cloud: LocalCloud, clock: Clock, *, pool: str, name: str = "local-feed") -> None:
        self.name = name
        self._pool = pool
        self._cloud = cloud
        self._share = cloud.share()
        self._clock = clock
        self._failing_since: float | None = None

    async def stream(self) -> AsyncIterator[Notice]:
        """Yield notices for ever; a cloud that does not answer is asked again, with growing pauses."""
        after, feed, pause = 0, "", _FIRST_PAUSE
        while True:
            query = {"after": str(after), "wait": f"{_LONG_POLL:g}", "pool": self._pool}
            query |= {"cloud": feed} if feed else {}
            try:
                page = parsed(PAGE, await self._cloud.read("/v1/notices", query, wait=_LONG_POLL), "notices")
            except CloudError:
                self._failing_since = self._failing_since or self._clock.now()
                await self._clock.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
                continue
            pause, self._failing_since = _FIRST_PAUSE, None
            if page.cloud != feed:
                after, feed = 0, page.cloud  # a cloud whose state was wiped counts from 1 again
            for event in page.events:
                after = event.seq
                yield self._notice(feed, event)

    async def acknowledge(self, notice: Notice) -> None:
        """The cloud may forget the event. Raises CloudError."""
        await self._cloud.write(f"/v1/notices/{notice.id.rpartition('/')[2]}/acknowledge")

    def age(self) -> float:
        """Seconds for which the feed cannot be read; 0 when it can."""
        return 0.0 if self._failing_since is None else max(0.0, self._clock.now() - self._failing_since)

    async def close(self) -> None:
        """Give up this adapter's share of the connection. Idempotent."""
        await self._share.close()

    def _notice(self, feed: str, event: FeedEvent) -> Notice:
        return Notice(
            id=f"{self.name}/{feed}/{event.seq}",
            kind=event.kind,
            node=event.node,
            deadline=event.deadline,
            source=self.name,
            confidence=Confidence.CONFIRMED,
            seen_at=self._clock.now(),
        )


class LocalMetadata:
    """Notices from the metadata service of each watched node, polled every `interval` seconds.

    Only reported, since a process on that address could say anything; but it needs neither the
    cloud's API nor its feed, and goes on when both are down. `watch` says which nodes to ask.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        cloud: LocalCloud | None = None,
        port: int | None = None,
        interval: float = 1.0,
        timeout: float = 2.0,
        concurrency: int = 32,
        name: str = "local-metadata",
    ) -> None:
        """`port` is the metadata port of all nodes; when None, `cloud` is asked for it (once)."""
        if cloud is None and port is None:
            raise ValueError("give the metadata port, or the cloud to ask for it")
        self.name = name
        self._clock = clock
        self._cloud = cloud
        self._port = port
        self._interval = interval
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._slots = asyncio.Semaphore(concurrency)
        self._hosts: dict[str, str] = {}  # node -> address
        self._tokens: dict[str, str] = {}
        self._told: dict[str, frozenset[str]] = {}  # node -> ids of notices already yielded
        self._answered_at = clock.now()  # when some node last did, or there was none to ask
        self._session: aiohttp.ClientSession | None = None

    def watch(self, nodes: Iterable[Instance]) -> None:
        """Poll these nodes from now on, and no others; those that do not run yet are left out."""
        self._hosts = {
            node.id: node.address.rpartition(":")[0]
            for node in nodes
            if node.state is InstanceState.RUNNING and node.address
        }
        self._tokens = {node: token for node, token in self._tokens.items() if node in self._hosts}
        self._told = {node: told for node, told in self._told.items() if node in self._hosts}

    async def stream(self) -> AsyncIterator[Notice]:
        """Yield each notice when it first shows, for ever. A node that does not answer is asked again."""
        while True:
            port = await self._known_port()
            if not self._hosts:
                self._answered_at = self._clock.now()
            if port is not None:
                polls = [asyncio.ensure_future(self._poll(n, h, port)) for n, h in self._hosts.items()]
                try:
                    # In order of arrival: a node that hangs delays nobody else's notice.
                    for poll in asyncio.as_completed(polls):
                        for notice in await poll:
                            yield notice
                finally:
                    for poll in polls:
                        poll.cancel()
            await self._clock.sleep(self._interval)

    async def acknowledge(self, notice: Notice) -> None:
        """Nothing to do: metadata is a state, not a queue."""

    def age(self) -> float:
        """Seconds since any node that is watched answered; 0 while none is."""
        return max(0.0, self._clock.now() - self._answered_at) if self._hosts else 0.0

    async def close(self) -> None:
        """Release connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _known_port(self) -> int | None:
        if self._port is None and self._cloud is not None:
            try:
                self._port = (await self._cloud.describe()).metadata_port
            except CloudError:
                return None
        return self._port

    async def _poll(self, node: str, host: str, port: int) -> list[Notice]:
        """Ask one node. Whatever goes wrong is silence: no metadata is not a notice."""
        base = f"http://{host}:{port}/latest"
        async with self._slots:
            try:
                found = await self._look(node, base)
                self._answered_at = self._clock.now()
                fresh = [notice for notice in found if notice.id not in self._told.get(node, frozenset())]
                # Addresses are reused: only a machine that says the right id speaks for the node.
                if fresh and await self._get(node, f"{base}/meta-data/instance-id") != node:
                    return []
            except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
                return []
        if node in self._hosts:
            self._told[node] = frozenset(notice.id for notice in found)
        return fresh

    async def _look(self, node: str, base: str) -> list[Notice]:
        found = []
        action = await self._get(node, f"{base}/meta-data/spot/instance-action")
        if action is not None:
            found.append(self._notice(node, NoticeKind.INTERRUPTION, _time(action, "time")))
        rebalance = await self._get(node, f"{base}/meta-data/events/recommendations/rebalance")
        if rebalance is not None:
            _time(rebalance, "noticeTime")  # a document without its time is no recommendation
            found.append(self._notice(node, NoticeKind.REBALANCE, None))
        return found

    def _notice(self, node: str, kind: NoticeKind, deadline: float | None) -> Notice:
        when = "" if deadline is None else f"/{deadline:.3f}"
        return Notice(
            id=f"{self.name}/{node}/{kind}{when}",
            kind=kind,
            node=node,
            deadline=deadline,
            source=self.name,
            confidence=Confidence.REPORTED,
            seen_at=self._clock.now(),
        )

    async def _get(self, node: str, url: str) -> str | None:
        """One document, None when there is none. A token that is no longer good is renewed once."""
        session = self._open()
        for fresh in (False, True):
            token = self._tokens.get(node)
            if token is None or fresh:
                token = await self._token(node, url)
            async with session.get(url, headers={"X-aws-ec2-metadata-token": token}) as response:
                if response.status == 404:
                    return None
                if response.status == 200:
                    return await response.text()
                if response.status != 401:
                    break
        raise ValueError(f"{url}: status {response.status}")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        return self._session

    async def _token(self, node: str, url: str) -> str:
        session = self._open()
        base = url.partition("/latest/")[0]
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
        async with session.put(f"{base}/latest/api/token", headers=lifetime) as response:
            if response.status != 200:
                raise ValueError(f"{base}: no token: status {response.status}")
            self._tokens[node] = await response.text()
        return self._tokens[node]


def _time(document: str, key: str) -> float:
    """The time in a metadata document, in seconds since the epoch. Raises ValueError."""
    value = json.loads(document)
    if not isinstance(value, dict) or not isinstance(value.get(key), str):
        raise ValueError(f"no {key} in {document[:80]!r}")
    at = datetime.fromisoformat(value[key])
    if at.tzinfo is None:
        raise ValueError(f"{value[key]!r} has no time zone")
    return at.timestamp()
