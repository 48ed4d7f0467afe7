"""Google's own client drives the stand-in, and reads what our adapter sends."""

from __future__ import annotations

import asyncio
import json
import uuid

import pytest
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import compute_v1

from cloud.gcp.machines import body_of, request_id
from cloud.gcp.prices import machine_type
from cloud.tombstones import Tombstones
from policies.model import Market
from tests.cloud.gcp.test_launches import MADE, PLACES, ZONE, request
from tests.support.gcp_stand_in import GcpStandIn
from tests.support.hand_clock import HandClock

AT = {"project": "p", "zone": ZONE}


@pytest.fixture
async def google():
    stand_in = GcpStandIn()
    await stand_in.open()
    yield stand_in
    await stand_in.close()


def client(kind, google):
    return kind(credentials=AnonymousCredentials(), client_options={"api_endpoint": google.url})


def spot(name: str) -> compute_v1.Instance:
    return compute_v1.Instance(
        name=name,
        machine_type=f"zones/{ZONE}/machineTypes/g2-standard-4",
        labels={"orchestrator-pool": "pool"},
        disks=[
            compute_v1.AttachedDisk(
                boot=True,
                initialize_params=compute_v1.AttachedDiskInitializeParams(
                    source_image="projects/i/global/images/family/f"
                ),
            )
        ],
        network_interfaces=[compute_v1.NetworkInterface(network="global/networks/default")],
        scheduling=compute_v1.Scheduling(
            provisioning_model="SPOT",
            instance_termination_action="DELETE",
            preemption_notice_duration=compute_v1.Duration(seconds=120),
        ),
    )


async def in_thread(work, *args, **kwargs):
    return await asyncio.to_thread(work, *args, **kwargs)


async def done(google, work, **changes):
    """The operation of a call once it has ended; the calls that wait by themselves know no endpoint."""
    operation = await in_thread(work, request={**AT, **changes})
    waiting = client(compute_v1.ZoneOperationsClient, google)
    ended = await in_thread(waiting.wait, request={**AT, "operation": operation.name})
    assert ended.status is compute_v1.Operation.Status.DONE
    return ended


async def test_the_whole_life_of_a_machine(google):
    machines, operations = (
        client(compute_v1.InstancesClient, google),
        client(compute_v1.ZoneOperationsClient, google),
    )
    insert = {"instance_resource": spot("so-1"), "request_id": str(uuid.uuid4())}
    made = await done(google, machines.insert_unary, **insert)
    assert (await done(google, machines.insert_unary, **insert)).name == made.name
    assert google.launched == 1
    found = await in_thread(machines.get, request={**AT, "instance": "so-1"})
    assert (found.status, found.scheduling.preemption_notice_duration.seconds) == ("RUNNING", 120)
    assert found.network_interfaces[0].network_i_p.startswith("10.")
    await done(google, machines.stop_unary, instance="so-1")
    stopped = await in_thread(machines.get, request={**AT, "instance": "so-1"})
    assert stopped.status == "TERMINATED"
    await done(google, machines.start_unary, instance="so-1")
    google.consoles["so-1"] = "words"
    port = await in_thread(machines.get_serial_port_output, request={**AT, "instance": "so-1"})
    assert port.contents == "words"
    await done(google, machines.delete_unary, instance="so-1")
    with pytest.raises(exceptions.NotFound):
        await in_thread(machines.get, request={**AT, "instance": "so-1"})
    told = await in_thread(
        lambda: list(operations.list(request={**AT, "filter": 'targetLink eq ".*/instances/so-1"'}))
    )
    assert [each.operation_type for each in told] == ["insert", "stop", "start", "delete"]


async def test_lists_turn_pages_and_filter(google):
    machines = client(compute_v1.InstancesClient, google)
    for number in range(5):
        await done(google, machines.insert_unary, instance_resource=spot(f"so-{number}"))
    mine = {**AT, "filter": 'labels.orchestrator-pool="pool"'}
    listed = await in_thread(lambda: [each.name for each in machines.list(request=mine)])
    assert listed == [f"so-{number}" for number in range(5)]
    theirs = {**AT, "filter": 'labels.orchestrator-pool="other"'}
    assert await in_thread(lambda: list(machines.list(request=theirs))) == []
    everywhere = {"project": "p", "filter": 'name="so-3"'}
    scoped = await in_thread(lambda: dict(machines.aggregated_list(request=everywhere)))
    assert [each.name for each in scoped[f"zones/{ZONE}"].instances] == ["so-3"]


async def test_no_room_shows_in_the_operation_and_a_name_that_is_taken_at_once(google):
    machines = client(compute_v1.InstancesClient, google)
    google.no_room = 1
    refused = await done(google, machines.insert_unary, instance_resource=spot("so-1"))
    (why,) = refused.error.errors
    assert why.code == "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"
    assert refused.http_error_status_code == 503
    made = await done(google, machines.insert_unary, instance_resource=spot("so-1"))
    assert not made.error.errors
    with pytest.raises(exceptions.Conflict, match="already exists"):
        await done(google, machines.insert_unary, instance_resource=spot("so-1"))


async def test_a_preemption_is_simulated_as_googles_guide_says(google):
    machines, operations = (
        client(compute_v1.InstancesClient, google),
        client(compute_v1.ZoneOperationsClient, google),
    )
    await done(google, machines.insert_unary, instance_resource=spot("so-1"))
    await done(google, machines.simulate_maintenance_event_unary, instance="so-1")
    wanted = {**AT, "filter": 'operationType="compute.instances.preempted"'}
    (taken,) = await in_thread(lambda: list(operations.list(request=wanted)))
    assert taken.target_link.endswith("/instances/so-1")


async def test_machine_types(google):
    types = client(compute_v1.MachineTypesClient, google)
    found = await in_thread(types.get, request={**AT, "machine_type": "g2-standard-24"})
    ours = machine_type(compute_v1.MachineType.to_dict(found, preserving_proto_field_name=False))
    assert (ours.vcpus, ours.memory, dict(ours.gpus)) == (24, 96.0, {"nvidia-l4": 2})
    with pytest.raises(exceptions.NotFound):
        await in_thread(types.get, request={**AT, "machine_type": "p5.48xlarge"})


@pytest.mark.parametrize("market", Market)
def test_every_key_of_a_launch_is_one_that_google_knows(market, tmp_path):
    asked = request(market=market)
    body = body_of(asked, "so-1", PLACES[0], MADE)
    told = compute_v1.Instance.from_json(json.dumps(body), ignore_unknown_fields=False)
    assert told.scheduling.provisioning_model == ("SPOT" if market is Market.SPOT else "STANDARD")
    assert told.scheduling.preemption_notice_duration.seconds == (120 if market is Market.SPOT else 0)
    assert told.disks[0].auto_delete
    assert {item.key for item in told.metadata.items} >= {"orchestrator-token"}
    entry = Tombstones(tmp_path / "ledger", HandClock()).ask(asked, "so-1")
    assert uuid.UUID(request_id(entry)).version == 5
