"""What a launch on Google Cloud does beyond the contract: names, request ids, the ledger and its loss."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from cloud.cloud_init.user_data import NodeSetup, written
from cloud.errors import (
    CloudError,
    Denied,
    InsufficientCapacity,
    Misconfigured,
    QuotaExceeded,
    Throttled,
    Uncertain,
)
from cloud.gcp.client import GcpClient
from cloud.gcp.errors import of_answer, of_operation
from cloud.gcp.instances import GcpInstances
from cloud.gcp.machines import body_of, name_of
from cloud.gcp.places import GcpMachines, GcpRegion
from cloud.gcp.tokens import NoTokens
from cloud.ports import EngineCommand, LaunchRequest
from cloud.tombstones import Tombstones
from policies.model import Ending, InstanceState, Market, Placement
from tests.support.gcp_stand_in import GcpStandIn

ZONE = "us-central1-a"
MADE = GcpMachines(
    instance_types=("g2-standard-4",), engine_port=8000, image="projects/i/global/images/family/f"
)
PLACES = (
    GcpRegion(region="us-central1", zones=(ZONE, "us-central1-b"), subnetwork="nodes"),
    GcpRegion(region="europe-west4", zones=("europe-west4-a",), subnetwork=""),
)


def request(token: str = "pool/1/2", market: Market = Market.SPOT, **changes) -> LaunchRequest:  # noqa: S107
    placement = Placement("gcp", "us-central1", ZONE, "g2-standard-4", market)
    command = EngineCommand(argv=("vllm", "serve"), build="b")
    return replace(LaunchRequest(token=token, pool="pool", placement=placement, command=command), **changes)


class Quick:
    """A clock whose sleeps are short."""

    def __init__(self) -> None:
        self.passed = 0.0

    def now(self) -> float:
        return datetime.now(UTC).timestamp() + self.passed

    def steady(self) -> float:
        return asyncio.get_running_loop().time() + self.passed

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))


@pytest.fixture
async def google():
    stand_in = GcpStandIn(zones=(ZONE, "us-central1-b", "europe-west4-a"))
    await stand_in.open()
    yield stand_in
    await stand_in.close()


@pytest.fixture
async def instances(google, tmp_path):
    made = []

    def make(ledger: str = "ledger", patience: float = 5.0) -> GcpInstances:
        clock = Quick()
        adapter = GcpInstances(
            GcpClient("p", NoTokens(), endpoint=google.url),
            PLACES,
            MADE,
            ledger=Tombstones(tmp_path / ledger, clock),
            clock=clock,
            patience=patience,
        )
        made.append(adapter)
        return adapter

    yield make
    for adapter in made:
        await adapter.close()


async def until_gone(adapter, node, region="us-central1"):
    while True:
        for instance in await adapter.list("pool", region):
            if instance.id == node and instance.state is InstanceState.TERMINATED:
                return instance
        await asyncio.sleep(0.01)


async def test_every_spot_machine_asks_for_120_seconds_and_tells_its_agent(google, instances):
    await instances().launch(request("a"))
    await instances().launch(request("b", Market.ON_DEMAND))
    spot, on_demand = google.bodies
    assert spot["scheduling"]["preemptionNoticeDuration"] == {"seconds": "120"}
    assert spot["scheduling"]["instanceTerminationAction"] == "DELETE"
    assert {"key": "orchestrator-notice-seconds", "value": "120"} in spot["metadata"]["items"]
    assert "preemptionNoticeDuration" not in on_demand["scheduling"]
    assert not any(i["key"] == "orchestrator-notice-seconds" for i in on_demand["metadata"]["items"])


@pytest.mark.parametrize("lost", ["nothing", "ledger", "request ids", "both"])
async def test_a_replay_after_the_deletion_launches_nothing(google, instances, lost):
    first = await instances().launch(request())
    await instances().terminate(first.id)
    await until_gone(instances(), first.id)
    google.remembers = lost not in ("request ids", "both")
    again = await instances("another" if lost in ("ledger", "both") else "ledger").launch(request())
    assert (again.id, again.state, again.ending) == (first.id, InstanceState.TERMINATED, Ending.REQUEST)
    assert google.launched == 1


async def test_a_machine_that_was_preempted_is_known_as_such_after_a_restart(google, instances):
    first = await instances().launch(request())
    google.preempt(first.id, notice=0.0)
    ended = await until_gone(instances(), first.id)
    assert (ended.ending, ended.ending_why) == (Ending.RECLAIM, "Instance was preempted.")
    assert ended.ended_at is not None
    again = await instances().launch(request())
    assert (again.state, again.ending) == (InstanceState.TERMINATED, Ending.RECLAIM)
    assert google.launched == 1


async def test_a_kill_between_ledger_and_call_launches_once_later(google, instances, monkeypatch):
    adapter = instances()

    async def killed(*_args, **_params):
        raise asyncio.CancelledError

    with monkeypatch.context() as patched:
        patched.setattr(adapter._client, "change", killed)
        with pytest.raises(asyncio.CancelledError):
            await adapter.launch(request())
    assert google.launched == 0
    launched = await instances().launch(request())
    assert launched.state is not InstanceState.TERMINATED
    assert google.launched == 1


async def test_a_launch_whose_place_is_not_known_in_time_is_uncertain_and_resolved_by_its_token(
    google, instances
):
    google.step = 0.4
    with pytest.raises(Uncertain, match="whether there is room"):
        await instances(patience=0.05).launch(request())
    launched = await instances().launch(request())
    assert launched.id == name_of(request())
    assert google.launched == 1


async def test_a_refusal_that_came_late_is_told_to_who_asks_again_and_then_another_try_is_made(
    google, instances
):
    google.step, google.no_room = 0.2, 1
    with pytest.raises(Uncertain):
        await instances(patience=0.05).launch(request())
    with pytest.raises(InsufficientCapacity, match="does not have enough resources"):
        await instances().launch(request())
    launched = await instances().launch(request())
    assert launched.id == name_of(request())
    assert google.launched == 1


async def test_a_zone_that_is_dark_fails_its_own_region_alone(google, instances):
    adapter = instances()
    google.dark = {"europe-west4-a"}
    launched = await adapter.launch(request())
    with pytest.raises(CloudError, match="unavailable"):
        await adapter.list("pool", "europe-west4")
    assert [i.id for i in await adapter.list("pool", "us-central1")] == [launched.id]


async def test_a_launch_that_the_ledger_cannot_write_down_is_not_asked_for(google, instances, tmp_path):
    (tmp_path / "ledger").mkdir()
    with pytest.raises(Denied, match="nothing is launched without it"):
        await instances().launch(request())
    assert not any(call.startswith("POST") for call in google.calls)


async def test_a_spot_machine_is_not_stopped(google, instances):
    launched = await instances().launch(request())
    with pytest.raises(Misconfigured, match="spot"):
        await instances().stop(launched.id)
    assert not any(call.endswith("/stop") for call in google.calls)


async def test_places_that_the_pool_has_not_are_refused_without_a_call(google, instances):
    for placement in (
        Placement("aws", "us-central1", ZONE, "g2-standard-4", Market.SPOT),
        Placement("gcp", "asia-east1", "asia-east1-a", "g2-standard-4", Market.SPOT),
        Placement("gcp", "us-central1", "us-central1-f", "g2-standard-4", Market.SPOT),
    ):
        with pytest.raises(Misconfigured):
            await instances().launch(request(placement=placement))
    assert google.calls == []


async def test_a_machine_is_found_by_its_name_where_nothing_is_remembered(google, instances):
    launched = await instances().launch(request())
    await instances("lost").terminate(launched.id)
    await until_gone(instances(), launched.id)


def test_a_name_is_one_that_google_takes_for_every_pool_and_token():
    names = {name_of(request(token, pool="p" * 24)) for token in ("a", "b", "Ä/1", "x" * 64)}
    assert len(names) == 4
    assert all(len(name) <= 63 and name.startswith("so-ppp") for name in names)


def test_with_a_template_only_what_is_the_launchs_is_written_over_it():
    made = replace(MADE, image="", template="projects/p/global/instanceTemplates/t")
    body = body_of(request(), "so-pool-1", PLACES[0], made)
    assert set(body) == {"name", "machineType", "labels", "scheduling", "metadata"}


def test_the_startup_script_starts_the_engine_of_the_launch_and_no_other():
    own = EngineCommand(argv=("vllm", "serve", "--small"))
    command = EngineCommand(argv=("vllm", "serve", "--large"), on={"g2-standard-4": own}, build="b")
    setup = NodeSetup(
        pool="pool", command=EngineCommand(argv=()), port=8000, gpus=2, gpus_on={"g2-standard-4": 1}
    )
    body = body_of(request(command=command), "so-pool-1", PLACES[0], replace(MADE, setup=setup))
    (script,) = [i["value"] for i in body["metadata"]["items"] if i["key"] == "startup-script"]
    compile(script, "startup", "exec")
    names: dict[str, object] = {}
    exec(script.partition("for path, text")[0], names)  # noqa: S102 - its files alone
    files = names["FILES"]
    assert "--small" in files["/opt/orchestrator/engine.json"]
    assert "--large" not in files["/opt/orchestrator/engine.json"]
    assert '"gpus": 1' in files["/opt/orchestrator/engine.json"]
    assert "/etc/systemd/system/orchestrator-engine.service" in files


def error(code: str, message: str = "words") -> dict:
    return {"error": {"errors": [{"code": code, "message": message}]}, "httpErrorStatusCode": 400}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("ZONE_RESOURCE_POOL_EXHAUSTED", InsufficientCapacity),
        ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", InsufficientCapacity),
        ("UNSUPPORTED_OPERATION", InsufficientCapacity),
        ("QUOTA_EXCEEDED", QuotaExceeded),
        ("RATE_LIMIT_EXCEEDED", Throttled),
        ("PERMISSIONS_ERROR", Denied),
        ("RESOURCE_NOT_FOUND", Misconfigured),
        ("INVALID_FIELD_VALUE", Misconfigured),
        ("SOMETHING_NEW", Misconfigured),
    ],
)
def test_what_an_operations_error_means(code, kind):
    found = of_operation(error(code), "a launch")
    assert type(found) is kind
    assert str(found) == f"a launch: words ({code})"
    assert of_operation({"status": "DONE"}, "") is None


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (403, "rateLimitExceeded", Throttled),
        (403, "quotaExceeded", QuotaExceeded),
        (403, "forbidden", Denied),
        (403, "", Denied),
        (401, "authError", Denied),
        (404, "notFound", None),
        (429, "", Throttled),
        (400, "invalid", Misconfigured),
        (500, "backendError", Uncertain),
        (502, "", Uncertain),
    ],
)
def test_what_an_answers_error_means(status, reason, kind):
    body = {"error": {"code": status, "message": "words", "errors": [{"reason": reason}] if reason else []}}
    found = of_answer(status, body, "a call", Uncertain)
    assert kind is None or type(found) is kind
    assert "words" in str(found)


@pytest.mark.parametrize("body", [None, [], "x", {"error": "x"}, {"error": {"errors": ["x", None]}}])
def test_an_error_that_says_nothing_is_still_one(body):
    assert "status 418" in str(of_answer(418, body, "a call", Uncertain))


def test_a_node_of_google_starts_by_googles_metadata_and_carries_what_that_needs():
    command = EngineCommand(argv=("vllm", "serve"), build="b")
    setup = NodeSetup(pool="pool", cloud="gcp", command=command, port=8000, report_url="https://control:9465")
    files = written(setup)
    for unit in ("engine", "agent", "console"):
        unit_of = files[f"/etc/systemd/system/orchestrator-{unit}.service"]
        assert "Environment=ORCHESTRATOR_CLOUD=gcp\n" in unit_of
    assert "computeMetadata" in files["/opt/orchestrator/cloud/node_gcp.py"]
    on_aws = written(replace(setup, cloud="aws"))
    assert "/opt/orchestrator/cloud/node_gcp.py" not in on_aws
    assert not any("ORCHESTRATOR_CLOUD" in text for path, text in on_aws.items() if path.endswith(".service"))
