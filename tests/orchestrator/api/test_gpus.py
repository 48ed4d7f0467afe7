"""What is known of nodes' GPUs, as the API shows it, as a terminal shows it, and as gauges."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import generate_latest

from orchestrator.api import gauges, gpus
from orchestrator.api.gpus import Seen
from orchestrator.loop.loop import Snapshot
from orchestrator.metrics import metrics
from orchestrator.render.gpu_words import gpu_rows, gpu_trouble
from policies.actions import Plan
from policies.events import NodeSeen
from policies.fleet import Fleet
from policies.gpu_errors import Remedy
from policies.gpu_peers import Pace
from policies.gpu_readings import GpuReading, GpuState, NodeGpus, Xid
from policies.memory import Memory, reduce
from policies.model import EngineReading, Market, Placement, Pool, World

NOW = 5_000.0
H100 = GpuReading(
    index=0,
    uuid="GPU-1",
    name="H100",
    utilisation_percent=87.0,
    memory_used_mib=1024.0,
    memory_total_mib=2048.0,
    temperature_c=91.0,
    power_w=318.0,
    power_limit_w=700.0,
    sm_clock_mhz=825.0,
    sm_clock_most_mhz=1980.0,
    throttle_reasons=0x44,
    ecc_corrected=12.0,
    ecc_uncorrected=2.0,
    remapped_rows=1.0,
    remap_pending=1.0,
)
DBE = Xid(pci="0000:1b:00", code=48, text="An uncorrectable double bit error")
DBE_THERE = Xid(pci="0000:2b:00", code=48, text="Another one", count=2)
LOOKED = NodeGpus(node="s1", at=NOW - 4.0, source="dcgm", gpus=(H100,), xids=(DBE, DBE_THERE))
STATE = GpuState(
    node="s1",
    at=NOW - 4.0,
    source="dcgm",
    remedy=Remedy.RESET,
    fault="Xid 48: a double-bit error in GPU memory",
    throttle="thermal slowdown by hardware",
    throttled_since=NOW - 90.0,
    throttled_at=NOW - 4.0,
    slow="41% of the tokens a second of its peers",
    slow_since=NOW - 50.0,
    slow_at=NOW,
)
SEEN = Seen(looked={"s1": LOOKED, "forged": LOOKED}, paces={"s1": Pace(share=0.41, by="tokens")})


def snapshot(*nodes: str, states: dict[str, GpuState] | None = None) -> Snapshot:
    place = Placement("sim", "r", "a", "gpu", Market.SPOT)
    seen = [
        NodeSeen(
            at=1.0,
            node=n,
            token=f"chat/1/{n}",
            placement=place,
            launched_at=1.0,
            price=1.0,
            address="a:1",
            standby=None,
        )
        for n in nodes
    ]
    memory = reduce(Memory(), *seen)
    engines = {n: EngineReading(node=n, at=NOW, ready=True, ok=True, rate=500.0, load=4.0) for n in nodes}
    world = World(now=NOW, regions={}, engines=engines, gpus=states or {})
    fleet = Fleet.of(Pool(name="chat", replicas=1), world, memory)
    return Snapshot(fleet=fleet, world=world, memory=memory, plan=Plan(), at=NOW)


def value(name: str, **labels: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(f"orchestrator_{name}", {"pool": "chat", **labels})


def publish(shown: Snapshot, seen: Seen) -> None:
    gauges.clear()
    gpus.publish(shown, seen)


def test_everything_that_is_read_is_shown_for_nodes_that_there_are() -> None:
    shown = snapshot("s1", "s2", states={"s1": STATE})
    publish(shown, SEEN)
    of = {"node": "s1", "gpu": "0"}
    assert value("gpu_utilisation_ratio", **of) == pytest.approx(0.87)
    assert value("gpu_memory_used_bytes", **of) == 1024 * 1024 * 1024
    assert value("gpu_temperature_celsius", **of) == 91
    assert (value("gpu_power_watts", **of), value("gpu_power_limit_watts", **of)) == (318, 700)
    assert value("gpu_sm_clock_hertz", **of) == 825e6
    assert value("gpu_sm_clock_max_hertz", **of) == 1980e6
    assert value("gpu_uncorrected_ecc_errors", **of) == 2
    assert value("gpu_corrected_ecc_errors", **of) == 12
    assert (value("gpu_remapped_rows", **of), value("gpu_rows_waiting", **of)) == (1, 1)
    assert value("gpu_retired_pages", **of) is None, "the node did not tell"
    reasons = ("power-cap", "hw-thermal", "sw-thermal", "hw-slowdown", "power-brake")
    assert [value("gpu_throttled", **of, reason=r) for r in reasons] == [1, 1, 0, 0, 0]
    assert value("gpu_xid_errors", node="s1", code="48") == 3
    assert value("node_gpus_ask", node="s1", remedy="reset") == 1
    assert value("node_gpus_ask", node="s1", remedy="nothing") == 0
    assert value("node_throttled_seconds", node="s1") == 86
    assert value("node_slow_seconds", node="s1") == 50
    assert value("node_speed_ratio", node="s1", by="tokens") == 0.41
    assert value("pool_condemned_nodes") == 1
    assert 'node="forged"' not in generate_latest(metrics.REGISTRY).decode()
    publish(snapshot("s2"), SEEN)
    assert 'node="s1"' not in generate_latest(metrics.REGISTRY).decode()
    assert value("pool_condemned_nodes") == 0


def test_the_engines_rate_is_beside_it() -> None:
    gauges.clear()
    gauges.publish_nodes(snapshot("s1"))
    assert value("engine_tokens_per_second", node="s1") == 500


def test_gpus_that_cannot_be_read_are_counted() -> None:
    publish(snapshot("s1"), Seen(unread={"s1", "gone"}))
    assert value("pool_gpus_unread") == 1


@pytest.mark.parametrize("bits", [-1.0, 2.0**60, 0.0])
def test_odd_reasons_are_none(bits: float) -> None:
    gpu = GpuReading(index=0, throttle_reasons=bits)
    publish(snapshot("s1"), Seen(looked={"s1": NodeGpus(node="s1", at=NOW, source="agent", gpus=(gpu,))}))
    assert value("gpu_throttled", node="s1", gpu="0", reason="hw-thermal") == 0


def test_the_api_shows_a_node_and_a_terminal_says_it_in_words() -> None:
    view = gpus.view(SEEN, "s1", STATE, NOW)
    assert view is not None
    assert (view["source"], view["read_s"], view["asks"]) == ("dcgm", 4.0, "reset")
    assert (view["throttled_s"], view["slow_s"], view["speed"], view["speed_by"]) == (
        86.0,
        50.0,
        0.41,
        "tokens",
    )
    assert view["gpus"][0]["throttled"] == "thermal slowdown by hardware"
    assert (view["xids"][0]["fatal"], view["xids"][0]["says"]) == (True, "a double-bit error in GPU memory")
    assert gpu_rows(view["gpus"], view["xids"]) == [
        (
            "gpu",
            "0 H100, 87 % busy, 1.0 of 2.0 GiB, 91 °C, 318 of 700 W, 825 MHz, thermal slowdown by hardware, "
            "2 uncorrected memory errors, 12 corrected, memory waits for a reset",
        ),
        ("xid", f"48 at 0000:1b:00: fatal (a double-bit error in GPU memory): {DBE.text}"),
        ("xid", "48 at 0000:2b:00, 2 times: fatal (a double-bit error in GPU memory): Another one"),
    ]
    assert gpu_trouble(view) == [
        ("gpus ask", "for a reset of the GPU: Xid 48: a double-bit error in GPU memory"),
        ("throttled", "for 86 s: thermal slowdown by hardware"),
        ("speed", "41% of its peers' by tokens, slow for 50 s"),
    ]


def test_a_node_of_which_nothing_is_known_has_no_card() -> None:
    assert gpus.view(Seen(), "s1", None, NOW) is None
    assert gpus.view(Seen.of(None), "s1", None, NOW) is None
    unread = gpus.view(Seen(errors={"s1": "no answer"}), "s1", None, NOW)
    assert unread is not None
    assert gpu_trouble(unread) == [("not read", "no answer")]


def test_a_daemon_of_an_older_version_does_not_say_all() -> None:
    old: Any = {
        "index": 0,
        "name": "L4",
        "utilisation_percent": None,
        "memory_used_mib": None,
        "memory_total_mib": None,
        "temperature_c": 40.0,
        "ecc_uncorrected": None,
    }
    xid: Any = {"pci": "", "code": 31, "text": "a fault", "fatal": False}
    assert gpu_rows([old], [xid]) == [("gpu", "0 L4, 40 °C"), ("xid", "31: a fault")]
