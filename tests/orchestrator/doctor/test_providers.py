"""The checks of providers and routes, against servers that play an API and a gateway."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from cloud.clock import SystemClock
from orchestrator.doctor.assembly import examine
from orchestrator.doctor.findings import Finding, State
from orchestrator.doctor.providers import Answer, Served, Trouble, models, prices, reached, routes
from tests.support.node_bench import make_certificate

KEY = "sk-planted"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Api:
    """A server that is played by a handler, which tests replace. `asked` are the paths that were asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.port = 0
        self.handler: Handler = lists("x", "y")
        self._runner: web.ServerRunner | None = None

    async def open(self, tls: ssl.SSLContext | None = None) -> None:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            self.asked.append(request.path_qs)
            return await self.handler(request)  # type: ignore[arg-type]

        self._runner = web.ServerRunner(web.Server(handle))
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=tls).start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


def lists(*ids: str) -> Handler:
    """An API that wants the key and serves these models."""

    async def handle(request: web.Request) -> web.Response:
        shown = request.headers.get("Authorization", request.headers.get("x-api-key", ""))
        if not shown.endswith(KEY):
            return web.json_response({"error": {"message": f"{shown} is no key"}}, status=401)
        one = request.path.partition("/models/")[2]
        if one:
            return web.json_response({"id": one}, status=200 if one in ids or one == "alias" else 404)
        return web.json_response({"data": [{"id": each} for each in ids]})

    return handle


def answers(status: int, body: Any = "", **headers: str) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        return web.json_response(body, status=status, headers=headers)

    return handle


@pytest_asyncio.fixture
async def api() -> AsyncIterator[Api]:
    made = Api()
    yield made
    await made.close()


def configured(directory: Path, api: str, model: str = "x", more: str = "", kind: str = "openai") -> Path:
    key = directory / "key"
    if not key.exists():
        key.write_text(f"{KEY}\n")
        key.chmod(0o600)
    file = directory / "pool.toml"
    file.write_text(
        f'[daemon]\nlisten = "off"\n[provider.api]\nkind = "{kind}"\nurl = "{api}"\n'
        f'api_key_file = "key"\n{more}\n'
        f'[[route]]\nmodels = ["a", "b"]\nto = [{{ provider = "api", model = "{model}" }}]\n',
        encoding="utf-8",
    )
    return file


async def look(file: Path) -> dict[str, list[Finding]]:
    results = await examine(file, ("providers",), SystemClock(), lambda _done, _waiting: None)
    return {result.check.name: list(result.findings) for result in results}


def only(found: list[Finding]) -> Finding:
    (finding,) = found
    return finding


async def test_a_provider_that_is_well(api: Api, short_dir: Path) -> None:
    await api.open()
    found = await look(
        configured(short_dir, f"http://127.0.0.1:{api.port}", more="[provider.api.price.x]\ninput = 1")
    )
    assert only(found["api"]).text == f"http://127.0.0.1:{api.port} accepts the key"
    assert only(found["api-models"]).text == "it has x"
    assert only(found["api-prices"]).text == "x: the file's own price"
    assert only(found["routes"]).state is State.SKIPPED
    assert {finding.state for rows in found.values() for finding in rows} == {State.OK, State.SKIPPED}
    assert set(api.asked) == {"/v1/models"}


async def test_a_provider_that_wants_no_key(api: Api, short_dir: Path) -> None:
    await api.open()
    api.handler = answers(200, {"data": [{"id": "x"}]})
    file = configured(short_dir, f"http://127.0.0.1:{api.port}")
    file.write_text(file.read_text().replace('api_key_file = "key"\n', ""))
    assert only((await look(file))["api"]).text == f"http://127.0.0.1:{api.port} answers, and asks for no key"


async def test_the_form_of_anthropic(api: Api, short_dir: Path) -> None:
    await api.open()
    found = await look(configured(short_dir, f"http://127.0.0.1:{api.port}/v1", kind="anthropic"))
    assert only(found["api"]).state is State.OK
    assert set(api.asked) == {"/v1/models?limit=1000"}


async def test_a_key_that_is_not_accepted_is_not_repeated(api: Api, short_dir: Path) -> None:
    await api.open()
    (short_dir / "key").write_text("sk-wrong-planted-key")
    (short_dir / "key").chmod(0o600)
    found = await look(configured(short_dir, f"http://127.0.0.1:{api.port}"))
    finding = only(found["api"])
    assert finding.state is State.FAIL
    assert "does not accept the key (401" in finding.text
    assert "sk-wrong" not in finding.text
    assert only(found["api-models"]).state is State.SKIPPED


