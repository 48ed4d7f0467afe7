"""Who we are on AWS, how far the clocks differ, and which actions of a policy are allowed.

An action is tried where that changes nothing: EC2 checks the permission and stops when asked with DryRun, a
read is made with the smallest answer. What can only be tried by doing it is put to IAM's policy simulator,
which needs a permission of its own.

Source: the EC2, STS and IAM API references (DryRun, GetCallerIdentity, SimulatePrincipalPolicy).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, Final

from cloud.aws.clients import Answer, AwsClients, Lane
from cloud.aws.doctor.dry_launches import DRY_RUN, DryLaunches
from cloud.aws.errors import code_of, error_text, is_refusal
from cloud.aws.offerings import PRICE_LIST_REGION
from cloud.aws.places import POOL_TAG
from cloud.errors import CloudError
from cloud.ports import Clock

_ROLE_SESSION = re.compile(r"arn:([\w-]+):sts::(\d+):assumed-role/([^/]+)/.+")
_NODE = "i-1234567890abcdef0"
_LOOKS: Final = (
    "describe_instance_status",
    "describe_instances",
    "describe_spot_instance_requests",
    "describe_spot_price_history",
)
_CHANGES: Final = ("terminate_instances", "stop_instances", "start_instances")


class How(StrEnum):
    """How it is known whether an action is allowed."""

    DRY_RUN = "dry run"
    LAUNCH = "dry run of RunInstances"  # which includes it
    READ = "reading"
    SIMULATED = "IAM's policy simulator"
    UNKNOWN = "not tried"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose credentials are used. `arn` of a role's session names the role and the session."""

    account: str
    arn: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockReading:
    """This machine's clock against AWS's, in seconds: ahead by at least `least` and at most `most`.

    AWS states whole seconds, so the two differ by more than one.
    """

    least: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """One action of a policy. `allowed` is None when it is not known; `detail` quotes the answer."""

    action: str
    how: How
    allowed: bool | None
    detail: str = ""


async def identity(clients: AwsClients) -> Identity:
    """Ask STS, which needs no permission. Raises CloudError when there are no usable credentials."""
    answer = await clients.call(Lane.LIST, "sts", "get_caller_identity", lost=CloudError)
    return Identity(account=answer["Account"], arn=answer["Arn"])


async def clock_reading(clients: AwsClients, clock: Clock) -> ClockReading:
    """Compare with the Date header of an answer; a refusal has one too. Raises CloudError without any."""
    before = clock.now()
    try:
        answer: Any = await clients.call(Lane.LIST, "sts", "get_caller_identity", lost=CloudError)
    except CloudError as error:
        answer = getattr(error.__cause__, "response", None)
        if answer is None:
            raise
    after = clock.now()
    stated = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if stated is None:
        raise CloudError("the answer of AWS states no time")
    at = parsedate_to_datetime(stated).timestamp()
    return ClockReading(least=before - at - 1.0, most=after - at)


async def opt_in_status(clients: AwsClients, region: str) -> str:
    """What the account has of a region: "opt-in-not-required", "opted-in" or "not-opted-in"; empty when there
    is no such region. Asked where every account may ask. Raises CloudError."""
    try:
        answer = await clients.call(
            Lane.LIST,
            "ec2",
            "describe_regions",
            lost=CloudError,
            region=_always_on(region),
            RegionNames=[region],
            AllRegions=True,
        )
    except CloudError as error:
        if code_of(error) != "InvalidParameterValue":
            raise
        return ""
    return str(next((entry["OptInStatus"] for entry in answer["Regions"]), ""))


