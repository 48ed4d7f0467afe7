"""What leaves for providers: looked at beside the loops, journalled once, shown with its age."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cloud.balancers.routes import Document, parse
from cloud.errors import Uncertain
from orchestrator.api import routes as shown
from orchestrator.config.load import Config, build_config
from orchestrator.daemon.outside import EVERY, Outside
from orchestrator.gateway.route_views import ROUTES_SCHEMA, route_view
from orchestrator.gateway.spend_file import Claim, Settled, SpendFile, Ticket
from orchestrator.journal.database import Superseded
from orchestrator.journal.sqlite import SqliteStore
from orchestrator.journal.store import GATEWAY, Store, StoreUnavailable
from orchestrator.wiring.gateway import routes_of
from policies.routing import BackendView, choose
from policies.spend import Usage, usd
from tests.support.hand_clock import HandClock

NOON = 1_796_040_000.0  # 2026-11-30 12:00 UTC
DAY = 86_400.0
FILE: Mapping[str, Any] = {
    "daemon": {"state_dir": "state", "listen": "off"},
    "pool": {"chat": {"replicas": 2, "model": "llama"}},
    "provider": {
        "claude": {
            "kind": "anthropic",
            "url": "http://127.0.0.1:9",
            "usd_per_day": "2",
            "price": {"big": {"input": "3", "output": "15"}},
        }
    },
    "route": [
        {
            "models": ["assistant", "gpt-4o"],
            "to": [{"pool": "chat"}, {"provider": "claude", "model": "big"}],
            "data": "may-leave",
            "usd_per_day": "1",
        },
        {"models": ["private"], "to": [{"pool": "chat"}], "data": "stays"},
    ],
}
WELL = BackendView()
DOWN = BackendView(hopeful=False, sound=False)


class Clock(HandClock):
    """Lets others run while it sleeps."""

    async def sleep(self, seconds: float) -> None:
        self.at += seconds
        await asyncio.sleep(0.001)


class Gateway:
    """What a gateway would say: `views` of each backend by its words; `fault` where it does not answer."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.views: dict[str, BackendView] = {}
        self.counts: dict[tuple[str, str, str], int] = {}
        self.over_cap: dict[str, int] = {}
        self.fault = ""
        self.asked = 0

    def body(self) -> dict[str, Any]:
        rows = []
        for route in routes_of(self.config):
            views = [self.views.get(str(backend), WELL) for backend in route.backends]
            rows.append(route_view(route, views, choose(route, views), self.counts))
        claude = {"name": "claude", "state": "is well", "in_flight": 3, "over_cap": self.over_cap}
        return {"schema": ROUTES_SCHEMA, "routes": rows, "providers": [claude]}

    async def ask(self, _: Path) -> Document:
        self.asked += 1
        if self.fault:
            raise Uncertain(self.fault)
        return parse(self.body())


