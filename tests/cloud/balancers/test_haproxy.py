"""What only HAProxy does: its file, its names, its own servers, a process that is frozen or half done."""

import signal
from pathlib import Path

import pytest

from cloud.balancers import haproxy_file as files
from cloud.balancers import haproxy_wire
from cloud.balancers.haproxy import HaproxyBackend
from cloud.balancers.haproxy_wire import exchange, look
from cloud.clock import SystemClock
from cloud.errors import Denied, Uncertain
from policies.model import TargetPhase, TargetSpec, TargetState
from tests.support.balancer_programs import Haproxy

HEALTHY, DRAINING = TargetState.HEALTHY, TargetState.DRAINING


async def said(stand, *commands: str) -> str:
    return await exchange(stand.program.folder / "haproxy.sock", commands, 5.0)


async def test_a_restart_comes_back_with_its_servers_without_the_daemon(stand):
    at = await stand(Haproxy)
    a, b = at.servers
    await at.balancer.apply([a.spec(TargetPhase.DRAINING), b.spec()], 7)
    await at.program.stop()
    await at.program.start()
    assert {await at.ask() for _ in range(10)} == {"b"}
    view = await at.balancer.observe()
    assert view.generation == 7
    assert [(t.id, t.address) for t in view.targets] == [("b", b.address)]
    with pytest.raises(Denied):
        await at.balancer.apply([a.spec()], 6)
    await at.balancer.apply([a.spec(TargetPhase.DRAINING), b.spec()], 8)
    assert (await at.states())["a"] is DRAINING


async def test_a_restart_with_an_old_file_is_put_right_by_the_next_set(stand):
    at = await stand(Haproxy)
    a, b = at.servers
    await at.balancer.apply([a.spec()], 1)
    await at.balancer.flush()
    old = (at.program.folder / "servers.cfg").read_text()
    await at.balancer.apply([b.spec()], 2)
    await at.program.stop()
    (at.program.folder / "servers.cfg").write_text(old)
    await at.program.start()
    await at.until(a=HEALTHY)
    await at.balancer.apply([b.spec()], 3)
    await at.until(b=HEALTHY)
    assert await at.ask() == "b"


async def test_servers_of_others_stay_and_are_not_shown(stand):
    at = await stand(Haproxy)
    a, b = at.servers
    await said(at, f"add server test/own {b.address}", "set server test/own state ready")
    await at.balancer.apply([a.spec()], 1)
    await at.until(a=HEALTHY)
    assert {await at.ask() for _ in range(20)} == {"a", "b"}
    await at.balancer.apply([], 2)
    assert await at.states() == {}
    assert {await at.ask() for _ in range(10)} == {"b"}


async def test_an_answer_that_breaks_off_is_no_answer(stand, monkeypatch):
    """Wherever HAProxy dies in it: servers or the generation would be missing."""
    at = await stand(Haproxy)
    a, b = at.servers
    await at.balancer.apply([a.spec(), b.spec()], 7)
    socket, whole, answer = at.program.folder / "haproxy.sock", "", ""
    ask = haproxy_wire._ask

    async def heard(socket, line):
        nonlocal whole
        whole = await ask(socket, line)
        return whole

    async def played(*_):
        return answer

    variables = ("proc.so_gen_test", "proc.so_life_test")
    monkeypatch.setattr(haproxy_wire, "_ask", heard)
    assert (await look(socket, "test", variables, 5.0)).generation == 7
    monkeypatch.setattr(haproxy_wire, "_ask", played)
    for length in range(len(whole)):
        answer = whole[:length]
        with pytest.raises(Uncertain):
            await look(socket, "test", variables, 5.0)
    answer = whole
    assert (await look(socket, "test", variables, 5.0)).generation == 7


async def test_a_frozen_haproxy_is_uncertain_and_goes_on_where_it_was(stand):
    at = await stand(Haproxy)
    a, b = at.servers
    quick = HaproxyBackend(
        socket=at.program.folder / "haproxy.sock", backend="test", clock=SystemClock(), timeout=0.2
    )
    await quick.apply([a.spec()], 1)
    at.program.signal(signal.SIGSTOP)
    with pytest.raises(Uncertain, match="did not answer"):
        await quick.observe()
    with pytest.raises(Uncertain):
        await quick.apply([b.spec()], 2)
    at.program.signal(signal.SIGCONT)
    await quick.apply([b.spec()], 2)
    await at.until(b=HEALTHY)
    await quick.close()


async def test_a_half_applied_set_is_finished(stand):
    """As after a daemon that died between two commands, or an operator who changed one server by hand."""
    at = await stand(Haproxy)
    a, b = at.servers
    await said(at, f"add server test/so.a {a.address} check weight 3")  # in maintenance, without checks
    await at.balancer.apply([a.spec(), b.spec()], 1)
    await at.until(a=HEALTHY, b=HEALTHY)
    await said(at, "set server test/so.b state maint")
    assert set(await at.states()) == {"a"}
    await at.balancer.apply([a.spec(), b.spec()], 2)
    await at.until(a=HEALTHY, b=HEALTHY)


