"""The looks at what launches use in one region: facts of `cloud.aws.doctor`, judged by the `aws_` modules."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cloud.aws.clients import AwsClients
from cloud.aws.doctor import launch
from cloud.aws.doctor.dry_launches import DryLaunches
from cloud.aws.errors import code_of
from cloud.aws.places import AwsRegion
from cloud.errors import CloudError, NotFound
from orchestrator.config import Config
from orchestrator.doctor import aws_dry_launches, aws_launch
from orchestrator.doctor.findings import Finding, Findings, skipped

Look = Callable[[], Awaitable[Findings]]


class LaunchLooks:
    """What can be asked of AWS about the launches of one region of a pool."""

    def __init__(
        self, config: Config, clients: AwsClients, place: AwsRegion, tried: DryLaunches, file: str
    ) -> None:
        self._config, self._pool, self._file = config, config.wanted, file
        self._clients, self._place, self._tried = clients, place, tried

    def all(self) -> dict[str, Look]:
        """Each look by the name of its check."""
        return {
            "template": self._template,
            "image": self._image,
            "network": self._network,
            "types": self._types,
            "dry-run": self._dry_run,
            "quotas": self._quotas,
            "spot-scores": self._scores,
        }

    async def _template(self) -> Findings:
        return aws_launch.template(await launch.template(self._clients, self._place), self._place)

    async def _image(self) -> Findings:
        place = self._place
        given = place.image or (await launch.template(self._clients, place)).image
        found = None
        if given.startswith("ami-"):
            try:
                found = await launch.image(self._clients, given)
            except CloudError as error:
                if not isinstance(error, NotFound) and not code_of(error).startswith("InvalidAMIID"):
                    raise
        return aws_launch.image(given, found, place)

    async def _network(self) -> Findings:
        place = self._place
        template = await launch.template(self._clients, place)
        subnets = await launch.subnets(self._clients, sorted(place.subnets.values()))
        groups = await launch.security_groups(self._clients, template.groups) if template.groups else ()
        return aws_launch.network(subnets, groups, template.groups, place, self._pool.most_units)

    async def _types(self) -> Findings:
        return aws_launch.types(await launch.sold_in(self._clients, self._place), self._place)

    async def _dry_run(self) -> Findings:
        return aws_dry_launches.launches(await self._tried.all(), self._place.region, self._file)

    async def _quotas(self) -> Findings:
        place = self._place
        findings: list[Finding] = []
        for (market, code), kinds in aws_launch.quota_codes(place.instance_types).items():
            value = await launch.quota(self._clients, code)
            findings += aws_launch.quota(market, code, kinds, value, self._pool, place.region)
        known = ", ".join(place.instance_types)
        return findings or [skipped(f"no quota is known for {known}", subject=place.region)]

    async def _scores(self) -> Findings:
        place = self._place
        if not self._pool.spot_wanted:
            return [skipped("the pool wants no spot nodes", subject=place.region)]
        found = await launch.spot_scores(self._clients, place, self._pool.spot_wanted)
        subnets = await launch.subnets(self._clients, sorted(place.subnets.values()))
        return aws_launch.scores(found, subnets, place)
