"""Target sets over TCP: under TLS, with a token, kept in the targets file."""

import asyncio
import ssl
from datetime import timedelta

import aiohttp
import pytest

from cloud.balancers import targets_file
from cloud.balancers.gateway import GatewayBalancer
from cloud.balancers.targets import parse
from cloud.clock import SystemClock
from cloud.errors import Denied, Uncertain
from orchestrator.gateway import control
from orchestrator.gateway.app import Gateway
from orchestrator.gateway.config import GatewayError, one_pool
from orchestrator.units import HostPort
from policies.model import TargetSpec
from tests.support.balancer_programs import PATIENCE, free_ports
from tests.support.certificates import pair

TOKEN = "0123456789abcdef"
SPEC = TargetSpec(id="a", address="127.0.0.1:9")


class Far:
    """A gateway with its control listener."""

    def __init__(self, directory, **changes):
        (directory / "token").write_text(changes.pop("token", TOKEN))
        self.pair = pair(directory).write()
        (self.port,) = free_ports(1)
        settings = {
            "targets_file": directory / "targets.json",
            "socket": directory / "gw.sock",
            "port": 0,
            "tls_cert_file": self.pair.certificate,
            "tls_key_file": self.pair.key,
            "control_listen": HostPort("127.0.0.1", self.port),
            "control_token_file": directory / "token",
        }
        self.gateway = Gateway(one_pool(**settings | changes), SystemClock())
        self.url = f"https://127.0.0.1:{self.port}"

    async def start(self):
        await self.gateway.start()
        async with asyncio.timeout(PATIENCE):
            while self.gateway._remote._runner is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def daemon(self, token=TOKEN):
        return GatewayBalancer(
            url=self.url, token=token, tls=self.pair.trust(), pool="test", clock=SystemClock()
        )

    async def stop(self):
        await self.gateway.stop(linger=0.0, drain_timeout=0.0)


@pytest.fixture
async def far(tmp_path):
    made = Far(tmp_path)
    await made.start()
    yield made
    await made.stop()


async def test_a_set_that_came_from_afar_is_read_once_and_is_in_the_file(far, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(control, "parse", lambda data: read.append(data) or parse(data))
    daemon = far.daemon()
    await daemon.apply([SPEC], 7)
    assert len(read) == 1
    held = targets_file.read(tmp_path / "targets.json")
    assert (held.generation, held.targets) == (7, (SPEC,))
    assert (await daemon.observe()).generation == 7
    await daemon.close()


@pytest.mark.parametrize("token", ["", "0123456789abcdeX", TOKEN[:-1]])
async def test_without_the_token_nothing_is_taken_or_shown(far, tmp_path, token):
    daemon = far.daemon(token)
    with pytest.raises(Denied, match="401"):
        await daemon.apply([SPEC], 7)
    with pytest.raises(Denied, match="401"):
        await daemon.observe()
    assert not (tmp_path / "targets.json").exists()
    await daemon.close()


async def test_only_targets_and_state_are_there(far):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    connector = aiohttp.TCPConnector(ssl=far.pair.trust())
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        for method, path in (("POST", "/v1/replace"), ("GET", "/metrics"), ("GET", "/v1/routes")):
            async with session.request(method, far.url + path, json={}) as answer:
                assert answer.status == 404


async def test_plain_http_and_strange_certificates_are_refused(far):
    plain = GatewayBalancer(
        url=far.url.replace("https", "http"), token=TOKEN, pool="test", clock=SystemClock()
    )
    stranger = GatewayBalancer(
        url=far.url, token=TOKEN, tls=ssl.create_default_context(), pool="test", clock=SystemClock()
    )
    for daemon in (plain, stranger):
        with pytest.raises(Uncertain):
            await daemon.apply([SPEC], 1)
        await daemon.close()


async def test_a_renewed_certificate_is_shown_to_daemons_too(far, tmp_path):
    before = far.daemon()
    await before.apply([SPEC], 1)
    await before.close()
    far.pair = pair(tmp_path, ends=timedelta(days=60)).write()
    async with asyncio.timeout(PATIENCE):
        while True:
            daemon = far.daemon()
            try:
                await daemon.observe()
                break
            except Uncertain:
                await asyncio.sleep(0.1)
            finally:
                await daemon.close()


async def test_a_token_that_is_too_short_is_none(tmp_path):
    far = Far(tmp_path, token="short")
    with pytest.raises(GatewayError, match="16 characters"):
        await far.gateway.start()
    await far.stop()


def test_a_listener_without_a_token_file_is_none(tmp_path):
    with pytest.raises(GatewayError, match="control_token_file"):
        Far(tmp_path, control_token_file=None)
