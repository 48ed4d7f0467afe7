"""One table of what can befall a node, and what clients of its pool may see of it, for every real engine.

A test starts a stack (tests/system/conftest.py) whose pools run real engines, makes a `RealPool` of each and
calls `struck` for each `Fault` of `FAULTS`: clients ask the pool without a pause while one of its nodes is
struck, and until the pool is whole again. What they must get is what the engine itself says when it is asked
directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from judged_load import Client, Question, Told, asked, learnt

from cloud.engines.row import Dialect
from cloud.ports import Task
from orchestrator.views.api import NodeView, PoolView

PATIENCE = 150.0
"""Seconds for a pool to be whole again; an engine's start takes twenty on a very busy machine."""

Strike = Callable[[Any, NodeView], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that befalls a node.

    `cause`: why the daemon drains it then, in the words of its journal; empty where it is gone by
    itself, and what of that is seen first is left to chance.
    `gentle`: its requests get the time to end there, so that no stream may break.
    """

    name: str
    strike: Strike
    cause: str
    gentle: bool = False


def engine_processes(stack: Any, node: NodeView) -> list[int]:
    """The processes of a node's engine: the one that was started, then the others from the largest on.

    They are those of its process group, whatever their titles and environments say.
    """
    host, _, port = node["address"].rpartition(":")
    words = (f" --host {host} ", f" --port {port} ")
    lines = {pid: f"{line} " for pid, line in stack.command_lines().items() if os.getpgid(pid) == pid}
    (leader,) = [pid for pid, line in lines.items() if all(word in line for word in words)]
    group = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if (pid := int(entry.name)) != leader and os.getpgid(pid) == leader:
                group.append((int((entry / "statm").read_text().split()[1]), pid))
    return [leader, *(pid for _, pid in sorted(group, reverse=True))]


async def _reclaim(stack: Any, node: NodeView) -> None:
    await stack.admin("reclaim", node=node["id"], notice_s=30.0)


async def _vanish(stack: Any, node: NodeView) -> None:
    """It is taken back without a notice."""
    await stack.admin("reclaim", node=node["id"], notice_s=0)


async def _drain(stack: Any, node: NodeView) -> None:
    done = await stack.cli("drain", node["id"])
    assert done.code == 0, done.err


async def _kill(stack: Any, node: NodeView) -> None:
    """What answers requests is killed; helpers that it has are left to themselves."""
    os.kill(engine_processes(stack, node)[0], signal.SIGKILL)


async def _freeze(stack: Any, node: NodeView) -> None:
    await stack.admin("freeze", node=node["id"])


async def _crash(stack: Any, node: NodeView) -> None:
    """What computes dies of a wrong address: the largest of its helpers, where it has some."""
    os.kill(engine_processes(stack, node)[:2][-1], signal.SIGSEGV)


async def _starve(stack: Any, node: NodeView) -> None:
    """The kernel ends it for want of memory: all its processes get into a control group that has none.

    Where no such group can be made, the largest process is killed as the kernel would do.
    """
    pids = engine_processes(stack, node)
    try:
        group = _group_without_memory(f"orchestrator-test-{node['id']}")
    except OSError:
        os.kill(pids[:2][-1], signal.SIGKILL)
        return
    try:
        for pid in pids:
            _move(pid, group)
        async with asyncio.timeout(PATIENCE):
            while not _killed(group):  # noqa: ASYNC110 - the kernel tells nobody
                await asyncio.sleep(0.02)
    finally:
        async with asyncio.timeout(PATIENCE):
            while not _removed(group, pids):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


def _group_without_memory(name: str) -> Path:
    """A new control group (version 1) beneath our own. Raises OSError where none can be made."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    mine = [path for _, names, path in (line.split(":", 2) for line in lines) if names == "memory"]
    if not mine:
        raise FileNotFoundError("no control groups of memory")
    group = Path(f"/sys/fs/cgroup/memory{mine[0]}") / name
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text("65536")
    return group


def _move(pid: int, group: Path) -> None:
    """Move a process, if it still lives."""
    with contextlib.suppress(OSError):
        (group / "cgroup.procs").write_text(str(pid))


def _killed(group: Path) -> bool:
    """Whether the kernel has killed a process of it, or it has none any more."""
    said = (group / "memory.oom_control").read_text().split()
    return int(said[said.index("oom_kill") + 1]) > 0 or not (group / "cgroup.procs").read_text()


def _removed(group: Path, pids: Sequence[int]) -> bool:
    """Whether it is gone; what still lives in it is moved out first."""
    for pid in pids:
        _move(pid, group.parent)
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()


FAULTS: Sequence[Fault] = (
    Fault(name="reclaim", strike=_reclaim, cause="notice", gentle=True),
    Fault(name="reclaim without notice", strike=_vanish, cause=""),
    Fault(name="drain", strike=_drain, cause="operator", gentle=True),
    Fault(name="kill -9", strike=_kill, cause="sick"),
    Fault(name="frozen", strike=_freeze, cause="sick"),
    Fault(name="crash", strike=_crash, cause="sick"),
    Fault(name="out of memory", strike=_starve, cause="sick"),
)

QUICK: dict[str, dict[str, object]] = {
    "daemon": {"probe_timeout": "1s"},
    "pool.test.drain": {"budget": "3s", "margin": "500ms"},
    "pool.test.health": {"unhealthy_after": "1s", "replace_after": "3s"},
    "pool.test.gateway": {"health_timeout": "1s"},
}
"""Settings with which a stack finds a sick node within seconds, for engines that answer within one."""


_OF_THE_PROCESS = ("listen", "metrics_listen", "socket")


def pools_of_two(
    base: Mapping[str, Mapping[str, object]],
    models: Mapping[str, str],
    engines: Mapping[str, Mapping[str, object]],
) -> dict[str, dict[str, object]]:
    """A file with pools of two nodes behind one gateway, made of the tables of a stack with one pool.

    By the pool's name, which is also the name that its model is served under: the model, and the table of
    its engine.
    """
    front = base["pool.test.gateway"]
    found = {"daemon": dict(base["daemon"]), "gateway": {key: front[key] for key in _OF_THE_PROCESS}}
    for pool, model in models.items():
        for name in (name for name in base if name.startswith("pool.test")):
            found[name.replace("pool.test", f"pool.{pool}")] = dict(base[name])
        of_pool = {key: value for key, value in front.items() if key not in _OF_THE_PROCESS}
        found[f"pool.{pool}.gateway"] = of_pool
        found[f"pool.{pool}"] |= {"model": model, "replicas": 2}
        found[f"pool.{pool}.engine"] = {**engines[pool], "served_name": pool}
    return found


def questions(
    task: Task, model: str, *, count: int = 12, tokens: int = 400, ids: bool = False
) -> list[Question]:
    """Questions for a pool of a task whose answers are not known yet.

    For "generate" half of them are streams, of chats and of completions, with as many `tokens`; with `ids`
    one in three asks for the ids of its tokens too. For "embed" they are batches of 1 to 8 texts; for
    "rerank" one text and as many documents.
    """
    found = []
    for number in range(count):
        texts = [f"Sentence {number}.{part} of spot nodes. " * 8 for part in range(1 + number % 8)]
        if task == "generate":
            chat, stream = number % 2 == 0, number % 4 < 2
            more: dict[str, Any] = {"model": model, "temperature": 0}
            more |= {"stream_options": {"include_usage": True}} if stream else {}
            more |= {"return_token_ids": True} if ids and number % 3 == 0 else {}
            found.append(asked(number, chat=chat, stream=stream, tokens=tokens, **more))
        elif task == "embed":
            body: dict[str, Any] = {"model": model, "input": texts}
            found.append(Question(number=number, path="/v1/embeddings", body=body))
        else:
            body = {"model": model, "query": f"Which is {number}?", "documents": texts}
            found.append(Question(number=number, path="/v1/rerank", body=body))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class RealPool:
    """A pool of a stack, the questions that its clients ask, with answers, and what its streams can.

    `continued`: the row of its engine says that token ids are exact, so a broken stream goes on elsewhere.
    Each of its `clients` waits so many seconds (`rest`) between an answer and its next question.
    """

    name: str
    questions: Sequence[Question]
    continued: bool
    clients: int = 6
    rest: float = 0.0

    @property
    def generates(self) -> bool:
        """Whether its answers take so long that some are always under way."""
        return any(question.text for question in self.questions)

    async def view(self, stack: Any) -> PoolView:
        """What the daemon's status says of it."""
        status = await stack.until("the daemon answers", stack.status)
        found: PoolView = next(pool for pool in status["pools"] if pool["name"] == self.name)
        return found

    async def whole(self, stack: Any, *, patience: float = PATIENCE) -> None:
        """Wait until it is as wanted: its mix exact, every node serving, nothing on its way."""

        async def wanted() -> bool:
            view = await self.view(stack)
            nodes = view["nodes"]
            return (
                len(nodes) == view["serving"] == view["wanted"]
                and view["spot_ready"] == view["spot_wanted"]
                and all(n["phase"] == "ready" and "noticed" not in n["conditions"] for n in nodes)
            )

        await stack.until(f"{self.name} is whole", wanted, patience=patience)

    async def gateway(self, stack: Any) -> dict[str, Any]:
        """What the gateway says of it."""
        connector = aiohttp.UnixConnector(str(stack.sockets / "gateway"))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://gateway/v1/state", params={"pool": self.name}) as answer,
        ):
            state: dict[str, Any] = await answer.json()
            return state

    @contextlib.asynccontextmanager
    async def asked(self, stack: Any) -> AsyncIterator[Client]:
        """Clients that ask its questions over and over while the body runs; all is answered afterwards."""
        client, over = Client(stack.url), asyncio.Event()

        async def asking(first: int) -> None:
            number = first
            while not over.is_set():
                await client.ask(self.questions[number % len(self.questions)])
                number += self.clients + 1
                await asyncio.sleep(self.rest)

        tasks = [asyncio.create_task(asking(number)) for number in range(self.clients)]
        try:
            yield client
        finally:
            over.set()
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*tasks)
            await client.close()


