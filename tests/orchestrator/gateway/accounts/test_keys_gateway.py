"""Keys over real sockets: the SDKs that people use, what nodes get to see, keys that change under load."""

from __future__ import annotations

import asyncio
import json

import anthropic
import openai
import pytest
from structlog.testing import capture_logs
from yarl import URL

from orchestrator.gateway.accounts.key_format import digest
from orchestrator.gateway.config import GatewayError, ProviderSpec
from orchestrator.gateway.handover import Inheritance
from policies.held import Held
from policies.routing import Affinity
from tests.support.paid_provider import provider
from tests.support.provider_stand import OWN
from tests.support.routed_gateway import PlayedProvider, Routed, api, echo, pool, route

ALL, SOME, OLD, GONE = (f"sk-orch-planted-key-{name}" for name in ("of-all", "of-some", "of-old", "gone"))
HI = [{"role": "user", "content": "hi"}]


def table(name, secret, more=""):
    return f'[key.{name}]\nsha256 = "{digest(secret)}"\nhint = "{secret[-4:]}"\n{more}\n'


FILE = (
    table("all", ALL)
    + table("some", SOME, 'models = ["assistant", "embed-*"]')
    + table("old", OLD, "expires = 2020-01-01")
    + table("gone", GONE, "revoked = true")
)


@pytest.fixture
def keys_file(tmp_path):
    file = tmp_path / "keys.toml"
    file.write_text(FILE)
    return file


@pytest.fixture
async def routed(tmp_path, keys_file):
    """A gateway with keys, two pools and a route, which asks who you are."""
    running = []

    async def start(pools, *routes, **settings):
        one = Routed(tmp_path, pools, *routes, keys_file=keys_file, **settings)
        running.append(one)
        return await one.start()

    yield start
    for one in running:
        await one.stop()


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


def chat(url, secret):
    return openai.AsyncOpenAI(base_url=url + "/v1", api_key=secret, max_retries=0, timeout=20)


def messages(url, **how):
    return anthropic.AsyncAnthropic(base_url=url, max_retries=0, timeout=20, **how)


# -- the SDKs -----------------------------------------------------------------------------------


async def test_openai_clients_are_let_in_or_told_why_not(upstreams, routed):
    engine = await upstreams("a", echo)
    gateway = await routed({"chat": [engine]}, route("assistant", to=[pool("chat")]))
    async with chat(gateway.url, ALL) as client:
        answer = await client.chat.completions.create(model="assistant", messages=HI)
        assert answer.choices[0].message.content == "from a"
        said = [part async for part in await client.chat.completions.create(
            model="assistant", messages=HI, stream=True
        )]  # fmt: skip
        assert said[-1].choices[0].finish_reason == "stop"
    for secret, why in (
        ("sk-orch-nobodys", "the key of this request is not known here"),
        (OLD, "the key old has expired"),
        (GONE, "the key gone was revoked"),
    ):
        async with chat(gateway.url, secret) as client:
            with pytest.raises(openai.AuthenticationError, match=why) as caught:
                await client.chat.completions.create(model="assistant", messages=HI)
        assert caught.value.code == "invalid_api_key"
        assert caught.value.response.headers["www-authenticate"] == "Bearer"
        assert caught.value.request_id
    async with chat(gateway.url, SOME) as client:
        with pytest.raises(openai.PermissionDeniedError, match="key some may not ask") as denied:
            await client.chat.completions.create(model="chat-model", messages=HI)
        assert (denied.value.code, denied.value.param) == ("model_not_allowed", "model")
        assert [model.id async for model in client.models.list()] == ["assistant"]
        with pytest.raises(openai.PermissionDeniedError):
            await client.models.retrieve("chat-model")
        assert (await client.models.retrieve("assistant")).id == "assistant"
    assert len(engine.seen) == 2


