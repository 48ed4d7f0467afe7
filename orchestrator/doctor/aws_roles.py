"""The role of nodes, judged: does the instance profile hold it, who may assume it, is there a way in.

Source: the IAM user guide (instance profiles, trust policies) and the Systems Manager user guide
("Configure instance permissions": AmazonSSMManagedInstanceCore).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from cloud.aws.doctor.roles import ProfileFacts
from orchestrator.doctor.findings import Finding, Findings, fail, ok, skipped, warn

_EC2: Final = ("ec2.amazonaws.com", "ec2.amazonaws.com.cn")
_CORE: Final = "AmazonSSMManagedInstanceCore"


def no_role(key_pair: str) -> Findings:
    """A launch template that gives nodes no role. `key_pair`: its name, empty for none."""
    if key_pair:
        return [ok(f"nodes have no role; the key pair {key_pair} is the way in")]
    return [_no_way_in("nodes have no role and no key pair", "write node_role, with a role that has it")]


def profile(found: ProfileFacts | None, name: str, node_role: str, key_pair: str) -> Findings:
    """The instance profile of that name. `node_role` is the ARN that the configuration names, if any."""
    if found is None:
        text = f"there is no instance profile {name}: EC2 refuses every launch"
        make = f"aws iam create-instance-profile --instance-profile-name {name}"
        return [fail(text, f"{make}, and then {_add(name, node_role)}")]
    if not found.role:
        text = f"the instance profile {name} holds no role: nodes get no credentials"
        return [fail(text, _add(name, node_role))]
    findings = [*_other(found, node_role), *_trust(found, node_role), *_way_in(found, key_pair)]
    return findings or [ok(f"{name} holds {found.role}, which EC2 alone may assume")]


def secrets(refused: Sequence[str], role: str, file: str) -> Finding:
    """Whether the nodes' role may do what nodes do. `refused`: actions that IAM would not permit."""
    if refused:
        return fail(
            f"{role} may not do {', '.join(refused)} on what the configuration names: engines do not start",
            f"orchestrator aws policy {file} --node > node.json && aws iam put-role-policy --role-name "
            f"{_role_name(role)} --policy-name orchestrator-node --policy-document file://node.json",
        )
    return ok(f"{role} may read what engines need, by IAM's policy simulator")


def unknown(why: str) -> Finding:
    """Nobody may ask the simulator."""
    return skipped(f"whether the nodes' role may read what engines need is not known: {why}")


def _other(found: ProfileFacts, node_role: str) -> Iterator[Finding]:
    if node_role and found.role != node_role:
        yield fail(
            f"the instance profile {found.name} holds {found.role}, and node_role is {node_role}: the daemon "
            "believes no node that proves itself with another role",
            f'write node_role = "{found.role}", or aws iam remove-role-from-instance-profile '
            f"--instance-profile-name {found.name} --role-name {_role_name(found.role)} and then "
            f"{_add(found.name, node_role)}",
        )


def _trust(found: ProfileFacts, node_role: str) -> Iterator[Finding]:
    trusted = list(_principals(found.trust))
    statement = {"Effect": "Allow", "Principal": {"Service": _EC2[0]}, "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    command = (
        f"aws iam update-assume-role-policy --role-name {_role_name(found.role)} --policy-document "
        f"'{document}'"
    )
    if not any(name in _EC2 for name in trusted):
        yield fail(f"EC2 may not assume {found.role}, so nodes get no credentials", command)
    strangers = [name for name in trusted if name not in _EC2]
    if strangers:
        text = f"not EC2 alone may assume {found.role}, but {', '.join(strangers)} too"
        if node_role:
            yield fail(f"{text}: who does can pass for a node and get its keys", command)
        else:
            yield warn(text, command)


def _way_in(found: ProfileFacts, key_pair: str) -> Iterator[Finding]:
    if not key_pair and _CORE not in found.policies:
        yield _no_way_in(
            f"{found.role} has no {_CORE}, and there is no key pair",
            f"aws iam attach-role-policy --role-name {_role_name(found.role)} --policy-arn "
            f"arn:aws:iam::aws:policy/{_CORE}",
        )


def _no_way_in(text: str, advice: str) -> Finding:
    return warn(f"{text}: nobody can look into a node whose engine does not start", advice)


def _principals(trust: Mapping[str, Any]) -> Iterator[str]:
    """Whom a trust policy lets assume the role."""
    listed = trust.get("Statement", ())
    for statement in [listed] if isinstance(listed, dict) else listed:
        if statement.get("Effect") != "Allow":
            continue
        principal = statement.get("Principal", "*")
        if not isinstance(principal, dict):
            yield str(principal)
            continue
        for named in principal.values():
            yield from [named] if isinstance(named, str) else named


def _add(name: str, node_role: str) -> str:
    role = _role_name(node_role) if node_role else "ROLE"
    return f"aws iam add-role-to-instance-profile --instance-profile-name {name} --role-name {role}"


def _role_name(arn: str) -> str:
    return arn.rpartition("/")[2]
