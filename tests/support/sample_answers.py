"""Sample answers of the control API, a server that gives them on a unix socket, and command lines."""

from __future__ import annotations

import json
import os
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from orchestrator.__main__ import main

Run = Callable[..., tuple[int, str, str]]

AT = 1_790_000_000.0  # 2026-09-21T14:13:20Z


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line; its exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def make_node(number: int, **changes: Any) -> dict[str, Any]:
    zone = "abc"[number % 3]
    return {
        "id": f"i-{number:04x}",
        "market": "spot",
        "provider": "aws",
        "zone": f"us-east-1{zone}",
        "instance_type": "p5.48xlarge",
        "units": 1,
        "phase": "ready",
        "age_s": 10_920.0,
        "in_flight": 12,
        "running": 11,
        "waiting": 1,
        "target": "healthy",
        "attached": True,
        "healthy": True,
        "conditions": [],
        "price": 3.14,
        "why": "serving",
        "address": f"10.0.0.{number % 250}:8000",
        "launched_at": AT - 10_920.0,
        "token": f"llama/1/{number}/1",
        "build": "8f3a0c1d92",
        "continuation": {"way": "derender", "why": ""},
        "adapters": [],
    } | changes


def make_pool(nodes: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    ready = [node for node in nodes if node["phase"] == "ready"]
    spot = sum(node["market"] == "spot" for node in ready)
    wanted = changes.get("wanted", len(ready))
    return {
        "name": "llama",
        "model": "llama-70b",
        "units": {},
        "wanted": wanted,
        "ready": len(ready),
        "ready_nodes": len(ready),
        "serving": len(ready),
        "spot_ready": spot,
        "on_demand_ready": len(ready) - spot,
        "spot_wanted": wanted * 7 // 10,
        "on_demand_floor": wanted - wanted * 7 // 10,
        "spot_share": spot / max(1, len(ready)),
        "temporary_on_demand": 0,
        "standby_hot": 0,
        "standby_stopped": 0,
        "state": "ok",
        "cost_per_hour": 31.4,
        "on_demand_cost_per_hour": 98.2,
        "saved_share": 0.68,
        "spend_cap_per_hour": 120.0,
        "spot_lost_at": None,
        "spot_next_try_s": None,
        "spent_usd": 1204.5,
        "saved_usd": 2611.25,
        "notices": [],
        "swaps": [],
        "nodes": nodes,
        "failed_boots": [],
        "problems": [],
        "notes": [],
    } | changes


def make_status(*pools: dict[str, Any], **daemon: Any) -> dict[str, Any]:
    return {
        "schema": "status/1",
        "at": AT,
        "daemon": {
            "version": "0.1.0",
            "pid": 4711,
            "epoch": 3,
            "uptime_s": 93_780.0,
            "leading": True,
            "database_silent_s": None,
            "leader": None,
            "paused": None,
            "journal_ok": True,
            "last_turn_s": 0.4,
            "turns": 93_000,
            "config": {"file": "/etc/pool.toml", "loaded_at": AT - 93_780.0, "rejected": None},
        }
        | daemon,
        "pools": list(pools),
    }


def make_swap(**changes: Any) -> dict[str, Any]:
    return {
        "outgoing": "i-0c41",
        "incoming": "i-0f22",
        "stage": "draining",
        "noticed_at": AT - 14.0,
        "detached_at": AT - 13.92,
        "drained_at": None,
        "replaced_at": None,
        "deadline": AT + 106.0,
        "cause": "notice",
    } | changes


def make_notice(**changes: Any) -> dict[str, Any]:
    return {
        "node": "i-0c41",
        "kind": "interruption",
        "source": "local feed",
        "confidence": "confirmed",
        "seen_at": AT - 14.0,
        "deadline": AT + 106.0,
        "remaining_s": 106.0,
        "stage": "draining",
        "in_flight": 3,
        "replacement": "i-0f22",
        "replacement_phase": "starting",
        "text": "i-0c41 goes away in 1:46",
    } | changes


def make_history(*swaps: dict[str, Any]) -> dict[str, Any]:
    """The swaps of the history with one stage's account."""
    given = list(swaps) or [
        {
            "outgoing": "i-0c41", "incoming": "i-0f22", "cause": "notice", "stage": "replaced",
            "began_at": AT - 14.0, "deadline": AT + 106.0,
            "seconds": {"detached": 0.08, "drained": 3.2, "replaced": 65.0, "gone": None},
        }
    ]  # fmt: skip
    stage = {"stage": "detached", "swaps": 1, "median_s": 0.08, "p95_s": 0.08, "longest_s": 0.08}
    return {
        "schema": "history/1",
        "at": AT,
        "swaps": given,
        "stages": [stage],
        "starts": [],
        "start_kinds": [],
    }


def make_event(seq: int, at: float, **changes: Any) -> dict[str, Any]:
    return {
        "seq": seq,
        "at": at,
        "kind": "notice-received",
        "node": "i-0c41",
        "text": "interruption notice, deadline in 120 s",
        "data": {"deadline": at + 120.0},
    } | changes


def mixed_nodes(count: int) -> list[dict[str, Any]]:
    """`count` ready nodes, the first 70 % on spot."""
    spot = count * 7 // 10
    return [
        make_node(
            number, market="spot" if number < spot else "on-demand", price=3.0 if number < spot else 9.0
        )
        for number in range(count)
    ]


@pytest.fixture
def calm() -> dict[str, Any]:
    """Ten nodes, nothing to say."""
    return make_status(make_pool(mixed_nodes(10)))


@pytest.fixture
def small() -> dict[str, Any]:
    """Four nodes."""
    return make_status(make_pool(mixed_nodes(4), spot_wanted=2, on_demand_floor=2))


@pytest.fixture
def swapping() -> dict[str, Any]:
    """A reclaim in progress: one node drains, its replacement starts."""
    nodes = mixed_nodes(10)
    nodes[3] = make_node(
        0x0C41, zone="us-east-1b", phase="draining", target="draining", attached=False, age_s=18_000.0,
        in_flight=3, running=3, waiting=0, conditions=["noticed"], why="interruption notice, reclaim in 1:46",
    )  # fmt: skip
    replacement = make_node(
        0x0F22, market="on-demand", zone="us-east-1c", phase="starting", target="initial", attached=False,
        age_s=48.0, in_flight=None, running=None, waiting=None, price=9.0, why="replaces i-0c41",
    )  # fmt: skip
    pool = make_pool(
        [*nodes, replacement], wanted=10, state="degraded", notices=[make_notice()], swaps=[make_swap()],
        problems=["9 of 10 nodes are ready"], notes=["spot in us-east-1b was refused 20 s ago"],
        temporary_on_demand=0, standby_stopped=1,
    )  # fmt: skip
    return make_status(pool)


@pytest.fixture
def large() -> dict[str, Any]:
    """Two hundred nodes, one of them sick, three on their way."""
    nodes = mixed_nodes(200)
    nodes[17] = make_node(17, healthy=False, target="unhealthy", conditions=["unhealthy"], why="probe fails")
    for number in (40, 41, 42):
        nodes[number] = make_node(
            number, phase="starting", target=None, attached=False, in_flight=None, running=None,
            waiting=None, why="launched to fill the mix",
        )  # fmt: skip
    return make_status(make_pool(nodes, wanted=200, state="degraded"))


@pytest.fixture
def paused() -> dict[str, Any]:
    """A paused daemon."""
    pool = make_pool(mixed_nodes(4), spot_wanted=2, on_demand_floor=2, state="paused")
    return make_status(pool, paused={"by": "root", "reason": "maintenance", "until": AT + 4800.0})


def make_gpu(index: int, **known: float | str) -> dict[str, Any]:
    """A GPU of which the driver tells what is `known`."""
    unknown = dict.fromkeys(
        (
            "utilisation_percent", "memory_used_mib", "memory_total_mib", "temperature_c", "power_w",
            "power_limit_w", "sm_clock_mhz", "ecc_corrected", "ecc_uncorrected", "retired_pages",
            "remapped_rows",
        )
    )  # fmt: skip
    fixed = {"index": index, "name": "NVIDIA L40S", "state": "", "throttled": "", "waits_for_reset": False}
    return fixed | unknown | known


def make_xid(
    code: int, text: str, *, asks: str, says: str, count: int = 1, fatal: bool = False
) -> dict[str, Any]:
    """An error in the kernel log of a node with one GPU."""
    return {
        "pci": "0000:00:1e", "code": code, "text": text, "count": count, "fatal": fatal, "asks": asks,
        "says": says,
    }  # fmt: skip


@pytest.fixture
def story() -> dict[str, Any]:
    """A node's life from its launch to its replacement."""
    node = make_node(0x0C41, phase="draining", conditions=["noticed"], why="interruption notice")
    start = AT - 10_920.0
    steps = (
        ("launched", start, "launched on spot in us-east-1b: cheapest offering"),
        ("node-ready", start + 64.0, "the engine is ready"),
        ("notice-received", AT - 14.0, "interruption notice, deadline in 120 s"),
        ("detached", AT - 13.92, "out of the target set"),
    )
    events = [
        make_event(number, at, kind=kind, text=text) for number, (kind, at, text) in enumerate(steps, 1)
    ]
    gpus = [
        make_gpu(
            0,
            utilisation_percent=37.0,
            memory_used_mib=40960.0,
            memory_total_mib=46068.0,
            temperature_c=61.0,
            power_w=210.0,
            power_limit_w=350.0,
            sm_clock_mhz=2520.0,
            ecc_corrected=0.0,
            ecc_uncorrected=0.0,
            retired_pages=0.0,
            remapped_rows=0.0,
        ),
        make_gpu(1, state="GPU is lost", ecc_uncorrected=2.0),
    ]
    xids = [
        make_xid(
            79,
            "GPU has fallen off the bus.",
            fatal=True,
            asks="replace",
            says="the GPU has fallen off the bus",
        ),
        make_xid(31, "MMU fault", count=3, asks="nothing", says="a fault of the application's own"),
    ]
    return {
        "schema": "node/1",
        "node": node,
        "agent": {
            "heard_s": 4.0,
            "life_cycle": "spot",
            "gpus": gpus,
            "xids": xids,
            "errors": ["nvidia-smi: no answer within 10 s"],
            "boot": None,
        },
        "gpus": {
            "source": "agent", "read_s": 4.0, "gpus": gpus, "xids": xids, "asks": "replace",
            "why": "Xid 79: the GPU has fallen off the bus", "throttled_s": 0.0, "throttle": "",
            "speed": 0.97, "speed_by": "tokens", "slow_s": 0.0, "error": "",
        },
        "failed_boot": None,
        "start": None,
        "events": events,
        "sentences": ["It is drained because its reclaim was announced."],
    }  # fmt: skip


@pytest.fixture
def plan() -> dict[str, Any]:
    """A plan with a launch, a drain and something held back."""
    actions = [
        {
            "kind": "launch", "node": None, "placement": "spot p5.48xlarge in us-east-1a",
            "reason": "6 of 7 wanted spot nodes", "token": "llama/3/17/1",
        },
        {
            "kind": "drain", "node": "i-0c41", "placement": None, "reason": "interruption notice",
            "token": None,
        },
    ]  # fmt: skip
    deferred = [
        {
            "kind": "terminate", "node": "i-0009", "placement": None,
            "reason": "spot has to be stable for 120 s first; 40 s so far",
        },
    ]  # fmt: skip
    target = {
        "id": "i-0001",
        "address": "10.0.0.1:8000",
        "phase": "active",
        "weight": 100,
        "drain_deadline": None,
    }
    pool = {
        "name": "llama",
        "actions": actions,
        "deferred": deferred,
        "notes": ["one note"],
        "targets": [target],
    }
    return {"schema": "plan/1", "pools": [pool]}


def make_reload() -> dict[str, Any]:
    """The answer to a reload that changes nothing."""
    return {
        "schema": "reload/1", "outcome": "unchanged", "file": "/etc/pool.toml", "changes": [],
        "problems": [], "warnings": [], "size": None, "plan": None,
        "text": "/etc/pool.toml says what is in force already.",
    }  # fmt: skip


@dataclass
class FakeApi:
    """What the server answers, and what it was asked."""

    status: dict[str, Any]
    plan: dict[str, Any]
    story: dict[str, Any]
    history: dict[str, Any] = field(default_factory=lambda: make_history())
    socket: Path = Path()
    events: list[dict[str, Any]] = field(default_factory=list)
    posts: list[tuple[str, Any]] = field(default_factory=list)
    gets: list[str] = field(default_factory=list)
    cost: dict[str, Any] = field(default_factory=dict)
    broken: bytes | None = None
    reload: dict[str, Any] = field(default_factory=make_reload)

    def get(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        if path == "/v1/status":
            return 200, self.status
        if path == "/v1/plan":
            return 200, self.plan
        if path == "/v1/cost":
            return (200, self.cost) if self.cost else (404, {"error": "no such pool is known"})
        if path == "/v1/history":
            return 200, self.history
        if path == "/v1/explain":
            return 200, {
                "schema": "explain/1",
                "subject": query["subject"],
                "sentences": ["Because of this."],
            }
        if path == "/v1/events":
            return 200, self._events(query)
        if path.startswith("/v1/nodes/"):
            return self._node(unquote(path.removeprefix("/v1/nodes/")))
        return 404, {"error": f"there is nothing at {path}"}

    def _events(self, query: dict[str, str]) -> dict[str, Any]:
        after = int(query.get("after", 0))
        found = [
            item for item in self.events if item["seq"] > after and query.get("node") in (None, item["node"])
        ]
        found = found[-int(query.get("limit", 1000)) :]
        return {"events": found, "last": max((item["seq"] for item in self.events), default=after)}

    def _node(self, name: str) -> tuple[int, Any]:
        known = {node["id"]: node for pool in self.status["pools"] for node in pool["nodes"]}
        if name not in known:
            return 404, {"error": f"no node {name} is known; see `orchestrator nodes`"}
        return 200, self.story | {"node": known[name]}

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        self.posts.append((path, body))
        if path.endswith("/undrain"):
            return 409, {"error": "i-0001 is not drained by an operator; there is nothing to take back"}
        if path == "/v1/reload":
            return 200, self.reload
        return 200, {"text": f"done: {path}"}


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    api: FakeApi


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        self.server.api.gets.append(self.path)
        query = {key: values[0] for key, values in parse_qs(split.query).items()}
        self._answer(*self.server.api.get(split.path, query))

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self._answer(*self.server.api.post(self.path, json.loads(self.rfile.read(length))))

    def _answer(self, status: int, value: Any) -> None:
        broken = self.server.api.broken
        body = json.dumps(value).encode() if broken is None else broken
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def api(
    short_dir: Path, swapping: dict[str, Any], plan: dict[str, Any], story: dict[str, Any]
) -> Iterator[FakeApi]:
    """A control API that answers samples."""
    fake = FakeApi(status=swapping, plan=plan, story=story, socket=short_dir / "orchestrator.sock")
    fake.events = story["events"]
    server = _Server(os.fspath(fake.socket), _Handler)
    server.api = fake
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
