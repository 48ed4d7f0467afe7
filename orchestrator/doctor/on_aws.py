"""The checks of a pool on AWS: facts of `cloud.aws.doctor`, judged by the `aws_` modules here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from cloud.aws import iam
from cloud.aws.clients import AwsClients
from cloud.aws.doctor import account, balancer, launch, notices
from cloud.aws.doctor.account import Permissions
from cloud.aws.doctor.balancer import TargetGroupFacts
from cloud.aws.doctor.launch import TemplateFacts
from cloud.aws.errors import code_of, is_refusal, told
from cloud.aws.load_balancer import name_of
from cloud.aws.places import AwsRegion
from cloud.errors import CloudError, NotFound
from cloud.ports import Clock
from orchestrator.config import Config
from orchestrator.config_aws import verdicts
from orchestrator.doctor import aws_account, aws_balancer, aws_launch, aws_notices
from orchestrator.doctor.findings import Check, Finding, Findings, fail, skipped
from orchestrator.wiring_aws import clients_of

_WHO = "aws/credentials"
_Look = Callable[[], Awaitable[Findings]]


class AwsDoctor:
    """Everything that can be asked of AWS about one configuration. Close it when done."""

    def __init__(self, config: Config, file: str, clock: Clock) -> None:
        self._config, self._file, self._clock = config, file, clock
        self._table, self._pool = config.pool.cloud.aws, config.wanted
        self._regions = clients_of(config)
        self._share = [clients.share() for clients, _ in self._regions]

    def checks(self) -> list[Check]:
        """Every check, one a region where regions differ."""
        first, _ = self._regions[0]
        found = [
            Check(group="aws", name="credentials", look=partial(self._credentials, first)),
            Check(group="aws", name="clock", look=partial(self._clock_of, first)),
            Check(group="launch", name="model", look=self._model),
        ]
        for clients, place in self._regions:
            found += self._of_region(clients, place)
        if self._table.target_group:
            look = self._tolerant(partial(self._balancer, first), "")
            found.append(Check(group="balancer", name="target-group", look=look, needs=_WHO))
        else:
            found.append(Check(group="balancer", name="target-group", look=self._no_target_group))
        return found

    async def target_group(self) -> TargetGroupFacts | None:
        """The target group, for `--fix`; None when the gateway gets the requests. Raises CloudError."""
        if not self._table.target_group:
            return None
        return await balancer.target_group(self._regions[0][0], name_of(self._table.target_group))

    async def set_delay(self, group: TargetGroupFacts) -> None:
        """What `--fix` does. Raises CloudError."""
        await balancer.set_deregistration_delay(self._regions[0][0], group.arn, aws_balancer.DELAY)

    @property
    def region(self) -> str:
        """The region of the target group."""
        return self._regions[0][1].region

    async def close(self) -> None:
        """End the threads of the clients."""
        for share in self._share:
            await share.close()

    def _of_region(self, clients: AwsClients, place: AwsRegion) -> list[Check]:
        url = self._table.regions[place.region].notice_queue
        looks: list[tuple[str, str, Callable[..., Awaitable[Findings]]]] = [
            ("aws", "permissions", self._permissions),
            ("launch", "template", self._template),
            ("launch", "image", self._image),
            ("launch", "network", self._network),
            ("launch", "types", self._types),
            ("launch", "quotas", self._quotas),
            ("launch", "spot-scores", self._scores),
        ]
        if url:
            looks += [("notices", "queue", self._queue), ("notices", "rules", self._rules)]
        else:
            looks.append(("notices", "queue", self._no_queue))
        suffix = f" {place.region}" if len(self._regions) > 1 else ""
        return [
            Check(
                group=group,
                name=f"{name}{suffix}",
                look=self._tolerant(partial(look, clients, place), place.region),
                needs=_WHO,
            )
            for group, name, look in looks
        ]

    def _tolerant(self, look: _Look, region: str) -> _Look:
        """A look that this identity may not have is skipped, not failed: the daemon need not have it."""

        async def looked() -> Findings:
            try:
                return await look()
            except CloudError as error:
                return [self._unread(error, region)]

        return looked

    def _unread(self, error: CloudError, region: str) -> Finding:
        if is_refusal(error):
            advice = f"allow what `orchestrator aws policy {self._file} --doctor` prints"
            return skipped(f"this identity may not look: {told(error)}", advice, region)
        if isinstance(error, NotFound) or "NotFound" in code_of(error):
            return fail(str(error), "make it, or correct its name in the configuration", region)
        return fail(str(error), "mend what it says and run the check again", region)

    async def _credentials(self, clients: AwsClients) -> Findings:
        return aws_account.credentials(await account.identity(clients))

    async def _clock_of(self, clients: AwsClients) -> Findings:
        reading = await account.clock_reading(clients, self._clock)
        return aws_account.clock(reading, self._config.pool.drain.margin)

    async def _permissions(self, clients: AwsClients, place: AwsRegion) -> Findings:
        try:
            statements = await self._statements(clients, place)
        except ValueError as error:
            return [fail(str(error), "correct notice_queue", place.region)]
        gatherer = Permissions(
            clients,
            place,
            pool=self._config.pool_name,
            caller=await account.identity(clients),
            statements=statements,
            queue=self._table.regions[place.region].notice_queue,
            group=await self._group_arn(),
        )
        return aws_account.permissions(await gatherer.all(), place.region, self._file)

    async def _statements(self, clients: AwsClients, place: AwsRegion) -> Sequence[Mapping[str, Any]]:
        """The daemon's policy for this region; with the role if the template gives nodes one."""
        try:
            role = (await launch.template(clients, place)).profile
        except CloudError:
            role = ""  # the check of the template says why
        url = self._table.regions[place.region].notice_queue
        made = iam.policy(
            self._config.pool_name,
            [place],
            queues={place.region: url} if url else {},
            target_group=name_of(self._table.target_group),
            node_role=role,
        )
        found: Sequence[Mapping[str, Any]] = made["Statement"]
        return found

    async def _group_arn(self) -> str:
        """The target group's ARN, empty when there is none to try permissions on."""
        try:
            group = await self.target_group()
        except CloudError:
            return ""  # the check of the target group says why
        return group.arn if group is not None else ""

    async def _queue(self, clients: AwsClients, place: AwsRegion) -> Findings:
        url = self._table.regions[place.region].notice_queue
        return aws_notices.queue(await notices.queue(clients, url), place.region)

    async def _no_queue(self, _clients: AwsClients, place: AwsRegion) -> Findings:
        text = "no notice_queue is configured: the status of spot requests is the only source of the cloud's"
        return [skipped(text, subject=place.region)]

    async def _no_target_group(self) -> Findings:
        return [skipped("no target_group is configured: the gateway gets the requests")]

    async def _rules(self, clients: AwsClients, place: AwsRegion) -> Findings:
        found = await notices.queue(clients, self._table.regions[place.region].notice_queue)
        return aws_notices.rules(found, await notices.rules(clients, found.arn), place.region)

    async def _template(self, clients: AwsClients, place: AwsRegion) -> Findings:
        return aws_launch.template(await launch.template(clients, place), place)

    async def _image(self, clients: AwsClients, place: AwsRegion) -> Findings:
        given = place.image or (await launch.template(clients, place)).image
        found = None
        if given.startswith("ami-"):
            try:
                found = await launch.image(clients, given)
            except CloudError as error:
                if not isinstance(error, NotFound) and not code_of(error).startswith("InvalidAMIID"):
                    raise
        return aws_launch.image(given, found, place)

    async def _network(self, clients: AwsClients, place: AwsRegion) -> Findings:
        template: TemplateFacts = await launch.template(clients, place)
        subnets = await launch.subnets(clients, sorted(place.subnets.values()))
        groups = await launch.security_groups(clients, template.groups) if template.groups else ()
        return aws_launch.network(subnets, groups, template.groups, place, self._pool.most_units)

    async def _model(self) -> Findings:
        return aws_launch.model(dict(verdicts(self._config.pool)), self._config.pool.model_name)

    async def _types(self, clients: AwsClients, place: AwsRegion) -> Findings:
        return aws_launch.types(await launch.sold_in(clients, place), place)

    async def _quotas(self, clients: AwsClients, place: AwsRegion) -> Findings:
        findings: list[Finding] = []
        for (market, code), kinds in aws_launch.quota_codes(place.instance_types).items():
            value = await launch.quota(clients, code)
            findings += aws_launch.quota(market, code, kinds, value, self._pool, place.region)
        known = ", ".join(place.instance_types)
        return findings or [skipped(f"no quota is known for {known}", subject=place.region)]

    async def _scores(self, clients: AwsClients, place: AwsRegion) -> Findings:
        if not self._pool.spot_wanted:
            return [skipped("the pool wants no spot nodes", subject=place.region)]
        found = await launch.spot_scores(clients, place, self._pool.spot_wanted)
        subnets = await launch.subnets(clients, sorted(place.subnets.values()))
        return aws_launch.scores(found, subnets, place)

    async def _balancer(self, clients: AwsClients) -> Findings:
        group = await balancer.target_group(clients, name_of(self._table.target_group))
        place = self._regions[0][1]
        try:
            subnets = await launch.subnets(clients, sorted(place.subnets.values()))
        except CloudError:
            subnets = ()  # the check of the network says why
        return aws_balancer.target_group(
            group,
            region=place.region,
            budget=self._config.pool.drain.budget,
            margin=self._config.pool.drain.margin,
            networks=frozenset(subnet.network for subnet in subnets),
        )
