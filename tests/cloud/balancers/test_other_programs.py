"""What only Envoy, nginx and the routers do: damaged files, foreign targets, restarts, refusals."""

import asyncio
import signal

import aiohttp
import orjson
import pytest

from cloud.balancers import envoy, nginx_file
from cloud.balancers.envoy import EnvoyCluster
from cloud.balancers.targets_file import copy_of
from cloud.clock import SystemClock
from cloud.errors import CloudError, Denied, Uncertain
from policies.model import TargetPhase, TargetSpec, TargetState
from tests.support.balancer_programs import Envoy, Nginx, Smg, VllmRouter

HEALTHY, DRAINING = TargetState.HEALTHY, TargetState.DRAINING


async def test_envoy_restarts_with_its_endpoints_and_their_states(stand):
    at = await stand(Envoy)
    a, b = at.servers
    await at.balancer.apply([a.spec(TargetPhase.DRAINING), b.spec()], 7)
    await at.program.stop()
    await at.program.start()
    await at.until(a=DRAINING, b=HEALTHY)
    assert (await at.balancer.observe()).generation == 7
    with pytest.raises(Denied):
        await at.program.adapter().apply([a.spec()], 6)


async def test_envoy_keeps_endpoints_of_others(stand):
    at = await stand(Envoy)
    a, b = at.servers
    file = at.program.folder / "endpoints.json"
    await at.balancer.apply([a.spec()], 1)
    held = orjson.loads(file.read_bytes())
    host, port = b.address.split(":")
    held["resources"][0]["endpoints"][0]["lb_endpoints"].append(
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
    )
    file.write_bytes(orjson.dumps(held))
    await at.balancer.apply([], 2)
    assert await at.states() == {}
    names = set()
    while "b" not in names:
        names.add(await at.ask())


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version_info": 7, "resources": [3]}'])
async def test_envoy_gets_a_damaged_file_again(stand, damage):
    at = await stand(Envoy)
    a, b = at.servers
    await at.balancer.apply([a.spec(), b.spec()], 1)
    await at.until(a=HEALTHY, b=HEALTHY)
    (at.program.folder / "endpoints.json").write_bytes(damage)
    assert set(await at.states()) == {"a", "b"}  # it goes on with what it read last
    await at.balancer.apply([a.spec(), b.spec()], 2)
    assert orjson.loads((at.program.folder / "endpoints.json").read_bytes())["version_info"] == "2"


async def test_a_frozen_envoy_is_uncertain(stand):
    at = await stand(Envoy, "a")
    place = at.program.write()
    quick = EnvoyCluster(
        admin=f"http://127.0.0.1:{place.admin_port}",
        file=at.program.folder / "endpoints.json",
        cluster="test",
        clock=SystemClock(),
        timeout=0.2,
    )
    at.program.signal(signal.SIGSTOP)
    with pytest.raises(Uncertain, match="did not answer"):
        await quick.observe()
    at.program.signal(signal.SIGCONT)
    await quick.close()


@pytest.mark.parametrize(
    ("first", "left"), [("envoy", b""), ("envoy", b"\0" * 300), ("daemon", b"\0" * 300), ("daemon", None)]
)
async def test_what_a_power_cut_left_of_its_file_is_put_right(stand, left, first):
    """The file is on the disk for good only a moment after Envoy has it. Without one Envoy does not start."""
    at = await stand(Envoy)
    a, b = at.servers
    await at.balancer.apply([a.spec(), b.spec()], 7)
    await at.program.stop()
    file = at.program.folder / "endpoints.json"
    if left is None:
        file.unlink()
    else:
        file.write_bytes(left)
    daemon = at.program.adapter()
    if first == "daemon":
        with pytest.raises(Uncertain):
            await daemon.apply([a.spec(TargetPhase.DRAINING), b.spec()], 1 << 20)
    await at.program.start()
    if first == "envoy":
        assert (await daemon.observe()).targets == ()  # so that a turn writes the set again
        await daemon.apply([a.spec(TargetPhase.DRAINING), b.spec()], 1 << 20)
    await at.until(a=DRAINING, b=HEALTHY)
    assert (await daemon.observe()).generation == 1 << 20
    assert {await at.ask() for _ in range(5)} == {"b"}
    await daemon.close()


async def test_envoys_file_reaches_the_disk_and_that_it_does_not_is_said(stand, monkeypatch):
    at = await stand(Envoy, "a")
    synced, errors = [], []

    def sync(path):
        synced.append(path)
        if len(synced) > 1:
            raise OSError(5, "input/output error")

    monkeypatch.setattr(envoy, "sync", sync)
    place = at.program.write()
    made = EnvoyCluster(
        admin=f"http://127.0.0.1:{place.admin_port}",
        file=at.program.folder / "endpoints.json",
        cluster="test",
        clock=SystemClock(),
        on_file_error=errors.append,
    )
    await made.apply([at.servers[0].spec()], 1)
    await made.flush()
    assert (synced, errors) == ([at.program.folder / "endpoints.json"], [])
    await made.apply([], 2)
    await made.flush()
    assert len(synced) == 2
    assert "input/output error" in errors[0]
    await made.close()