class Permissions:
    """Finds out, in one region, which actions of the daemon's policy are allowed.

    `launches` are those of the region, `statements` those of `cloud.aws.iam.policy`; `group` is the ARN of
    the target group, if there is one.
    """

    def __init__(
        self,
        clients: AwsClients,
        *,
        pool: str,
        caller: Identity,
        launches: DryLaunches,
        statements: Sequence[Mapping[str, Any]],
        queue: str = "",
        group: str = "",
    ) -> None:
        self._clients, self._pool, self._caller, self._launches = clients, pool, caller, launches
        self._statements, self._queue, self._group = statements, queue, group

    async def all(self) -> tuple[Permission, ...]:
        """Every action of the policy, in its order. Raises CloudError when AWS does not answer."""
        actions = list(dict.fromkeys(action for s in self._statements for action in s["Action"]))
        tried = {p.action: p for part in await asyncio.gather(*self._tries()) for p in part}
        rest = [action for action in actions if action not in tried]
        tried.update({p.action: p for p in await self._simulated(rest)})
        return tuple(tried[action] for action in actions)

    def _tries(self) -> list[Any]:
        tries = [self._dry(name) for name in _LOOKS]
        tries += [self._launched(), self._changes_of_own(), self._prices()]
        if self._queue:
            asked = {"QueueUrl": self._queue, "AttributeNames": ["QueueArn"]}
            tries.append(self._read("sqs", "get_queue_attributes", **asked))
        if self._group:
            group = {"TargetGroupArn": self._group}
            tries.append(self._read("elbv2", "describe_target_groups", TargetGroupArns=[self._group]))
            tries.append(self._read("elbv2", "describe_target_group_attributes", **group))
            tries.append(self._read("elbv2", "describe_target_health", **group))
            tries.append(self._read("elbv2", "describe_tags", ResourceArns=[self._group]))
        return tries

    async def _dry(self, operation: str, **parameters: Any) -> list[Permission]:
        return [await self._tried(_ec2(operation), How.DRY_RUN, "ec2", operation, DryRun=True, **parameters)]

    async def _read(self, service: str, operation: str, **parameters: Any) -> list[Permission]:
        prefix = {"elbv2": "elasticloadbalancing"}.get(service, service)
        action = f"{prefix}:{_title(operation)}"
        return [await self._tried(action, How.READ, service, operation, **parameters)]

    async def _prices(self) -> list[Permission]:
        asked = {"ServiceCode": "AmazonEC2", "MaxResults": 1, "region": PRICE_LIST_REGION}
        return await self._read("pricing", "get_products", **asked)

    async def _launched(self) -> list[Permission]:
        """Launches as the daemon would ask for them, tags and role included. One that is refused counts."""
        found = await self._launches.all()
        worst = min(found, key=lambda launch: (not launch.refused, not launch.error))
        allowed = None if worst.error and not worst.refused else not worst.error
        detail = f"{worst.market} {worst.instance_type} in {worst.zone}: {worst.error}" if worst.error else ""
        return [
            Permission(action=action, how=how, allowed=allowed, detail=detail)
            for action, how in (
                ("ec2:RunInstances", How.DRY_RUN),
                ("ec2:CreateTags", How.LAUNCH),
                ("iam:PassRole", How.LAUNCH),
            )
        ]

    async def _changes_of_own(self) -> list[Permission]:
        """On a machine of the pool: whether another one may be changed says nothing."""
        node = await self._own_machine()
        if node is None:
            return []
        found = await asyncio.gather(*(self._dry(operation, InstanceIds=[node]) for operation in _CHANGES))
        return [permission for part in found for permission in part]

    async def _own_machine(self) -> str | None:
        filters = [
            {"Name": f"tag:{POOL_TAG}", "Values": [self._pool]},
            {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]},
        ]
        try:
            async for page in self._clients.pages(
                Lane.LIST, "ec2", "describe_instances", Filters=filters, MaxResults=5
            ):
                for reservation in page["Reservations"]:
                    return str(reservation["Instances"][0]["InstanceId"])
        except CloudError as error:
            if not is_refusal(error):
                raise
        return None

    async def _tried(
        self, action: str, how: How, service: str, operation: str, **parameters: Any
    ) -> Permission:
        try:
            await self._clients.call(Lane.LIST, service, operation, lost=CloudError, **parameters)
        except CloudError as error:
            if code_of(error) == DRY_RUN:
                return Permission(action=action, how=how, allowed=True)
            allowed = False if is_refusal(error) else None
            return Permission(action=action, how=how, allowed=allowed, detail=error_text(error))
        return Permission(action=action, how=how, allowed=True)

    async def _simulated(self, actions: Sequence[str]) -> list[Permission]:
        """What can only be tried by doing it, as IAM would decide it for the resources of the policy."""
        principal = principal_of(self._caller.arn)
        asked = [s for s in self._statements if set(s["Action"]) & set(actions)]
        verdicts: dict[str, list[str]] = {}
        try:
            for statement in asked:
                wanted = [action for action in statement["Action"] if action in actions]
                for action, verdict in await simulate(
                    self._clients, principal, self._caller.account, statement, wanted
                ):
                    verdicts.setdefault(action, []).append(verdict)
        except CloudError as error:
            why = "" if is_refusal(error) else error_text(error)
            return [Permission(action=a, how=How.UNKNOWN, allowed=None, detail=why) for a in actions]
        found = []
        for action in actions:
            bad = next((v for v in verdicts.get(action, ["no answer"]) if v != "allowed"), "")
            found.append(Permission(action=action, how=How.SIMULATED, allowed=not bad, detail=bad))
        return found


