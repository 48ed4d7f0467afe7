"""Adapters through the gateway: asked for by name, sent to who holds them, called by that name in answers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.gateway.accounts.key_format import digest
from policies.held import Held
from policies.model import TargetPhase
from policies.routing import Backend, Kind
from tests.support.routed_gateway import PlayedProvider, Routed, api, echo, pool, route, until
from tests.support.upstreams import Behave

SQL, NEW_SQL = (Held(name="sql", served_as=f"sql@{rev}", revision=rev) for rev in ("aaaa1111", "bbbb2222"))
LAW = Held(name="law", served_as="law@cccc3333", revision="cccc3333")
GATE = {"loaded": ("sql", "law"), "served": "base"}
NAMES = {"sql", "law", "base"}
PLAYED = {"api": PlayedProvider()}


@pytest.fixture
async def routed(tmp_path):
    """Start a gateway of one pool with adapters: `await routed([engine], route(...), queue_deadline=9.0)`."""
    running = []

    async def start(engines, *routes, gate=None, **settings):
        gates = {"chat": GATE | (gate or {})}
        one = Routed(tmp_path, {"chat": engines}, *routes, gates=gates, **settings)
        running.append(one)
        return await one.start()

    yield start
    for one in running:
        await one.stop()


class Holder:
    """An engine that answers for the model and for the adapters that it has, and else as vLLM does."""

    def __init__(self, *served: str) -> None:
        self.served = {"base", *served}
        self.hold = asyncio.Event()
        self.hold.set()

    async def __call__(self, talk) -> None:
        model = json.loads(talk.request.body).get("model")
        if model not in self.served:
            error = {"message": f"The model `{model}` does not exist.", "param": "model", "code": 404}
            await talk.json({"error": error | {"type": "NotFoundError"}}, "404 Not Found")
            return
        await self.hold.wait()
        await echo(talk)


@pytest.fixture
async def nodes(upstreams):
    """Two engines: a has sql, b has law."""
    a, b = Holder(SQL.served_as), Holder(LAW.served_as)
    return await upstreams("a", a), await upstreams("b", b)


def models_in(text):
    lines = [line[6:] for line in text.split("\n") if line.startswith("data: {")]
    return {json.loads(line)["model"] for line in lines or [text]}


def asked_of(engine):
    return [json.loads(seen.body)["model"] for seen in engine.seen]


async def adapters_of(gateway):
    _, state = await gateway.control("GET", "/v1/state")
    return state["adapters"]


async def holding(gateway, *pairs):
    """Tell the gateway who holds what: (engine, adapters)..."""
    status, said = await gateway.put("chat", *(engine.spec(adapters=held) for engine, held in pairs))
    assert status == 200, said


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_clients_see_the_name_they_asked_for_and_engines_their_own(routed, nodes, stream, path):
    a, b = nodes
    gateway = await routed(list(nodes), route("assistant", to=[pool("chat", "law")]))
    await holding(gateway, (a, (SQL,)), (b, (LAW,)))
    for model, engine, sent in (("sql", a, SQL), ("law", b, LAW), ("assistant", b, LAW)):
        status, headers, text = await gateway.ask(model, path, max_tokens=9, stream=stream)
        assert status == 200, text
        assert asked_of(engine)[-1] == sent.served_as
        assert "@" not in text
        assert f'"model":"{model}"' in text.replace(" ", "")
        assert headers["x-orchestrator-node"] == engine.name
    status, _, _ = await gateway.ask("base", path, max_tokens=9, stream=stream)
    assert status == 200
    assert "base" in asked_of(a) + asked_of(b)


async def test_the_list_of_models_has_them_and_no_engine_s_own_name_can_be_asked_for(routed, nodes):
    gateway = await routed(list(nodes))
    await holding(gateway, (nodes[0], (SQL,)), (nodes[1], (LAW,)))
    _, _, text = await gateway.send("GET", "/v1/models")
    assert {row["id"] for row in json.loads(text)["data"]} == NAMES
    assert (await gateway.send("GET", "/v1/models/sql"))[0] == 200
    for name in (SQL.served_as, "sql@", "poem"):
        status, _, text = await gateway.ask(name)
        assert (status, json.loads(text)["error"]["code"]) == (404, "model_not_found")
    assert not nodes[0].seen


async def test_a_key_of_one_adapter_is_good_for_that_and_for_nothing_else(routed, nodes, tmp_path):
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[key.a]\nsha256 = "{digest("s" * 40)}"\nmodels = ["sql"]\n', encoding="utf-8")
    gateway = await routed(list(nodes), keys_file=keys)
    await holding(gateway, (nodes[0], (SQL,)), (nodes[1], (SQL, LAW)))
    auth = {"Authorization": f"Bearer {'s' * 40}"}
    assert (await gateway.ask("sql", headers=auth))[0] == 200
    before = len(nodes[0].seen) + len(nodes[1].seen)
    for model in ("law", "base", None, SQL.served_as, "law@cccc3333"):
        status, _, text = await gateway.ask(model, headers=auth, lora=[{"id": 0, "scale": 1.0}])
        assert status in (403, 404), text
        assert "law" not in text.replace(str(model), "")
    _, _, text = await gateway.send("GET", "/v1/models", headers=auth)
    assert [row["id"] for row in json.loads(text)["data"]] == ["sql"]
    assert (await gateway.send("GET", "/v1/models/law", headers=auth))[0] in (403, 404)
    assert len(nodes[0].seen) + len(nodes[1].seen) == before


async def test_rows_of_adapters_that_a_gateway_does_not_know_change_nothing(routed, nodes):
    """It was started before they were configured, or its heir after they were not any more."""
    gateway = await routed(list(nodes), gate={"loaded": ("sql",)})
    await holding(gateway, (nodes[0], (SQL, LAW)), (nodes[1], (LAW,)))
    assert (await gateway.ask("sql"))[0] == 200
    status, _, text = await gateway.ask("law")
    assert (status, "base, sql" in text) == (404, True), text
    assert (await adapters_of(gateway)).keys() == {"sql"}


@pytest.mark.parametrize("model", [None, ""])
async def test_a_request_that_names_no_model_is_for_the_base_model(routed, nodes, model):
    gateway = await routed(list(nodes))
    status, _, text = await gateway.ask(model)
    assert (status, models_in(text)) == (200, {"base"})


async def test_answers_of_the_responses_api_have_the_name_and_leave_the_rest(routed, upstreams):
    async def answers(talk):
        model = json.loads(talk.request.body)["model"]
        said = {"object": "response", "id": "resp_1", "status": "completed", "model": model}
        content = [{"type": "output_text", "text": "hi"}]
        said |= {"metadata": {"model": "mine"}, "output": [{"type": "message", "content": content}]}
        await talk.json(said)

    engine = await upstreams("a", answers)
    gateway = await routed([engine])
    await holding(gateway, (engine, (SQL,)))
    status, _, text = await gateway.ask("sql", "/v1/responses", input="hi", store=False)
    assert status == 200
    assert (json.loads(text)["model"], json.loads(text)["metadata"]["model"]) == ("sql", "mine")


async def test_an_engine_s_error_names_the_adapter_as_its_client_does(routed, upstreams):
    async def refuses(talk):
        model = json.loads(talk.request.body)["model"]
        await talk.json({"error": {"message": f"{model} has 9 tokens of context"}}, "400 Bad Request")

    engine = await upstreams("a", refuses)
    gateway = await routed([engine])
    await holding(gateway, (engine, (SQL,)))
    status, _, text = await gateway.ask("sql")
    assert (status, json.loads(text)["error"]["message"]) == (400, "sql has 9 tokens of context")


# -- cold -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_a_cold_adapter_s_request_waits_until_somebody_holds_it(routed, nodes, stream):
    a, b = nodes
    gateway = await routed(list(nodes), gate={"no_target_wait": 0.1})
    await holding(gateway, (a, (SQL,)), (b, ()))
    waits = asyncio.create_task(gateway.ask("law", stream=stream))
    await until(lambda: gateway.gateway.lanes["chat"].adapters.cold("law"))
    found = await adapters_of(gateway)
    assert (found["law"]["cold"], found["sql"]["cold"]) == (True, False)
    for _ in range(5):
        assert (await gateway.ask("sql"))[0] == (await gateway.ask("base"))[0] == 200
    assert not waits.done()
    await holding(gateway, (a, (SQL,)), (b, (LAW,)))
    status, _, text = await waits
    assert (status, models_in(text)) == (200, {"law"})
    found = await adapters_of(gateway)
    assert (found["law"]["asked"], found["law"]["cold"], found["sql"]["asked"]) == (1, False, 5)
    assert found.keys() == {"sql", "law"}


async def test_one_that_nobody_loads_ends_with_a_503_that_says_why(routed, nodes):
    gateway = await routed(list(nodes), gate={"queue_deadline": 0.3})
    await holding(gateway, (nodes[0], (SQL,)), (nodes[1], ()))
    status, headers, text = await gateway.ask("law")
    error = json.loads(text)["error"]
    assert (status, error["code"]) == (503, "no_target")
    assert "lacks the adapter 'law'" in error["message"]
    assert "retry-after" in headers


async def test_one_with_another_backend_goes_there_at_once_and_comes_back_when_it_is_loaded(routed, nodes):
    provider = PlayedProvider()
    law = route("lawyer", to=[pool("chat", "law"), api("api")])
    gateway = await routed(list(nodes), law, providers={"api": provider})
    await holding(gateway, (nodes[0], (SQL,)), (nodes[1], ()))
    status, _, text = await gateway.ask("lawyer")
    assert (status, len(provider.seen)) == (200, 1), text
    assert (await adapters_of(gateway))["law"]["cold"]
    await holding(gateway, (nodes[0], (SQL,)), (nodes[1], (LAW,)))
    _, headers, _ = await gateway.ask("lawyer")
    assert (headers["x-orchestrator-backend"], len(provider.seen)) == ("chat/law", 1)


async def test_routes_tell_what_is_held_nowhere(routed, nodes):
    gateway = await routed(
        list(nodes), route("lawyer", to=[pool("chat", "law"), api("api")]), providers=PLAYED
    )
    for held, state in (
        ((), "holds the adapter nowhere, and has it loaded when it is asked for"),
        ((LAW,), "is well"),
    ):
        await holding(gateway, (nodes[0], (SQL,)), (nodes[1], held))
        _, told = await gateway.control("GET", "/v1/routes")
        rows = {row["name"]: row for row in told["routes"]}
        assert {name: row["backends"][0]["state"] for name, row in rows.items()} == {
            "lawyer": state, "law": state, "sql": "is well", "base": "is well"
        }  # fmt: skip
        assert rows["lawyer"]["servable"]


async def test_one_that_may_wait_for_a_while_waits_for_that_and_goes_then(routed, nodes):
    provider = PlayedProvider()
    patient = Backend(kind=Kind.PROVIDER, name="api", model="big", when=frozenset(), waited=0.3)
    gateway = await routed(
        list(nodes), route("lawyer", to=[pool("chat", "law"), patient]), providers={"api": provider}
    )
    await holding(gateway, (nodes[0], (SQL,)), (nodes[1], ()))
    waits = asyncio.create_task(gateway.ask("lawyer"))
    await until(lambda: len(gateway.gateway.lanes["chat"].admission) == 1)
    assert not provider.seen
    assert (await waits)[0] == 200
    assert len(provider.seen) == 1


# -- a node that lost one -------------------------------------------------------------------------


async def test_no_client_meets_a_404_of_a_node_that_lost_its_adapter(routed, upstreams):
    """The node was started again behind our back; another has it. It is left alone and then asked again."""
    lost, has = Holder(), Holder(SQL.served_as)
    a, b = await upstreams("a", lost), await upstreams("b", has)
    gateway = await routed([a, b])
    await holding(gateway, (a, (SQL,)), (b, (SQL,)))
    for number in range(40):
        status, headers, text = await gateway.ask("sql", stream=number % 2 == 0)
        assert (status, headers["x-orchestrator-node"]) == (200, "b"), text
    assert 1 <= Counter(asked_of(a))[SQL.served_as] <= 5
    table = gateway.gateway.lanes["chat"].table
    assert all(entry.breaker.failures == 0 for entry in table)
    assert (await gateway.ask("base"))[0] == 200
    lost.served.add(SQL.served_as)
    await holding(gateway, (a, (SQL,)), (b, ()))
    assert (await gateway.ask("sql"))[1]["x-orchestrator-node"] == "a"


async def test_what_its_only_holder_lost_is_cold_and_waited_for(routed, upstreams):
    lost = Holder()
    a, b = await upstreams("a", lost), await upstreams("b", Holder(SQL.served_as))
    gateway = await routed([a, b])
    await holding(gateway, (a, (SQL,)), (b, ()))
    waits = asyncio.create_task(gateway.ask("sql"))
    await until(lambda: gateway.gateway.lanes["chat"].adapters.cold("sql"))
    assert not waits.done()
    await holding(gateway, (a, (SQL,)), (b, (SQL,)))  # a is told to hold it all the same
    status, headers, _ = await waits
    assert (status, headers["x-orchestrator-node"]) == (200, "b")


async def test_what_its_only_holder_lost_and_nobody_loads_is_no_fault_of_the_request(routed, upstreams):
    a = await upstreams("a", Holder())
    gateway = await routed([a], gate={"queue_deadline": 0.3})
    await holding(gateway, (a, (SQL,)))
    status, _, text = await gateway.ask("sql")
    assert (status, json.loads(text)["error"]["code"]) == (503, "no_target")


async def test_a_client_that_only_asked_for_nonsense_still_hears_of_it(routed, upstreams):
    """A 404 that does not name the adapter is the request's own, as one for a path that is not there."""
    a = await upstreams("a", Behave.status("404 Not Found", "there is no such file"))
    gateway = await routed([a])
    await holding(gateway, (a, (SQL,)))
    assert (await gateway.ask("sql"))[0] == 404


