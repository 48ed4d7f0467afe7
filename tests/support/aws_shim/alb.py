"""An Application Load Balancer's way with connections, on raw sockets: no library that would retry for it.

* Connections to targets stay open for `idle_timeout` s after an answer. Which one is used next AWS does not
  say; here it is any of them.
* A target that closes or resets a connection before it answered: 502, and nothing is sent twice.
* A target that sends nothing for `idle_timeout`, and one that cannot be reached in time: 504. In the middle
  of an answer the client's connection is closed instead.
* No target at all: 503. A client that sends nothing for `idle_timeout` is hung up on.
* A client that leaves takes its request with it: the target's connection is closed.

Source: Elastic Load Balancing, Application Load Balancers (idle timeout; HTTP 502, 503, 504).
"""

import asyncio
import contextlib
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field

_CONNECT = 10.0  # s
_HEAD = 2**16  # bytes of a head
_HOP = frozenset({"connection", "keep-alive", "proxy-connection"})
_WORDS = {502: "Bad Gateway", 503: "Service Temporarily Unavailable", 504: "Gateway Time-out"}


class Wire(asyncio.StreamReaderProtocol):
    """A connection that knows when the other side ended it, while nobody reads."""

    def __init__(self, made=None, distance=0.0):
        reader = asyncio.StreamReader(limit=_HEAD)
        super().__init__(reader)
        self.reader, self.ended, self.idle = reader, asyncio.Event(), None
        self._made, self._distance = made, distance

    def connection_made(self, transport):
        super().connection_made(transport)
        self.writer = asyncio.StreamWriter(transport, self, self.reader, asyncio.get_running_loop())
        if self._made is not None:
            self._made(self)

    def eof_received(self):
        """Nothing more comes. A connection that is read hears so now, one that waits in reserve later."""
        asyncio.get_running_loop().call_later(self._distance, self.ended.set)
        super().eof_received()
        return True  # ours to close

    def connection_lost(self, exc):
        asyncio.get_running_loop().call_later(self._distance, self.ended.set)
        super().connection_lost(exc)

    def close(self):
        self.ended.set()
        self.writer.close()


@dataclass
class Head:
    """The head of a request or an answer: its first line, its headers as they came, what frames its body."""

    first: str
    headers: list
    named: dict = field(default_factory=dict)

    def __post_init__(self):
        self.named = {name.lower(): value for name, value in self.headers}
        self.chunked = "chunked" in self.named.get("transfer-encoding", "").lower()
        self.length = int(self.named.get("content-length", 0))
        self.closes = self.named.get("connection", "").lower() == "close"

    def passed_on(self, *more):
        """Its bytes for the other side, without what concerns one connection only."""
        kept = [header for header in self.headers if header[0].lower() not in _HOP]
        lines = [f"{name}: {value}" for name, value in (*kept, *more)]
        return "\r\n".join([self.first, *lines, "", ""]).encode("latin-1")


