"""What launches use, judged: template, image, network, types on sale, quotas, placement scores.

Source of the quota codes: the EC2 section of AWS's list of service quotas. Quotas count vCPUs, those of
everything in the account together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from cloud.aws.catalogue import catalogue
from cloud.aws.doctor.launch import GroupFacts, ImageFacts, SubnetFacts, TemplateFacts
from cloud.aws.places import AwsRegion
from orchestrator.doctor.findings import Finding, Findings, fail, ok, skipped, warn
from orchestrator.words import plural
from policies.model import Market, Pool
from policies.model_fit import Verdict

_IMAGE: Final = re.compile(r"ami-[0-9a-f]{8,17}")
_FEW_TYPES: Final = 3  # below it AWS's score is always low
_GOOD: Final = 7  # of 10
_POOR: Final = 3

_QUOTAS: Final[Mapping[tuple[Market, str], tuple[str, str]]] = {
    (Market.SPOT, "g"): ("L-3819A6DF", "All G and VT Spot Instance Requests"),
    (Market.SPOT, "p5"): ("L-C4BD4855", "All P5 Spot Instance Requests"),
    (Market.SPOT, "p"): ("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
    (Market.ON_DEMAND, "g"): ("L-DB2E81BA", "Running On-Demand G and VT instances"),
    (Market.ON_DEMAND, "p"): ("L-417A185B", "Running On-Demand P instances"),
}


def template(found: TemplateFacts, place: AwsRegion) -> Findings:
    """The launch template: what in it breaks launches, and what makes them unsafe."""
    name = f"{place.template} version {place.template_version}"
    findings = [*_template_faults(found, place, name)]
    return findings or [ok(f"{name} exists, is pinned and requires IMDSv2", place.region)]


def image(name: str, found: ImageFacts | None, place: AwsRegion) -> Findings:
    """The image is there, ready, pinned, and made for the machines' processors. None: there is no such."""
    region = place.region
    if not name:
        return [
            fail(
                "neither the configuration nor the launch template names an image",
                'write image = "ami-..." into the region\'s table, or into a new version of the template',
                region,
            )
        ]
    if not _IMAGE.fullmatch(name):
        return [
            fail(
                f"the image is given as {name}, which may mean another one tomorrow: a launch asked for "
                "again would be refused as another launch",
                "write the ami- id that it means now",
                region,
            )
        ]
    if found is None:
        return [
            fail(
                f"there is no image {name} in {region} for this account",
                "correct the id, copy the image into the region, or share it with the account",
                region,
            )
        ]
    if found.state != "available":
        return [fail(f"the image {name} is {found.state}", "wait for it, or name another", region)]
    foreign = [
        kind
        for kind in place.instance_types
        if kind in catalogue().types and catalogue().types[kind].architecture != found.architecture
    ]
    if foreign:
        return [
            fail(
                f"the image {name} is for {found.architecture}, and {', '.join(foreign)} is not",
                "use an image of the right architecture, or other instance types",
                region,
            )
        ]
    return [ok(f"{name} is available, {found.architecture}", region)]


def network(
    subnets: Sequence[SubnetFacts],
    groups: Sequence[GroupFacts],
    named: Sequence[str],
    place: AwsRegion,
    most_nodes: int,
    dcgm_port: int | None = None,
) -> Findings:
    """Subnets and security groups. `named`: the groups of the template; `most_nodes`: as many may live;
    `dcgm_port`: of the exporter that the daemon reads on nodes, if it does.
    """
    findings = [
        *_subnets(subnets, place, most_nodes),
        *_groups(subnets, groups, named, place),
        *_exporter(groups, dcgm_port, place.region),
    ]
    if findings:
        return findings
    where = plural(len(subnets), "subnet")
    return [
        ok(
            f"{where} in the stated zones; port {place.engine_port} is open to those who need it",
            place.region,
        )
    ]


def model(verdicts: Mapping[str, Verdict], name: str) -> Findings:
    """Whether the model fits the GPUs, by estimate. `verdicts` are those of the types of known size."""
    if not verdicts:
        return [skipped(f"the engine is not vLLM, or the size of {name} or of the types is not known")]
    return [
        ok(f"{name} fits by estimate: {verdict.text}", kind)
        if verdict.fits and not verdict.tight
        else warn(f"a close fit by estimate: {verdict.text}", "try it on one machine first", kind)
        for kind, verdict in verdicts.items()
    ]


