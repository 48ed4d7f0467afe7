"""The doctor of a pool on Azure, against the stand-in as it is and broken in one way each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure_stage import (
    GROUP,
    IMAGE,
    REGION,
    SIZE,
    SSH_KEY,
    SUBSCRIPTION,
    AzureStandIn,
    running_stand_in,
    subnet,
)

from cloud.clock import SystemClock
from orchestrator.config.load import build_config
from orchestrator.doctor import on_azure
from orchestrator.doctor.clouds import LOOKS
from orchestrator.doctor.findings import State
from orchestrator.doctor.runner import run

LARGER = "Standard_NC48ads_A100_v4"

Told = dict[str, list[tuple[State, str, str]]]


@pytest.fixture(scope="module")
def azure_process() -> Iterator[AzureStandIn]:
    pytest.importorskip("azure.mgmt.compute", reason="the extra [azure] is not installed")
    with running_stand_in() as stand_in:
        yield stand_in


class Pool:
    """A pool on the stand-in."""

    def __init__(self, azure: AzureStandIn, directory: Path) -> None:
        self.azure, self.ledger = azure, directory / "azure.ledger"

    async def found(self, *regions: str, **changes: Any) -> Told:
        azure = {
            "subscription": SUBSCRIPTION,
            "instance_types": [SIZE],
            "image": IMAGE,
            "ssh_public_key": SSH_KEY,
            "endpoint": self.azure.url,
            "prices_endpoint": f"{self.azure.url}/api/retail/prices",
            "ledger": str(self.ledger),
            "regions": {
                region: {
                    "resource_group": f"rg-{region}",
                    "subnet": subnet(f"rg-{region}"),
                    "zones": ["1", "2"],
                }
                for region in regions or (REGION,)
            },
        }
        pool = {
            "replicas": 2,
            "model": "m",
            "engine": {"kind": "vllm"},
            "limits": {"spend_per_hour": 99},
            "cloud": {"kind": "azure", "azure": azure | changes},
        }
        tables = {"daemon": {"call_timeout": "3s"}, "pool": {"llama": pool}}
        looks = LOOKS["azure"]
        assert looks is not None
        doctor = looks.doctor(build_config(tables), "pool.toml", SystemClock())
        try:
            results = await run(doctor.checks(), SystemClock(), lambda _done, _waiting: None)
        finally:
            await doctor.close()
        assert all(f.advice for r in results for f in r.findings if f.state in (State.WARN, State.FAIL))
        return {r.check.name: [(f.state, f.subject, f.text) for f in r.findings] for r in results}


@pytest.fixture
def pool(azure_process: AzureStandIn, tmp_path: Path) -> Pool:
    azure_process.order("reset")
    return Pool(azure_process, tmp_path)


def states(told: Told, name: str) -> list[State]:
    return [state for state, _, _ in told[name]]


async def test_all_is_well(pool: Pool) -> None:
    told = await pool.found()
    assert set(told) == {"sdk", "ledger", "machines", "sizes"}
    assert {state for rows in told.values() for state, _, _ in rows} == {State.OK}
    assert told["machines"][0][2] == f"{GROUP} holds 0 machines"
    assert [text for _, _, text in told["sizes"]] == [
        f"{SIZE} spot in 2 zones",
        f"{SIZE} on-demand in 2 zones",
    ]


async def test_each_region_is_looked_at_by_itself(pool: Pool) -> None:
    pool.azure.order("set", dark=["westeurope"])
    told = await pool.found(REGION, "westeurope")
    assert set(told) == {
        "sdk",
        "ledger",
        *(f"{w} {r}" for w in ("machines", "sizes") for r in (REGION, "westeurope")),
    }
    assert states(told, f"machines {REGION}") == [State.OK]
    assert states(told, "machines westeurope") == [State.FAIL]


async def test_an_identity_that_may_not_list(pool: Pool) -> None:
    pool.azure.order(
        "fault", action="list", times=9, status=403, code="AuthorizationFailed", message="no right"
    )
    told = await pool.found()
    assert [(state, subject) for state, subject, _ in told["machines"]] == [(State.FAIL, REGION)]
    assert "no right" in told["machines"][0][2]
    assert set(states(told, "sizes")) == {State.OK}


async def test_a_size_that_the_subscription_may_not_have(pool: Pool) -> None:
    pool.azure.order("set", restrictions={SIZE: ["*"]})
    told = await pool.found()
    assert states(told, "sizes") == [State.FAIL, State.FAIL]
    assert {text for _, _, text in told["sizes"]} == {
        f"the subscription cannot have {SIZE} spot",
        f"the subscription cannot have {SIZE} on-demand",
    }


async def test_a_size_that_is_not_sold_as_spot_beside_one_that_is(pool: Pool) -> None:
    pool.azure.order("set", no_spot=[LARGER])
    told = await pool.found(instance_types=[SIZE, LARGER])
    assert [(state, text) for state, _, text in told["sizes"]] == [
        (State.WARN, f"the subscription cannot have {LARGER} spot"),
        (State.OK, f"{SIZE}, {LARGER} on-demand in 2 zones"),
    ]


async def test_prices_that_cannot_be_read(pool: Pool) -> None:
    told = await pool.found(prices_endpoint=f"{pool.azure.url}/nothing")
    assert set(states(told, "sizes")) == {State.FAIL}


async def test_what_the_subscription_may_use_cannot_be_read(pool: Pool) -> None:
    pool.azure.order(
        "fault", action="skus", times=9, status=403, code="AuthorizationFailed", message="no right"
    )
    told = await pool.found()
    assert set(states(told, "sizes")) == {State.WARN}
    assert all("what the subscription may use in eastus is not known" in text for _, _, text in told["sizes"])


async def test_a_ledger_with_lines_that_nobody_can_read(pool: Pool) -> None:
    pool.ledger.write_bytes(b"nothing that was written here\n")
    told = await pool.found()
    assert [(state, text) for state, _, text in told["ledger"]] == [
        (State.WARN, "1 line of the ledger of launches cannot be read")
    ]


async def test_a_ledger_that_cannot_be_written(pool: Pool) -> None:
    pool.ledger.mkdir()
    told = await pool.found()
    assert states(told, "ledger") == [State.FAIL]


async def test_without_the_sdk_nothing_is_asked(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_azure, "is_installed", lambda: False)
    told = await pool.found()
    assert {name: states(told, name) for name in told} == {"sdk": [State.FAIL], "ledger": [State.OK]}
