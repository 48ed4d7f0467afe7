"""Which target gets a request, which headers and paths pass, and what waits in the queue."""

from __future__ import annotations

import asyncio
import json

import pytest
from yarl import URL


async def test_requests_spread_over_the_least_busy_targets(upstreams, gateways, ask, behave, eventually):
    nodes = [await upstreams(f"n{number}", behave.silent) for number in range(4)]
    running = await gateways(*nodes)
    asking = [asyncio.create_task(ask(running)) for _ in range(12)]
    await eventually(lambda: sum(node.in_flight for node in nodes) == 12)
    assert [node.in_flight for node in nodes] == [3, 3, 3, 3]
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_a_draining_target_gets_nothing_new_and_finishes_what_it_has(
    upstreams, gateways, ask, behave, draining, eventually
):
    gate = asyncio.Event()

    async def wait(talk):
        await gate.wait()
        await behave.answer(talk)

    leaving = await upstreams("leaving", wait)
    staying = await upstreams("staying")
    running = await gateways(leaving)
    asking = [asyncio.create_task(ask(running)) for _ in range(5)]
    await eventually(lambda: leaving.in_flight == 5)
    await running.push(draining(leaving), staying)
    row = (await running.targets())["leaving"]
    assert (row["state"], row["in_flight"]) == ("draining", 5)
    for _ in range(20):
        assert (await ask(running)).headers["X-Orchestrator-Node"] == "staying"
    gate.set()
    replies = await asyncio.gather(*asking)
    assert {reply.status for reply in replies} == {200}
    assert len(leaving.seen) == 5


async def test_a_removed_target_finishes_what_it_has_and_is_then_forgotten(
    upstreams, gateways, ask, behave, eventually
):
    gate = asyncio.Event()

    async def wait(talk):
        await gate.wait()
        await behave.answer(talk)

    leaving = await upstreams("leaving", wait)
    staying = await upstreams("staying")
    running = await gateways(leaving)
    asking = asyncio.create_task(ask(running))
    await eventually(lambda: leaving.in_flight == 1)
    await running.push(staying)
    row = (await running.targets())["leaving"]
    assert (row["state"], row["phase"], row["in_flight"]) == ("draining", None, 1)
    gate.set()
    assert (await asking).status == 200

    async def gone():
        return "leaving" not in await running.targets()

    await eventually(gone)


async def test_the_queue_waits_for_a_target_and_a_new_one_wakes_it_at_once(
    upstreams, gateways, ask, eventually
):
    running = await gateways(health_interval=30.0)
    asking = [asyncio.create_task(ask(running)) for _ in range(3)]

    async def waiting():
        return (await running.state())["queued"] == 3

    await eventually(waiting)
    node = await upstreams("node")
    await running.push(node)
    replies = await asyncio.gather(*asking)
    assert {reply.status for reply in replies} == {200}


async def test_a_free_place_goes_to_the_one_who_waits_longest(upstreams, gateways, ask, behave, eventually):
    gate = asyncio.Semaphore(0)

    async def one_by_one(talk):
        await gate.acquire()
        await behave.answer(talk)

    node = await upstreams("node", one_by_one)
    running = await gateways(node, max_in_flight=1)
    asking = []
    for number in range(4):
        asking.append(asyncio.create_task(ask(running, headers={"X-Request-Id": f"r{number}"})))

        async def arrived(number=number):
            state = await running.state()
            return state["queued"] == number and node.in_flight == 1

        await eventually(arrived)
    for _ in range(4):
        gate.release()
    await asyncio.gather(*asking)
    assert [seen.headers["x-request-id"] for seen in node.seen] == ["r0", "r1", "r2", "r3"]


async def test_a_passed_deadline_answers_503(gateways, ask):
    running = await gateways(queue_deadline=0.05)
    late = await ask(running)
    assert (late.status, late.error["code"], late.headers["Retry-After"]) == (503, "no_target", "2")
    assert (await running.state())["totals"]["requests_refused"] == 1


