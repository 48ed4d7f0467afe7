"""The installed services under a real systemd: what comes back, what is refused, what goes on."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(300)]

DAEMON, GATEWAY = "spot-orchestrator.service", "spot-orchestrator-gateway.service"
CONFIG = "/etc/spot-orchestrator/pool.toml"


def untroubled(clients: Any) -> None:
    """No request has failed and no stream was cut."""
    report = clients.report
    assert (report["failures"], report["streams_cut"]) == ({}, 0)
    assert report["answered"] == report["sent"] > 20
    assert report["streams"] > 5


def unchanged(host: Any, before: dict[str, Any]) -> None:
    """The same nodes, and the cloud was asked for nothing."""
    after = host.settled()
    kept = ("token", "address", "launched_at")
    assert {i: [n[k] for k in kept] for i, n in after.items()} == {
        i: [n[k] for k in kept] for i, n in before.items()
    }


def restarts(host: Any, unit: str) -> int:
    return int(host.show(unit, "NRestarts"))


# -- installed and started -------------------------------------------------------------------------


def test_it_runs_and_says_how_the_pool_is(host: Any) -> None:
    assert host.must("systemctl", "is-active", DAEMON, GATEWAY).split() == ["active", "active"]
    host.until("the status line", lambda: "llama: ok, 4 of 4 serving" in host.show(DAEMON, "StatusText"))
    host.until("the gateway's", lambda: "4 of 4 targets healthy" in host.show(GATEWAY, "StatusText"))
    done = host.run("runuser", "-u", "alice", "--", "orchestrator", "status")
    assert (done.returncode, "4/4 serving" in done.stdout) == (0, True)


def test_only_the_group_may_operate_and_the_gateway_sees_nothing_of_the_daemon(host: Any) -> None:
    def refused(user: str, *words: str) -> str:
        done = host.run("runuser", "-u", user, "--", *words)
        assert done.returncode != 0, done.stdout
        return done.stderr

    assert "this user may not open it" in refused("nobody", "orchestrator", "pause")
    host.must("runuser", "-u", "nobody", "--", "orchestrator", "status")
    for words in (
        ("ls", "/var/lib/spot-orchestrator"),
        ("orchestrator", "pause", "--socket", "/run/spot-orchestrator/orchestrator.sock"),
        ("ls", "/etc/credstore"),
        ("touch", "/var/lib/spot-orchestrator-gateway/targets.json"),
    ):
        refused("spot-orchestrator-gateway", *words)
    assert host.must(
        *("runuser", "-u", "spot-orchestrator-gateway", "--", "cat"),
        "/var/lib/spot-orchestrator-gateway/targets.json",
    )
    assert host.must("runuser", "-u", "alice", "--", "orchestrator", "journal", "show",
                     "/var/lib/spot-orchestrator/journal.db")  # fmt: skip


def test_the_sandbox_holds(host: Any) -> None:
    """Seen with the eyes of the process itself."""
    pid = host.pid(DAEMON)

    def inside(*words: str) -> Any:
        return host.run("nsenter", "-t", str(pid), "-m", "--", *words)

    assert inside("touch", "/etc/x").returncode != 0
    assert inside("touch", "/var/lib/spot-orchestrator/x").returncode == 0
    assert inside("rm", "/var/lib/spot-orchestrator/x").returncode == 0
    assert inside("ls", "-A", "/root").stdout == ""
    status = host.must("cat", f"/proc/{pid}/status")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status


# -- what comes back -------------------------------------------------------------------------------


def test_a_killed_daemon_comes_back_to_the_same_nodes(host: Any) -> None:
    nodes, before = host.settled(), restarts(host, DAEMON)
    epoch = host.status()["daemon"]["epoch"]
    host.must("systemctl", "kill", "--kill-whom=main", "-s", "KILL", DAEMON)
    host.until("it was started again", lambda: restarts(host, DAEMON) == before + 1)
    unchanged(host, nodes)
    assert host.status()["daemon"]["epoch"] > epoch


def test_a_loop_that_hangs_is_killed_by_the_watchdog_and_comes_back(host: Any) -> None:
    nodes, before = host.settled(), restarts(host, DAEMON)
    pid = host.pid(DAEMON)
    host.must("kill", "-STOP", str(pid))
    host.until("it was started again", lambda: restarts(host, DAEMON) == before + 1)
    assert host.pid(DAEMON) != pid
    log = host.journal(DAEMON)
    assert "Watchdog timeout" in log
    assert "Fatal Python error: Aborted" in log, "where it hung is in the log"
    unchanged(host, nodes)


def test_a_killed_gateway_comes_back_and_connections_wait_for_it(host: Any) -> None:
    before = restarts(host, GATEWAY)
    host.must("systemctl", "kill", "--kill-whom=main", "-s", "KILL", GATEWAY)
    words = ("-c", "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/healthz').status)")
    assert host.must("/opt/spot-orchestrator/bin/python", *words).strip() == "200"
    host.until("it was started again", lambda: restarts(host, GATEWAY) == before + 1)
    with host.clients() as clients:
        clients.answers(20)
    untroubled(clients)


# -- reload ----------------------------------------------------------------------------------------


def test_a_bad_reload_is_refused_with_its_reason(host: Any) -> None:
    good = host.must("cat", CONFIG)
    line = 1 + next(n for n, text in enumerate(good.splitlines()) if text.startswith("replicas"))
    reason = f"{CONFIG}:{line}: pool.llama.replicas: "
    pid, nodes = host.pid(DAEMON), host.settled()
    try:
        host.machine.write(CONFIG, good.replace("replicas = 4", "replicas = -1"))
        assert host.run("systemctl", "reload", DAEMON).returncode != 0
        assert reason in host.journal(DAEMON)
        host.until("the status line says it", lambda: reason in host.show(DAEMON, "StatusText"))
        done = host.run("runuser", "-u", "alice", "--", "orchestrator", "reload", "--wait")
        assert (done.returncode, done.stderr.splitlines()[0].startswith(reason)) == (1, True)
    finally:
        host.machine.write(CONFIG, good)
    host.must("systemctl", "reload", DAEMON)
    host.until("it is well again", lambda: reason not in host.show(DAEMON, "StatusText"))
    assert host.pid(DAEMON) == pid
    unchanged(host, nodes)


def test_a_good_reload_is_in_force(host: Any) -> None:
    good = host.must("cat", CONFIG)
    pid = host.pid(DAEMON)
    try:
        host.machine.write(CONFIG, good.replace("replicas = 4", "replicas = 5"))
        host.must("systemctl", "reload", DAEMON)
        assert host.status()["pools"][0]["wanted"] == 5
    finally:
        host.machine.write(CONFIG, good)
        host.must("systemctl", "reload", DAEMON)
    assert host.pid(DAEMON) == pid
    host.settled()


# -- stop, restart, hand over ----------------------------------------------------------------------


def test_stopping_the_daemon_touches_no_node_and_clients_go_on(host: Any) -> None:
    nodes, machines = host.settled(), host.machines()
    with host.clients() as clients:
        host.must("systemctl", "stop", DAEMON)
        assert host.status() is None
        clients.answers(20)
        seen = host.machines()
        assert [seen[k] for k in ("live", "launches", "groups")] == [
            machines[k] for k in ("live", "launches", "groups")
        ]
        host.must("systemctl", "start", DAEMON)
        clients.answers(20)
    untroubled(clients)
    unchanged(host, nodes)


def test_streams_survive_a_restart_of_the_daemon(host: Any) -> None:
    with host.clients() as clients:
        for _ in range(2):
            host.must("systemctl", "restart", DAEMON)
            clients.answers(10)
    untroubled(clients)


def test_the_gateway_is_replaced_without_a_lost_request(host: Any) -> None:
    first = host.pid(GATEWAY)
    with host.clients(rate=15.0) as clients:
        pids = [first]
        for _ in range(2):
            host.must("systemctl", "reload", GATEWAY)
            pids.append(host.pid(GATEWAY))
            clients.answers(30)
    untroubled(clients)
    assert len(set(pids)) == 3
    host.until("the first has ended", lambda: host.run("kill", "-0", str(first)).returncode != 0)
    before = restarts(host, GATEWAY)
    host.must("kill", "-KILL", str(pids[-1]))
    host.until("systemd looks after the new one", lambda: restarts(host, GATEWAY) == before + 1)


def test_a_gateway_that_cannot_be_replaced_serves_on(host: Any) -> None:
    good, pid = host.must("cat", CONFIG), host.pid(GATEWAY)
    try:
        host.machine.write(CONFIG, good.replace('listen = "127.0.0.1:8000"', 'listen = "127.0.0.1:8001"'))
        with host.clients() as clients:
            assert host.run("systemctl", "reload", GATEWAY).returncode != 0
            clients.answers(20)
        untroubled(clients)
    finally:
        host.machine.write(CONFIG, good)
    assert "gateway.listen is 127.0.0.1:8001; change one of them" in host.journal(GATEWAY)
    assert host.pid(GATEWAY) == pid


def test_secrets_reach_the_service_that_they_are_for(host: Any) -> None:
    good = host.must("cat", CONFIG)
    host.machine.write("/etc/credstore/gateway-key", "sesame-open\n")
    try:
        key = '[pool.llama.gateway]\napi_key_file = "{credentials}/gateway-key"\n'
        host.machine.write(CONFIG, good.replace("[pool.llama.gateway]\n", key))
        host.must("systemctl", "restart", GATEWAY)
        host.must("systemctl", "reload", GATEWAY)  # the heir is handed them too
        with host.clients() as clients:
            clients.answers(20)
        untroubled(clients)
        pid = host.pid(GATEWAY)
        assert "sesame-open" not in host.must("cat", f"/proc/{pid}/environ", f"/proc/{pid}/cmdline")
        assert "sesame-open" not in host.journal(GATEWAY)
    finally:
        host.machine.write(CONFIG, good)
        host.must("rm", "/etc/credstore/gateway-key")
    host.must("systemctl", "restart", GATEWAY)


# -- upgrade and removal ---------------------------------------------------------------------------


def test_an_upgrade_loses_no_request_and_touches_no_node(host: Any) -> None:
    nodes = host.settled()
    daemon, gateway = host.pid(DAEMON), host.pid(GATEWAY)
    with host.clients() as clients:
        host.install()
        assert host.pid(DAEMON) != daemon
        assert host.pid(GATEWAY) != gateway
        clients.answers(20)
    untroubled(clients)
    unchanged(host, nodes)


def test_removed_and_installed_again_it_finds_its_nodes(host: Any) -> None:
    nodes, machines = host.settled(), host.machines()["live"]
    host.must("dpkg", "-r", "spot-orchestrator")
    assert host.run("systemctl", "cat", DAEMON).returncode != 0
    assert host.run("which", "orchestrator").returncode != 0
    assert host.must("cat", CONFIG), "the configuration stays"
    host.install()
    assert host.machines()["live"] == machines
    host.must("systemctl", "enable", "--now", GATEWAY, DAEMON)
    unchanged(host, nodes)