async def test_a_server_with_open_connections_is_deleted_by_a_later_set(stand):
    at = await stand(Haproxy)
    a, b = at.servers
    await at.balancer.apply([a.spec(), b.spec()], 1)
    await at.until(a=HEALTHY, b=HEALTHY)
    assert {await at.ask() for _ in range(20)} == {"a", "b"}
    await at.balancer.apply([b.spec()], 2)
    assert set(await at.states()) == {"b"}
    await at.balancer.apply([a.spec(), b.spec()], 3)
    await at.until(a=HEALTHY, b=HEALTHY)


async def test_weights_are_followed(stand):
    at = await stand(Haproxy)
    a, b = at.servers
    await at.balancer.apply([a.spec(weight=100), b.spec(weight=800)], 1)
    await at.until(a=HEALTHY, b=HEALTHY)
    rows = {
        row.split(",")[1]: row.split(",")[18]
        for row in (await said(at, "show stat test 4 -1")).split("\n")
        if "so." in row
    }
    assert rows == {"so.a": "32", "so.b": "256"}
    await at.balancer.apply([a.spec(weight=0), b.spec(weight=800)], 2)
    assert {await at.ask() for _ in range(10)} == {"b"}


async def test_two_hundred_servers_fit_into_its_commands(stand):
    at = await stand(Haproxy, "a")
    specs = [TargetSpec(id=f"i-{n:017x}", address=f"127.0.0.1:{20000 + n}") for n in range(200)]
    await at.balancer.apply(specs, 1)
    assert len(await at.states()) == 200
    await at.balancer.apply(specs[:1], 2)
    assert set(await at.states()) == {specs[0].id}


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (TargetSpec(id="a b;shutdown", address="127.0.0.1:1"), "cannot name a server"),
        (TargetSpec(id="a", address="node.example:8000"), "takes addresses"),
        (TargetSpec(id="a", address="127.0.0.1:x; quit"), "expected host:port"),
    ],
)
async def test_what_its_commands_cannot_say_is_denied(tmp_path: Path, spec, why):
    balancer = HaproxyBackend(socket=tmp_path / "none.sock", backend="test", clock=SystemClock())
    with pytest.raises(Denied, match=why):
        await balancer.apply([spec], 1)
    await balancer.close()


async def test_a_backend_that_is_not_there_is_denied(stand):
    at = await stand(Haproxy)
    other = HaproxyBackend(socket=at.program.folder / "haproxy.sock", backend="none", clock=SystemClock())
    with pytest.raises(Denied, match="no backend 'none'"):
        await other.observe()
    await other.close()


FILE = """backend test from orchestrator
    server own 127.0.0.1:1
    # BEGIN spot-orchestrator
    # END spot-orchestrator

frontend other
"""


def test_its_file_changes_between_the_marks_alone(tmp_path):
    file = tmp_path / "servers.cfg"
    file.write_text(FILE)
    file.chmod(0o640)
    files.write(file, files.Servers(5, ("server so.a 127.0.0.1:2",)))
    assert file.read_text() == FILE.replace(
        "# BEGIN spot-orchestrator\n", "# BEGIN spot-orchestrator generation=5\n    server so.a 127.0.0.1:2\n"
    )
    assert file.stat().st_mode & 0o777 == 0o640
    assert files.generation_in(file) == 5
    with pytest.raises(Denied, match="another daemon leads"):
        files.write(file, files.Servers(4, ()))
    files.write(file, files.Servers(6, ()))
    assert file.read_text() == FILE.replace("orchestrator\n    # END", "orchestrator generation=6\n    # END")


def test_a_generation_that_no_daemon_wrote_is_none(tmp_path):
    file = tmp_path / "servers.cfg"
    file.write_text(
        FILE.replace("BEGIN spot-orchestrator", "BEGIN spot-orchestrator generation=" + "9" * 5000)
    )
    assert files.generation_in(file) == 0
    files.write(file, files.Servers(5, ()))
    assert files.generation_in(file) == 5


@pytest.mark.parametrize("text", ["backend test\n", FILE + FILE, ""])
def test_a_file_without_its_marks_is_left_alone(tmp_path, text):
    file = tmp_path / "servers.cfg"
    file.write_text(text)
    with pytest.raises(Denied, match="lines"):
        files.write(file, files.Servers(5, ("server so.a 127.0.0.1:2",)))
    assert file.read_text() == text


async def test_a_file_that_cannot_be_written_is_said_and_holds_nothing_up(stand):
    at = await stand(Haproxy)
    errors: list[str] = []
    balancer = HaproxyBackend(
        socket=at.program.folder / "haproxy.sock",
        backend="test",
        clock=SystemClock(),
        servers_file=at.program.folder / "none" / "servers.cfg",
        on_file_error=errors.append,
    )
    await balancer.apply([at.servers[0].spec()], 1)
    await balancer.flush()
    await at.until(a=HEALTHY)
    assert len(errors) == 1
    await balancer.close()
