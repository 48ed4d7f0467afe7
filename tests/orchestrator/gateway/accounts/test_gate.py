"""Limits of keys over real sockets: what clients are told, and whose place is whose, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from dataclasses import replace

import aiohttp
import anthropic
import openai
import pytest

from cloud.clock import SystemClock
from cloud.providers.prices import OwnPrice, OwnRates
from orchestrator.gateway.accounts.key_format import digest
from orchestrator.gateway.accounts.limit_file import KeyUse, read_use
from orchestrator.gateway.accounts.usage_file import read_usage
from orchestrator.gateway.accounts.use_now import UseNow, use_now
from orchestrator.gateway.config import ProviderSpec
from orchestrator.gateway.spend_file import read_totals
from policies.spend import Rates, usd
from tests.support.paid_provider import PaidProvider
from tests.support.routed_gateway import Routed, api, pool, route

HI = [{"role": "user", "content": "hi"}]
JSON = {"Content-Type": "application/json"}
PROMPT, ANSWER = 40, 60  # tokens of each request


def secret(name):
    return f"sk-orch-planted-{name}"


def head(name="a"):
    return {"Authorization": f"Bearer {secret(name)}"}


def table(name, **limits):
    rows = [
        f'{limit} = "{value}"' if limit == "usd_per_day" else f"{limit} = {value}"
        for limit, value in limits.items()
    ]
    return "\n".join([f"[key.{name}]", f'sha256 = "{digest(secret(name))}"', *rows, ""])


async def counts(talk):
    """Answers with a usage."""
    asked = json.loads(talk.request.body or b"{}")
    usage = {"prompt_tokens": PROMPT, "completion_tokens": ANSWER, "total_tokens": PROMPT + ANSWER}
    if asked.get("stream"):
        await talk.start_stream()
        await talk.text("yes", "stop")
        await talk.event({"choices": [], "usage": usage})
        await talk.done()
        await talk.end_stream()
        return
    choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
    await talk.json(
        {"id": "c", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}
    )


async def waits(talk):
    """Begins a stream and goes on when it may."""
    await talk.start_stream()
    await talk.text("well")
    going = asyncio.ensure_future(talk.upstream.go_on.wait())
    leaving = asyncio.ensure_future(talk.until_client_leaves())
    await asyncio.wait({going, leaving}, return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    if going.done():
        await talk.text("yes", "stop")
        await talk.done()
        await talk.end_stream()


async def fails(talk):
    await talk.json({"error": {"message": "an error of mine"}}, "500 Internal Server Error")


@pytest.fixture
async def limited(tmp_path, upstreams):
    """Gateways that share their files: `await limited(behaviour, table(...), ...)`."""
    running = []

    async def start(behaviour, *tables, routes=(), charge=None, **settings):
        engine = await upstreams(f"node{len(running)}", behaviour)
        if tables:
            (tmp_path / "keys.toml").write_text("\n".join(tables))
        own = tmp_path / f"gateway{len(running)}"
        own.mkdir()
        shared = {
            "keys_file": tmp_path / "keys.toml",
            "usage_file": tmp_path / "usage.db",
            "spend_file": tmp_path / "spend.db",
        }
        gates = {"chat": {"charge": charge, "served": "m"}}
        one = Routed(own, {"chat": [engine]}, *routes, gates=gates, **(shared | settings))
        running.append(one)
        one.engine = engine
        return await one.start()

    yield start
    for one in running:
        await one.stop()


async def asks(gateway, name="a", count=1, **fields):
    """Statuses of so many requests, one after the other."""
    return [(await gateway.ask("m", headers=head(name), **fields))[0] for _ in range(count)]


def use(tmp_path):
    return read_use(tmp_path / "usage.db", SystemClock().steady())


async def error_of(gateway, name="a", **fields):
    status, headers, text = await gateway.ask("m", headers=head(name), **fields)
    assert status == 429, text
    return headers, json.loads(text)["error"]


class TestRefusals:
    async def test_openai_clients_are_told_which_limit_and_when(self, limited):
        gateway = await limited(counts, table("a", requests_per_minute=2))
        client = openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=secret("a"), max_retries=0)
        async with client:
            for _ in range(2):
                await client.chat.completions.create(model="m", messages=HI)
            with pytest.raises(openai.RateLimitError, match="key a may make 2 requests a minute") as caught:
                await client.chat.completions.create(model="m", messages=HI)
        assert caught.value.code == "rate_limit_exceeded"
        wait = int(caught.value.response.headers["retry-after"])
        assert 0 < wait <= 60
        assert f"again in {wait} s" in caught.value.message
        assert caught.value.request_id

    async def test_anthropic_clients_are_told_too(self, limited):
        gateway = await limited(counts, table("a", requests_per_minute=1))
        client = anthropic.AsyncAnthropic(base_url=gateway.url, api_key=secret("a"), max_retries=0)
        async with client:
            await client.messages.create(model="m", max_tokens=9, messages=HI)
            with pytest.raises(
                anthropic.RateLimitError, match="rate_limit_exceeded: key a may make 1 requests"
            ) as caught:
                await client.messages.create(model="m", max_tokens=9, messages=HI)
        assert caught.value.type == "rate_limit_error"
        assert caught.value.response.headers["retry-after"]

    async def test_keys_have_limits_of_their_own_and_those_without_have_none(self, limited, tmp_path):
        gateway = await limited(counts, table("a", requests_per_minute=1), table("b"))
        assert await asks(gateway, "a", 3) == [200, 429, 429]
        assert await asks(gateway, "b", 5) == [200] * 5
        assert set(use(tmp_path)) == {"a"}
        both = use_now(tmp_path / "usage.db", tmp_path / "spend.db", SystemClock())
        assert both == {"a": UseNow(requests=1)}

    async def test_limits_that_were_changed_hold_at_once(self, limited, tmp_path, eventually):
        gateway = await limited(counts, table("a", requests_per_minute=1))
        assert await asks(gateway, "a", 2) == [200, 429]
        (tmp_path / "keys.toml").write_text(table("a", requests_per_minute=2))

        async def passes():
            return await asks(gateway) == [200]

        await eventually(passes)
        assert await asks(gateway) == [429]

    async def test_metrics_name_who_was_refused_and_who_is_here(self, limited, eventually):
        gateway = await limited(waits, table("a", in_flight=1))
        asking = asyncio.ensure_future(gateway.ask("m", headers=head(), stream=True))
        await eventually(lambda: gateway.engine.in_flight)
        assert await asks(gateway, "a", 2) == [429, 429]
        text = gateway.gateway.metrics.exposition().decode()
        assert 'orchestrator_gateway_key_in_flight{key="a"} 1.0' in text
        assert 'orchestrator_gateway_key_refused_total{key="a",limit="in_flight"} 2.0' in text
        assert "orchestrator_gateway_key_limits_alone 0.0" in text
        gateway.engine.go_on.set()
        assert (await asking)[0] == 200
        assert 'key_in_flight{key="a"} 0.0' in gateway.gateway.metrics.exposition().decode()


class TestSeveralGateways:
    async def test_requests_are_counted_over_all(self, limited):
        one, two = await limited(counts, table("a", requests_per_minute=7)), await limited(counts)
        found = await asyncio.gather(*(asks(gateway, "a", 6) for gateway in (one, two)))
        assert sum(status == 200 for statuses in found for status in statuses) == 7

    async def test_places_go_from_one_gateway_to_the_other(self, limited, eventually):
        one, two = await limited(waits, table("a", in_flight=2)), await limited(waits)
        streams = [asyncio.ensure_future(one.ask("m", headers=head(), stream=True)) for _ in range(2)]
        await eventually(lambda: one.engine.in_flight == 2)
        assert await asks(two, stream=True) == [429]
        one.engine.go_on.set()
        await asyncio.gather(*streams)
        two.engine.go_on.set()

        async def passes():
            return await asks(two, stream=True) == [200]

        await eventually(passes)

    async def test_tokens_are_booked_as_told_over_all(self, limited, tmp_path):
        one = await limited(counts, table("a", tokens_per_minute=10 * (PROMPT + ANSWER)))
        two = await limited(counts)
        statuses = []
        for turn in range(30):
            statuses += await asks((one, two)[turn % 2], stream=turn % 3 == 0)
        assert 9 <= statuses.count(200) <= 11
        await one.gateway._desk.limits.settled()
        await two.gateway._desk.limits.settled()
        assert use(tmp_path)["a"].tokens <= 10 * (PROMPT + ANSWER)


class TestPlaces:
    """Every request gives its place in flight back; that of its minute where it was not served."""

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_client_that_leaves_makes_room(self, limited, eventually, tmp_path, stream):
        gateway = await limited(waits, table("a", in_flight=1))
        async with aiohttp.ClientSession() as session:
            asked = session.post(
                f"{gateway.url}/v1/chat/completions",
                json={"model": "m", "messages": HI, "stream": True},
                headers=head(),
            )
            answer = await asked
            if stream:
                await answer.content.readany()
            answer.close()
        await eventually(lambda: gateway.engine.left == 1)
        gateway.engine.go_on.set()

        async def passes():
            return await asks(gateway, stream=True) == [200]

        await eventually(passes)
        assert use(tmp_path)["a"].requests == 2  # the one that was begun counts

    async def test_what_was_failed_by_us_or_a_node_is_given_back(self, limited, tmp_path):
        gateway = await limited(fails, table("a", requests_per_minute=1, tokens_per_minute=1000))
        assert await asks(gateway, "a", 3) == [500, 500, 500]
        gateway.engine.behaviour = counts
        assert await asks(gateway, "a", 2) == [200, 429]
        assert use(tmp_path)["a"] == KeyUse(requests=1, tokens=PROMPT + ANSWER)

    async def test_a_request_that_crashes_the_gateway_gives_its_place_back(self, limited, monkeypatch):
        gateway = await limited(counts, table("a", requests_per_minute=1, in_flight=1))

        async def crash(job):
            raise RuntimeError("planted")

        with monkeypatch.context() as planted:
            planted.setattr(gateway.gateway._router, "serve", crash)
            assert await asks(gateway, "a", 2) == [500, 500]
        assert await asks(gateway, "a", 2) == [200, 429]

    async def test_a_request_that_is_at_fault_itself_counts_without_tokens(self, limited, tmp_path):
        limits = table("a", requests_per_minute=2, tokens_per_minute=1000)
        gateway = await limited(counts, limits, routes=(route("assistant", to=[pool("chat")]),))
        status, _, _ = await gateway.ask("nonsense", headers=head(), max_tokens=500)
        assert status == 404
        await gateway.gateway._desk.limits.settled()
        assert use(tmp_path)["a"] == KeyUse(requests=1)
        assert await asks(gateway, "a", 2) == [200, 429]

    async def test_a_gateway_that_ends_leaves_nothing_in_flight(self, limited, eventually, tmp_path):
        gateway = await limited(waits, table("a", in_flight=2))
        async with aiohttp.ClientSession() as session:
            body = {"model": "m", "messages": HI, "stream": True}
            answer = await session.post(f"{gateway.url}/v1/chat/completions", json=body, headers=head())
            assert use(tmp_path)["a"].in_flight == 1
            await gateway.stop()
            answer.close()
        assert use(tmp_path)["a"].in_flight == 0


class TestTrouble:
    async def test_a_usage_file_that_cannot_be_written_leaves_each_to_its_own_counts(self, limited, tmp_path):
        (tmp_path / "usage.db").mkdir()
        one, two = await limited(counts, table("a", requests_per_minute=3)), await limited(counts)
        for gateway in (one, two):
            assert await asks(gateway, "a", 4) == [200, 200, 200, 429]
            assert (
                "orchestrator_gateway_key_limits_alone 1.0" in gateway.gateway.metrics.exposition().decode()
            )
            _, state = await gateway.control("GET", "/v1/state?pool=chat")
            assert "usage.db" in state["limits_alone"]

    async def test_keys_without_limits_do_not_touch_the_file(self, limited, tmp_path):
        gateway = await limited(counts, table("a"))
        assert await asks(gateway, "a", 3) == [200] * 3
        await gateway.stop()
        with contextlib.closing(sqlite3.connect(tmp_path / "usage.db")) as db:
            assert db.execute("SELECT 1 FROM sqlite_master WHERE name = 'windows'").fetchone() is None


CHARGE = Rates.of(input="1000", output="10000")  # $0.64 a request
SPENT = usd("0.64")


async def embeds(talk):
    """Answers with a vector for each input, and their tokens."""
    inputs = json.loads(talk.request.body)["input"]
    rows = [{"index": place, "embedding": [0.5]} for place in range(len(inputs))]
    usage = {"prompt_tokens": PROMPT, "total_tokens": PROMPT}
    await talk.json({"object": "list", "model": "m", "data": rows, "usage": usage})


class TestVectors:
    """What makes no text costs its prompt alone."""

    async def test_their_tokens_count_against_those_of_a_minute(self, limited, tmp_path):
        gateway = await limited(embeds, table("a", tokens_per_minute=3 * PROMPT + 20))
        fields = {"path": "/v1/embeddings", "input": ["one", "two"]}
        assert await asks(gateway, "a", 4, **fields) == [200, 200, 200, 429]
        _, error = await error_of(gateway, **fields)
        assert "tokens" in error["message"]
        await gateway.stop()
        [row] = read_usage(tmp_path / "usage.db", 0, 10**7)
        assert (row.key, row.requests, row.fresh, row.output) == ("a", 3, 3 * PROMPT, 0)

    async def test_no_dollars_are_held_for_a_text_that_never_comes(self, limited, tmp_path):
        rates = Rates.of(input="1000", output="10000")  # $0.04 a request; 4,096 tokens of text were $40.96
        gateway = await limited(embeds, table("a", usd_per_day="0.5"), charge=rates)
        assert await asks(gateway, path="/v1/embeddings", input=["one", "two"], count=3) == [200] * 3
        await gateway.gateway._desk.spend.settled()
        [today] = read_totals(tmp_path / "spend.db", SystemClock().now())
        assert today.of_key("a") == 3 * usd("0.04")


class TestDollars:
    async def test_a_pool_s_charge_uses_up_a_key_s_day(self, limited, tmp_path):
        one = await limited(counts, table("a", usd_per_day="2"), table("b"), charge=CHARGE)
        assert await asks(one, "a", 3, max_tokens=ANSWER) == [200, 200, 200]  # $1.92
        headers, error = await error_of(one, max_tokens=ANSWER)
        assert error["code"] == "budget_exceeded"
        assert error["message"].startswith(
            "key a may spend $2 a day: of $2 a day $1.92 is spent; this request may"
        )
        assert "again at midnight UTC" in error["message"]
        assert 0 < int(headers["retry-after"]) <= 86_400
        assert int(headers["retry-after"]) <= 60 or headers["x-should-retry"] == "false"
        assert await asks(one, "b", 2) == [200, 200]  # nobody counts its dollars
        await one.gateway._desk.spend.settled()
        [today] = read_totals(tmp_path / "spend.db", SystemClock().now())
        assert today.of_key("a") == 3 * SPENT
        now = use_now(tmp_path / "usage.db", tmp_path / "spend.db", SystemClock())
        assert now == {"a": UseNow(usd=3 * SPENT)}
        assert today.of_key("b") == 0
        assert today.amount(provider="pool/chat") == 3 * SPENT
        text = one.gateway.metrics.exposition().decode()
        assert 'orchestrator_gateway_key_refused_total{key="a",limit="usd_per_day"} 1.0' in text

    async def test_a_day_is_counted_over_all_gateways(self, limited):
        one = await limited(counts, table("a", usd_per_day="2"), charge=CHARGE)
        two = await limited(counts, charge=CHARGE)
        assert await asks(one, max_tokens=ANSWER, count=2) == [200, 200]
        await one.gateway._desk.spend.settled()  # until then their bounds count, not what they cost
        assert await asks(two, max_tokens=ANSWER, count=2) == [200, 429]

    async def test_a_request_dearer_than_a_day_is_told_that_it_never_fits(self, limited):
        gateway = await limited(counts, table("a", usd_per_day="2"), charge=CHARGE)
        headers, error = await error_of(gateway, max_tokens=1000)
        assert error["code"] == "budget_exceeded"
        assert "more than any day has" in error["message"]
        assert "midnight" not in error["message"]
        assert "retry-after" not in headers
        assert headers["x-should-retry"] == "false"
        assert await asks(gateway, max_tokens=ANSWER) == [200]

    @pytest.mark.parametrize("first", ["pool", "provider"])
    async def test_who_is_refused_for_dollars_used_nothing(self, limited, tmp_path, first):
        async with paid() as spec:
            backends = [pool("chat"), api("claude", "big")][:: 1 if first == "pool" else -1]
            gateway = await limited(
                counts, table("a", usd_per_day="0"), routes=(route("assistant", to=backends),), specs=[spec]
            )
            await gateway.put("chat", replace(gateway.engine.spec(), address="127.0.0.1:9"))
            status, _, text = await gateway.ask("assistant", headers=head(), max_tokens=50)
            assert (status, json.loads(text)["error"]["code"]) == (429, "budget_exceeded")
            await gateway.gateway._desk.usage.written()
        assert read_usage(tmp_path / "usage.db", 0, 10**7) == []

    @pytest.mark.parametrize(
        ("method", "path"),
        [("GET", "/v1/models"), ("GET", "/health"), ("GET", "/version"), ("POST", "/tokenize")],
    )
    async def test_what_is_no_work_costs_nothing(self, limited, tmp_path, method, path):
        async def tells(talk):
            await talk.json({"data": [], "tokens": [1], "count": 1})

        gateway = await limited(tells, table("a", usd_per_day="0"), charge=CHARGE)
        body = b'{"model": "m", "prompt": "hi"}' if method == "POST" else None
        status, _, text = await gateway.send(method, path, body, head() | JSON)
        assert status == 200, text
        await gateway.gateway._desk.spend.settled()
        assert read_totals(tmp_path / "spend.db", SystemClock().now())[0].lines == ()

    async def test_what_failed_costs_nothing(self, limited, tmp_path):
        gateway = await limited(fails, table("a", usd_per_day="2"), charge=CHARGE)
        assert await asks(gateway, count=3, max_tokens=ANSWER) == [500] * 3
        await gateway.gateway._desk.spend.settled()
        assert read_totals(tmp_path / "spend.db", SystemClock().now())[0].of_key("a") == 0

    async def test_a_spend_file_that_cannot_be_written_closes_what_costs(self, limited, tmp_path):
        (tmp_path / "spend.db").mkdir()
        gateway = await limited(counts, table("a", usd_per_day="2"), table("b"), charge=CHARGE)
        status, _, text = await gateway.ask("m", headers=head("a"))
        assert status == 503
        assert "without it no cap could be kept" in text
        assert await asks(gateway, "b") == [200]

    async def test_a_provider_is_not_asked_beyond_a_key_s_day(self, limited, tmp_path):
        async with paid() as spec:
            to_api = route("assistant", to=[api("claude", "big")])
            gateway = await limited(
                counts,
                table("a", usd_per_day="0.5"),
                table("b", usd_per_day="100"),
                routes=(to_api,),
                specs=[spec],
            )
            statuses = []
            for _ in range(40):
                status, _, text = await gateway.ask("assistant", headers=head("a"), max_tokens=50)
                statuses.append(status)
            assert statuses[0] == 200
            assert statuses[-1] == 429, text
            assert json.loads(text)["error"]["code"] == "budget_exceeded"
            assert (await gateway.ask("assistant", headers=head("b"), max_tokens=50))[0] == 200
            await gateway.gateway._desk.spend.settled()
            [today] = read_totals(tmp_path / "spend.db", SystemClock().now())
            assert 0 < today.of_key("a") <= usd("0.5")
            assert sum(line.requests for line in today.by_key if line.key == "a") == statuses.count(200)

    async def test_a_key_without_dollars_goes_to_what_costs_nothing(self, limited):
        async with paid() as spec:
            there = route("assistant", to=[api("claude", "big"), pool("chat")])
            gateway = await limited(counts, table("a", usd_per_day="0"), routes=(there,), specs=[spec])
            status, headers, _ = await gateway.ask("assistant", headers=head("a"), max_tokens=50)
            assert status == 200
            assert headers["x-orchestrator-node"] == "node0"


@contextlib.asynccontextmanager
async def paid():
    """A provider whose requests cost some cents each."""
    provider = PaidProvider()
    await provider.start()
    price = OwnPrice(OwnRates(input="10", output="1000"), most_output=100, context=10_000)
    try:
        yield ProviderSpec(
            name="claude", kind="openai", url=f"http://127.0.0.1:{provider.port}", prices={"big": price}
        )
    finally:
        await provider.stop()
