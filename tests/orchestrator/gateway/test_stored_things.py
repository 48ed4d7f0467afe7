"""A thing that one node keeps is asked for where it is, or there is a clear error."""

from __future__ import annotations

import json

import pytest


def keeper(things):
    """A node that keeps responses: made by POST, and known to nobody else."""

    async def behave(talk):
        if talk.request.method == "POST":
            body = json.loads(talk.request.body)
            before = body.get("previous_response_id")
            if before is not None and before not in things:
                await talk.json({"error": {"message": f"no {before}", "code": 404}}, "404 Not Found")
                return
            name = f"resp_{talk.upstream.name}{len(things)}"
            things.add(name)
            await talk.json({"id": name, "object": "response", "status": "completed", "output": [{}]})
        elif talk.request.path.rpartition("/")[2] in things:
            await talk.json({"id": talk.request.path.rpartition("/")[2], "from": talk.upstream.name})
        else:
            await talk.json({"error": {"message": "not here", "code": 404}}, "404 Not Found")

    return behave


@pytest.fixture
async def pool(upstreams, gateways):
    nodes = [await upstreams(name, keeper(set())) for name in "abcde"]
    return await gateways(*nodes), nodes


async def made(client, running, **fields):
    async with client.post(
        running.url + "/v1/responses", json={"model": "m", "input": "x"} | fields
    ) as answer:
        return answer.status, (await answer.json()), answer.headers.get("X-Orchestrator-Node")


async def test_it_is_asked_for_where_it_was_made(client, pool):
    running, _ = pool
    for _ in range(12):
        _, thing, node = await made(client, running)
        async with client.get(running.url + f"/v1/responses/{thing['id']}") as answer:
            assert (await answer.json())["from"] == node
        status, _, next_node = await made(client, running, previous_response_id=thing["id"])
        assert (status, next_node) == (200, node)
    assert (await running.state())["totals"]["retries"] == 0


async def test_one_that_nobody_has_seen_made_is_looked_for_everywhere(client, pool):
    running, nodes = pool
    for node in nodes:
        node.behaviour = keeper({"resp_old"} if node.name == "d" else set())
    for _ in range(4):
        async with client.get(running.url + "/v1/responses/resp_old") as answer:
            assert (await answer.json())["from"] == "d"
    async with client.get(running.url + "/v1/responses/resp_none") as answer:
        assert answer.status == 404
    assert {row["breaker"] for row in (await running.targets()).values()} == {"closed"}


async def test_one_whose_node_is_gone_is_a_clear_error(client, pool, draining):
    running, nodes = pool
    _, thing, name = await made(client, running)
    home = next(node for node in nodes if node.name == name)
    others = [node for node in nodes if node is not home]
    await running.push(*others, draining(home))
    async with client.get(running.url + f"/v1/responses/{thing['id']}") as answer:
        assert answer.status == 200
    await running.push(*others)
    async with client.get(running.url + f"/v1/responses/{thing['id']}") as answer:
        assert answer.status == 404
        error = (await answer.json())["error"]
    assert error["code"] == "stored_on_lost_node"
    assert name in error["message"]
