"""Requests go where their model's route says, and on to the next backend where one cannot answer."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from policies.routing import Affinity, BackendView, Task, Trouble
from tests.support.routed_gateway import PlayedProvider, Routed, api, echo, pool, route, until
from tests.support.upstreams import Behave


@pytest.fixture
async def routed(tmp_path):
    """Start a gateway: `await routed({"chat": [engine]}, route(...), providers={...})`."""
    running = []

    async def start(pools, *routes, **settings):
        one = Routed(tmp_path, pools, *routes, **settings)
        running.append(one)
        return await one.start()

    yield start
    for one in running:
        await one.stop()


@pytest.fixture
def provider():
    return PlayedProvider()


@pytest.fixture
async def engine(upstreams):
    return await upstreams("a", echo)


FULL = {"max_in_flight": 1}


def model_in(text):
    return {row["model"] for row in _rows(text)}


def _rows(text):
    lines = [line[6:] for line in text.split("\n") if line.startswith("data: {")]
    return [json.loads(line) for line in lines] or [json.loads(text)]


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_names_lead_to_their_pools_and_clients_see_the_name_they_asked_for(upstreams, routed, stream):
    a, b = await upstreams("a", echo), await upstreams("b", echo)
    gateway = await routed(
        {"chat": [a], "embed": [b]}, route("assistant", "gpt-4o", to=[pool("chat"), pool("embed")])
    )
    for model, engine, sent in (
        ("assistant", a, "chat-model"),
        ("gpt-4o", a, "chat-model"),
        ("chat-model", a, "chat-model"),
        ("embed-model", b, "embed-model"),
    ):
        status, headers, text = await gateway.ask(model, stream=stream)
        assert (status, model_in(text)) == (200, {model})
        assert f"from {engine.name}" in text
        assert json.loads(engine.seen[-1].body)["model"] == sent
        assert headers["x-orchestrator-node"] == engine.name
        if stream:
            assert r"\"model\":\"no\"" in text  # what the model itself says is not touched
            assert text.endswith("data: [DONE]\n\n")


async def test_anthropic_clients_see_the_name_they_asked_for(routed, engine):
    gateway = await routed({"chat": [engine]}, route("assistant", to=[pool("chat")]))
    for stream in (False, True):
        status, _, text = await gateway.ask("assistant", "/v1/messages", max_tokens=9, stream=stream)
        assert status == 200
        assert '"model":"assistant"' in text.replace(" ", "")
        assert "chat-model" not in text


async def test_an_adapter_of_a_pool_is_a_model_of_its_own(routed, engine):
    gates = {"chat": {"adapters": ("la",)}}
    gateway = await routed({"chat": [engine]}, route("narrow", to=[pool("chat", "la")]), gates=gates)
    assert (await gateway.ask("narrow"))[0] == (await gateway.ask("la"))[0] == 200
    assert [json.loads(seen.body)["model"] for seen in engine.seen] == ["la", "la"]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("assistent", "did you mean 'assistant'? there is"),
        ("\u00e4\U0001f600\u202e", "there is no model"),
        ("x" * 100_000, "there is no model"),
        ("ASSISTANT", "did you mean 'assistant'?"),
        (" assistant", "did you mean 'assistant'?"),
        ("assistant\x00", "did you mean 'assistant'?"),
    ],
)
async def test_an_unknown_model_is_a_local_404_that_names_the_nearest(routed, engine, model, says):
    gateway = await routed({"chat": [engine]}, route("assistant", to=[pool("chat")]))
    status, _, text = await gateway.ask(model)
    error = json.loads(text)["error"]
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert says in error["message"]
    assert len(text) < 1000
    status, _, text = await gateway.ask(model, "/v1/messages", max_tokens=1)
    assert (status, json.loads(text)["error"]["type"]) == (404, "not_found_error")
    assert not engine.seen


@pytest.mark.parametrize("model", [None, "", 7, ["assistant"], {"name": "assistant"}])
async def test_a_request_without_a_model_goes_to_the_default_or_is_refused(tmp_path, routed, engine, model):
    gateway = await routed({"chat": [engine]}, route("assistant", to=[pool("chat")]))
    status, _, text = await gateway.ask(model)
    assert (status, json.loads(text)["error"]["code"]) == (400, "model_missing")
    assert "there is assistant, chat-model" in text
    await gateway.stop()
    gateway = await routed(
        {"chat": [engine]}, route("assistant", to=[pool("chat")]), default_route="assistant"
    )
    status, _, text = await gateway.ask(model)
    assert (status, model_in(text)) == (200, {"assistant"})
    assert json.loads(engine.seen[-1].body)["model"] == "chat-model"


async def test_the_models_that_there_are(routed, engine, upstreams):
    other = await upstreams("b", echo)
    gateway = await routed(
        {"chat": [engine], "b": [other]},
        route("assistant", "gpt-4o", to=[pool("chat")]),
        route("org/llama", to=[pool("b")]),
    )
    status, _, text = await gateway.send("GET", "/v1/models")
    listed = json.loads(text)
    assert status == 200
    assert [row["id"] for row in listed["data"]] == ["assistant", "org/llama", "chat-model", "b-model"]
    assert (listed["object"], listed["first_id"], listed["has_more"]) == ("list", "assistant", False)
    for name in ("gpt-4o", "org/llama", "org%2Fllama", "chat-model"):
        status, _, text = await gateway.send("GET", f"/v1/models/{name}")
        assert (status, json.loads(text)["id"]) == (200, name.replace("%2F", "/"))
    status, _, text = await gateway.send("GET", "/v1/models/gpt-4")
    assert (status, json.loads(text)["error"]["code"]) == (404, "model_not_found")
    assert "did you mean 'gpt-4o'" in text
    _, _, text = await gateway.send("GET", "/v1/models/x", headers={"anthropic-version": "2023-06-01"})
    assert json.loads(text)["error"]["type"] == "not_found_error"
    assert not engine.seen
    assert not other.seen


async def test_the_field_of_a_form_is_renamed_and_nothing_else(routed, engine):
    gateway = await routed({"chat": [engine]}, route("whisper", to=[pool("chat", "large")]))
    sound = b'\r\n--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
    with aiohttp.MultipartWriter("form-data", boundary="frontier") as form:
        form.append(b"1").set_content_disposition("form-data", name="n")
        form.append("whisper").set_content_disposition("form-data", name="model")
        form.append(sound).set_content_disposition("form-data", name="file", filename="a.wav")
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.url}/v1/audio/transcriptions", data=form) as answer,
    ):
        await answer.read()
    got = engine.seen[0].body
    assert got.count(b"\r\n\r\nlarge\r\n--frontier") == 1
    assert sound in got


# -- troubles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_what_no_pool_can_serve_goes_to_the_provider_at_once_and_comes_back(
    routed, engine, provider, eventually, stream
):
    long = {"chat": {"no_target_wait": 1e6}}
    gateway = await routed(
        {"chat": [engine]},
        route("assistant", to=[pool("chat"), api("far")]),
        gates=long,
        providers={"far": provider},
    )
    assert "from a" in (await gateway.ask("assistant", stream=stream))[2]
    await engine.stop()
    status, _, text = await gateway.ask("assistant", stream=stream)
    assert (status, model_in(text)) == (200, {"assistant"})
    assert "from api" in text
    assert provider.seen[0][0] == "big"
    await engine.start()

    async def back():
        return "from a" in (await gateway.ask("assistant", stream=stream))[2]

    await eventually(back)


async def test_all_of_a_killed_pools_requests_are_answered(routed, engine, provider):
    """They are at the engine when it dies: whatever each met there, it may run again."""

    async def hold(talk):
        await talk.upstream.go_on.wait()

    engine.behaviour = hold
    gateway = await routed(
        {"chat": [engine]}, route("assistant", to=[pool("chat"), api("far")]), providers={"far": provider}
    )
    asked = [asyncio.create_task(gateway.ask("assistant", stream=n % 2 == 0)) for n in range(40)]
    await until(lambda: engine.in_flight == 40)
    await engine.stop()
    answers = await asyncio.gather(*asked)
    assert {status for status, _, _ in answers} == {200}
    assert all("from api" in text for _, _, text in answers)


async def test_all_of_a_frozen_pools_requests_are_answered(routed, engine, provider):
    """Its nodes keep connections and say nothing: what they hold leaves once they are known to be lost."""

    async def hold(talk):
        await talk.upstream.go_on.wait()

    engine.behaviour = hold
    gateway = await routed(
        {"chat": [engine]},
        route("assistant", to=[pool("chat"), api("far")]),
        route("own", to=[pool("chat")]),
        gates={"chat": {"health_timeout": 0.5}},
        providers={"far": provider},
    )
    asked = [asyncio.create_task(gateway.ask("assistant", stream=n % 2 == 0)) for n in range(10)]
    nowhere_else = asyncio.create_task(gateway.ask("own"))
    await until(lambda: engine.in_flight == 11)
    engine.frozen = True
    answers = await asyncio.gather(*asked)
    assert {status for status, _, _ in answers} == {200}
    assert all("from api" in text for _, _, text in answers)
    assert not nowhere_else.done()
    nowhere_else.cancel()


async def test_a_pool_without_a_target_set_is_down_where_another_backend_is_there(tmp_path, provider):
    one = Routed(
        tmp_path, {"chat": []}, route("r", to=[pool("chat"), api("far")]), providers={"far": provider}
    )
    await one.gateway.start()
    try:
        assert "from api" in (await one.ask("r"))[2]
    finally:
        await one.stop()


async def test_a_busy_pool_keeps_its_requests_unless_the_next_steps_in_for_that(routed, engine, provider):
    async def hold(talk):
        await talk.upstream.go_on.wait()
        await echo(talk)

    engine.behaviour = hold
    gateway = await routed(
        {"chat": [engine]},
        route("dear", to=[pool("chat"), api("far")]),
        route("cheap", to=[pool("chat"), api("far", "big", "saturated")]),
        route("late", to=[pool("chat"), api("far", "big", "down", waited=0.05)]),
        gates={"chat": FULL},
        providers={"far": provider},
    )
    first = asyncio.create_task(gateway.ask("dear"))
    await until(lambda: engine.in_flight)
    waits = asyncio.create_task(gateway.ask("dear"))
    assert "from api" in (await gateway.ask("cheap"))[2]
    assert "from api" in (await gateway.ask("late"))[2]
    assert len(provider.seen) == 2
    assert not waits.done()
    engine.go_on.set()
    assert all("from a" in text for _, _, text in (await first, await waits))


async def test_requests_in_the_queue_leave_as_their_pool_goes_down(routed, engine, provider):
    async def hold(talk):
        await talk.until_client_leaves()

    engine.behaviour = hold
    gateway = await routed(
        {"chat": [engine]},
        route("r", to=[pool("chat"), api("far")]),
        gates={"chat": FULL | {"no_target_wait": 1e6}},
        providers={"far": provider},
    )
    asked = [asyncio.create_task(gateway.ask("r")) for _ in range(5)]
    lane = gateway.gateway.lanes["chat"]
    await until(lambda: len(lane.admission) == 4)
    await engine.stop()
    assert all("from api" in text for _, _, text in await asyncio.gather(*asked))


@pytest.mark.parametrize("status", ["400 Bad Request", "422 Unprocessable", "500 Internal Server Error"])
@pytest.mark.parametrize("always", [False, True])
async def test_what_may_be_the_requests_own_fault_goes_on_only_where_it_always_does(
    routed, engine, provider, status, always
):
    engine.behaviour = Behave.status(status, "no such thing")
    when = ("always",) if always else ()
    gateway = await routed(
        {"chat": [engine]},
        route("r", to=[pool("chat"), api("far", "big", *when)]),
        providers={"far": provider},
    )
    code, _, text = await gateway.ask("r")
    assert (code == 200, len(provider.seen)) == (always, int(always))
    assert always or (str(code) in status and "no such thing" in text)


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
async def test_engines_that_say_they_are_busy_make_the_pool_saturated(routed, engine, provider, status):
    engine.behaviour = Behave.status(status)
    gateway = await routed(
        {"chat": [engine]},
        route("down", to=[pool("chat"), api("far")]),
        route("busy", to=[pool("chat"), api("far", "big", "saturated")]),
        providers={"far": provider},
    )
    assert (await gateway.ask("busy"))[0] == 200
    assert (await gateway.ask("down"))[0] == int(status[:3])


async def test_a_request_that_must_not_run_twice_is_sent_nowhere_else(routed, engine, provider):
    engine.behaviour = Behave.reset_at_once
    gateway = await routed(
        {"chat": [engine]},
        route("r", to=[pool("chat"), api("far", "big", "always")]),
        providers={"far": provider},
    )
    status, _, text = await gateway.ask("r", "/v1/responses", input="hi", store=True)
    assert status == 502
    assert "may have run" in text
    assert not provider.seen


@pytest.mark.parametrize("continuation", ["on", "off"])
async def test_a_stream_that_broke_ends_typed_and_is_never_begun_elsewhere(
    routed, engine, provider, continuation
):
    engine.behaviour = Behave.after_tokens(2, Behave.then_reset)
    gateway = await routed(
        {"chat": [engine]},
        route("r", to=[pool("chat"), api("far", "big", "always", "down")]),
        gates={"chat": {"continuation": continuation}},
        providers={"far": provider},
    )
    asked = asyncio.create_task(gateway.ask("r", stream=True))
    await until(lambda: engine.in_flight)
    engine.go_on.set()
    _, _, text = await asked
    assert "t1" in text
    assert '"code":"stream_interrupted"' in text
    assert "[DONE]" not in text
    assert not provider.seen
    shown = gateway.gateway.metrics.exposition().decode()
    assert 'orchestrator_gateway_streams_cut_total{reason="disconnected"} 1.0' in shown
    assert 'orchestrator_gateway_requests_total{outcome="cut"} 1.0' in shown


async def test_a_broken_stream_of_a_provider_ends_typed(routed, engine, provider):
    provider.breaks = True
    gateway = await routed(
        {"chat": [engine]},
        route("r", to=[api("far"), pool("chat", "", "always")]),
        providers={"far": provider},
    )
    _, _, text = await gateway.ask("r", stream=True)
    assert "from api" in text
    assert "stream_interrupted" in text
    assert not engine.seen


async def test_where_nobody_answers_every_reason_is_given(routed, engine, provider):
    provider.looks = BackendView(hopeful=False, why="has spent its 20 USD of today")
    provider.trouble = Trouble.DOWN
    gateway = await routed(
        {"chat": [engine]}, route("r", to=[pool("chat"), api("far")]), providers={"far": provider}
    )
    await engine.stop()
    status, headers, text = await gateway.ask("r")
    error = json.loads(text)["error"]
    assert (status, error["code"], headers["retry-after"]) == (503, "no_backend", "2")
    assert "pool chat cannot take it: no target is there" in error["message"]
    assert "provider far (big) is in trouble" in error["message"]
    assert len(provider.seen) == 1  # it was worth a try


async def test_a_pool_that_flaps_loses_nothing(routed, engine, provider):
    gateway = await routed(
        {"chat": [engine]}, route("r", to=[pool("chat"), api("far")]), providers={"far": provider}
    )
    for _ in range(5):
        await engine.stop()
        assert {(await gateway.ask("r"))[0] for _ in range(5)} == {200}
        await engine.start()
        assert {(await gateway.ask("r"))[0] for _ in range(5)} == {200}


async def test_a_provider_alone_needs_no_pool(routed, provider):
    gateway = await routed({}, route("frontier", to=[api("far")]), providers={"far": provider})
    status, _, text = await gateway.ask("frontier")
    assert (status, model_in(text)) == (200, {"frontier"})
    assert (await gateway.send("GET", "/readyz"))[0] == 200
    assert (await gateway.ask("other"))[0] == 404
    status, _, text = await gateway.send("GET", "/v1/files")
    assert (status, json.loads(text)["error"]["code"]) == (404, "not_found")
    assert (await gateway.control("GET", "/v1/state"))[0] == 400
    assert (await gateway.put("chat"))[0] == 409


# -- limits ---------------------------------------------------------------------------------------


async def test_the_longest_answer_of_a_route(routed, engine):
    gateway = await routed({"chat": [engine]}, route("r", to=[pool("chat")], most_tokens=100))
    status, _, text = await gateway.ask("r", max_tokens=101)
    assert (status, json.loads(text)["error"]["code"]) == (400, "too_many_tokens")
    assert "'r' answers with 100 tokens at most" in text
    assert (await gateway.ask("r", max_tokens=101, max_output_tokens=1))[0] == 400  # which no engine heeds
    assert (await gateway.ask("r", max_tokens=100))[0] == 200
    assert (await gateway.ask("r"))[0] == 200
    assert (await gateway.ask("r", "/v1/responses", input="hi"))[0] in (200, 502)
    sent = [json.loads(seen.body) for seen in engine.seen]
    assert [body.get("max_tokens", body.get("max_output_tokens")) for body in sent[:3]] == [100, 100, 100]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {}),
        ("/v1/chat/completions", {"stream": True}),
        ("/v1/messages", {"max_tokens": 1}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/embeddings", {"input": "x"}),
        ("/v1/rerank", {"query": "x", "documents": []}),
    ],
)
async def test_data_that_stays_never_reaches_a_provider(routed, engine, provider, path, fields):
    gateway = await routed(
        {"chat": [engine]},
        route("secret", to=[pool("chat")], stays=True),
        route("open", to=[pool("chat"), api("far", "big", "always")]),
        providers={"far": provider},
    )
    await engine.stop()
    assert (await gateway.ask("secret", path, **fields))[0] in (502, 503)
    assert not provider.seen
    assert (await gateway.ask("open"))[0] == 200


async def test_a_router_that_is_wrong_about_data_that_stays_fails_the_request(routed, engine, provider):
    """The rule holds in the code that sends, whatever chose the backend."""
    gateway = await routed(
        {"chat": [engine]}, route("open", to=[pool("chat"), api("far")]), providers={"far": provider}
    )
    open_route = gateway.gateway._router._names.find("open")
    object.__setattr__(open_route, "stays", True)
    await engine.stop()
    assert (await gateway.ask("open"))[0] == 500
    assert not provider.seen


async def test_embeddings_go_to_no_other_model(routed, engine, provider, upstreams):
    twin = await upstreams("b", echo)
    to = [pool("chat", "m"), pool("other", "n"), pool("twin", "m"), api("far", "big", "always")]
    gateway = await routed(
        {"chat": [engine], "twin": [twin], "other": []},
        route("r", to=to),
        providers={"far": provider},
    )
    await engine.stop()
    await gateway.ask("r", "/v1/embeddings", input="x")
    assert [seen.path for seen in twin.seen][-1] == "/v1/embeddings"
    await twin.stop()
    assert (await gateway.ask("r", "/v1/embeddings", input="x"))[0] in (502, 503)
    assert not provider.seen
    assert (await gateway.ask("r"))[0] == 200


# -- several pools --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/responses", {"input": "a"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4}),
    ],
)
async def test_a_text_is_not_asked_of_a_route_that_embeds(routed, engine, path, fields):
    gateway = await routed({"embed": [engine]}, route("vectors", to=[pool("embed")], task=Task.EMBED))
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.url + path, json={"model": "vectors", **fields}) as answer,
    ):
        text = await answer.text()
    assert (answer.status, "ask /v1/embeddings" in text) == (400, True)


async def test_nor_of_the_own_name_of_a_pool_that_embeds(routed, engine, upstreams):
    other = await upstreams("b", echo)
    gates = {"embed": {"tasks": frozenset({Task.EMBED}), "adapters": ("tuned",)}}
    gateway = await routed({"embed": [engine], "chat": [other]}, gates=gates)
    for name in ("embed-model", "tuned"):
        status, _, text = await gateway.ask(name)
        assert (status, json.loads(text)["error"]["code"]) == (400, "wrong_task")
        await gateway.ask(name, "/v1/embeddings", input="hi")
    assert {seen.path for seen in engine.seen if seen.method == "POST"} == {"/v1/embeddings"}
    assert (await gateway.ask("chat-model"))[0] == 200


async def test_nor_of_a_pool_that_reranks(routed, engine, upstreams):
    other = await upstreams("b", echo)
    gateway = await routed(
        {"order": [engine], "chat": [other]}, gates={"order": {"tasks": frozenset({Task.RERANK})}}
    )
    status, _, text = await gateway.ask("order-model")
    assert (status, json.loads(text)["error"]["code"]) == (400, "wrong_task")
    assert "ask /v1/rerank" in text


@pytest.mark.parametrize(
    ("does", "path", "fields", "says"),
    [
        (Task.CHAT, "/v1/embeddings", {"input": "a"}, "texts are turned into numbers by embed-model"),
        (
            Task.CHAT,
            "/v1/rerank",
            {"query": "a", "documents": ["b"]},
            "texts are put in order by order-model",
        ),
        (Task.RERANK, "/v1/embeddings", {"input": "a"}, "texts are turned into numbers by embed-model"),
        (
            Task.EMBED,
            "/v2/rerank",
            {"query": "a", "documents": ["b"]},
            "texts are put in order by order-model",
        ),
        (Task.EMBED, "/v1/completions", {"prompt": "a"}, "texts are written by chat-model"),
    ],
)
async def test_what_a_pool_does_not_do_is_refused_with_who_does(routed, upstreams, does, path, fields, says):
    """Its engines would answer with nonsense (llama.cpp), or an error of their own, one after the other."""
    names = {Task.CHAT: "chat", Task.EMBED: "embed", Task.RERANK: "order"}
    engines = {name: [await upstreams(name, echo)] for name in names.values()}
    gateway = await routed(
        engines, gates={name: {"tasks": frozenset({task})} for task, name in names.items()}
    )
    status, _, text = await gateway.ask(f"{names[does]}-model", path, **fields)
    error = json.loads(text)["error"]
    assert (status, error["code"], error["param"]) == (400, "wrong_task", "model")
    assert says in error["message"]
    assert not [seen for (engine,) in engines.values() for seen in engine.seen if seen.method == "POST"]


@pytest.mark.parametrize("does", [Task.EMBED, Task.RERANK])
async def test_nor_of_the_only_pool_whose_names_are_not_looked_at(routed, engine, does):
    gateway = await routed({"only": [engine]}, gates={"only": {"tasks": frozenset({does})}})
    for model in ("x", None):
        status, _, text = await gateway.ask(model)
        assert (status, json.loads(text)["error"]["code"]) == (400, "wrong_task"), model
    assert not [seen for seen in engine.seen if seen.method == "POST"]


async def test_a_pool_may_do_more_than_it_is_started_for(routed, engine, upstreams):
    """vLLM ranks with a model that embeds."""
    other = await upstreams("b", echo)
    both = {"tasks": frozenset({Task.EMBED, Task.RERANK})}
    engines = {"embed": [engine], "chat": [other]}
    gateway = await routed(
        engines, route("vectors", to=[pool("embed")], task=Task.EMBED), gates={"embed": both}
    )
    for model in ("vectors", "embed-model"):
        for path, fields in {
            "/v1/rerank": {"query": "a", "documents": ["b"]},
            "/v1/embeddings": {"input": "a"},
        }.items():
            assert "wrong_task" not in (await gateway.ask(model, path, **fields))[2]
        status, _, text = await gateway.ask(model)
        assert (status, json.loads(text)["error"]["code"]) == (400, "wrong_task")
        assert "ask /v1/embeddings" in text
    assert "/v1/rerank" in {seen.path for seen in engine.seen}


async def test_a_provider_of_texts_may_embed_as_well(routed, provider):
    gateway = await routed({}, route("any", to=[api("far")]), providers={"far": provider})
    await gateway.ask("any", "/v1/embeddings", input="x")
    assert provider.seen


async def test_each_pool_has_its_own_key_and_none_gets_anothers(routed, engine, upstreams):
    other = await upstreams("b", echo)
    gateway = await routed(
        {"keyed": [engine], "open": [other]},
        route("r", to=[pool("keyed"), pool("open", "", "always")]),
        gates={"keyed": {"api_key": "secret"}},
    )
    mine = {"Authorization": "Bearer mine"}
    engine.behaviour = Behave.status("500 Internal Server Error")
    assert (await gateway.ask("r", headers=mine))[0] == 200
    assert engine.seen[0].headers["authorization"] == "Bearer secret"
    assert other.seen[0].headers["authorization"] == "Bearer mine"


async def test_what_a_pool_keeps_is_found_there(routed, engine, upstreams):
    async def keep(talk):
        if talk.request.method == "POST":
            await talk.json({"id": f"resp_{talk.upstream.name}", "object": "response", "status": "completed"})
        else:
            await talk.json({"id": "kept", "by": talk.upstream.name})

    other = await upstreams("b", keep)
    engine.behaviour = keep
    gateway = await routed({"one": [engine], "two": [other]}, default_route="one-model")
    for model, name in (("one-model", "a"), ("two-model", "b")):
        assert (await gateway.ask(model, "/v1/responses", input="x", store=True))[0] == 200
        status, _, text = await gateway.send("GET", f"/v1/responses/resp_{name}")
        assert (status, json.loads(text)) == (200, {"id": "kept", "by": name})


async def test_the_sets_of_pools_go_to_their_lanes(routed, engine, upstreams):
    other = await upstreams("b", echo)
    gateway = await routed({"one": [engine], "two": [other]})
    status, body = await gateway.put("three")
    assert (status, body["error"]["code"]) == (409, "wrong_pool")
    assert "serves the pools one, two, and the set is of 'three'" in body["error"]["message"]
    status, body = await gateway.control("PUT", "/v1/targets", b"not json")
    assert status == 400
    for name, engine_name in (("one", "a"), ("two", "b")):
        _, state = await gateway.control("GET", f"/v1/state?pool={name}")
        assert (state["pool"], [row["id"] for row in state["targets"]]) == (name, [engine_name])
    status, body = await gateway.control("GET", "/v1/state")
    assert (status, body["error"]["code"]) == (400, "pool_missing")
    assert (await gateway.control("GET", "/v1/state?pool=three"))[0] == 404


async def test_metrics_and_counts_are_those_of_each_pool(routed, engine, upstreams):
    other = await upstreams("b", Behave.status("400 Bad Request"))
    gateway = await routed({"one": [engine], "two": [other]}, route("r", to=[pool("one"), pool("two")]))
    await gateway.ask("r")
    await gateway.ask("two-model")
    await gateway.ask("none")
    shown = gateway.gateway.metrics.exposition().decode()
    for line in (
        'orchestrator_gateway_requests_total{outcome="ok",pool="one"} 1.0',
        'orchestrator_gateway_requests_total{outcome="client_error",pool="two"} 1.0',
        'orchestrator_gateway_requests_total{outcome="bad_request",pool=""} 1.0',
        'orchestrator_gateway_targets{pool="two",state="healthy"} 1.0',
        'orchestrator_gateway_queue_seconds_count{pool="one"} 1.0',
        'orchestrator_gateway_routed_total{backend="pool one",result="answered",route="r"} 1.0',
    ):
        assert line in shown
    _, state = await gateway.control("GET", "/v1/state?pool=two")
    assert (state["totals"]["requests"], state["totals"]["requests_client_error"]) == (1, 1)


async def test_where_requests_go_and_why(routed, engine, provider):
    gateway = await routed(
        {"chat": [engine]}, route("r", "x", to=[pool("chat"), api("far")]), providers={"far": provider}
    )
    await gateway.ask("r")
    _, said = await gateway.control("GET", "/v1/routes")
    first = said["routes"][0]
    assert (said["schema"], first["models"], first["goes_to"]) == (
        "gateway-routes/1",
        ["r", "x"],
        "pool chat",
    )
    assert first["backends"][0]["requests"] == {"answered": 1}
    assert [row["when"] for row in first["backends"]] == [["down", "saturated"], ["down"]]
    await engine.stop()
    await gateway.ask("r")
    _, said = await gateway.control("GET", "/v1/routes")
    first = said["routes"][0]
    assert (first["goes_to"], first["left_out"]) == ("provider far (big)", ["pool chat is down"])
    assert said["routes"][1]["servable"] is False


async def test_ready_while_a_route_can_be_served(routed, engine, upstreams, eventually):
    other = await upstreams("b", echo)
    gateway = await routed({"one": [engine], "two": [other]})

    async def says(status, words):
        got, _, text = await gateway.send("GET", "/readyz")
        return got == status and words in text

    assert await says(200, "ok\n")
    await engine.stop()
    await eventually(lambda: says(200, "no backend is well for: one-model"))
    await other.stop()
    await eventually(lambda: says(503, "no backend is well for: one-model, two-model"))


async def test_a_lane_whose_tasks_raise_begins_them_again_and_hurts_no_other(
    routed, engine, upstreams, monkeypatch, eventually, tmp_path
):
    other = await upstreams("b", echo)
    gateway = await routed({"one": [engine], "two": [other]})
    lane = gateway.gateway.lanes["one"]
    raised = []

    def explode(*_):
        raised.append(1)
        raise RuntimeError("planted")

    with monkeypatch.context() as planted:
        planted.setattr(lane._watch, "look", explode)
        planted.setattr(lane.source, "look", explode)
        planted.setattr(lane.health, "_check", explode)
        await eventually(lambda: len(raised) > 5)
        assert (await gateway.ask("two-model"))[0] == 200
        await other.stop()
        await eventually(lambda: not gateway.gateway.lanes["two"].table.any_sound())
        await other.start()
        await eventually(gateway.gateway.lanes["two"].table.any_sound)
    await engine.stop()
    await eventually(lambda: not lane.table.any_sound())  # all its tasks go on


async def test_a_damaged_targets_file_is_its_own_lanes_trouble(
    routed, engine, upstreams, tmp_path, eventually
):
    other = await upstreams("b", echo)
    gateway = await routed({"one": [engine], "two": [other]})
    (tmp_path / "targets-one.json").write_text("{")

    async def faults():
        states = [(await gateway.control("GET", f"/v1/state?pool={n}"))[1] for n in ("one", "two")]
        return [bool(state["file_fault"]) for state in states] == [True, False]

    await eventually(faults)
    assert (await gateway.ask("one-model"))[0] == (await gateway.ask("two-model"))[0] == 200


async def test_what_names_no_model_and_cannot_goes_to_the_first_pool(routed, engine, upstreams):
    other = await upstreams("b", echo)
    gateway = await routed({"one": [engine], "two": [other]})
    for path in ("/v1/files", "/version"):
        assert (await gateway.send("GET", path))[0] == 200
    assert [seen.path for seen in engine.seen] == ["/v1/files", "/version"]
    assert not other.seen


async def test_what_a_provider_answered_says_nothing_of_the_pool(routed, engine, provider):
    gateway = await routed(
        {"chat": [engine]}, route("r", to=[pool("chat"), api("far")]), providers={"far": provider}
    )
    assert (await gateway.ask("r"))[0] == 200
    await engine.stop()
    assert (await gateway.ask("r"))[0] == 200
    _, state = await gateway.control("GET", "/v1/state")
    assert (state["recent"]["answered"], state["recent"]["failed"]) == (1, 0)
    assert state["totals"]["requests_ok"] == 2


# -- which target ---------------------------------------------------------------------------------


async def test_sessions_keep_their_node(routed, upstreams):
    engines = [await upstreams(name, echo) for name in "abc"]
    gateway = await routed(
        {"chat": engines}, route("r", to=[pool("chat")], affinity=Affinity.SESSION, session_header="x-chat")
    )

    async def node(session):
        _, headers, _ = await gateway.ask("r", headers={"x-chat": session})
        return headers["x-orchestrator-node"]

    sessions = [*map(str, range(30)), "\u00e9", "x" * 30_000]
    first = {session: await node(session) for session in sessions}
    assert set(first.values()) == set("abc")
    assert {session: await node(session) for session in sessions} == first
    assert (await gateway.ask("r", headers={"x-chat": ""}))[0] == (await gateway.ask("r"))[0] == 200
