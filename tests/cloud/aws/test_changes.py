"""How machines are changed on EC2: at its pace, ends before launches, and what a refusal means."""

import asyncio
import datetime

import pytest
from botocore import exceptions as boto
from hand_clock import HandClock

from cloud.aws.clients import Lane
from cloud.aws.errors import translate
from cloud.aws.instances import AwsInstances
from cloud.aws.places import PROVIDER, AwsRegion
from cloud.errors import CloudError, Denied, NotFound, Throttled, Uncertain
from cloud.ports import EngineCommand, LaunchRequest
from policies.model import Market, Placement

TYPE = "p5.4xlarge"
START = 1_000_000.0
REFUSED = "UnauthorizedOperation"


def place(region="us-east-1"):
    return AwsRegion(
        region=region,
        subnets={f"{region}a": "subnet-1"},
        instance_types=(TYPE,),
        template="lt-1",
        template_version="1",
    )


def request(number=1):
    at = Placement(
        provider=PROVIDER, region="us-east-1", zone="us-east-1a", instance_type=TYPE, market=Market.ON_DEMAND
    )
    return LaunchRequest(
        token=f"pool/1/{number}", pool="pool", placement=at, command=EngineCommand(argv=("x",))
    )


class Clients:
    """The clients of one region as a script: what EC2 says to an operation, and what it describes."""

    def __init__(self, clock, region="us-east-1"):
        self.clock, self.region = clock, region
        self.calls = []  # (time, lane, operation)
        self.answers = {}  # operation -> code of the refusal
        self.machines = {}  # id -> state
        self.unreadable = False
        self._launched = 0

    def share(self):
        return self

    async def close(self):
        pass

    async def call(self, lane, service, operation, **parameters):
        self.calls.append((self.clock.steady() - START, lane, operation))
        code = self.answers.get(operation)
        if code is not None:
            body = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
            cause = boto.ClientError(body, operation)
            raise translate(cause, operation) from cause
        if operation == "run_instances":
            self._launched += 1
            return {"Instances": [self._shown(f"i-{self._launched}", "pending")]}
        return {}

    async def pages(self, lane, service, operation, **parameters):
        if self.unreadable:
            raise CloudError("no answer")
        (wanted,) = parameters["Filters"][0]["Values"]
        found = [self._shown(n, s) for n, s in self.machines.items() if n == wanted]
        yield {"Reservations": [{"Instances": found}]}

    def _shown(self, node, state):
        return {
            "InstanceId": node,
            "InstanceType": TYPE,
            "Placement": {"AvailabilityZone": f"{self.region}a"},
            "LaunchTime": datetime.datetime.fromtimestamp(START, datetime.UTC),
            "State": {"Name": state},
        }


class Ec2:
    """The adapter on scripted clients."""

    def __init__(self, *regions, patience=5.0):
        self.clock = HandClock(START)
        self.of = {region: Clients(self.clock, region) for region in regions or ("us-east-1",)}
        self.instances = AwsInstances(
            [(clients, place(region)) for region, clients in self.of.items()],
            clock=self.clock,
            patience=patience,
        )
        self.here = next(iter(self.of.values()))

    def calls(self, operation):
        return [call for call in self.here.calls if call[2] == operation]


# -- pace -----------------------------------------------------------------------------------------


async def test_launches_keep_to_the_bucket_and_lose_nothing():
    ec2 = Ec2(patience=100.0)
    for number in range(11):
        await ec2.instances.launch(request(number))
    assert [at for at, _, _ in ec2.calls("run_instances")] == [0, 0, 0, 0, 0, 0.5, 1, 1.5, 2, 2.5, 3]


async def test_a_launch_whose_turn_is_too_far_off_is_throttled_without_a_call():
    ec2 = Ec2(patience=0.0)
    for number in range(5):
        await ec2.instances.launch(request(number))
    with pytest.raises(Throttled, match="not asked"):
        await ec2.instances.launch(request(5))
    assert len(ec2.calls("run_instances")) == 5
    ec2.clock.at += 0.5
    await ec2.instances.launch(request(5))


