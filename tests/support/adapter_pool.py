"""A pool whose nodes hold adapters: a hand that does for them what the daemon does, and clients of them."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import aiohttp

from policies.held import Adapter, Held
from policies.model import TargetPhase, TargetSpec
from tests.support.running_gateway import Running

PATIENCE = 120.0
PROMPT = "spot nodes"
BUILD = "same"


class Node(Protocol):
    """An engine on a port that it keeps over its lives."""

    name: str

    @property
    def address(self) -> str: ...

    async def start(self) -> None: ...
    async def kill(self) -> None: ...


def held_as(adapter: Adapter) -> Held:
    """An adapter as an engine has it that loads adapters at run time."""
    return Held(name=adapter.name, served_as=adapter.served_as, revision=adapter.revision)


class Hand:
    """Loads and unloads at engines with vLLM's routes, and tells the gateway who holds what.

    `held`: what each node gets requests for, by its name.
    """

    def __init__(self, gateway: Running, http: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.nodes: dict[str, Node] = {}
        self.held: dict[str, tuple[Held, ...]] = {}
        self.draining: set[str] = set()
        self._http = http

    async def load(self, node: Node, adapters: Iterable[Adapter]) -> None:
        """Have a node load those of these that it does not have."""
        async with self._http.get(f"http://{node.address}/v1/models") as answer:
            known = {row["id"] for row in (await answer.json())["data"]}
        for adapter in adapters:
            if adapter.served_as in known:
                continue
            asked = {"lora_name": adapter.served_as, "lora_path": adapter.location}
            url = f"http://{node.address}/v1/load_lora_adapter"
            async with self._http.post(url, json=asked) as answer:
                assert answer.status == 200, await answer.text()

    async def unload(self, node: Node, adapter: Adapter) -> None:
        """Have a node unload one."""
        url = f"http://{node.address}/v1/unload_lora_adapter"
        async with self._http.post(url, json={"lora_name": adapter.served_as}) as answer:
            assert answer.status == 200, await answer.text()

    async def tell(self, **held: Iterable[Held]) -> None:
        """Push the set; `held` changes what nodes get requests for."""
        self.held |= {name: tuple(each) for name, each in held.items()}
        specs = [
            TargetSpec(
                id=name,
                address=self.nodes[name].address,
                phase=TargetPhase.DRAINING if name in self.draining else TargetPhase.ACTIVE,
                build=BUILD,
                adapters=each,
            )
            for name, each in self.held.items()
        ]
        await self.gateway.push(*specs)

    async def join(self, node: Node, adapters: Iterable[Adapter]) -> None:
        """Start a node, and make it a target once it holds all that it should."""
        adapters = tuple(adapters)
        await self.start(node, adapters)
        await self.route(node, adapters)

    async def start(self, node: Node, adapters: Iterable[Adapter]) -> None:
        """Start a node that is no target yet."""
        await node.start()
        self.nodes[node.name] = node
        await self.load(node, adapters)

    async def route(self, node: Node, adapters: Iterable[Adapter]) -> None:
        """Make a node a target that the gateway knows."""
        await self.tell(**{node.name: map(held_as, adapters)})
        await self.until(
            lambda rows: rows[node.name]["state"] == "healthy" and rows[node.name]["continuation"]
        )

    async def replace(self, node: str, other: Node, adapters: Iterable[Adapter]) -> None:
        """Have another node take the place of one, which drains and ends."""
        await self.join(other, adapters)
        self.draining.add(node)
        await self.tell()
        await self.until(lambda rows: rows[node]["in_flight"] == 0)
        del self.held[node]
        await self.tell()
        await self.nodes.pop(node).kill()

    async def forget(self, name: str, adapters: Iterable[Adapter], clients: Clients) -> None:
        """Start a node again behind the gateway's back, without any adapter; its clients meet that, and then
        what it was given again.
        """
        node, adapters = self.nodes[name], tuple(adapters)
        await node.kill()
        await node.start()
        await clients.some()
        await self.tell(**{name: ()})
        await self.load(node, adapters)
        await self.tell(**{name: map(held_as, adapters)})
        await clients.some()

    async def swap(self, old: Adapter, new: Adapter) -> None:
        """Load the new one everywhere, then route it, then unroute the old one, drain it and unload it."""
        for node in self.nodes.values():
            await self.load(node, [new])
        before, after = held_as(old), held_as(new)
        both = {
            name: tuple(e for h in each for e in ((after, h) if h == before else (h,)))
            for name, each in self.held.items()
        }
        await self.tell(**both)
        await self.tell(**{name: [h for h in each if h != before] for name, each in both.items()})
        await self.until(lambda rows: not any(row["adapters_leaving"] for row in rows.values()))
        for node in self.nodes.values():
            await self.unload(node, old)

    async def until(self, condition: Any) -> None:
        """Wait until the gateway's rows of targets are as wanted."""
        async with asyncio.timeout(PATIENCE):
            while not condition(await self.gateway.targets()):  # noqa: ASYNC110 - asked over a socket
                await asyncio.sleep(0.02)