async def test_a_full_queue_answers_503(gateways, ask, eventually):
    running = await gateways(queue_limit=1)
    asking = asyncio.create_task(ask(running))

    async def waiting():
        return (await running.state())["queued"] == 1

    await eventually(waiting)
    refused = await ask(running)
    assert (refused.status, refused.error["code"], refused.headers["Retry-After"]) == (503, "queue_full", "2")
    assert (await running.state())["totals"]["requests_refused"] == 1
    asking.cancel()


async def test_a_waiting_client_that_leaves_frees_its_place(gateways, ask, eventually):
    running = await gateways(queue_limit=1)
    asking = asyncio.create_task(ask(running))

    async def queued(count):
        return (await running.state())["queued"] == count

    await eventually(lambda: queued(1))
    asking.cancel()
    await eventually(lambda: queued(0))


async def test_when_all_targets_look_unhealthy_the_least_bad_is_tried(upstreams, gateways, ask, eventually):
    node = await upstreams("node")
    running = await gateways(node)
    node.health = "503 Service Unavailable"

    async def unhealthy():
        return (await running.targets())["node"]["state"] == "unhealthy"

    await eventually(unhealthy)
    assert (await ask(running)).status == 200


async def test_an_unhealthy_target_gets_nothing_while_a_healthy_one_is_there(
    upstreams, gateways, ask, eventually
):
    sick, well = await upstreams("sick"), await upstreams("well")
    running = await gateways(sick, well)
    sick.health = "503 Service Unavailable"

    async def unhealthy():
        return (await running.targets())["sick"]["state"] == "unhealthy"

    await eventually(unhealthy)
    for _ in range(10):
        assert (await ask(running)).headers["X-Orchestrator-Node"] == "well"
    sick.health = "200 OK"

    async def healthy():
        return (await running.targets())["sick"]["state"] == "healthy"

    await eventually(healthy)


async def test_a_target_that_fails_requests_is_left_alone_although_its_check_passes(
    upstreams, gateways, ask, behave, eventually
):
    shutdown = behave.status("500 Internal Server Error", "cannot schedule new futures after shutdown")
    stopping = await upstreams("stopping", shutdown)
    well = await upstreams("well")
    running = await gateways(stopping, well, breaker_failures=2, breaker_open=3600.0)
    while len(stopping.seen) < 2:
        assert (await ask(running)).status == 200
    row = (await running.targets())["stopping"]
    assert (row["state"], row["breaker"]) == ("unhealthy", "open")
    for _ in range(10):
        assert (await ask(running)).status == 200
    assert len(stopping.seen) == 2
    assert "orchestrator_gateway_breaker_opened_total 1.0" in running.gateway.metrics.exposition().decode()


async def test_a_half_open_breaker_closes_on_a_good_probe(upstreams, gateways, ask, behave, eventually):
    ill = await upstreams("ill", behave.reset_at_once)
    well = await upstreams("well")
    running = await gateways(ill, well, breaker_failures=1, breaker_open=0.05)
    while not ill.seen:
        await ask(running)
    ill.behaviour = behave.answer

    async def closed():
        await ask(running)
        return (await running.targets())["ill"]["breaker"] == "closed"

    await eventually(closed)


async def test_headers_pass_as_a_proxy_must_pass_them(upstreams, gateways, client, behave):
    async def with_headers(talk):
        await talk.reply(
            "200 OK", b"{}", more="X-Engine: yes\r\nKeep-Alive: timeout=5\r\nX-Request-Id: other\r\n"
        )

    node = await upstreams("node", with_headers)
    running = await gateways(node)
    sent = {
        "Authorization": "Bearer secret",
        "X-Request-Id": "r-77",
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "1",
        "Accept-Encoding": "gzip",
        "User-Agent": "me",
    }
    url = URL(running.url + "/v1/something?a=%2Fb", encoded=True)
    async with client.post(url, data=b"{}", headers=sent) as answer:
        assert answer.headers["X-Engine"] == "yes"
        assert answer.headers["X-Request-Id"] == "r-77"
        assert answer.headers["X-Orchestrator-Node"] == "node"
        assert "Keep-Alive" not in answer.headers
    seen = node.seen[0]
    assert seen.path == "/v1/something?a=%2Fb"
    assert seen.headers["authorization"] == "Bearer secret"
    assert seen.headers["x-request-id"] == "r-77"
    assert seen.headers["user-agent"] == "me"
    assert seen.headers["accept-encoding"] == "identity"
    assert seen.headers["host"] == node.address
    assert "x-hop" not in seen.headers