async def test_what_ec2_throttles_slows_the_next_down():
    ec2 = Ec2(patience=100.0)
    ec2.here.answers["run_instances"] = "RequestLimitExceeded"
    with pytest.raises(Throttled):
        await ec2.instances.launch(request(1))
    del ec2.here.answers["run_instances"]
    await ec2.instances.launch(request(1))
    await ec2.instances.launch(request(2))
    at = [at for at, _, _ in ec2.calls("run_instances")]
    assert at[0] == 0
    assert at[1] == pytest.approx(1.0)
    assert at[2] - at[1] > 0.9


async def test_ends_wait_for_no_launch_neither_for_a_turn_nor_for_a_thread():
    ec2 = Ec2(patience=0.0)
    ec2.here.machines["i-9"] = "running"
    for number in range(5):
        await ec2.instances.launch(request(number))
    with pytest.raises(Throttled):
        await ec2.instances.launch(request(5))
    await ec2.instances.terminate("i-9")
    assert ec2.calls("terminate_instances") == [(0.0, Lane.END, "terminate_instances")]
    assert {lane for _, lane, _ in ec2.calls("run_instances")} == {Lane.LAUNCH}


async def test_a_launch_that_is_given_up_while_it_waits_gives_its_turn_back():
    ec2 = Ec2(patience=100.0)

    async def cut_off(_seconds):
        raise asyncio.CancelledError

    for number in range(5):
        await ec2.instances.launch(request(number))
    ec2.clock.sleep = cut_off
    for _ in range(3):
        with pytest.raises(asyncio.CancelledError):
            await ec2.instances.launch(request(5))
    del ec2.clock.sleep
    await ec2.instances.launch(request(5))
    assert ec2.calls("run_instances")[-1][0] == 0.5


# -- refusals -------------------------------------------------------------------------------------

CHANGES = ["terminate", "stop", "start"]


def refusing(ec2):
    for clients in ec2.of.values():
        clients.answers |= {f"{change}_instances": REFUSED for change in CHANGES}


async def change(ec2, name, node):
    await getattr(ec2.instances, name)(node)


@pytest.mark.parametrize("name", CHANGES)
async def test_a_machine_that_is_there_and_is_refused_is_denied(name):
    ec2 = Ec2()
    refusing(ec2)
    ec2.here.machines["i-1"] = "running"
    with pytest.raises(Denied, match="allow the action"):
        await change(ec2, name, "i-1")


@pytest.mark.parametrize("state", [None, "terminated", "shutting-down"])
async def test_a_machine_that_is_gone_is_no_refusal(state):
    ec2 = Ec2()
    refusing(ec2)
    if state:
        ec2.here.machines["i-1"] = state
    await ec2.instances.terminate("i-1")
    for name in ("stop", "start"):
        with pytest.raises(NotFound):
            await change(ec2, name, "i-1")


@pytest.mark.parametrize("name", CHANGES)
async def test_a_young_machine_that_is_not_shown_yet_is_uncertain(name):
    ec2 = Ec2()
    node = (await ec2.instances.launch(request())).id
    refusing(ec2)
    with pytest.raises(Uncertain, match="a moment ago"):
        await change(ec2, name, node)


@pytest.mark.parametrize("name", CHANGES)
async def test_a_look_that_fails_leaves_the_refusal(name):
    ec2 = Ec2()
    refusing(ec2)
    ec2.here.unreadable = True
    with pytest.raises(Denied, match=REFUSED):
        await change(ec2, name, "i-1")


async def test_the_other_regions_are_asked_for_a_machine_that_is_not_where_it_was():
    ec2 = Ec2("us-east-1", "us-west-2")
    refusing(ec2)
    with pytest.raises(NotFound):
        await ec2.instances.stop("i-1")
    west = ec2.of["us-west-2"]
    west.machines["i-1"] = "running"
    west.answers.clear()
    await ec2.instances.stop("i-1")
    assert west.calls[-1][2] == "stop_instances"