async def simulate(
    clients: AwsClients, principal: str, account: str, statement: Mapping[str, Any], actions: Sequence[str]
) -> list[tuple[str, str]]:
    """What IAM would decide on these actions of a statement of ours for a user or role: each action with
    "allowed" or why not, once for each resource. Raises CloudError."""
    context = context_of(statement.get("Condition", {}))
    found = []
    for resource in statement["Resource"]:
        answer: Answer = await clients.call(
            Lane.LIST,
            "iam",
            "simulate_principal_policy",
            lost=CloudError,
            PolicySourceArn=principal,
            ActionNames=list(actions),
            ResourceArns=[_one_of(resource, account)],
            ContextEntries=context,
        )
        found += [
            (result["EvalActionName"], result["EvalDecision"]) for result in answer["EvaluationResults"]
        ]
    return found


def context_of(condition: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The circumstances in which a condition of ours holds, as the simulator takes them: of values of which
    one is enough the first."""
    found = []
    for operator, keys in condition.items():
        for key, value in keys.items():
            values = [value] if isinstance(value, str) else list(value)
            kind = "boolean" if operator == "Bool" else "string"
            if operator.startswith("ForA"):  # a key with many values
                kind = "stringList"
            found.append({"ContextKeyName": key, "ContextKeyValues": values[:1], "ContextKeyType": kind})
    return found


def principal_of(arn: str) -> str:
    """The user or role behind an identity, as IAM names it. A role with a path is not found under it: the
    session does not name the path."""
    session = _ROLE_SESSION.fullmatch(arn)
    if session is None:
        return arn
    partition, account, role = session.groups()
    return f"arn:{partition}:iam::{account}:role/{role}"


def _always_on(region: str) -> str:
    """A region of the same partition that no account has to opt in to."""
    if region.startswith("cn-"):
        return "cn-north-1"
    return "us-gov-west-1" if region.startswith("us-gov-") else "us-east-1"


def _one_of(resource: str, account: str) -> str:
    """A resource that a pattern of the policy means: simulations take one resource, not a pattern."""
    parts = resource.split(":", 5)
    if len(parts) < 6:
        return resource
    if parts[4] == "*":
        parts[4] = account
    name = parts[5]
    parts[5] = f"instance/{_NODE}" if name == "instance/*" else re.sub(r"/\*$", "/0123456789abcdef", name)
    return ":".join(parts)


def _ec2(operation: str) -> str:
    return f"ec2:{_title(operation)}"


def _title(operation: str) -> str:
    """ "run_instances" as IAM names it, RunInstances."""
    return "".join(word.title() for word in operation.split("_"))