async def test_an_error_of_the_only_holder_is_its_client_s_at_once(routed, upstreams):
    """Nobody loads an adapter elsewhere for an answer that may be the request's own fault."""
    a = await upstreams("a", Behave.status("500 Internal Server Error"))
    b = await upstreams("b", Holder(SQL.served_as))
    gateway = await routed([a, b])
    await holding(gateway, (a, (SQL,)), (b, ()))
    status, _, _ = await gateway.ask("sql")
    assert (status, len(a.seen), len(b.seen)) == (500, 1, 0)
    assert not gateway.gateway.lanes["chat"].adapters.cold("sql")


async def test_a_holder_that_dies_gives_its_requests_to_another(routed, upstreams):
    stuck = Holder(SQL.served_as)
    stuck.hold.clear()
    a, b = await upstreams("a", stuck), await upstreams("b", Holder(SQL.served_as))
    gateway = await routed([a, b])
    await holding(gateway, (a, (SQL,)), (b, ()))
    waits = asyncio.create_task(gateway.ask("sql"))
    await until(lambda: len(a.seen) == 1)
    await a.stop()
    await until(lambda: gateway.gateway.lanes["chat"].adapters.cold("sql"))
    await holding(gateway, (a, (SQL,)), (b, (SQL,)))
    assert (await waits)[0] == 200


