"""A pool whose engines run in containers: it comes up, serves, and survives what happens to containers.

What is done to a container is done behind the cloud's back, with podman's own commands or by the kernel's
means. The engine is the simulated one, in an image of links to this machine's programs.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from containers import IMAGE, VOLUMES, ask, freeze, listed
from long_requests import long_requests
from registry import Registry, registry

from cloud.local.processes import belonging

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.debian("podman", package="podman"),
    pytest.mark.usefixtures("real_podman"),
    pytest.mark.timeout(400),
]

FETCH_SECONDS = 3.0
CONTAINER: dict[str, object] = {
    "run": "container",
    "runtime": "podman",
    "image": IMAGE,
    "volumes": list(VOLUMES),
    "args": ["--load-time", "0.2", "--tokens-per-second", "50"],
}
CHANGES: dict[str, dict[str, object]] = {
    "daemon": {"probe_timeout": "1s"},
    "pool.test": {"replicas": 2},
    "pool.test.engine": CONTAINER,
    "pool.test.drain": {"budget": "8s"},
    "pool.test.health": {"unhealthy_after": "1s", "replace_after": "4s", "boot_timeout": "60s"},
    "pool.test.gateway": {"health_timeout": "1s"},
}


@pytest.fixture(scope="module")
def images(real_podman: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("registry"), slow=FETCH_SECONDS) as running:
        yield running


def contained(node: str) -> list[str]:
    """The container of a node, if it has one."""
    return [name for name in listed() if name.endswith(f"-{node}")]


async def nothing_left(stack: Any, node: str) -> None:
    """Wait until no container, and no process in one, is left of a node."""
    mark = f"{(await stack.cloud.describe()).cloud}/{node}"

    async def gone() -> bool:
        return not belonging((mark,)) and not await asyncio.to_thread(contained, node)

    await stack.until("nothing of the node is left", gone)


def run_out_of_memory(name: str) -> None:
    """What the kernel does to the process that took too much."""
    os.kill(int(ask("inspect", "--format", "{{.State.Pid}}", name)), signal.SIGKILL)


@pytest.mark.parametrize("strike", [freeze, run_out_of_memory])
async def test_a_container_that_is_struck_costs_no_request_and_is_replaced(stack: Any, strike: Any) -> None:
    node = (await stack.a_node("spot"))["id"]
    (name,) = await asyncio.to_thread(contained, node)
    async with stack.traffic() as traffic:
        async with long_requests(stack) as ends:
            await asyncio.to_thread(strike, name)
            await stack.until_pool(
                "the node gets no new requests",
                lambda pool: all(n["target"] != "healthy" for n in pool["nodes"] if n["id"] == node),
            )
            await traffic.answers(20)
        await stack.until_pool(
            "the node is replaced", lambda pool: node not in {n["id"] for n in pool["nodes"]}
        )
        await nothing_left(stack, node)
        await stack.settled()
    assert ends == ["whole"] * 12
    assert (traffic.report.failures, traffic.report.streams_cut) == ({}, 0)
    assert traffic.report.sent == traffic.report.answered


async def test_a_reclaim_with_notice_drains_the_engine_in_its_container(stack: Any) -> None:
    """The budget ends what runs there, and the stop signal reaches the engine, which ends by itself."""
    node = (await stack.a_node("spot"))["id"]
    async with stack.traffic() as traffic:
        async with long_requests(stack) as ends:
            await stack.admin("reclaim", node=node)
            await stack.until_pool(
                "the node drains", lambda pool: any(n["phase"] == "draining" for n in pool["nodes"])
            )
        await nothing_left(stack, node)
        await stack.settled()
    assert ends == ["whole"] * 12
    assert (traffic.report.failures, traffic.report.streams_cut) == ({}, 0)
    assert traffic.report.sent == traffic.report.answered
    output = stack.state / "cloud" / "nodes" / node / "engine.log"
    said = output.read_text(encoding="utf-8").splitlines()
    assert any("draining for at most" in line for line in said), said
    assert said[-1].endswith("exit"), said


async def test_an_image_is_fetched_once_and_is_a_part_of_the_start(new_stack: Any, images: Registry) -> None:
    image = f"{images.address}/stage/engine:1"
    changes = {**CHANGES, "pool.test": {"replicas": 1}, "pool.test.engine": {**CONTAINER, "image": image}}
    async with new_stack(changes) as stack:
        (node,) = (await stack.settled())["nodes"]
        history = json.loads((await stack.cli("history", "--output", "json")).out)
        (start,) = [start for start in history["starts"] if start["node"] == node["id"]]
        assert start["parts"]["image"] >= FETCH_SECONDS
        assert {"machine", "prepare", "image", "load"} <= set(start["parts"])
        assert "image" in (await stack.cli("history", "--starts")).out
        asked = images.asked("engine")
        await stack.admin("reclaim", node=node["id"], notice_s=0)
        await nothing_left(stack, node["id"])
        await stack.settled()
        assert images.asked("engine") == asked
    await asyncio.to_thread(ask, "rmi", image)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "the container's image is not in its registry"),
        ("refused", "log in there on the nodes"),
        ("stalls", "the container's image was still being fetched"),
    ],
)
async def test_an_image_that_does_not_come_is_told_and_launches_end(
    new_stack: Any, images: Registry, name: str, words: str
) -> None:
    """The node is given up in time and leaves nothing; it counts as any start that fails."""
    image = f"{images.address}/stage/{name}:1"
    changes = {
        **CHANGES,
        "pool.test": {"replicas": 1},
        "pool.test.engine": {**CONTAINER, "image": image},
        "pool.test.health": {"boot_timeout": "6s", "give_up_after": 1},
    }
    async with new_stack(changes) as stack:
        pool = await stack.until_pool(
            "it says that it never started",
            lambda pool: any("has not started once" in text for text in pool["problems"]),
        )
        (told,) = [text for text in pool["problems"] if "has not started once" in text]
        assert words in told
        (failed,) = pool["failed_boots"]
        await nothing_left(stack, failed["node"])
        await stack.turns(4)
        assert len(stack.launch_intents(await stack.events())) == 1
        shown = (await stack.cli("node", failed["node"])).out
        assert f"container: image: {image} is fetched" in shown
        assert images.asked(name) > 0