class Scene:
    """A daemon's look at routes, a gateway that says what a test likes, a real spend file and journal."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.config = build_config(FILE, base=folder)
        self.config.daemon.state_dir.mkdir(exist_ok=True)
        self.gateway = Gateway(self.config)
        self.clock = Clock(NOON)
        self.spend = SpendFile(self.config.gateway.spend_file or folder)
        self.open()

    def open(self) -> None:
        self.store = SqliteStore.open(self.folder / "journal.db", now=self.clock.now(), inline=True)
        self.outside = self.look_with(self.store)

    def look_with(self, store: Any) -> Outside:
        return Outside(
            lambda: self.config,
            clock=self.clock,
            store=store,
            ask=self.gateway.ask,
            compacting=asyncio.Lock(),
        )

    async def restart(self) -> None:
        """Another daemon on the same journal."""
        self.store.close()
        self.open()
        await self.store.next_epoch(self.clock.now())
        self.outside.memory = await self.store.load(GATEWAY)

    async def looks(self, seconds: float, each: Callable[[], None] = lambda: None) -> None:
        for _ in range(round(seconds / EVERY)):
            each()
            await self.outside.look(self.config)
            self.clock.at += EVERY

    def paid(self, dollars: str = "0.01") -> None:
        """A request went to the provider and was settled."""
        now = self.clock.now()
        claim = Claim(provider="claude", route="assistant", model="big", amount=usd("0.02"), until=now + 60.0)
        (ticket,) = self.spend.apply([claim], now)
        assert isinstance(ticket, Ticket)
        self.spend.apply([Settled(ticket=ticket, amount=usd(dollars), usage=Usage(1, 0, 0, 1))], now)

    async def told(self) -> list[str]:
        return [entry.kind for entry in await self.store.events(pool=GATEWAY)]

    def route(self) -> Any:
        assert self.outside.sight is not None
        return shown.routes_now(self.outside.sight, self.outside.memory)[0]

    def provider(self) -> Any:
        assert self.outside.sight is not None
        return shown.providers_now(self.outside.sight, self.outside.memory)[0]


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    made = Scene(folder)
    await made.store.next_epoch(NOON)
    try:
        yield made
    finally:
        made.store.close()
        made.spend.close()


async def test_a_pool_goes_down_and_what_the_provider_costs_meanwhile_is_told_over_restarts(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path) as s:
        s.paid("0.50")  # long before
        await s.looks(20.0)
        assert s.route()["goes_to"] == "pool chat"
        assert s.route()["stands_in"] is None
        s.gateway.views["pool chat"] = DOWN
        await s.looks(20.0, each=s.paid)
        now = s.route()
        assert (now["goes_to"], now["stands_in"]) == ("provider claude (big)", "claude")
        assert now["left_out"] == ["pool chat is down"]
        assert now["stands_in_since"] == NOON + 20.0
        assert (now["requests_today"], now["spent_today_usd"]) == (11, pytest.approx(0.60))
        await s.restart()
        await s.looks(20.0, each=s.paid)
        s.gateway.views.clear()
        await s.looks(70.0)
        await s.restart()
        await s.looks(70.0)
        entries = await s.store.events(pool=GATEWAY)
        assert [entry.kind for entry in entries] == ["FallbackBegan", "FallbackEnded"]
        assert b'"requests":20,"amount":200000000000' in entries[1].body
        assert s.route()["stands_in_since"] is None


async def test_the_money_of_a_dead_gateway_is_read_from_its_file(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        s.paid("0.25")
        s.spend.apply(
            [Claim(provider="claude", route="assistant", model="big", amount=usd("0.10"), until=NOON + 9.0)],
            NOON,
        )
        await s.looks(2.0)
        s.gateway.fault = "the gateway at x cannot be reached"
        await s.looks(30.0)
        assert s.outside.sight is not None
        seen = shown.gateway_seen(s.outside.sight, s.clock.now())
        assert seen == {"seen_s": 32.0, "error": "the gateway at x cannot be reached", "spend_error": ""}
        route, provider = s.route(), s.provider()
        assert (route["goes_to"], route["servable"], route["left_out"]) == (None, None, [])
        assert [each["state"] for each in route["backends"]] == [None, None]
        assert (provider["state"], provider["in_flight"], provider["failures"]) == (None, None, None)
        assert (provider["spent_today_usd"], provider["held_usd"], provider["cap_usd"]) == (0.25, 0.1, 2.0)
        assert provider["days"] == [{"day": "2026-11-30", "requests": 1, "usd": 0.25}]
        assert await s.told() == []


async def test_before_the_first_look_nothing_is_known_and_nothing_is_missing(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        assert s.outside.sight is not None
        assert shown.gateway_seen(s.outside.sight, NOON)["error"] == "the gateway has not been asked yet"
        assert s.route()["goes_to"] is None
        assert s.provider()["spent_today_usd"] is None
        s.gateway.views["pool chat"] = DOWN
        await s.looks(20.0, each=s.paid)
        assert await s.told() == ["FallbackBegan"]


async def test_days_are_kept_apart_and_yesterday_is_not_today(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        s.paid("0.25")
        s.clock.at += DAY
        s.paid("0.50")
        await s.looks(2.0)
        provider = s.provider()
        assert provider["spent_today_usd"] == 0.5
        assert [(d["day"], d["usd"]) for d in provider["days"]] == [("2026-12-01", 0.5), ("2026-11-30", 0.25)]


async def test_a_spend_file_that_cannot_be_read_hides_nothing_else(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        s.paid("0.25")
        await s.looks(2.0)
        s.spend.close()
        file = s.config.gateway.spend_file
        assert file is not None
        for part in file.parent.glob(f"{file.name}*"):
            part.unlink()
        file.write_bytes(b"no database" * 1000)
        await s.looks(4.0)
        assert s.outside.sight is not None
        assert "not a database" in s.outside.sight.spend_error
        assert s.route()["goes_to"] == "pool chat"
        assert s.provider()["spent_today_usd"] == 0.25  # as it was read last
        s.clock.at += DAY
        await s.looks(2.0)
        assert s.provider()["spent_today_usd"] is None  # nobody knows what today costs
        assert await s.told() == []


async def test_caps_of_provider_and_route_are_told_by_name(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        s.paid("0.85")
        await s.looks(4.0)
        assert await s.told() == ["CapNear"]
        assert s.outside.memory.caps.keys() == {"route assistant"}
        s.paid("0.14")
        s.gateway.over_cap["assistant"] = 4
        await s.looks(4.0)
        assert await s.told() == ["CapNear", "CapReached"]
        await s.restart()
        await s.looks(20.0)
        assert await s.told() == ["CapNear", "CapReached"]


async def test_what_a_provider_did_not_answer_is_counted(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        claude = "provider claude (big)"
        s.gateway.counts = {
            ("assistant", claude, "answered"): 9,
            ("assistant", claude, "down"): 2,
            ("assistant", claude, "failed"): 1,
            ("assistant", "pool chat", "down"): 50,
        }
        await s.looks(2.0)
        assert s.provider()["failures"] == 3
        assert s.route()["backends"][1]["requests"] == {"answered": 9, "down": 2, "failed": 1}


async def test_a_journal_that_cannot_be_written_delays_the_news_and_loses_none(tmp_path: Path) -> None:
    class Full:
        def __init__(self, store: Store) -> None:
            self.store, self.full = store, True

        async def append(self, pool: str, events: Any) -> None:
            if self.full and events:
                raise StoreUnavailable("the disk is full")
            await self.store.append(pool, events)

    async with scene(tmp_path) as s:
        full = Full(s.store)
        s.outside = s.look_with(full)
        s.gateway.views["pool chat"] = DOWN
        await s.looks(10.0)
        for _ in range(5):
            with pytest.raises(StoreUnavailable):
                await s.looks(2.0)
            s.clock.at += 2.0
        full.full = False
        await s.looks(4.0)
        assert await s.told() == ["FallbackBegan"]
        assert s.outside.memory.fallbacks["assistant"].since == NOON


async def test_the_root_task_survives_a_journal_without_answer_and_not_another_daemon(tmp_path: Path) -> None:
    class Gone:
        error: StoreUnavailable = StoreUnavailable("no answer")

        async def load(self, _: str) -> Any:
            raise self.error

    async with scene(tmp_path) as s:
        gone = Gone()
        task = asyncio.create_task(s.look_with(gone).run())
        await asyncio.sleep(0.1)
        assert not task.done()
        gone.error = Superseded("another daemon has taken over")
        await asyncio.sleep(0.1)
        assert isinstance(task.exception(), Superseded)


async def test_a_file_without_routes_and_providers_is_not_looked_at_until_it_has_some(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        routed, plain = s.config, {key: FILE[key] for key in ("daemon", "pool")}
        s.config = build_config(plain, base=tmp_path)
        task = asyncio.create_task(s.outside.run())

        async def turns() -> None:
            for _ in range(200):
                await asyncio.sleep(0.001)
                if s.gateway.asked:
                    return

        await turns()
        assert (s.gateway.asked, s.outside.sight) == (0, None)
        s.config = routed
        s.outside.poke()
        await turns()
        assert s.gateway.asked
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body.update(schema="gateway-routes/2"),
        lambda body: body.pop("routes"),
        lambda body: body["routes"][0].pop("goes_to"),
        lambda body: body["routes"][0].update(backends=3),
        lambda body: body["routes"][0].update(models=[]),
        lambda body: body["routes"][0]["backends"][0].update(kind="moon"),
        lambda body: body["routes"][0]["backends"][0].update(requests={"answered": "many"}),
        lambda body: body.update(providers=[{"name": "claude"}]),
        lambda body: body.update(routes=None),
    ],
)
def test_a_document_that_this_version_cannot_read_is_refused_whole(
    spoil: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    body = Gateway(build_config(FILE, base=tmp_path)).body()
    parse(body)
    spoil(body)
    with pytest.raises(ValueError, match="gateway-routes/1"):
        parse(body)


def test_sentences_about_a_route_by_any_of_its_names(tmp_path: Path) -> None:
    config = build_config(FILE, base=tmp_path)
    gateway = Gateway(config)
    gateway.views["pool chat"] = DOWN
    sight = shown.Sight(
        at=NOON, routes=routes_of(config), providers=config.providers, document=parse(gateway.body()),
        error="", seen_at=NOON, days=None, spend_error="",
    )  # fmt: skip
    memory = Outside(
        lambda: config, clock=HandClock(NOON), store=None, ask=gateway.ask, compacting=None
    ).memory  # type: ignore[arg-type]
    assert shown.sentences(sight, memory, "gpt-4o") == (
        "assistant (also gpt-4o): pool chat, then provider claude (big).",
        "Requests go to provider claude (big) now.",
        "Pool chat is down.",
    )
    assert (
        shown.sentences(sight, memory, "private")[-1]
        == "Its data stays: no provider ever gets a request of it."
    )
    assert shown.sentences(sight, memory, "nothing") == ()
