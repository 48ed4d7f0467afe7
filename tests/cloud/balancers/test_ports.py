"""Ports of the programs that tests start: nobody else gets them while a slow one starts.

A server of another test that got such a port answered in the place of a balancer, which then seemed to be up.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import balancer_programs
from tests.support.balancer_programs import ROOT, free_ports

CHILD = """
import sys
from tests.support import balancer_programs
balancer_programs._PORTS = range(int(sys.argv[1]), int(sys.argv[1]) + 3)
print(*balancer_programs.free_ports(2), flush=True)
sys.stdin.read()
"""


def test_no_client_and_no_server_is_given_such_a_port():
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(balancer_programs._PORTS) < lowest


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_two_processes_never_have_the_same_port(monkeypatch):
    begin = 10_000 + 3 * (os.getpid() % 3000)  # where no other test looks
    first = next(port for port in range(begin, begin + 900, 3) if all(map(is_free, range(port, port + 3))))
    monkeypatch.setattr(balancer_programs, "_PORTS", range(first, first + 1))
    assert free_ports(1) == [first]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(first)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    others = {int(port) for port in child.stdout.readline().split()}
    assert others == {first + 1, first + 2}
    monkeypatch.setattr(balancer_programs, "_PORTS", range(first, first + 3))
    with pytest.raises(RuntimeError, match="no port is free"):
        free_ports(1)
    child.communicate("")
    assert set(free_ports(2)) == others