# -- one is taken away ----------------------------------------------------------------------------


async def test_a_request_under_way_ends_where_it_is_when_its_adapter_is_unrouted(routed, upstreams):
    slow = Holder(SQL.served_as, NEW_SQL.served_as)
    slow.hold.clear()
    a = await upstreams("a", slow)
    gateway = await routed([a])
    await holding(gateway, (a, (SQL,)))
    old = asyncio.create_task(gateway.ask("sql"))
    await until(lambda: len(a.seen) == 1)
    await holding(gateway, (a, (NEW_SQL,)))
    _, state = await gateway.control("GET", "/v1/state")
    (row,) = state["targets"]
    told = {"name": "sql", "number": None}
    assert row["adapters"] == [
        {**told, "served_as": NEW_SQL.served_as, "revision": NEW_SQL.revision, "in_flight": 0}
    ]
    assert row["adapters_leaving"] == [
        {**told, "served_as": SQL.served_as, "revision": SQL.revision, "in_flight": 1}
    ]
    new = asyncio.create_task(gateway.ask("sql"))
    await until(lambda: len(a.seen) == 2)
    slow.hold.set()
    assert [(await each)[0] for each in (old, new)] == [200, 200]
    assert asked_of(a) == [SQL.served_as, NEW_SQL.served_as]
    _, state = await gateway.control("GET", "/v1/state")
    assert state["targets"][0]["adapters_leaving"] == []