async def test_anthropic_clients_are_let_in_or_told_why_not(upstreams, routed):
    engine = await upstreams("a", echo)
    gateway = await routed({"chat": [engine]}, route("assistant", to=[pool("chat")]))
    for how in ({"api_key": ALL}, {"auth_token": ALL}):
        async with messages(gateway.url, **how) as client:
            answer = await client.messages.create(model="assistant", max_tokens=9, messages=HI)
            assert answer.content[0].text == "from a"
    async with messages(gateway.url, api_key="sk-orch-nobodys") as client:
        with pytest.raises(anthropic.AuthenticationError, match="invalid_api_key: the key of") as caught:
            await client.messages.create(model="assistant", max_tokens=9, messages=HI)
        assert caught.value.type == "authentication_error"
        with pytest.raises(anthropic.AuthenticationError, match="invalid_api_key") as caught:
            await client.models.list()
        assert caught.value.type == "authentication_error"
    async with messages(gateway.url, api_key=SOME) as client:
        with pytest.raises(
            anthropic.PermissionDeniedError, match="model_not_allowed: the key some"
        ) as denied:
            await client.messages.create(model="chat-model", max_tokens=9, messages=HI)
        assert denied.value.type == "permission_error"
        assert [model.id async for model in client.models.list()] == ["assistant"]
    assert len(engine.seen) == 2


# -- what is asked, and when --------------------------------------------------------------------


async def test_nobody_without_a_key_makes_the_gateway_hold_a_body(upstreams, gateways, raw, keys_file):
    node = await upstreams("node")
    running = await gateways(node, keys_file=keys_file)
    one = await raw(running)
    await one.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
        b"Content-Type: application/json\r\n\r\n{"
    )
    status, headers, body = await one.answer()  # while its body is still to come
    assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    assert headers["www-authenticate"] == "Bearer"
    waits = await raw(running)
    await waits.send(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
        b"Expect: 100-continue\r\n\r\n"
    )
    status, _, _ = await waits.answer()
    assert status == 401
    assert running.gateway._proxy._intake.held == 0
    assert node.seen == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/chat"),
        ("POST", "/v1/chat/completions"),
        ("OPTIONS", "/v1/chat/completions"),
        ("GET", "/health"),
        ("GET", "/version"),
        ("GET", "/nowhere"),
        ("POST", "/healthz"),
        ("GET", "//healthz"),
        ("GET", "/healthz/"),
        ("GET", "/%68ealthz"),
        ("DELETE", "/v1/files/f1"),
    ],
)
async def test_every_path_but_two_asks_for_a_key(upstreams, gateways, client, keys_file, method, path):
    node = await upstreams("node")
    running = await gateways(node, keys_file=keys_file)
    url, body = URL(running.url + path, encoded=True), b"{}" if method == "POST" else None
    async with client.request(method, url, data=body) as got:
        assert got.status == 401
    assert node.seen == []


ASKS = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
CHAT = "/v1/chat/completions"


async def test_a_browser_is_told_what_a_page_may_send_and_reaches_no_node(upstreams, routed):
    engine = await upstreams("a", echo)
    gateway = await routed({"chat": [engine]}, route("assistant", to=[pool("chat")]))
    wants = {"Access-Control-Request-Headers": "authorization,content-type"}
    status, headers, _ = await gateway.send("OPTIONS", CHAT, headers=ASKS | wants)
    assert (status, headers["access-control-allow-origin"]) == (204, "*")
    assert headers["access-control-allow-headers"] == "authorization,content-type"
    assert "POST" in headers["access-control-allow-methods"]
    odd = {"Access-Control-Request-Headers": "a\tb, <c>"}
    status, headers, _ = await gateway.send("OPTIONS", CHAT, headers=ASKS | odd)
    assert (status, "access-control-allow-headers" in headers) == (204, False)
    assert engine.seen == []


async def test_without_keys_a_browser_s_question_is_for_the_engine(upstreams, tmp_path):
    engine = await upstreams("a", echo)
    gateway = await Routed(tmp_path, {"chat": [engine]}, route("assistant", to=[pool("chat")])).start()
    assert (await gateway.send("OPTIONS", CHAT, headers=ASKS))[0] == 200
    assert [each.method for each in engine.seen] == ["OPTIONS"]
    await gateway.stop()


