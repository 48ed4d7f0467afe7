"""A gateway with several pools and routes in the test's own process, and providers that are played."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from cloud.balancers.targets import TargetSet, encode
from cloud.clock import SystemClock
from orchestrator.gateway.app import Gateway
from orchestrator.gateway.backend import Backend as Served
from orchestrator.gateway.config import GatewayConfig, PoolGate, ProviderSpec
from orchestrator.gateway.endings import ClientGone, Endings, Unserved
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.job import Job
from orchestrator.gateway.metrics import Outcome
from orchestrator.gateway.request import Stage
from policies.model import TargetSpec
from policies.routing import Backend, BackendView, Candidate, Kind, Route, Trouble, When
from tests.support.running_gateway import JSON
from tests.support.upstreams import Conversation, Upstream


def pool(name: str, model: str = "", *when: str, **fields: Any) -> Backend:
    return Backend(kind=Kind.POOL, name=name, model=model, when=_when(when), **fields)


def api(name: str, model: str = "big", *when: str, **fields: Any) -> Backend:
    return Backend(kind=Kind.PROVIDER, name=name, model=model, when=_when(when), **fields)


def _when(words: tuple[str, ...]) -> frozenset[When] | None:
    return frozenset(When(word) for word in words) if words else None


def route(*models: str, to: Sequence[Backend], **fields: Any) -> Route:
    return Route(models=models, backends=tuple(to), **fields)


class PlayedProvider:
    """A provider that answers in OpenAI's form by itself. Counts what reaches it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []  # model, request
        self.trouble: Trouble | None = None  # in which each request leaves
        self.looks = BackendView()
        self.breaks = False  # its streams break after their first event
        self._endings = Endings(1)

    def view(self, _: str = "", /) -> BackendView:
        return self.looks

    async def serve(self, job: Job, candidate: Candidate) -> web.StreamResponse:
        model = candidate.backend.model
        self.seen.append((model, job.asked.inner or {}))
        if self.trouble is not None:
            turned = self._endings.turned(job, 503, "provider_down", "the provider is down")
            raise Unserved(self.trouble, "is in trouble", turned)
        job.exchange.move(Stage.SENT)
        if not job.asked.stream:
            choice = {"index": 0, "message": {"content": "from api"}, "finish_reason": "stop"}
            body = json.dumps({"model": model, "choices": [choice]}).encode()
            headers = {**JSON}
            job.response = web.Response(body=job.edge.answer(body), headers=headers)
            job.outcome = Outcome.OK
            return job.response
        job.response = out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        job.exchange.move(Stage.STREAMING)
        try:
            await out.prepare(job.request)
            await out.write(job.edge.feed(_event(model, {"content": "from api"}, None)))
            if self.breaks:
                return await self._endings.cut(job, Failure.DISCONNECTED, "it broke")
            await out.write(job.edge.feed(_event(model, {}, "stop") + b"data: [DONE]\n\n"))
        except ConnectionError:
            raise ClientGone from None
        job.outcome = Outcome.OK
        return out


def _event(model: str, delta: dict[str, Any], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"model": model, "choices": [choice]}).encode() + b"\n\n"


async def echo(talk: Conversation) -> None:
    """Answers with the model that was asked for, and with who answered."""
    asked = json.loads(talk.request.body or b"{}")
    model, said = asked.get("model"), f"from {talk.upstream.name}"
    if not asked.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        await talk.json({"id": "c", "object": "chat.completion", "model": model, "choices": [choice]})
        return
    await talk.start_stream()
    for delta, finish in (({"content": said}, None), ({"content": ' "model":"no" '}, None), ({}, "stop")):
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        await talk.event({"id": "c", "created": 1, "model": model, "choices": [choice]})
    await talk.done()
    await talk.end_stream()


async def until(condition: Callable[[], Any]) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


class Routed:
    """A gateway that runs. `pools` maps names to the engines that it is told of.

    `providers` are played; `specs` are of real ones, which are asked over the network.
    """

    def __init__(
        self,
        directory: Path,
        pools: Mapping[str, Sequence[Upstream]],
        *routes: Route,
        gates: Mapping[str, Mapping[str, Any]] | None = None,
        providers: Mapping[str, Served] | None = None,
        specs: Sequence[ProviderSpec] = (),
        **settings: Any,
    ) -> None:
        self._pools = {name: list(engines) for name, engines in pools.items()}
        own = gates or {}
        quick = {"health_interval": 0.05, "queue_deadline": 20.0, "served": "", "no_target_wait": 0.2}
        made = [
            PoolGate(
                name=name,
                targets_file=directory / f"targets-{name}.json",
                **(quick | {"served": f"{name}-model"} | dict(own.get(name, {}))),
            )
            for name in pools
        ]
        providers = providers or {}
        self.config = GatewayConfig(
            socket=directory / "gw.sock",
            pools=tuple(made),
            routes=routes,
            providers={name: ProviderSpec(name=name, kind="openai", url="http://x") for name in providers}
            | {spec.name: spec for spec in specs},
            **({"port": 0, "poll_interval": 0.02, "linger": 0.0, "seed": 1} | settings),
        )
        self.gateway = Gateway(self.config, SystemClock())
        self.gateway.providers.update(providers)
        self._generation = 0
        self._stopped = False

    async def start(self) -> Routed:
        await self.gateway.start()
        for name in self._pools:
            await self.put(name)
        await until(lambda: all(self._checked(lane) for lane in self.gateway.lanes.values()))
        return self

    @staticmethod
    def _checked(lane: Any) -> bool:
        return all(entry.health.value != "initial" for entry in lane.table)

    async def put(self, name: str, *targets: TargetSpec) -> tuple[int, dict[str, Any]]:
        """Tell the gateway the targets of a pool, by default all of its engines."""
        self._generation += 1
        specs = targets or tuple(engine.spec() for engine in self._pools.get(name, ()))
        document = TargetSet(generation=self._generation, pool=name, written_at=1.0, targets=specs)
        return await self.control("PUT", "/v1/targets", encode(document))

    async def control(self, method: str, path: str, data: bytes | None = None) -> tuple[int, Any]:
        connector = aiohttp.UnixConnector(str(self.config.socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, f"http://gateway{path}", data=data, headers=JSON) as answer,
        ):
            return answer.status, await answer.json()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"

    async def ask(
        self, model: Any = None, path: str = "/v1/chat/completions", headers: Any = None, **fields: Any
    ) -> tuple[int, dict[str, str], str]:
        """Post a request; status, headers and text of the answer."""
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], **fields}
        if model is not None:
            body["model"] = model
        return await self.send("POST", path, json.dumps(body).encode(), JSON | (headers or {}))

    async def send(
        self, method: str, path: str, body: bytes | None = None, headers: Any = None
    ) -> tuple[int, dict[str, str], str]:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.url + path, data=body, headers=headers) as answer,
        ):
            text = (await answer.read()).decode()
            return answer.status, {key.lower(): value for key, value in answer.headers.items()}, text

    async def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        await self.gateway.stop(linger=0.0, drain_timeout=0.0)
