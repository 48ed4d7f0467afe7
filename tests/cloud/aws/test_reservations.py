"""Capacity that is reserved: its price, when it is for sale, how it is launched into, what is known of it."""

import datetime

import pytest
from botocore.exceptions import ClientError
from iam_policy import launch_refused
from played_aws import LAUNCHED, PlayedClients

from cloud.aws.iam import policy
from cloud.aws.instances import AwsInstances
from cloud.aws.machines import instance_of, launch_parameters
from cloud.aws.offerings import AwsOfferings
from cloud.aws.places import AwsRegion, Reservation
from cloud.clock import SystemClock
from cloud.errors import CloudError, InsufficientCapacity, Misconfigured
from cloud.ports import EngineCommand, LaunchRequest
from policies.model import Market, Placement

HELD = Reservation(id="cr-0123456789abcdef0", zone="us-east-1a", instance_type="p5.4xlarge", price=6.5)
BLOCK = Reservation(
    id="cr-0fedcba9876543210", zone="us-east-1b", instance_type="p5.48xlarge", price=31.4, block=True
)
PLACE = AwsRegion(
    region="us-east-1",
    subnets={"us-east-1a": "subnet-1", "us-east-1b": "subnet-2"},
    instance_types=("p5.4xlarge", "p5.48xlarge"),
    template="lt-0123456789abcdef0",
    template_version="1",
    on_demand_prices={"p5.4xlarge": 6.88, "p5.48xlarge": 55.0},
    reservations=(HELD, BLOCK),
)


def there(held):
    return Placement("aws", "us-east-1", held.zone, held.instance_type, Market.ON_DEMAND, held.id)


def request(placement):
    return LaunchRequest(token="t-1", pool="pool", placement=placement, command=EngineCommand(argv=("x",)))


def described(*rooms, state="active"):
    return {
        "CapacityReservations": [
            {"CapacityReservationId": held.id, "State": state, "AvailableInstanceCount": room}
            for held, room in rooms
        ]
    }


def offerings(clients, place=PLACE):
    return AwsOfferings([(clients, place)], clock=SystemClock())


# -- what is sold ------------------------------------------------------------------------------------------


async def test_each_reservation_is_a_placement_of_its_own_with_the_users_price():
    clients = PlayedClients(describe_capacity_reservations=described((HELD, 2), (BLOCK, 1)))
    sold = await offerings(clients).list("us-east-1 reserved")
    assert {o.placement: (o.price, o.available) for o in sold.offerings} == {
        there(HELD): (6.5, True),
        there(BLOCK): (31.4, True),
    }
    assert sold.problem == ""
    assert str(there(HELD)) == "on-demand p5.4xlarge in us-east-1a in reservation cr-0123456789abcdef0"


async def test_what_is_full_or_no_longer_active_is_not_for_sale():
    full = PlayedClients(describe_capacity_reservations=described((HELD, 0), (BLOCK, 1)))
    found = {o.placement: o.available for o in (await offerings(full).list("us-east-1 reserved")).offerings}
    assert found == {there(HELD): False, there(BLOCK): True}
    over = PlayedClients(describe_capacity_reservations=described((HELD, 4), (BLOCK, 4), state="expired"))
    assert not any(o.available for o in (await offerings(over).list("us-east-1 reserved")).offerings)


async def test_one_that_the_account_has_not_is_not_sold_and_said_so():
    clients = PlayedClients(describe_capacity_reservations=described((HELD, 1)))
    sold = await offerings(clients).list("us-east-1 reserved")
    assert [o.placement for o in sold.offerings] == [there(HELD)]
    assert BLOCK.id in sold.problem


async def test_reservations_that_cannot_be_read_hold_back_no_other_price():
    clients = PlayedClients(describe_capacity_reservations=CloudError("503"))
    sells = offerings(clients)
    with pytest.raises(CloudError):
        await sells.list("us-east-1 reserved")
    assert {o.price for o in (await sells.list("us-east-1 on-demand")).offerings} == {6.88, 55.0}


def test_without_reservations_there_is_no_part_for_them():
    plain = AwsRegion(
        region="us-east-1",
        subnets=PLACE.subnets,
        instance_types=PLACE.instance_types,
        template=PLACE.template,
        template_version="1",
    )
    assert set(offerings(PlayedClients(), plain).parts()) == {"us-east-1 spot", "us-east-1 on-demand"}
    parts = offerings(PlayedClients()).parts()
    assert [o.placement for o in parts["us-east-1 reserved"]] == [there(HELD), there(BLOCK)]


# -- launches ----------------------------------------------------------------------------------------------


def test_a_launch_goes_into_the_reservation_and_nowhere_else():
    asked = launch_parameters(request(there(HELD)), PLACE, "subnet-1")
    target = {"CapacityReservationTarget": {"CapacityReservationId": HELD.id}}
    assert asked["CapacityReservationSpecification"] == target
    assert "InstanceMarketOptions" not in asked


def test_a_capacity_block_is_a_market_of_its_own():
    asked = launch_parameters(request(there(BLOCK)), PLACE, "subnet-2")
    assert asked["InstanceMarketOptions"] == {"MarketType": "capacity-block"}


def test_other_launches_name_no_reservation():
    for market in Market:
        placement = Placement("aws", "us-east-1", "us-east-1a", "p5.4xlarge", market)
        assert "CapacityReservationSpecification" not in launch_parameters(request(placement), PLACE, "s")


def test_a_reservation_that_is_no_longer_configured_is_refused():
    gone = Placement("aws", "us-east-1", "us-east-1a", "p5.4xlarge", Market.ON_DEMAND, "cr-00000000")
    with pytest.raises(Misconfigured, match="cr-00000000"):
        launch_parameters(request(gone), PLACE, "subnet-1")


async def test_a_full_reservation_is_a_refusal_of_that_place():
    refused = ClientError(
        {"Error": {"Code": "ReservationCapacityExceeded", "Message": "full"}}, "RunInstances"
    )
    instances = AwsInstances([(PlayedClients(run_instances=refused), PLACE)], clock=SystemClock())
    with pytest.raises(InsufficientCapacity):
        await instances.launch(request(there(HELD)))


@pytest.mark.parametrize(
    ("reservation", "known"), [(HELD.id, HELD.id), ("cr-0aaaaaaaaaaaaaaaa", ""), (None, "")]
)
def test_a_machine_is_in_the_reservation_that_the_pool_may_use(reservation, known):
    machine = {
        "InstanceId": "i-1",
        "InstanceType": "p5.4xlarge",
        "State": {"Name": "running"},
        "Placement": {"AvailabilityZone": "us-east-1a"},
        "LaunchTime": LAUNCHED,
        **({} if reservation is None else {"CapacityReservationId": reservation}),
    }
    placement = instance_of(machine, PLACE).placement
    assert (placement.reservation, placement.market) == (known, Market.ON_DEMAND)
    assert LAUNCHED.tzinfo is datetime.UTC


def test_the_policy_allows_launches_into_these_reservations_and_no_others():
    made = policy("pool", [PLACE], queues={})
    template = {"id": PLACE.template}
    for held, subnet in ((HELD, "subnet-1"), (BLOCK, "subnet-2")):
        asked = launch_parameters(request(there(held)), PLACE, subnet)
        assert launch_refused(made, asked, template) == []
        other = {"CapacityReservationTarget": {"CapacityReservationId": "cr-0bbbbbbbbbbbbbbbb"}}
        wrong = {**asked, "CapacityReservationSpecification": other}
        assert launch_refused(made, wrong, template) == ["capacity-reservation"]