async def test_nginx_with_a_damaged_file_goes_on_and_is_put_right(stand):
    at = await stand(Nginx)
    a, b = at.servers
    await at.balancer.apply([a.spec(), b.spec()], 5)
    (at.program.folder / "targets.conf").write_text("upstream test {\n")
    assert await at.states() == {"a": HEALTHY, "b": HEALTHY}  # what is in force, by the ledger
    with pytest.raises(Denied):
        await at.balancer.apply([a.spec()], 4)
    await at.balancer.apply([a.spec(), b.spec()], 6)
    assert (await at.balancer.observe()).generation == 6
    assert {await at.ask() for _ in range(20)} == {"a", "b"}


async def test_nginx_refuses_a_configuration_that_somebody_broke_and_the_old_set_is_shown(stand):
    at = await stand(Nginx)
    a, b = at.servers
    await at.balancer.apply([a.spec()], 1)
    config = at.program.folder / "nginx.conf"
    whole = config.read_text()
    config.write_text(whole + "nonsense;\n")
    with pytest.raises(CloudError, match="nonsense"):
        await at.balancer.apply([b.spec()], 2)
    assert set(await at.states()) == {"a"}
    assert await at.ask() == "a"
    config.write_text(whole)
    await at.balancer.apply([b.spec()], 3)
    await asyncio.sleep(at.balancer.capabilities.propagation)
    assert await at.ask() == "b"


async def test_nginx_lost_its_file_and_the_ledger_and_gets_the_set_again(stand):
    at = await stand(Nginx)
    a, _ = at.servers
    await at.balancer.apply([a.spec()], 5)
    ledger = at.program.folder / "ledger" / "test.json"
    for file in (ledger, copy_of(ledger), at.program.folder / "targets.conf"):
        file.write_bytes(b"")
    view = await at.balancer.observe()
    assert (view.generation, view.targets) == (5, ())
    await at.balancer.apply([a.spec()], 6)
    assert await at.states() == {"a": HEALTHY}


@pytest.mark.parametrize("address", ["127.0.0.1:1; }", "x{:1", "a b:1"])
async def test_nginx_is_given_nothing_that_its_file_cannot_hold(address):
    with pytest.raises(Denied, match="cannot stand"):
        nginx_file.upstream([TargetSpec(id="a", address=address)], 1)


def test_a_file_of_nginx_reads_as_it_was_written(tmp_path):
    file = tmp_path / "targets.conf"
    specs = [
        TargetSpec(id="a", address="10.0.0.1:8000", weight=800),
        TargetSpec(id="b", address="[fd00::1]:8000", weight=100),
        TargetSpec(id="c", address="10.0.0.3:8000", phase=TargetPhase.DRAINING),
    ]
    held = nginx_file.upstream(specs, 1099511627779)
    nginx_file.write(file, "chat", held)
    assert nginx_file.read(file) == held
    text = file.read_text()
    assert "server 10.0.0.1:8000 weight=8 " in text
    file.write_text(text.replace("10.0.0.1:8000 weight", "10.0.0.9:8000 weight"))
    assert nginx_file.read(file) == nginx_file.EMPTY
    for number in ("1099511627779.", " 800\n"):  # the generation, a weight
        file.write_text(text.replace(number, f"{number[0]}{'9' * 5000}{number[-1]}"))
        assert nginx_file.read(file) == nginx_file.EMPTY


@pytest.mark.parametrize("kind", [Smg, VllmRouter])
async def test_workers_of_others_stay_in_a_router(stand, kind):
    at = await stand(kind)
    a, b = at.servers
    async with aiohttp.ClientSession() as session:
        body = {"url": f"http://{b.address}", "worker_type": "regular"}
        async with session.post(at.program.url + "/workers", json=body) as answer:
            assert answer.status < 300
        await at.balancer.apply([a.spec()], 1)
        await at.until(a=HEALTHY)
        await at.balancer.apply([], 2)
        assert await at.states() == {}
        async with session.get(at.program.url + "/workers") as answer:
            left = {w["url"] for w in (await answer.json())["workers"] if w.get("status") != "draining"}
    assert left == {f"http://{b.address}"}


async def test_a_router_that_lost_its_workers_is_filled_again(stand):
    at = await stand(VllmRouter)
    a, b = at.servers
    await at.balancer.apply([a.spec(), b.spec()], 1)
    await at.program.stop()
    await at.program.start()
    view = await at.balancer.observe()
    assert (view.incarnation, view.targets) == ("lost", ())
    await at.balancer.apply([a.spec(), b.spec()], 1)
    await at.until(a=HEALTHY, b=HEALTHY)
