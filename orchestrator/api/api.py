"""The daemon's HTTP: the control API on a unix socket, its reading half on another, monitoring on TCP.

Who can open the control socket can do everything, so its file mode is the permission. The reading socket and
the TCP listener have no mutating route at all, and serve a few requests at a time. Answers are the types of
`orchestrator.views.api`; refusals are {"error": sentence}.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Middleware
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from cloud.ports import Clock
from orchestrator.api import agents, gpus, history, routes, starts, status
from orchestrator.api.cost_watch import CostWatch
from orchestrator.api.costs import Costs, NoSuchCost
from orchestrator.api.discovery import scrape_targets
from orchestrator.api.explaining import explanation, policy_text
from orchestrator.api.gauges import Gauges
from orchestrator.api.reloading import Reloader
from orchestrator.api.runs import Run, Runs, alive, turned, unseen
from orchestrator.journal.store import GATEWAY, Store, StoredEvent, StoreUnavailable
from orchestrator.loop.loop import Snapshot
from orchestrator.views import api as views
from policies import explain
from policies.events import Event, OperatorDrained, OperatorUndrained, Paused, Resumed
from policies.verdict import State

MAX_BODY = 64 * 1024
EVENTS_MOST = 10_000
READERS_AT_ONCE = 32
"""Requests that one listener for reading serves at the same time."""
_SEQ_MOST = 2**63 - 1
_LONG_POLL_MOST = 60
_LONG_POLL_STEP = 0.2
_WRITTEN_WITHIN = 3.0
"""Seconds for an operator's request to reach the disk before the answer says that it does not."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refused(Exception):
    """A request that cannot be served: the HTTP status and a sentence."""

    def __init__(self, status_code: int, text: str) -> None:
        super().__init__(text)
        self.status_code = status_code