class Clients:
    """Ask for all models at random, half of them for streams, until they are stopped.

    `texts`: what may be said for each, None for anything of that length. `failed` are answers that no client
    should get, `whole` counts the others by model. `streams`: ask for streams too.
    """

    def __init__(self, url: str, texts: Mapping[str, set[str] | None], *, count: int, tokens: int) -> None:
        self.url = url
        self.texts = texts
        self.failed: list[str] = []
        self.whole: Counter[str] = Counter()
        self.stopped = False
        self.streams = True
        self.open_streams = 0
        self._count, self._tokens = count, tokens

    async def __aenter__(self) -> Clients:
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE))
        self._tasks = [asyncio.create_task(self._client(random.Random(n))) for n in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stopped = True
        await asyncio.gather(*self._tasks)
        await self._http.close()

    async def some(self, most: int = 30) -> None:
        """Wait until so many more answers are there."""
        wanted = self.whole.total() + most
        async with asyncio.timeout(PATIENCE):
            while self.whole.total() < wanted and not self.failed:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def _client(self, rng: random.Random) -> None:
        while not self.stopped and not self.failed:
            model = rng.choice(sorted(self.texts))
            stream = self.streams and rng.random() < 0.5
            known = self.texts[model]
            self.open_streams += stream
            status, text, names = await asked(self._http, self.url, model, self._tokens, stream=stream)
            self.open_streams -= stream
            if status == 200 and (known is None or text in known) and names == {model}:
                self.whole[model] += 1
            else:
                self.failed.append(f"{model} {stream=}: {status} {names} {text[:300]}")


async def asked(
    http: aiohttp.ClientSession, url: str, model: str, tokens: int, *, stream: bool = False, **fields: Any
) -> tuple[int, str, set[str]]:
    """Ask for so many tokens: the status, the text or the error, and the models that the answer names."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    async with http.post(f"{url}/v1/completions", json=body | {"stream": stream} | fields) as answer:
        said = (await answer.read()).decode()
    rows = [line[6:] for line in said.split("\n") if line.startswith("data: {")] if stream else [said]
    events = [json.loads(row) for row in rows] if answer.status == 200 else []
    if answer.status != 200 or any("error" in event for event in events):
        return answer.status, f"error: {said}", set()
    finish = [c["finish_reason"] for event in events for c in event["choices"] if c["finish_reason"]]
    text = "".join(choice["text"] for event in events for choice in event["choices"])
    if finish != ["length"] or (stream and not said.rstrip().endswith("[DONE]")):
        return answer.status, f"cut: {said}", set()
    return answer.status, text, {event["model"] for event in events}


async def texts_of(http: aiohttp.ClientSession, node: Node, models: Iterable[str], tokens: int) -> list[str]:
    """What a node itself says for each of these, by its own names."""
    found = []
    for model in models:
        status, text, _ = await asked(http, f"http://{node.address}", model, tokens)
        assert status == 200, text
        found.append(text)
    return found


async def nobody_at(address: str) -> bool:
    """Whether nothing listens there: one that ends closes its connections before its port is free."""
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionRefusedError:
        return True
    writer.close()
    return False