@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("OPTIONS", CHAT, None, {"Origin": "http://page.example"}),
        ("OPTIONS", CHAT, b"{}", ASKS),
        ("POST", CHAT, b"{}", ASKS),
        ("GET", "/v1/models", None, ASKS),
    ],
    ids=["not a browser's question", "with a body", "the request itself", "another method"],
)
async def test_nothing_else_passes_as_the_question_of_a_browser(
    upstreams, routed, method, path, body, headers
):
    engine = await upstreams("a", echo)
    gateway = await routed({"chat": [engine]}, route("assistant", to=[pool("chat")]))
    assert (await gateway.send(method, path, body, headers))[0] == 401
    assert engine.seen == []


async def test_a_browser_s_question_reaches_only_what_is_served(upstreams, routed):
    engine = await upstreams("a", echo)
    gateway = await routed({"chat": [engine]}, route("assistant", to=[pool("chat")]))
    assert (await gateway.send("OPTIONS", "/pause", headers=ASKS))[0] == 404
    assert engine.seen == []


async def test_the_two_paths_of_the_gateway_itself_ask_for_none(upstreams, gateways, client, keys_file):
    running = await gateways(await upstreams("node"), keys_file=keys_file)
    for path in ("/healthz", "/readyz"):
        async with client.get(running.url + path) as got:
            assert (got.status, await got.text()) == (200, "ok\n")


async def test_a_web_socket_asks_for_a_key_first(gateways, client, keys_file):
    running = await gateways(keys_file=keys_file)
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
    async with client.get(running.url + "/v1/realtime", headers=upgrade) as got:
        assert got.status == 401
    async with client.get(running.url + "/v1/realtime", headers=upgrade | bearer(ALL)) as got:
        assert got.status == 501


async def test_two_keys_that_differ_are_refused_and_two_that_agree_are_one(
    upstreams, gateways, ask, keys_file
):
    running = await gateways(await upstreams("node"), keys_file=keys_file)
    both = await ask(running, headers=bearer(ALL) | {"x-api-key": SOME})
    assert (both.status, "several keys that differ" in both.error["message"]) == (401, True)
    same = await ask(running, headers=bearer(ALL) | {"x-api-key": ALL})
    assert same.status == 200


@pytest.mark.parametrize("secret", [b"schl\xc3\xbcssel", b"\xff\xfe", b"k" * 60_000, b"%s x" % ALL.encode()])
async def test_odd_keys_are_refused_like_any_other(gateways, raw, keys_file, secret):
    running = await gateways(keys_file=keys_file)
    one = await raw(running)
    await one.send(
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + secret + b"\r\n\r\n"
    )
    status, _, body = await one.answer()
    assert (status, body["error"]["message"]) == (401, "the key of this request is not known here")


# -- models -------------------------------------------------------------------------------------


async def test_a_key_for_some_models_gets_nothing_that_names_none(upstreams, routed):
    engine = await upstreams("a", echo)
    gateway = await routed(
        {"chat": [engine]}, route("assistant", "gpt", to=[pool("chat")]), default_route="assistant"
    )
    status, _, _ = await gateway.ask(headers=bearer(SOME))  # the default route is named for it
    assert status == 200
    status, _, text = await gateway.ask("gpt", headers=bearer(SOME))
    assert (status, json.loads(text)["error"]["code"]) == (403, "model_not_allowed")
    status, _, text = await gateway.ask("nonsense", headers=bearer(SOME))
    assert status == 403  # whether there is such a model is not for it to know
    status, _, text = await gateway.ask("embed-tiny", headers=bearer(SOME))
    assert (status, json.loads(text)["error"]["message"]) == (
        404,
        "there is no model 'embed-tiny'; there is assistant",
    )


async def test_without_a_default_a_key_for_some_models_must_name_one(upstreams, routed):
    engine = await upstreams("a", echo)
    gateway = await routed({"chat": [engine]}, route("assistant", to=[pool("chat")]))
    for path in ("/v1/chat/completions", "/v1/responses"):
        status, _, text = await gateway.ask(path=path, headers=bearer(SOME), input="x")
        assert (status, json.loads(text)["error"]["code"]) == (403, "model_not_allowed")
    status, _, _ = await gateway.send("GET", "/v1/files", headers=bearer(SOME))
    assert status == 403
    assert engine.seen == []


