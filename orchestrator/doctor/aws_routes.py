"""The nodes' way out and this host's way to them, judged.

Source of the price: AWS's list of VPC prices, NAT gateways in us-east-1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cloud.aws.doctor.routes import TableFacts, Way
from orchestrator.doctor.findings import Finding, Findings, fail, ok, skipped, warn
from orchestrator.words import money

_NAT: Final = 0.045  # USD for a GB through a NAT gateway
_S3: Final = "s3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What nodes fetch when they start. `weights` are GB, None when the size is not known or nothing is
    fetched; `hub`: they come from Hugging Face; `services` of AWS by name, such as "ssm", with what for."""

    weights: float | None = None
    hub: bool = False
    services: Mapping[str, str] = field(default_factory=dict)


def routes(tables: Sequence[TableFacts], endpoints: frozenset[str], needs: Needs, region: str) -> Findings:
    """Whether nodes reach what they need, and what that costs. `endpoints`: the services with an endpoint in
    the network. One finding a route table; a table with subnets of both kinds has two."""
    findings: list[Finding] = []
    for table in tables:
        if table.way is not Way.INTERNET:
            findings.append(_by_table(table, _names(table), endpoints, needs, region))
            continue
        for public in (True, False):
            names = [subnet.id for subnet in table.subnets if subnet.public is public]
            if names and public:
                text = f"{', '.join(names)}: nodes get public addresses and go out by {table.target}"
                findings.append(ok(text, region))
            elif names:
                findings.append(_closed(table, names, endpoints, needs, region))
    return findings


def control_host(own: str, networks: frozenset[str], file: str) -> Findings:
    """Whether this host is where it reaches the nodes' private addresses. `own`: its network, empty when no
    metadata service says."""
    if own in networks:
        return [ok(f"this host is in {own}, as the nodes are")]
    lost = "every node boots, is paid for and ends unreached when health.boot_timeout is over"
    try_it = _try_it(file)
    if not own:
        return [
            skipped(
                "whether this host reaches the nodes' private addresses is not known, since no metadata "
                f"service says where it is; if it does not, {lost}",
                try_it,
            )
        ]
    other = sorted(networks)[0] if networks else "VPC"
    return [
        warn(
            f"this host is in {own}, and the nodes are in {', '.join(sorted(networks))}: without a route "
            f"between them {lost}",
            f"run the daemon in {other}, or aws ec2 create-vpc-peering-connection --vpc-id {own} "
            f"--peer-vpc-id {other} with routes both ways; {try_it}",
        )
    ]


def no_node(file: str, region: str) -> Finding:
    """No node of the pool runs that could be looked at."""
    text = "no node runs, so nobody has seen one boot, and it is not known whether this host reaches one"
    return skipped(text, _try_it(file), region)


def _by_table(table: TableFacts, names: str, endpoints: frozenset[str], needs: Needs, region: str) -> Finding:
    if table.way is Way.OTHER:
        return ok(f"{names}: nodes go out by {table.target}, whose other side is not known", region)
    if table.way is not Way.NAT:
        return _closed(table, [subnet.id for subnet in table.subnets], endpoints, needs, region)
    out = f"{names}: nodes go out by {table.target}"
    fetches = needs.hub or _S3 in needs.services
    if not fetches or (table.s3 and not needs.hub):
        return ok(out, region)
    each = f"${_NAT} a GB" if needs.weights is None else _cost(needs.weights)
    if table.s3:
        return ok(f"{out}, and the weights with them: {each}; weights in S3 would cost nothing", region)
    then = " and put the weights into S3 (cloud.aws.weights)" if needs.hub else ""
    return warn(
        f"{out}, and the weights with them, replacements included: {each}",
        f"{_endpoint(table, region)}{then}: what goes by it costs nothing",
        region,
    )


def _closed(
    table: TableFacts, names: Sequence[str], endpoints: frozenset[str], needs: Needs, region: str
) -> Finding:
    """Subnets without a way to the internet: endpoints may be enough."""
    subnets = ", ".join(names)
    why = {
        Way.INTERNET: f"there is a route to {table.target}, and nodes get no public address to use it with",
        Way.DEAD: f"the route goes to {table.target}, which is gone",
    }.get(table.way, f"the route table {table.id} has no route out")
    there = endpoints | ({_S3} if table.s3 else set())
    missing = [f"{name} ({what})" for name, what in needs.services.items() if name not in there]
    missing += ["Hugging Face (weights)"] if needs.hub else []
    if not missing:
        return ok(f"{subnets}: {why}, and what nodes need is reached by endpoints", region)
    advice = f"add a NAT gateway and aws ec2 create-route --region {region} --route-table-id {table.id} "
    advice += "--destination-cidr-block 0.0.0.0/0 --nat-gateway-id NAT"
    if table.way is Way.INTERNET:
        advice = "; ".join(
            f"aws ec2 modify-subnet-attribute --region {region} --subnet-id {name} --map-public-ip-on-launch"
            for name in names
        )
    return fail(
        f"{subnets}: {why}: no engine starts, since nodes do not reach {', '.join(missing)}",
        f"{advice}, or make endpoints: {_endpoint(table, region)}",
        region,
    )


def _cost(weights: float) -> str:
    return f"{weights:.0f} GB through NAT, {money(weights * _NAT)} for each launch"


def _endpoint(table: TableFacts, region: str) -> str:
    return (
        f"aws ec2 create-vpc-endpoint --region {region} --vpc-id {table.network} --service-name "
        f"com.amazonaws.{region}.s3 --route-table-ids {table.id}"
    )


def _names(table: TableFacts) -> str:
    return ", ".join(subnet.id for subnet in table.subnets)


def _try_it(file: str) -> str:
    return f"`orchestrator doctor --config {file} --try-node on-demand` launches one node and tells"
