"""Balancers that say something else than they should: every adapter raises what a port may, and ends in time.

A right answer of each is taken, and one part of it after the other is left out or is of another kind.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from cloud.balancers import haproxy_wire
from cloud.balancers.envoy import EnvoyCluster
from cloud.balancers.exchange import Exchange
from cloud.balancers.gateway import GatewayBalancer
from cloud.balancers.haproxy import HaproxyBackend
from cloud.balancers.nginx import NginxUpstream
from cloud.balancers.routers import RouterWorkers
from cloud.balancers.targets import SCHEMAS, TargetSet
from cloud.errors import CloudError
from cloud.ports import BalancerView
from policies.model import TargetPhase, TargetSpec, TargetState
from policies.value import replace
from tests.support.hand_clock import HandClock

A = TargetSpec(id="a", address="127.0.0.1:1")
LEAVING = TargetSpec(id="a", address="127.0.0.1:1", phase=TargetPhase.DRAINING)

GATEWAY: Any = {
    "incarnation": "one",
    "generation": 3,
    "file_generation": 3,
    "reads": list(SCHEMAS),
    "only_pool": "p",
    "active": 2,
    "queued": 1,
    "refuses": "",
    "recent": {"answered": 3, "failed": 0},
    "tls": {"expires": 9e9, "fault": ""},
    "adapters": {"sql": {"asked": 1, "tokens": 2, "cold": False}},
    "targets": [
        {
            "id": "a",
            "address": "127.0.0.1:1",
            "phase": "active",
            "state": "healthy",
            "reason": "",
            "in_flight": 1,
            "weight": 100,
            "drain_deadline": None,
            "build": "x",
            "adapters": [
                {"name": "sql", "served_as": "sql@1", "number": None, "revision": "1", "in_flight": 0}
            ],
            "adapters_leaving": [],
            "continuation": {"way": "chat", "why": ""},
        }
    ],
}
HOST: Any = {
    "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}},
    "hostname": "so.a",
    "weight": 100,
    "stats": [{"name": "rq_active", "value": "1"}],
    "health_status": {"eds_health_status": "HEALTHY"},
}
ENVOY: Any = {
    "configs": [{"last_updated": "2026-01-01T00:00:00Z"}],
    "cluster_statuses": [{"name": "other"}, {"name": "p", "host_statuses": [HOST]}],
    "stats": [{"name": "cluster.p.version_text", "value": "3"}],
}
WORKER: Any = {"id": "w-1", "url": "http://127.0.0.1:1/", "status": "ready", "is_healthy": True, "labels": {}}
ROUTER: Any = {"workers": [WORKER], "total": 1}

WRONG = (None, True, -1, 10**400, 1e400, "x", "\ud800", [], {}, [[]])


def lies(whole: Any) -> Iterator[Any]:
    """The same with one part left out or replaced, at every depth."""
    yield from WRONG
    for path, wrong in itertools.product(_paths(whole), (KeyError, *WRONG)):
        lie = copy.deepcopy(whole)
        at = lie
        for key in path[:-1]:
            at = at[key]
        if wrong is KeyError:
            del at[path[-1]]
        else:
            at[path[-1]] = wrong
        yield lie


def _paths(value: Any) -> Iterator[tuple[Any, ...]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (key,)
        yield from ((key, *rest) for rest in _paths(value[key]))


class Clock(HandClock):
    """Patience ends at once."""

    async def sleep(self, seconds: float) -> None:
        self.at += 1.0


def gateway(folder: Path) -> Any:
    return GatewayBalancer(pool="p", clock=Clock(), url="http://127.0.0.1:9")


def envoy(folder: Path) -> Any:
    return EnvoyCluster(
        admin="http://127.0.0.1:9", file=folder / "e.json", cluster="p", clock=Clock(), run_blocking=inline
    )


def router(folder: Path) -> Any:
    return RouterWorkers(
        kind="smg",
        url="http://127.0.0.1:9",
        ledger=Kept(),  # type: ignore[arg-type]
        clock=Clock(),
    )


class Kept:
    """A ledger that costs no disk."""

    def __init__(self) -> None:
        self.held = TargetSet(generation=0, pool="p", written_at=0.0, targets=())

    async def read(self) -> TargetSet:
        return self.held

    async def write(self, targets: Sequence[TargetSpec], generation: int) -> None:
        self.held = replace(self.held, targets=tuple(targets), generation=generation)

    def close(self) -> None:
        return


def assert_sound(view: BalancerView) -> None:
    """What a loop may go by: it is what it says that it is, also where it is not true."""
    hash(view.targets)
    numbers = (view.generation, view.answered, view.failed, view.held)
    assert all(0 <= n < 1 << 62 for n in numbers)
    assert isinstance(view.incarnation + view.refuses, str)
    for target in view.targets:
        assert isinstance(target.id + target.address + target.reason, str)
        assert isinstance(target.state, TargetState)
        assert target.in_flight is None or 0 <= target.in_flight < 1 << 62
        orjson.dumps(target)  # it goes into the journal


async def inline(work: Callable[[], None]) -> None:
    work()


@pytest.mark.parametrize(
    ("make", "whole"),
    [(gateway, GATEWAY), (envoy, ENVOY), (router, ROUTER)],
    ids=["gateway", "envoy", "router"],
)
async def test_a_lie_is_an_error_of_a_port_or_is_believed(
    make: Callable[[Path], Any], whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, believed = orjson.dumps(whole), 0

    async def ask(*_: Any, **__: Any) -> tuple[int, bytes]:
        return 200, said

    monkeypatch.setattr(Exchange, "ask", ask)
    monkeypatch.setattr("cloud.balancers.envoy.sync", lambda _: None)
    made = make(tmp_path)
    with contextlib.suppress(CloudError):
        await made.apply([A], 3)
    assert [target.id for target in (await made.observe()).targets] == ["a"]
    for number, lie in enumerate(lies(whole)):
        said = json.dumps(lie).encode()
        with contextlib.suppress(CloudError):
            await made.apply([A], number + 10)
        with contextlib.suppress(CloudError):
            await made.detach([LEAVING], number + 10)
        with contextlib.suppress(CloudError):
            assert_sound(await made.observe())
            believed += 1
    assert believed
    await made.close()


@pytest.mark.parametrize(
    "said", [b"", b"\xff\xfe 7", b"7", b"-1.a 7", b"x.y 7", b"9" * 5000 + b" 7", b"1 2 3"]
)
async def test_a_status_of_nginx_that_is_none_is_an_error_of_a_port(
    said: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(*_: Any, **__: Any) -> tuple[int, bytes]:
        return 200, said

    monkeypatch.setattr(Exchange, "ask", ask)
    made = NginxUpstream(
        url="http://127.0.0.1:9",
        file=tmp_path / "targets.conf",
        upstream="p",
        reload=["true"],
        ledger=Kept(),  # type: ignore[arg-type]
        clock=Clock(),
    )
    for call in (made.observe(), made.apply([A], 5), made.detach([LEAVING], 5)):
        with pytest.raises(CloudError):
            await call
    await made.close()


STAT = (
    "# pxname,svname,addr,status,check_status,last_chk,scur,qcur,weight,uweight,\n"
    "p,so.a,127.0.0.1:1,UP,L7OK,,1,0,256,256,\n"
)
HAPROXY = (
    "Pid: 7\nStopping: 0\n\n"
    f"{STAT}\n1\n# states\n3 p 1 so.a 127.0.0.1 2 0 256\n\n"
    "proc.so_gen_p: type=sint value=<3>\n\nproc.so_life_p: type=str value=<w>\n\n"
)


async def test_a_word_of_haproxy_that_is_another_is_an_error_of_a_port_or_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, believed = HAPROXY, 0

    async def ask(*_: Any) -> str:
        return said

    monkeypatch.setattr(haproxy_wire, "_ask", ask)
    made = HaproxyBackend(socket=tmp_path / "none.sock", backend="p", clock=Clock())
    assert [target.id for target in (await made.observe()).targets] == ["a"]
    words = sorted({*re.findall(r"[^\s,<>:]+", HAPROXY)})
    for old, new in itertools.product(words, ("", "x", "-1", "9" * 5000, ",", "\n", "\ufffd")):
        said = HAPROXY.replace(old, new)
        with contextlib.suppress(CloudError):
            await made.apply([A], 10)
        with contextlib.suppress(CloudError):
            await made.detach([LEAVING], 10)
        with contextlib.suppress(CloudError):
            assert_sound(await made.observe())
            believed += 1
    assert believed
    await made.close()