async def test_what_is_asked_again_whole_is_asked_by_the_name_that_the_next_holder_knows(routed, upstreams):
    """Of an answer tied to a grammar the client has white space alone, so any revision may give it."""

    swapped = asyncio.Event()

    async def breaks(talk):
        await talk.start_stream()
        await talk.role()
        await talk.text(" ")
        await swapped.wait()
        talk.reset()

    a, b = await upstreams("a", breaks), await upstreams("b", Holder(NEW_SQL.served_as))
    gateway = await routed([a, b])
    await holding(gateway, (a, (SQL,)), (b, ()))
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    asking = asyncio.create_task(gateway.ask("sql", stream=True, response_format=shape))
    await until(lambda: len(a.seen) == 1)
    await holding(gateway, (a, ()), (b, (NEW_SQL,)))
    swapped.set()
    status, _, text = await asking
    assert (status, asked_of(b)) == (200, [NEW_SQL.served_as])
    assert "from b" in text
    assert "@" not in text


async def test_a_swap_under_load_fails_nobody(routed, upstreams):
    """Loaded everywhere, routed, unrouted, and the old one unloaded once nothing uses it."""
    held = [Holder(SQL.served_as) for _ in range(3)]
    engines = [await upstreams(name, one) for name, one in zip("abc", held, strict=True)]
    gateway = await routed(engines)
    await holding(gateway, *((engine, (SQL,)) for engine in engines))
    done = asyncio.Event()
    statuses: Counter[int] = Counter()

    async def client(number):
        while not done.is_set():
            status, _, text = await gateway.ask("sql", stream=number % 2 == 0)
            statuses[status] += 1
            assert models_in(text) == {"sql"}

    clients = [asyncio.create_task(client(number)) for number in range(4)]
    for one in held:
        one.served.add(NEW_SQL.served_as)
    await until(lambda: statuses[200] > 20)
    await holding(gateway, *((engine, (NEW_SQL, SQL)) for engine in engines))
    await holding(gateway, *((engine, (NEW_SQL,)) for engine in engines))

    def drained():
        lane = gateway.gateway.lanes["chat"]
        return not any(SQL in entry.lent for entry in lane.table)

    await until(drained)
    for one in held:
        one.served.discard(SQL.served_as)
    before = statuses[200]
    await until(lambda: statuses[200] > before + 20)
    done.set()
    await asyncio.gather(*clients)
    assert statuses.keys() == {200}