async def test_a_request_without_an_id_gets_one(upstreams, gateways, ask):
    node = await upstreams("node")
    running = await gateways(node)
    reply = await ask(running)
    assert len(reply.headers["X-Request-Id"]) == 24
    assert node.seen[0].headers["x-request-id"] == reply.headers["X-Request-Id"]


async def test_the_gateways_own_key_replaces_the_clients(upstreams, gateways, ask):
    node = await upstreams("node")
    running = await gateways(node, api_key="node-key")
    await ask(running, headers={"Authorization": "Bearer theirs"})
    assert node.seen[0].headers["authorization"] == "Bearer node-key"


@pytest.mark.parametrize(
    "path",
    [
        "/pause", "/sleep", "/invocations", "/faults", "/", "/v1", "/v1/../pause", "/v1/%2e%2e/pause",
        "/v1//pause", "/v1/load_lora_adapter", "/v1/%6coad_lora_adapter", "/metrics/../pause", "/v2/models",
        "/v1/%252e%252e/pause", "/v1/a%2Fb", "/v1/..%5cpause", "/inference/v1/generate",
        "/v1/completions/rende%72", "/v1/chat/completions/derender", "/v1/models#/../pause",
        "/tokenizer_info",
    ],
)  # fmt: skip
async def test_admin_and_unknown_paths_are_not_reachable(upstreams, gateways, path):
    node = await upstreams("node")
    running = await gateways(node)
    reader, writer = await asyncio.open_connection("127.0.0.1", running.gateway.port)
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode()
    )
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["code"] == "not_found"
    assert not node.seen


@pytest.mark.parametrize("path", ["/version", "/v1/models"])
async def test_harmless_paths_are_proxied(upstreams, gateways, ask, path):
    node = await upstreams("node")
    running = await gateways(node)
    assert (await ask(running, method="GET", path=path)).status == 200
    assert node.seen[0].path == path


async def test_a_body_over_the_limit_is_refused(upstreams, gateways, ask):
    node = await upstreams("node")
    running = await gateways(node, body_limit=1000)
    reply = await ask(running, filler="x" * 2000)
    assert (reply.status, reply.error["code"]) == (413, "body_too_large")
    assert not node.seen


async def test_a_chunked_body_over_the_limit_is_refused(upstreams, gateways, client):
    node = await upstreams("node")
    running = await gateways(node, body_limit=1000)

    async def parts():
        for _ in range(20):
            yield b"x" * 100

    async with client.post(running.url + "/v1/completions", data=parts()) as answer:
        assert answer.status == 413
    assert not node.seen


async def test_expect_continue_is_answered(upstreams, gateways):
    node = await upstreams("node")
    running = await gateways(node)
    reader, writer = await asyncio.open_connection("127.0.0.1", running.gateway.port)
    head = "POST /v1/completions HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    writer.write(head.encode())
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"{}")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert "expect" not in node.seen[0].headers


async def test_web_sockets_are_refused(upstreams, gateways, client):
    node = await upstreams("node")
    running = await gateways(node)
    headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
    async with client.get(running.url + "/v1/realtime", headers=headers) as answer:
        assert answer.status == 501
    assert not node.seen


async def test_head_keeps_the_length(upstreams, gateways, client):
    async def head(talk):
        await talk.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 41\r\n\r\n")

    running = await gateways(await upstreams("node", head))
    async with client.head(running.url + "/v1/models") as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, "41")


async def test_own_endpoints(upstreams, gateways, client, eventually):
    running = await gateways()

    async def get(path):
        async with client.get(running.url + path) as answer:
            return answer.status, await answer.text()

    assert await get("/healthz") == (200, "ok\n")
    assert (await get("/readyz"))[0] == 503
    node = await upstreams("node")
    await running.push(node)

    async def ready():
        return (await get("/readyz"))[0] == 200

    await eventually(ready)
    assert (await get("/metrics"))[0] == 404, "that is nobody's business out there"