def types(sold: frozenset[tuple[str, str]], place: AwsRegion) -> Findings:
    """Whether EC2 sells the types in the zones."""
    findings = []
    for kind in place.instance_types:
        missing = sorted(zone for zone in place.subnets if (kind, zone) not in sold)
        if len(missing) == len(place.subnets):
            advice = "take it out of instance_types, or use another region"
            findings.append(fail(f"{kind} is not sold in {', '.join(missing)}", advice, place.region))
        elif missing:
            text = f"{kind} is not sold in {', '.join(missing)}, so every launch there is refused first"
            findings.append(
                warn(text, "leave these zones out, or add types that are sold there", place.region)
            )
    return findings or [ok(f"{', '.join(place.instance_types)} sold in every zone", place.region)]


def quota_codes(instance_types: Sequence[str]) -> dict[tuple[Market, str], tuple[str, ...]]:
    """(market, quota code) to the types that count against it. Types of other families have none here."""
    found: dict[tuple[Market, str], tuple[str, ...]] = {}
    for market in Market:
        for kind in instance_types:
            family = _family(kind, market)
            if family in {name for of, name in _QUOTAS if of is market}:
                code, _ = _QUOTAS[market, family]
                found[market, code] = (*found.get((market, code), ()), kind)
    return found


def quota(market: Market, code: str, kinds: Sequence[str], value: float, pool: Pool, region: str) -> Findings:
    """Whether a quota permits the pool, if nothing else in the account uses it. Spot nodes: those that the
    mix wants; on-demand: the floor, and every replica when all spot is gone. Whatever type takes the most."""
    name = next(title for number, title in _QUOTAS.values() if number == code)
    known = {kind: catalogue().types[kind].vcpus for kind in kinds if kind in catalogue().types}
    if not known:
        return []
    subject = f"{name} in {region}"
    spot = market is Market.SPOT
    least, each = _nodes(pool, known, pool.spot_wanted if spot else pool.on_demand_floor)
    most, of = _nodes(pool, known, pool.spot_wanted if spot else pool.replicas + pool.standby.hot)
    raise_it = (
        f"aws service-quotas request-service-quota-increase --region {region} --service-code ec2 "
        f"--quota-code {code} --desired-value {most * of}"
    )
    has = f"the quota is {value:g} vCPUs"
    if value < least * each:
        return [fail(f"{has}, and {plural(least, 'node')} of {each} need {least * each}", raise_it, subject)]
    if value < most * of:
        text = f"{has}; covering a loss of all spot takes {plural(most, 'node')} of {of}, {most * of}"
        return [warn(text, raise_it, subject)]
    return [ok(f"{has}, the pool needs {most * of} at most", subject)]


def quota_command(market: Market, kinds: Sequence[str], region: str) -> str:
    """The command that shows the quota of these types in a market."""
    codes = [code for (of, code), _ in quota_codes(kinds).items() if of is market]
    return (
        "; ".join(
            f"aws service-quotas get-service-quota --region {region} --service-code ec2 --quota-code {code}, "
            "and request-service-quota-increase with a --desired-value that fits"
            for code in codes
        )
        or f"ask AWS for a higher quota of {', '.join(kinds)}"
    )