async def read_head(reader):
    """The next head. Raises OSError, ValueError and asyncio's reading errors."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")[:-4].split("\r\n")
    return Head(first, [(n, v.strip()) for n, _, v in (line.partition(":") for line in lines)])


async def body_parts(reader, head, *, until_end=False):
    """The body as it comes, with its framing."""
    if head.chunked:
        while True:
            size = await reader.readuntil(b"\r\n")
            length = int(size.split(b";")[0], 16)
            if length == 0:
                yield size + await _trailers(reader)
                return
            yield size + await reader.readexactly(length + 2)
    elif until_end and "content-length" not in head.named:
        while part := await reader.read(_HEAD):
            yield part
    else:
        left = head.length
        while left > 0:
            part = await reader.read(min(left, _HEAD))
            if not part:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(part)
            yield part


async def _trailers(reader):
    found = b""
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        found += line
    return found + b"\r\n"


class Failed(Exception):
    """There is no answer, or no more of it. `status` is what the client gets where it has no byte yet."""

    def __init__(self, status):
        super().__init__(status)
        self.status = status


class Alb:
    """One balancer.

    `route()` gives (host, port, done) for a request, where `done()` is called once that is over, or None
    without a target; `idle_timeout()` gives seconds. `distance`: seconds until it hears that a target closed
    a connection, as with a network between the two. `answers` counts what clients got, by status, `own` what
    the balancer said itself, and `reused` and `opened` connections to targets.
    """

    def __init__(self, route, idle_timeout, distance=0.001):
        self._route, self._idle_timeout, self._distance = route, idle_timeout, distance
        self._kept = defaultdict(list)
        self._clients = set()
        self.answers, self.own = Counter(), Counter()
        self.reused = self.opened = 0

    async def listen(self):
        """Listen on a free port of the loopback; gives the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Wire(self._accept), "127.0.0.1", 0, backlog=1024)
        return self._server.sockets[0].getsockname()[1]

    async def close(self):
        """Close every connection."""
        self._server.close()
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        for target in [target for kept in self._kept.values() for target in kept]:
            target.idle.cancel()
            target.close()

    def _accept(self, client):
        task = asyncio.ensure_future(self._client(client))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _client(self, client):
        """Requests of one client's connection, one after the other."""
        try:
            while True:
                async with asyncio.timeout(self._idle_timeout()):
                    head = await read_head(client.reader)
                    body = [part async for part in body_parts(client.reader, head)]
                if not await self._while_there(client, self._serve(client, head, body)) or head.closes:
                    return
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            pass  # TimeoutError is an OSError: nothing came, or half a request
        finally:
            client.close()

    async def _while_there(self, client, work):
        """What the work gives; False once the client is gone, which ends the work."""
        work, gone = asyncio.ensure_future(work), asyncio.ensure_future(client.ended.wait())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            return work.done() and await work
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _serve(self, client, head, body):
        """One request. Gives whether the client's connection can take another."""
        routed = self._route()
        if routed is None:
            return await self._say(client, 503)
        host, port, done = routed
        status = 0
        try:
            target = await self._target(host, port)
            whole = False
            try:
                answer = await self._asked(target, client, head, body)
                status = int(answer.first.split()[1])
                whole = await self._passed(target, client, head, answer)
            finally:
                if whole and not answer.closes and not target.ended.is_set():
                    self._keep((host, port), target)
                else:
                    target.close()
            self.answers[status] += 1
            return True
        except Failed as failed:
            return False if status else await self._say(client, failed.status)
        finally:
            done()

    async def _say(self, client, status):
        self.answers[status] += 1
        self.own[status] += 1
        text = f"<html><head><title>{status} {_WORDS[status]}</title></head></html>\r\n"
        head = f"HTTP/1.1 {status} {_WORDS[status]}\r\nServer: awselb/2.0\r\nContent-Type: text/html\r\n"
        client.writer.write(f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())
        await client.writer.drain()
        return True

    async def _target(self, host, port):
        """An open connection to that target, or a new one."""
        kept = self._kept[host, port]
        while kept:
            target = kept.pop(random.randrange(len(kept)))
            target.idle.cancel()
            if not target.ended.is_set():
                self.reused += 1
                return target
            target.close()
        try:
            async with asyncio.timeout(_CONNECT):
                _, target = await asyncio.get_running_loop().create_connection(
                    lambda: Wire(distance=self._distance), host, port
                )
        except TimeoutError:
            raise Failed(504) from None
        except OSError:
            raise Failed(502) from None
        self.opened += 1
        return target

    def _keep(self, key, target):
        def let_go():
            with contextlib.suppress(ValueError):
                self._kept[key].remove(target)
            target.close()

        target.idle = asyncio.get_running_loop().call_later(self._idle_timeout(), let_go)
        self._kept[key].append(target)

    async def _asked(self, target, client, head, body):
        """Send the request and read the head of its answer."""
        peer = client.writer.get_extra_info("peername")
        with _failing():
            target.writer.write(head.passed_on(("X-Forwarded-For", peer[0] if peer else "")))
            target.writer.writelines(body)
            async with asyncio.timeout(self._idle_timeout()):
                await target.writer.drain()
                answer = await read_head(target.reader)
                while answer.first.split()[1] == "100":
                    answer = await read_head(target.reader)
            return answer

    async def _passed(self, target, client, head, answer):
        """Pass the answer on as it comes. Gives whether the target's connection can take another request."""
        bare = head.first.startswith("HEAD ") or answer.first.split()[1] in ("204", "304")
        framed = bare or answer.chunked or "content-length" in answer.named
        client.writer.write(answer.passed_on())
        if bare:
            return True
        parts = body_parts(target.reader, answer, until_end=True)
        while True:
            with _failing():
                async with asyncio.timeout(self._idle_timeout()):
                    part = await anext(parts, None)
            if part is None:
                break
            client.writer.write(part)
            await client.writer.drain()
        if not framed:
            raise Failed(502)  # the end of the connection is the end of the answer, for the client too
        return True


@contextlib.contextmanager
def _failing():
    """What can go wrong with a target, as the client is told."""
    try:
        yield
    except TimeoutError:
        raise Failed(504) from None
    except (OSError, EOFError, ValueError, IndexError, asyncio.LimitOverrunError):
        raise Failed(502) from None