async def test_one_pool_without_routes_goes_by_the_names_that_are_asked_for(
    upstreams, gateways, ask, client, keys_file
):
    node = await upstreams("node")
    running = await gateways(node, keys_file=keys_file, served="assistant", adapters=("embed-lora", "other"))
    assert (await ask(running, model="assistant", headers=bearer(SOME))).status == 200
    denied = await ask(running, model="other", headers=bearer(SOME))
    assert (denied.status, denied.error["code"]) == (403, "model_not_allowed")
    assert (await ask(running, headers=bearer(SOME))).status == 403
    assert (await ask(running, headers=bearer(ALL))).status == 200
    async with client.get(running.url + "/v1/models", headers=bearer(SOME)) as got:
        assert [row["id"] for row in (await got.json())["data"]] == ["assistant", "embed-lora"]
    asked = len(node.seen)
    async with client.get(running.url + "/v1/models", headers=bearer(ALL)) as got:
        await got.read()
    assert len(node.seen) == asked + 1  # the engine answers for whoever may ask for everything


async def test_a_key_names_models_as_its_client_does(upstreams, tmp_path, routed, keys_file):
    keys_file.write_text(
        table("by-route", ALL, 'models = ["assistant"]') + table("by-model", SOME, 'models = ["m"]')
    )
    engine = await upstreams("a", echo)
    gateway = await routed(
        {"chat": [engine]}, route("assistant", to=[pool("chat")]), gates={"chat": {"served": "m"}}
    )
    found = {
        (name, model): (await gateway.ask(model, headers=bearer(secret)))[0]
        for name, secret in (("by-route", ALL), ("by-model", SOME))
        for model in ("assistant", "m")
    }
    assert found == {
        ("by-route", "assistant"): 200,  # which goes to the pool as m
        ("by-route", "m"): 403,
        ("by-model", "assistant"): 403,
        ("by-model", "m"): 200,
    }


async def test_a_key_for_an_adapter_is_for_its_clients_name(upstreams, routed, keys_file):
    """Whatever the engine calls it, and only for that one."""
    engine = await upstreams("a", echo)
    gates = {"chat": {"served": "assistant", "loaded": ("embed-lora", "other")}}
    gateway = await routed({"chat": [engine]}, gates=gates)
    held = tuple(Held(name=n, served_as=f"{n}@1", revision="1") for n in ("embed-lora", "other"))
    await gateway.put("chat", engine.spec(adapters=held))
    for model, expected in (("assistant", 200), ("embed-lora", 200), ("other", 403), ("embed-lora@1", 404)):
        status, _, text = await gateway.ask(model, headers=bearer(SOME))
        assert (status, model) == (expected, model), text
    assert json.loads(engine.seen[-1].body)["model"] == "embed-lora@1"
    _, _, text = await gateway.send("GET", "/v1/models", headers=bearer(SOME))
    assert [row["id"] for row in json.loads(text)["data"]] == ["assistant", "embed-lora"]
    _, _, text = await gateway.send("GET", "/v1/models", headers=bearer(ALL))
    assert [row["id"] for row in json.loads(text)["data"]] == ["assistant", "embed-lora", "other"]


async def test_a_form_is_held_to_its_model(upstreams, routed):

    async def hears(talk):
        await talk.json({"text": "hello"})

    engine = await upstreams("a", hears)
    gateway = await routed({"chat": [engine]}, route("assistant", to=[pool("chat")]))
    form = (
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nchat-model\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--b--\r\n'
    )
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    status, _, _ = await gateway.send("POST", "/v1/audio/transcriptions", form, kind | bearer(SOME))
    assert (status, engine.seen) == (403, [])
    hidden = b'--b\r\nContent-Disposition: form-data; name="model"; xfilename="a"\r\n\r\nchat-model\r\n'
    allowed = form.replace(b"chat-model", b"assistant")
    for told in (hidden + allowed, allowed.replace(b"--b--", hidden + b"--b--")):
        status, _, text = await gateway.send("POST", "/v1/audio/transcriptions", told, kind | bearer(SOME))
        assert (status, "names no model" in text, engine.seen) == (403, True, [])
    async with chat(gateway.url, SOME) as client:
        sound = ("a.wav", b"RIFF", "audio/wav")
        heard = await client.audio.transcriptions.create(model="assistant", file=sound)
    assert heard.text == "hello"
    assert len(engine.seen) == 1
    status, _, _ = await gateway.send("POST", "/v1/audio/transcriptions", form, kind | bearer(ALL))
    assert (status, len(engine.seen)) == (200, 2)