async def test_a_draining_target_is_no_holder(routed, nodes):
    a, _ = nodes
    gateway = await routed(list(nodes))
    draining = a.spec(adapters=(SQL,), phase=TargetPhase.DRAINING)
    await gateway.put("chat", draining, nodes[1].spec(adapters=(LAW,)))
    waits = asyncio.create_task(gateway.ask("sql"))
    await until(lambda: gateway.gateway.lanes["chat"].adapters.cold("sql"))
    assert not a.seen
    await holding(gateway, (a, (SQL,)), (nodes[1], (LAW,)))
    assert (await waits)[0] == 200


# -- what is told ---------------------------------------------------------------------------------


async def scraped(gateway):
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(gateway.config.socket))) as session,
        session.get("http://gateway/metrics") as answer,
    ):
        text = await answer.text()
    return {
        (sample.name.removeprefix("orchestrator_gateway_"), sample.labels["adapter"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "adapter" in sample.labels
    }


async def test_metrics_tell_of_the_configured_ones_and_of_no_others(routed, nodes):
    gateway = await routed(list(nodes), gate={"queue_deadline": 0.2})
    await holding(gateway, (nodes[0], (SQL, Held(name="stray", served_as="x", revision="r"))), (nodes[1], ()))
    for model in ("sql", "sql", "law", "stray", "base"):
        await gateway.ask(model)
    found = await scraped(gateway)
    assert {name for _, name in found} == {"sql", "law"}
    assert (found["adapter_targets", "sql"], found["adapter_targets", "law"]) == (1, 0)
    assert (found["adapter_requests_total", "sql"], found["adapter_requests_total", "law"]) == (2, 1)
    assert (found["adapter_cold", "sql"], found["adapter_cold", "law"]) == (0, 1)
    assert found["adapter_cold_requests_total", "law"] == 1
    assert found["adapter_lacking_total", "sql"] == 0
    assert found["adapter_tokens_total", "sql"] > 0 == found["adapter_tokens_total", "law"]


async def test_what_an_adapter_used_is_counted_under_its_clients_name(routed, upstreams):
    async def counts(talk):
        model = json.loads(talk.request.body)["model"]
        choice = {"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        await talk.json({"model": model, "choices": [choice], "usage": usage})

    a = await upstreams("a", counts)
    gateway = await routed([a], route("assistant", to=[pool("chat", "sql")]))
    await holding(gateway, (a, (SQL, LAW)))
    for model in ("sql", "assistant", "law", "base"):
        assert (await gateway.ask(model))[0] == 200
    found = await adapters_of(gateway)
    assert (found["sql"]["asked"], found["sql"]["tokens"]) == (2, 24)
    assert (found["law"]["asked"], found["law"]["tokens"]) == (1, 12)
    text = gateway.gateway.metrics.exposition().decode()
    assert "@" not in text.replace("\\", "")
    assert 'model="sql"' in text