async def pool_of(stack: Any, name: str, task: Task, dialect: Dialect, *, tokens: int = 400) -> RealPool:
    """The pool `name`, served under that name, with the answers of one of its own nodes, asked directly."""
    continued = dialect.capabilities.token_ids == "exact"
    pool = RealPool(name=name, questions=(), continued=continued)
    await pool.whole(stack)
    node = next(node for node in (await pool.view(stack))["nodes"] if node["attached"])
    known = await learnt(node["address"], questions(task, name, tokens=tokens, ids=continued))
    # Engines disagree with themselves on a last letter that has not come whole.
    known = [question for question in known if "\ufffd" not in question.text[-4:]]
    return RealPool(name=name, questions=known, continued=continued)


async def struck(stack: Any, pool: RealPool, fault: Fault, *, patience: float = PATIENCE) -> list[Told]:
    """Strike one spot node of a pool under load; what clients were told until the pool was whole again.

    `patience` is what a new node may take.

    Checked: no request is lost; every answer is right; a stream ends early only where its engine cannot go
    on with it elsewhere, only on the struck node, only with the error that says so, and after a right part;
    the status shows that the node serves no more; it is drained for the right cause, and replaced.
    """
    await pool.whole(stack, patience=patience)
    node = next(n for n in (await pool.view(stack))["nodes"] if n["market"] == "spot" and n["attached"])
    before = (await pool.gateway(stack))["totals"]

    async def busy() -> bool:
        targets = (await pool.gateway(stack))["targets"]
        return any(target["id"] == node["id"] and target["in_flight"] > 0 for target in targets)

    seen: Counter[str] = Counter()

    async def gone() -> bool:
        view = await pool.view(stack)
        mine = [one for one in view["nodes"] if one["id"] == node["id"]]
        seen.update("out" for one in mine if one["target"] != "healthy" or one["phase"] != "ready")
        return not mine

    async with pool.asked(stack) as client:
        await stack.until(f"{pool.name}: the node works", busy)
        await fault.strike(stack, node)
        await stack.until(f"{pool.name}: the node is replaced after {fault.name}", gone, patience=patience)
        await pool.whole(stack, patience=patience)
        enough = len(client.told) + 5 * pool.clients
        async with asyncio.timeout(PATIENCE):
            while len(client.told) < enough:  # noqa: ASYNC110 - the clients tell nobody
                await asyncio.sleep(0.02)
    after = (await pool.gateway(stack))["totals"]
    grown = {key: value - before[key] for key, value in after.items()}
    _judge(pool, fault, node["id"], client.told, grown)
    assert seen["out"] or not fault.cause, "the status never showed it"
    story = [event for event in await stack.events() if event["node"] == node["id"]]
    drained = [event["data"]["cause"] for event in story if event["kind"] == "DrainStarted"]
    assert drained == [fault.cause] or not fault.cause, f"{pool.name}, {fault.name}: drained for {drained}"
    assert [event["kind"] for event in story].count("NodeGone") == 1
    return client.told


def _judge(pool: RealPool, fault: Fault, node: str, told: Sequence[Told], grown: dict[str, int]) -> None:
    cut = [one for one in told if one.fault == "cut: stream_interrupted"]
    lost = [f"{one.fault} {one.said} at {one.node}" for one in told if one.fault and one not in cut]
    assert not lost, f"{pool.name}, {fault.name}: {len(lost)} of {len(told)}: {Counter(lost).most_common(5)}"
    assert not (cut and (pool.continued or fault.gentle)), f"{cut[0].said} ({len(cut)} such ends)"
    assert {one.node for one in cut} <= {node}, "streams of other nodes ended"
    assert grown["streams_cut"] == len(cut)
    if not fault.gentle and pool.generates:
        assert grown["retries"] + len(cut) + sum(one.seams for one in told) > 0, (
            "it hurt nobody: nothing is shown"
        )