class Api:
    """Serves one daemon. `runs` are its pools, `daemon` describes the process.

    What is asked of one pool names it with ?pool=NAME, which a daemon with one pool does not need. What can
    be shown of all pools is, unless one is named; a node's name leads to its pool.
    """

    def __init__(
        self,
        *,
        runs: Runs,
        store: Store,
        clock: Clock,
        daemon: Callable[[], views.DaemonView],
        gauges: Gauges,
        reloader: Reloader,
        outside: routes.Outside,
    ) -> None:
        self._runs, self._store, self._clock, self._daemon = runs, store, clock, daemon
        self._gauges = gauges
        self._reloader = reloader
        self._outside = outside
        self._costs = Costs(store=store, config=lambda: reloader.config, clock=clock)
        self.cost_watch = CostWatch(self._costs, clock)

    def control_app(self) -> web.Application:
        """Routes of the control socket: all that can be read, and all that can be asked for."""
        app = self._reading()
        app.router.add_post("/v1/nodes/{node}/drain", self._drain)
        app.router.add_post("/v1/nodes/{node}/undrain", self._undrain)
        app.router.add_post("/v1/pause", self._pause)
        app.router.add_post("/v1/resume", self._resume)
        app.router.add_post("/v1/reload", self._reload)
        return app

    def reading_app(self) -> web.Application:
        """Routes of the reading socket: nothing here changes anything."""
        app = self._reading(_at_most(READERS_AT_ONCE))
        app.router.add_post("/{any:.*}", _only_reading)
        return app

    def monitoring_app(self) -> web.Application:
        """Routes of the TCP listener: nothing here changes anything."""
        app = web.Application(
            middlewares=[errors_answered, _at_most(READERS_AT_ONCE)], client_max_size=MAX_BODY
        )
        self._add_monitoring(app)
        return app

    def _reading(self, *more: Middleware) -> web.Application:
        app = web.Application(middlewares=[errors_answered, *more], client_max_size=MAX_BODY)
        app.router.add_get("/v1/nodes/{node}", self._node)
        app.router.add_get("/v1/events", self._events)
        app.router.add_get("/v1/history", self._history)
        app.router.add_get("/v1/cost", self._cost)
        app.router.add_get("/v1/plan", self._plan)
        app.router.add_get("/v1/explain", self._explain)
        self._add_monitoring(app)
        return app

    def _add_monitoring(self, app: web.Application) -> None:
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/sd", self._discovery)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)

    # -- reading -----------------------------------------------------------------------------------

    async def _status(self, request: web.Request) -> web.Response:
        self._turned(request)
        pools = []
        for run in self._asked(request):
            snapshot = run.last or unseen(run, now=self._clock.now())
            pools.append(status.pool_view(snapshot, run.totals, down=run.why_down()))
        self.cost_watch.add_to(pools)
        view = views.StatusView(schema="status/1", at=self._clock.now(), daemon=self._daemon(), pools=pools)
        sight, memory = self._outside.sight, self._outside.memory
        if sight is not None:
            view["gateway"] = routes.gateway_seen(sight, self._clock.now())
            view["routes"] = routes.routes_now(sight, memory)
            view["providers"] = routes.providers_now(sight, memory)
        return answer(view)

    async def _node(self, request: web.Request) -> web.Response:
        name = request.match_info["node"]
        entries = await self._read(node=name, limit=1000, newest=True, pool=request.query.get("pool", ""))
        for run, snapshot in self._turned(request):
            node = snapshot.fleet.by_id.get(name)
            boot = next((b for b in snapshot.memory.failed_boots if b.node == name), None)
            if node is not None or boot is not None:
                return answer(self._story(name, run, snapshot, entries))
        for run, snapshot in self._turned(request):
            if any(entry.pool == run.name for entry in entries):
                return answer(self._story(name, run, snapshot, entries))
        raise Refused(404, f"no node {name!r} is known; see `orchestrator nodes`")

    def _story(
        self, name: str, run: Run, snapshot: Snapshot, entries: Sequence[StoredEvent]
    ) -> views.NodeStory:
        node, now = snapshot.fleet.by_id.get(name), self._clock.now()
        boot = next((b for b in snapshot.memory.failed_boots if b.node == name), None)
        report = run.agents.report(name) if run.agents is not None else None
        sentences = (
            explain.node_sentences(
                node, snapshot.memory, snapshot.world.now, snapshot.world.gpus.get(node.id)
            )
            if node is not None
            else (f"{name} is gone; this is what happened to it.",)
        )
        return views.NodeStory(
            schema="node/1",
            node=status.node_view(snapshot, node) if node is not None else None,
            agent=agents.view(report, now) if report is not None else None,
            gpus=gpus.view(gpus.Seen.of(run.gpus), name, snapshot.world.gpus.get(name), now),
            failed_boot=status.failed_boot_view(boot) if boot is not None else None,
            start=next((starts.view(s) for s in reversed(snapshot.memory.starts) if s.node == name), None),
            events=[self._event(entry) for entry in entries],
            sentences=list(sentences),
        )

    async def _events(self, request: web.Request) -> web.Response:
        after = _number(request, "after", -1, least=-1, most=_SEQ_MOST)
        limit = _number(request, "limit", 100, least=1, most=EVENTS_MOST)
        node, pool = request.query.get("node", ""), request.query.get("pool", "")
        until = self._clock.now() + _number(request, "wait", 0, least=0, most=_LONG_POLL_MOST)
        while True:
            entries = await self._read(
                after=max(0, after), limit=limit, node=node, newest=after < 0, pool=pool
            )
            # a caller that went away must not hold its place to the end of its wait
            if entries or self._clock.now() >= until or request.transport is None:
                break
            await self._clock.sleep(_LONG_POLL_STEP)
        last = entries[-1].seq if entries else max(0, after)
        return answer(views.EventsView(events=[self._event(e) for e in entries], last=last))

    async def _history(self, request: web.Request) -> web.Response:
        limit = _number(request, "limit", history.SWAPS_MOST, least=1, most=history.SWAPS_MOST)
        node, several = request.query.get("node", ""), len(self._runs) > 1
        swaps = [
            (run.name if several else "", swap)
            for run, snapshot in self._turned(request)
            for swap in snapshot.memory.swaps.values()
            if node in ("", swap.outgoing)
        ]
        begun = [
            (run.name if several else "", start)
            for run, snapshot in self._turned(request)
            for start in snapshot.memory.starts
            if node in ("", start.node)
        ]
        return answer(history.view(swaps, begun, at=self._clock.now(), limit=limit))

    async def _cost(self, request: web.Request) -> web.Response:
        try:
            return answer(await self._costs.report(request.query))
        except NoSuchCost as error:
            raise Refused(error.status, str(error)) from error
        except StoreUnavailable as error:
            raise _unreadable(error) from error

    async def _plan(self, request: web.Request) -> web.Response:
        pools = [status.plan_view(snapshot) for _, snapshot in self._turned(request)]
        return answer(views.PlanView(schema="plan/1", pools=pools))

    async def _explain(self, request: web.Request) -> web.Response:
        subject = request.query.get("subject", "pool").strip() or "pool"
        explained = [(run.name, explanation(subject, turn)) for run, turn in self._turned(request)]
        explained = [(name, texts) for name, texts in explained if texts]
        several = len(explained) > 1
        sentences = [f"{name}: {text}" if several else text for name, texts in explained for text in texts]
        sentences += self._route_text(subject)
        sentences = sentences or [*policy_text(subject)]
        if not sentences and subject == "pool":
            sentences = [f"{_named(self._runs).capitalize()}."] if not self._runs else []
        if not sentences:
            raise Refused(
                404,
                f"nothing is known of {subject!r}; "
                "name a node, a zone, a route, a policy (such as capacity), or pool",
            )
        return answer(views.ExplainView(schema="explain/1", subject=subject, sentences=sentences))

    def _route_text(self, subject: str) -> Sequence[str]:
        """The route of a name that clients ask for, said as NAME or as "route NAME"."""
        sight = self._outside.sight
        name = subject.removeprefix("route ").strip()
        return () if sight is None else routes.sentences(sight, self._outside.memory, name)

    async def _metrics(self, _: web.Request) -> web.Response:
        text = await self._gauges.exposition()
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _discovery(self, request: web.Request) -> web.Response:
        port = _number(request, "port", 0, least=1, most=65_535)
        found = (scrape_targets(snapshot, port or None) for _, snapshot in self._turned(request))
        return answer([group for groups in found for group in groups])

    async def _healthz(self, _: web.Request) -> web.Response:
        if not alive(self._runs):
            raise Refused(503, "the loop has not turned for too long")
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        for run in self._asked(request):
            snapshot = run.last
            if down := run.why_down():
                raise Refused(503, f"pool {run.name} is down: {down}")
            if snapshot is None or not snapshot.world.listed or snapshot.fleet.sight.unaccounted:
                raise Refused(503, "the cloud has not been seen whole yet")
            found = snapshot.verdict
            if found.state not in (State.OK, State.EMPTY, State.ALL_ON_DEMAND, State.PAUSED):
                why = f": {found.reasons[0]}" if found.reasons else ""
                raise Refused(503, f"pool {run.name} is {found.state}{why}")
        return web.Response(text="ok\n")

    # -- asking ------------------------------------------------------------------------------------

    async def _drain(self, request: web.Request) -> web.Response:
        name, run, snapshot = self._known(request)
        body = await _body(request)
        budget = _seconds(body, "deadline_s", snapshot.fleet.pool.drain.budget)
        reason = _text(body, "reason") or "asked for by an operator"
        event = OperatorDrained(at=self._clock.now(), node=name, budget=budget, reason=reason)
        await self._accept(run, event)
        return _done(f"{name} is cordoned; it drains once another node can take its place.")

    async def _undrain(self, request: web.Request) -> web.Response:
        name, run, snapshot = self._known(request)
        body = await _body(request)
        if snapshot.fleet.by_id[name].notice is not None:
            raise Refused(409, f"{name} drains because of a notice, which cannot be taken back here")
        reason = _text(body, "reason") or "asked for by an operator"
        await self._accept(run, OperatorUndrained(at=self._clock.now(), node=name, reason=reason))
        return _done(f"{name} goes back to work.")

    async def _pause(self, request: web.Request) -> web.Response:
        run, body = self._one(request), await _body(request)
        seconds = _seconds(body, "for_s", 0.0)
        now = self._clock.now()
        await self._accept(
            run,
            Paused(
                at=now,
                by=_text(body, "by") or "operator",
                reason=_text(body, "reason") or "no reason given",
                until=now + seconds if seconds > 0 else None,
            ),
        )
        return _done(
            "Paused: nothing is launched or ended. Notices still drain nodes and target sets stay true."
        )

    async def _resume(self, request: web.Request) -> web.Response:
        run, body = self._one(request), await _body(request)
        await self._accept(run, Resumed(at=self._clock.now(), by=_text(body, "by") or "operator"))
        return _done("Resumed.")

    async def _reload(self, request: web.Request) -> web.Response:
        body = await _body(request)
        before = self._reloader.config
        try:
            async with asyncio.timeout(_WRITTEN_WITHIN):
                view = await self._reloader.reload(
                    dry_run=_flag(body, "dry_run"), force=_flag(body, "force"), wait=_flag(body, "wait")
                )
        except TimeoutError:
            if self._reloader.config is before:
                text = "the file could not be read in time, so what was in force stays in force; try again"
            else:
                text = "it is in force, but no turn under it was written yet; see the log and `status`"
            raise Refused(503, text) from None
        return answer(view)

    async def _accept(self, run: Run, event: Event) -> None:
        """Put an operator's request into the journal before it is answered.

        A journal that cannot be written does not keep it from taking effect, but must not be hidden either.
        Nor must a loop that does not turn, which takes nothing up.
        """
        ticket = run.inbox.put(event)
        try:
            async with asyncio.timeout(_WRITTEN_WITHIN):
                await run.inbox.written(ticket)
        except TimeoutError:
            if run.last is not None and not run.last.world.durable:
                text = "it is taken up, but the journal cannot be written, so a restart would forget it; "
                text += "see the daemon's log, and daemon.state_dir's disk or daemon.store's database"
            else:
                text = "it waits for the next turn of the loop, which has not come in time; see `status`"
            raise Refused(503, text) from None

    # -- helpers -----------------------------------------------------------------------------------

    def _asked(self, request: web.Request) -> list[Run]:
        """The pool that a request names, or all."""
        name = request.query.get("pool", "")
        if name and name not in self._runs:
            raise Refused(404, f"no pool {name!r} is known; {_named(self._runs)}")
        return [self._runs[name]] if name else [*self._runs.values()]

    def _one(self, request: web.Request) -> Run:
        """The pool that a request names, or the only one."""
        found = self._asked(request)
        if len(found) != 1:
            raise Refused(400, f"say which pool is meant (--pool, or ?pool=NAME); {_named(self._runs)}")
        return found[0]

    def _turned(self, request: web.Request) -> list[tuple[Run, Snapshot]]:
        """The pools that a request is about and that have turned, with their newest turn."""
        asked = self._asked(request)
        found = [*turned(asked)]
        if asked and not found:
            raise Refused(503, "the daemon is starting; ask again in a second")
        return found

    def _known(self, request: web.Request) -> tuple[str, Run, Snapshot]:
        """A living node that a request names, with its pool."""
        name = request.match_info["node"]
        for run, snapshot in self._turned(request):
            if name in snapshot.fleet.by_id:
                return name, run, snapshot
        raise Refused(404, f"no node {name!r} is known; see `orchestrator nodes`")

    def _event(self, entry: StoredEvent) -> views.EventView:
        """An entry of the journal, with the pool where there are several."""
        view = status.event_view(entry)
        if len(self._runs) > 1 and entry.pool != GATEWAY:
            view["pool"] = entry.pool
        return view

    async def _read(self, **query: Any) -> Any:
        try:
            return await self._store.events(**query)
        except StoreUnavailable as error:
            raise _unreadable(error) from error