# -- what nodes and providers get to see --------------------------------------------------------


@pytest.mark.parametrize("api_key", [None, "engine-key"])
async def test_nodes_never_see_the_key_of_a_client(upstreams, gateways, ask, keys_file, api_key):
    node = await upstreams("node")
    running = await gateways(node, keys_file=keys_file, api_key=api_key)
    for headers in (bearer(ALL), {"x-api-key": ALL}, bearer(ALL) | {"X-API-KEY": ALL}):
        for path in ("/v1/chat/completions", "/v1/messages"):
            assert (await ask(running, path=path, headers=headers, max_tokens=9)).status == 200
    for seen in node.seen:
        assert ALL not in str(seen.headers) + seen.body.decode()
        assert seen.headers.get("authorization") == (f"Bearer {api_key}" if api_key else None)
        assert "x-api-key" not in seen.headers


@pytest.mark.parametrize("kind", ["anthropic", "openai"])
async def test_providers_never_see_the_key_of_a_client(routed, tmp_path, kind):
    """Not where they speak the client's own dialect either, in which headers are passed on."""
    async with provider() as paid:
        spec = ProviderSpec(name="api", kind=kind, url=f"http://127.0.0.1:{paid.port}", prices={"big": OWN})
        gateway = await routed(
            {}, route("assistant", to=[api("api")]), specs=[spec], spend_file=tmp_path / "spend.db"
        )
        for path in ("/v1/chat/completions", "/v1/messages"):
            for headers in (bearer(ALL), {"x-api-key": ALL, "anthropic-version": "2023-06-01"}):
                status, _, _ = await gateway.ask("assistant", path=path, headers=headers, max_tokens=5)
                assert status == 200
        assert len(paid.seen) == 4
        assert not any(ALL in str(seen.headers) + str(seen.fields) for seen in paid.seen)


async def test_without_keys_a_client_s_own_passes_as_before(upstreams, gateways, ask):
    node = await upstreams("node")
    running = await gateways(node)
    assert (await ask(running, headers=bearer(ALL))).status == 200
    assert node.seen[0].headers["authorization"] == f"Bearer {ALL}"


async def test_keys_are_in_no_log_metric_or_state(upstreams, routed, eventually, keys_file):
    engine = await upstreams("a", echo)
    provider = PlayedProvider()
    stay = route("assistant", to=[pool("chat"), api("claude")], affinity=Affinity.PREFIX)
    with capture_logs() as logs:
        gateway = await routed({"chat": [engine]}, stay, providers={"claude": provider})
        texts = []
        for secret in (ALL, SOME, OLD, GONE, "sk-orch-planted-key-nobodys"):
            for model in ("assistant", "chat-model", "nonsense"):
                _, headers, text = await gateway.ask(model, headers=bearer(secret))
                texts += [text, str(headers)]
        keys_file.write_text(f'[key."{ALL}"]\n{SOME} = "{OLD}"\nsha256 = "{GONE}"\n')
        state = {}

        async def broken():
            state.update((await gateway.control("GET", "/v1/state?pool=chat"))[1])
            return state["keys"]["fault"]

        await eventually(broken)
    texts += [str(logs), str(state), gateway.gateway.metrics.exposition().decode()]
    everything = "\n".join(texts)
    assert "planted-key" not in everything
    assert not any(digest(secret) in everything for secret in (ALL, SOME, OLD, GONE))


# -- a file that changes ------------------------------------------------------------------------


