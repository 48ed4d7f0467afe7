"""The doctor of a pool on Google Cloud, against the stand-in as it is and broken in one way each."""

from __future__ import annotations

from typing import Any

import pytest

from cloud.clock import SystemClock
from orchestrator.config.load import build_config
from orchestrator.doctor.clouds import LOOKS
from orchestrator.doctor.findings import State
from orchestrator.doctor.runner import run
from tests.support.gcp_stand_in import GcpStandIn


@pytest.fixture
async def google():
    stand_in = GcpStandIn()
    await stand_in.open()
    yield stand_in
    await stand_in.close()


async def found(google: GcpStandIn, **changes: Any) -> dict[str, list[tuple[State, str, str]]]:
    gcp = {
        "project": "ppppppp",
        "instance_types": ["g2-standard-4"],
        "image": "projects/p/global/images/i",
        "endpoint": google.url,
        "regions": {"us-central1": {"zones": list(google.zones)}},
    }
    google.project = "ppppppp"
    pool = {
        "replicas": 4,
        "model": "m",
        "engine": {"kind": "vllm"},
        "limits": {"spend_per_hour": 99},
        "cloud": {"kind": "gcp", "gcp": gcp | changes},
    }
    looks = LOOKS["gcp"]
    assert looks is not None
    doctor = looks.doctor(build_config({"pool": {"llama": pool}}), "pool.toml", SystemClock())
    try:
        results = await run(doctor.checks(), SystemClock(), lambda _done, _waiting: None)
    finally:
        await doctor.close()
    assert all(f.advice for r in results for f in r.findings if f.state in (State.WARN, State.FAIL))
    return {r.check.name: [(f.state, f.subject, f.text) for f in r.findings] for r in results}


async def test_all_is_well(google) -> None:
    google.quotas = {"NVIDIA_L4_GPUS": 8.0, "PREEMPTIBLE_NVIDIA_L4_GPUS": 8.0}
    told = await found(google)
    assert set(told) == {"identity", "zones", "prices", "quotas"}
    assert {state for rows in told.values() for state, _, _ in rows} == {State.OK}
    assert any("g2-standard-4 $0.708 an hour" in text for _, _, text in told["prices"])
    assert any("room for 8 of 4 nodes" in text for _, _, text in told["quotas"])


async def test_credentials_that_are_refused_fail_and_skip_the_rest(google) -> None:
    google.fault("^GET .*/instances$", times=9, status=403, reason="forbidden")
    told = await found(google)
    assert {state for state, _, _ in told["identity"]} == {State.FAIL}
    assert {state for name in ("zones", "prices", "quotas") for state, _, _ in told[name]} == {State.SKIPPED}


async def test_a_zone_without_the_type_and_one_with_some_of_them(google) -> None:
    told = await found(google, instance_types=["a3-highgpu-8g"])
    assert {state for state, _, _ in told["zones"]} == {State.FAIL}
    told = await found(google, instance_types=["g2-standard-4", "a3-highgpu-8g"])
    assert {state for state, _, _ in told["zones"]} == {State.WARN}
    assert {text for _, _, text in told["zones"]} == {"has no a3-highgpu-8g"}


async def test_prices_that_cannot_be_read(google) -> None:
    google.fault("/skus$", times=9, status=403, reason="accessNotConfigured")
    told = await found(google)
    assert {state for state, _, _ in told["prices"]} == {State.WARN}
    assert all("enable the Cloud Billing API" in text for _, _, text in told["prices"])


async def test_quotas_that_do_not_hold_the_pool(google) -> None:
    google.quotas = {"NVIDIA_L4_GPUS": 1.0, "PREEMPTIBLE_NVIDIA_L4_GPUS": 8.0}
    told = await found(google)
    assert [(state, subject) for state, subject, _ in told["quotas"] if state is State.WARN] == [
        (State.WARN, "g2-standard-4 on-demand in us-central1")
    ]
    google.quotas = {}
    assert {state for state, _, _ in (await found(google))["quotas"]} == {State.SKIPPED}
