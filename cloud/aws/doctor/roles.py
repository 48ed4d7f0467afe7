"""Roles that launches need and nodes have, as they are.

Source: the IAM API reference (GetRole, GetInstanceProfile, ListAttachedRolePolicies,
SimulatePrincipalPolicy) and the EC2 user guide ("Service-linked role for Spot Instance requests").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cloud.aws.clients import AwsClients, Lane
from cloud.aws.doctor.account import simulate
from cloud.aws.errors import code_of
from cloud.aws.spot_role import SPOT_ROLE
from cloud.errors import CloudError

_NONE: Final = "NoSuchEntity"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileFacts:
    """An instance profile and its role. `role` is the ARN, empty when the profile holds none; `trust` is the
    policy that says who may assume it; `policies` are the names of what is attached to it."""

    name: str
    role: str
    trust: Mapping[str, Any]
    policies: frozenset[str] = frozenset()


async def has_spot_role(clients: AwsClients) -> bool:
    """Whether the account has the role that spot launches need. Raises CloudError."""
    try:
        await _iam(clients, "get_role", RoleName=SPOT_ROLE)
    except CloudError as error:
        if code_of(error) != _NONE:
            raise
        return False
    return True


async def profile(clients: AwsClients, name: str) -> ProfileFacts | None:
    """The instance profile of that name, None when there is no such. Raises CloudError."""
    try:
        answer = await _iam(clients, "get_instance_profile", InstanceProfileName=name)
    except CloudError as error:
        if code_of(error) != _NONE:
            raise
        return None
    roles = answer["InstanceProfile"]["Roles"]
    if not roles:
        return ProfileFacts(name=name, role="", trust={})
    role = roles[0]
    attached: set[str] = set()
    marker: dict[str, str] = {}
    while True:
        page = await _iam(clients, "list_attached_role_policies", RoleName=role["RoleName"], **marker)
        attached |= {entry["PolicyName"] for entry in page["AttachedPolicies"]}
        if not page.get("IsTruncated"):
            break
        marker = {"Marker": page["Marker"]}
    return ProfileFacts(
        name=name,
        role=role["Arn"],
        trust=role["AssumeRolePolicyDocument"],  # boto3 has decoded it
        policies=frozenset(attached),
    )


async def refused(clients: AwsClients, role: str, statements: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The actions of these statements that IAM would not permit a role, by its ARN. Raises CloudError."""
    account = role.split(":")[4]
    found: set[str] = set()
    for statement in statements:
        verdicts = await simulate(clients, role, account, statement, statement["Action"])
        found |= {action for action, verdict in verdicts if verdict != "allowed"}
    return tuple(sorted(found))


async def _iam(clients: AwsClients, operation: str, **parameters: Any) -> Mapping[str, Any]:
    return await clients.call(Lane.LIST, "iam", operation, lost=CloudError, **parameters)