async def test_a_revoked_key_is_refused_on_a_kept_connection_and_at_a_second_gateway(
    upstreams, gateways, ask, behave, eventually, tmp_path, keys_file
):
    """What it had begun goes on to its end."""
    gate = asyncio.Event()

    async def slow(talk):
        await talk.start_stream()
        await talk.role()
        await talk.text("one ")
        await gate.wait()
        await talk.text("two", "stop")
        await talk.done()
        await talk.end_stream()

    node = await upstreams("node")
    first = await gateways(node, keys_file=keys_file)
    second = await gateways(
        node, keys_file=keys_file, targets_file=tmp_path / "t2.json", socket=tmp_path / "g2.sock"
    )
    for running in (first, second):
        assert (await ask(running, headers=bearer(ALL))).status == 200  # the session keeps its connections
    node.behaviour = slow
    begun = asyncio.Event()
    streaming = asyncio.create_task(ask(first, stream=True, headers=bearer(ALL), on_first=begun))
    await begun.wait()
    keys_file.write_text(FILE.replace("[key.all]", "[key.all]\nrevoked = true"))

    async def refused(running):
        reply = await ask(running, headers=bearer(ALL))
        return reply.status == 401 and reply.error["message"] == "the key all was revoked"

    node.behaviour = behave.answer
    for running in (first, second):
        await eventually(lambda running=running: refused(running))
    gate.set()
    reply = await streaming
    assert (reply.status, reply.said, reply.error) == (200, "one two", None)


async def test_a_new_key_is_let_in_without_a_restart(upstreams, gateways, ask, eventually, keys_file):
    running = await gateways(await upstreams("node"), keys_file=keys_file)
    assert (await ask(running, headers=bearer("new-one"))).status == 401
    keys_file.write_text(FILE + table("new", "new-one"))

    async def welcome():
        return (await ask(running, headers=bearer("new-one"))).status == 200

    await eventually(welcome)
    keys = (await running.state())["keys"]
    assert (keys["valid"], keys["expired"], keys["revoked"], keys["fault"]) == (3, 1, 1, "")


async def test_a_broken_file_keeps_the_keys_and_says_so(upstreams, gateways, ask, eventually, keys_file):
    running = await gateways(await upstreams("node"), keys_file=keys_file)
    keys_file.write_text(FILE + "[key")

    async def said():
        return "is not TOML" in (await running.state())["keys"]["fault"]

    await eventually(said)
    assert (await ask(running, headers=bearer(ALL))).status == 200
    shown = running.gateway.metrics.exposition().decode()
    assert "orchestrator_gateway_keys_file_refused 1.0" in shown
    assert "orchestrator_gateway_keys_unread 0.0" in shown
    assert 'orchestrator_gateway_keys{state="valid"} 2.0' in shown


async def test_without_its_file_a_gateway_starts_refuses_everybody_and_heals(
    upstreams, gateways, ask, client, eventually, keys_file
):
    keys_file.unlink()
    node = await upstreams("node")
    running = await gateways(node, keys_file=keys_file)
    refused = await ask(running, headers=bearer(ALL))
    assert (refused.status, refused.error["code"]) == (503, "keys_unread")
    assert refused.headers["Retry-After"] == "2"
    async with client.get(running.url + "/readyz") as got:
        assert (got.status, (await got.json())["error"]["code"]) == (503, "keys_unread")
    async with client.get(running.url + "/healthz") as got:
        assert got.status == 200
    assert (await running.state())["keys"]["fault"] == "is not there"
    shown = running.gateway.metrics.exposition().decode()
    assert "orchestrator_gateway_keys_unread 1.0" in shown
    assert 'orchestrator_gateway_clients_refused_total{reason="unread"} 1.0' in shown
    keys_file.write_text(FILE)

    async def welcome():
        return (await ask(running, headers=bearer(ALL))).status == 200

    await eventually(welcome)
    async with client.get(running.url + "/readyz") as got:
        assert got.status == 200
    assert len(node.seen) == 1


async def test_an_heir_that_would_let_nobody_in_does_not_take_over(tmp_path, keys_file):
    """The old gateway still has the keys that it read while the file was good."""
    import socket

    ours, reply = socket.socketpair()
    keys_file.write_text("[key")
    with ours:
        one = Routed(tmp_path, {"chat": []}, keys_file=keys_file)
        one.gateway._given = Inheritance(reply=reply)
        with pytest.raises(GatewayError, match=r"keys_file: .*keys\.toml is not TOML"):
            await one.gateway.start()
        reply.close()


async def test_the_open_gateway_has_no_metrics_of_keys(gateways):
    running = await gateways()
    assert "orchestrator_gateway_keys" not in running.gateway.metrics.exposition().decode()
    assert (await running.state())["keys"] is None