async def test_a_key_that_this_user_cannot_read(
    api: Api, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    await api.open()
    file = configured(short_dir, f"http://127.0.0.1:{api.port}")
    file.write_text(file.read_text().replace('"key"', '"{credentials}/api-key"'))
    finding = only((await look(file))["api"])
    assert finding.state is State.SKIPPED
    assert (
        "its key was not tried: {credentials}/api-key is a credential of the gateway's service"
        in finding.text
    )
    assert "LoadCredential" in finding.advice


async def test_a_model_that_it_does_not_have(api: Api, short_dir: Path) -> None:
    await api.open()
    found = await look(configured(short_dir, f"http://127.0.0.1:{api.port}", model="z"))
    finding = only(found["api-models"])
    assert (finding.state, finding.subject) == (State.FAIL, "z")


async def test_another_name_of_a_model_is_asked_for_by_itself(api: Api, short_dir: Path) -> None:
    await api.open()
    found = await look(configured(short_dir, f"http://127.0.0.1:{api.port}", model="alias"))
    assert only(found["api-models"]).state is State.OK
    assert "/v1/models/alias" in api.asked


@pytest.mark.parametrize(
    ("handler", "state", "text"),
    [
        (answers(404), State.OK, "has no list of models (404)"),
        (answers(429, "slow down"), State.WARN, "answers 429"),
        (answers(503), State.WARN, "answers 503"),
        (answers(302, Location="http://127.0.0.1:1/"), State.WARN, "answers 302"),
        (answers(200, "no list"), State.OK, "accepts the key"),
    ],
)
async def test_what_else_it_may_answer(
    handler: Handler, state: State, text: str, api: Api, short_dir: Path
) -> None:
    await api.open()
    api.handler = handler
    found = await look(configured(short_dir, f"http://127.0.0.1:{api.port}"))
    finding = only(found["api"])
    assert finding.state is state
    assert text in finding.text
    assert only(found["api-models"]).state is State.OK  # what it does not tell is not held against it


async def test_a_clock_that_is_far_off(api: Api, short_dir: Path) -> None:
    await api.open()
    api.handler = answers(200, {"data": []}, Date="Thu, 01 Jan 2026 00:00:00 GMT")
    found = await look(configured(short_dir, f"http://127.0.0.1:{api.port}"))
    assert [finding.state for finding in found["api"]] == [State.OK, State.WARN]
    assert "against ours" in found["api"][1].text


async def test_nobody_listens(api: Api, short_dir: Path) -> None:
    await api.open()
    await api.close()
    finding = only((await look(configured(short_dir, f"http://127.0.0.1:{api.port}")))["api"])
    assert finding.state is State.FAIL
    assert "cannot be reached" in finding.text
    assert "open the way there" in finding.advice


async def test_a_certificate_that_nobody_trusts_and_one_that_the_file_trusts(
    api: Api, short_dir: Path
) -> None:
    certificate, private = make_certificate(short_dir)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, private)
    await api.open(tls)
    url = f"https://127.0.0.1:{api.port}"
    finding = only((await look(configured(short_dir, url)))["api"])
    assert finding.state is State.FAIL
    assert "ca_file" in finding.advice
    trusted = await look(configured(short_dir, url, more=f'ca_file = "{certificate.name}"'))
    assert only(trusted["api"]).state is State.OK


async def test_the_gateway_says_where_requests_go(api: Api, short_dir: Path, played_gateway: Any) -> None:
    row = {"models": ["a", "b"], "goes_to": "provider api (x)", "left_out": [], "servable": True}
    await played_gateway(short_dir / "state" / "gateway.sock", {"routes": [row]})
    file = configured(short_dir, "http://127.0.0.1:9")
    assert only((await look(file))["routes"]).state is State.OK
    file.write_text(file.read_text().replace('["a", "b"]', '["c"]'))
    finding = only((await look(file))["routes"])
    assert finding.text == "the gateway has other routes than the file: it lacks c"
    assert "--replace" in finding.advice


@pytest_asyncio.fixture
async def played_gateway() -> AsyncIterator[Callable[[Path, Any], Awaitable[None]]]:
    """Answers on a socket as a gateway does."""
    runners = []

    async def play(path: Path, said: Any) -> None:
        async def handle(_: web.BaseRequest) -> web.Response:
            return web.json_response(said)

        path.parent.mkdir(exist_ok=True)
        runner = web.ServerRunner(web.Server(handle))
        await runner.setup()
        await web.UnixSite(runner, path).start()
        runners.append(runner)

    yield play
    for runner in runners:
        await runner.cleanup()


# -- judgements -------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", list(Trouble))
def test_every_trouble_has_its_advice(trouble: Trouble) -> None:
    finding = only(list(reached("https://a", Answer(status=0, said="why", trouble=trouble), key="")))
    assert finding.state is State.FAIL
    assert finding.advice


def test_models_of_no_route() -> None:
    assert only(list(models((), ()))).state is State.SKIPPED


@pytest.mark.parametrize(("capped", "state"), [(True, State.FAIL), (False, State.WARN)])
def test_an_unknown_price_fails_under_a_cap(capped: bool, state: State) -> None:
    finding = only(list(prices({"x": "", "y": "the file's own price"}, capped=capped)))
    assert (finding.state, finding.subject) == (state, "x")


def test_a_route_that_nobody_serves_and_one_that_goes_elsewhere() -> None:
    down = Served(models=("a",), goes_to="None", left_out=["pool p is down"], servable=False)
    elsewhere = Served(models=("b",), goes_to="provider api (x)", left_out=["pool p is down"], servable=True)
    first, second = routes([("a",), ("b",)], [down, elsewhere], "")
    assert (first.state, first.subject) == (State.FAIL, "a")
    assert (second.state, second.subject) == (State.WARN, "b")
    assert "provider api (x): pool p is down" in second.text


async def test_several_pools_have_their_checks_each(short_dir: Path) -> None:
    file = short_dir / "pool.toml"
    file.write_text(
        '[daemon]\nlisten = "off"\n[pool.a]\nreplicas = 2\nmodel = "a"\n[pool.b]\nreplicas = 2\nmodel = "b"\n'
    )
    results = await examine(file, ("pool", "daemon"), SystemClock(), lambda _done, _waiting: None)
    names = {result.check.title for result in results}
    assert {"pool/drain-a", "pool/drain-b", "daemon/gateway-a", "daemon/gateway-b", "daemon/process"} <= names
    assert not any("broke" in finding.text for result in results for finding in result.findings)