def _at_most(most: int) -> Middleware:
    """Turns requests away beyond so many at the same time: strangers may not slow the loop down."""
    served = 0

    @web.middleware
    async def bounded(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal served
        if served >= most:
            raise Refused(503, f"{most} requests are being answered; ask again in a second")
        served += 1
        try:
            return await handler(request)
        finally:
            served -= 1

    return bounded


def _unreadable(error: StoreUnavailable) -> Refused:
    return Refused(503, f"the journal cannot be read: {error}")


def _named(runs: Runs) -> str:
    """The pools of the daemon in words."""
    return f"the daemon's pools are {', '.join(runs)}" if runs else "the daemon runs no pool"


async def _only_reading(_: web.Request) -> web.StreamResponse:
    raise Refused(
        403, "this socket is read-only; requests go to the control socket, which needs permission to open"
    )


@web.middleware
async def errors_answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals as {"error": sentence}."""
    try:
        return await handler(request)
    except Refused as error:
        return web.json_response({"error": str(error)}, status=error.status_code)
    except web.HTTPException as error:
        return web.json_response(
            {"error": f"{request.method} {request.path}: {error.reason}"}, status=error.status
        )


def answer(view: Any) -> web.Response:
    """A view as the body of an answer."""
    return web.Response(body=orjson.dumps(view), content_type="application/json")


def _done(text: str) -> web.Response:
    return answer(views.DoneView(text=text))


async def _body(request: web.Request) -> dict[str, Any]:
    raw = await request.read()
    try:
        body = orjson.loads(raw) if raw else {}
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object")
    return body


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key) or ""
    if not isinstance(value, str) or len(value) > 500:
        raise Refused(400, f"{key} must be text of at most 500 characters")
    return value


def _flag(body: dict[str, Any], key: str) -> bool:
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise Refused(400, f"{key} must be true or false")
    return value


def _seconds(body: dict[str, Any], key: str, default: float) -> float:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 31_536_000:
        raise Refused(400, f"{key} must be a number of seconds between 0 and a year")
    return float(value)


def _number(request: web.Request, key: str, default: int, *, least: int, most: int) -> int:
    text = request.query.get(key, "")
    if not text:
        return default
    try:
        value = int(float(text))
    except (ValueError, OverflowError):
        value = least - 1
    if not least <= value <= most:
        raise Refused(400, f"{key} must be a number from {least} to {most}, not {text[:40]!r}")
    return value