def _nodes(pool: Pool, vcpus: Mapping[str, int], units: int) -> tuple[int, int]:
    """How many nodes serve so many units, and the vCPUs of each, for the type that takes the most vCPUs."""
    found = ((-(-units // pool.units.get(kind, 1)), each) for kind, each in vcpus.items())
    return max(found, key=lambda f: (f[0] * f[1], f[1]))


def scores(found: Mapping[str, int], subnets: Sequence[SubnetFacts], place: AwsRegion) -> Findings:
    """How likely spot capacity is, by AWS's own score. It is no promise, and it moves."""
    ours = {subnet.zone: found[subnet.zone_id] for subnet in subnets if subnet.zone_id in found}
    region = place.region
    if not ours:
        return [warn("AWS names none of the zones among the ten best", "add types, zones or regions", region)]
    text = ", ".join(f"{zone} {score} of 10" for zone, score in sorted(ours.items()))
    if max(ours.values()) <= _POOR and len(place.instance_types) >= _FEW_TYPES:
        return [warn(f"spot capacity is unlikely: {text}", "add types, zones or regions", region)]
    if len(place.instance_types) < _FEW_TYPES and max(ours.values()) < _GOOD:
        return [ok(f"{text}; with fewer than {_FEW_TYPES} instance types the score is always low", region)]
    return [ok(text, region)]


def _template_faults(found: TemplateFacts, place: AwsRegion, name: str) -> Iterator[Finding]:
    region = place.region
    new = "make a new version of the template and write its number"
    if found.market:
        yield fail(
            f"{name} sets the market ({found.market}), so launches of the on-demand floor become that too",
            f"{new}: leave InstanceMarketOptions out, the daemon says it at each launch",
            region,
        )
    if found.interfaces:
        yield fail(
            f"{name} sets network interfaces, and EC2 refuses those together with the subnet of a launch",
            f"{new}: write SecurityGroupIds instead of NetworkInterfaces",
            region,
        )
    if found.tokens != "required":
        yield warn(
            f"{name} permits IMDSv1; the daemon requires IMDSv2 at each launch all the same, other users of "
            "the template do not",
            f"{new}: set MetadataOptions.HttpTokens to required",
            region,
        )


def _subnets(found: Sequence[SubnetFacts], place: AwsRegion, most_nodes: int) -> Iterator[Finding]:
    known = {subnet.id: subnet for subnet in found}
    share = -(-most_nodes // len(place.subnets))
    for zone, name in sorted(place.subnets.items()):
        subnet = known.get(name)
        if subnet is None:
            yield fail(f"there is no subnet {name}", f"correct the subnet of {zone}", place.region)
        elif subnet.zone != zone:
            yield fail(
                f"the subnet {name} is in {subnet.zone}, not in {zone}: nodes would count as of a zone where "
                "they are not",
                f'write {subnet.zone} = "{name}"',
                place.region,
            )
        elif subnet.free < share:
            yield warn(
                f"the subnet {name} has {plural(subnet.free, 'free address', 'free addresses')}, and up to "
                f"{plural(share, 'node')} may be in {zone}",
                "use a larger subnet, or free addresses",
                place.region,
            )
    if len({subnet.network for subnet in found}) > 1:
        yield fail(
            f"the subnets belong to several networks: {', '.join(sorted({s.network for s in found}))}",
            "use subnets of one VPC: security and target groups belong to one",
            place.region,
        )


def _groups(
    subnets: Sequence[SubnetFacts], found: Sequence[GroupFacts], named: Sequence[str], place: AwsRegion
) -> Iterator[Finding]:
    region, port = place.region, place.engine_port
    networks = {subnet.network for subnet in subnets}
    if not named:
        yield warn(
            "the launch template names no security group, so nodes get the network's default group",
            "name one that opens the engine's port to the balancer only",
            region,
        )
        return
    for name in sorted(set(named) - {group.id for group in found}):
        yield fail(f"there is no security group {name}", "correct it in the launch template", region)
    for group in found:
        if networks and group.network not in networks:
            yield fail(
                f"the security group {group.id} belongs to {group.network}, not to the subnets' network",
                "name one of the same VPC",
                region,
            )
    open_ = [o for group in found for o in group.openings if o.first <= port <= o.last]
    if any(opening.anywhere for opening in open_):
        yield fail(
            f"port {port} is open to the whole world, and an engine's own routes ask for no key",
            f"open port {port} to the balancer and the control host only",
            region,
        )
    elif found and not open_:
        yield fail(
            f"no security group opens port {port}, so nobody reaches the engines",
            f"open port {port} to the balancer and the control host",
            region,
        )


def _exporter(found: Sequence[GroupFacts], port: int | None, region: str) -> Iterator[Finding]:
    """Whether the exporter can be read that the configuration names."""
    open_ = any(o.first <= port <= o.last for group in found for o in group.openings) if port else True
    if found and not open_:
        yield warn(
            f"no security group opens port {port} (gpu.dcgm_port), so no DCGM exporter can be read",
            f"open port {port} to the control host; a group that bootstrap made gets it by running it again",
            region,
        )


def _family(kind: str, market: Market) -> str:
    """The family under which a type is counted: spot counts P5 apart; who counts P6 is not documented."""
    name = kind.partition(".")[0]
    letter = re.match(r"[a-z]+", name)
    if market is Market.SPOT and name.startswith("p"):
        return "p5" if name.startswith("p5") else "p" if name[1:2] in "234" else ""
    return letter.group() if letter else ""
