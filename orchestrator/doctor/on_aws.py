"""The checks of a pool on AWS: facts of `cloud.aws.doctor`, judged by the `aws_` modules here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from cloud.aws import iam
from cloud.aws.clients import AwsClients
from cloud.aws.doctor import account, balancer, launch, notices, roles
from cloud.aws.doctor.account import Permissions
from cloud.aws.doctor.balancer import TargetGroupFacts
from cloud.aws.doctor.dry_launches import DryLaunches
from cloud.aws.doctor.idle_timeout import idle_timeout
from cloud.aws.errors import code_of, error_text, is_refusal
from cloud.aws.load_balancer import name_of
from cloud.aws.places import AwsRegion
from cloud.engines.keep_alive import KEEP_ALIVE
from cloud.errors import CloudError, NotFound
from cloud.ports import Clock
from orchestrator.config.checks.engine import verdicts
from orchestrator.config.load import Config
from orchestrator.doctor import aws_account, aws_balancer, aws_launch, aws_notices, money
from orchestrator.doctor.findings import Check, Finding, Findings, fail, skipped
from orchestrator.doctor.on_aws_launch import LaunchLooks, Look
from orchestrator.wiring.aws import clients_of
from orchestrator.wiring.ports import engine_of, engine_spec
from orchestrator.wiring.price_list import listed
from policies import bill
from policies.model import Market

_WHO = "aws/credentials"


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
            Check(
                group="aws",
                name="spot-role",
                look=self._tolerant(partial(self._spot_role, first), ""),
                needs=_WHO,
            ),
            Check(group="money", name="cap", look=self._cap, needs=_WHO),
            Check(group="launch", name="model", look=self._model),
        ]
        for clients, place in self._regions:
            name = f"region{self._suffix(place)}"
            found.append(Check(group="aws", name=name, look=partial(self._region, clients, place)))
            found += self._of_region(clients, place)
        if self._table.target_group:
            for name, of in (("target-group", self._balancer), ("idle-timeout", self._idle_timeout)):
                look = self._tolerant(partial(of, first), "")
                found.append(Check(group="balancer", name=name, look=look, needs=_WHO))
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
        tried = self._dry_launches(clients, place)
        looks: list[tuple[str, str, Look]] = [
            ("aws", "permissions", partial(self._permissions, clients, place, tried)),
        ]
        of_launches = LaunchLooks(
            self._config, clients, place, tried=tried, file=self._file, clock=self._clock
        )
        looks += [("launch", name, look) for name, look in of_launches.all().items()]
        if url:
            looks += [
                ("notices", "queue", partial(self._queue, clients, place)),
                ("notices", "rules", partial(self._rules, clients, place)),
            ]
        else:
            looks.append(("notices", "queue", partial(self._no_queue, place)))
        return [
            Check(
                group=group,
                name=f"{name}{self._suffix(place)}",
                look=self._tolerant(look, place.region),
                needs=_WHO,
            )
            for group, name, look in looks
        ]

    def _suffix(self, place: AwsRegion) -> str:
        """What tells the checks of one region from those of another."""
        return f" {place.region}" if len(self._regions) > 1 else ""

    def _dry_launches(self, clients: AwsClients, place: AwsRegion) -> DryLaunches:
        markets = tuple(Market) if self._pool.spot_wanted else (Market.ON_DEMAND,)
        return DryLaunches(clients, place, self._clock, pool=self._config.pool_name, markets=markets)

    def _tolerant(self, look: Look, region: str) -> Look:
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
            return skipped(f"this identity may not look: {error_text(error)}", advice, region)
        if isinstance(error, NotFound) or "NotFound" in code_of(error):
            return fail(str(error), "make it, or correct its name in the configuration", region)
        return fail(str(error), "fix what it says, then run the check again", region)

    async def _credentials(self, clients: AwsClients) -> Findings:
        return aws_account.credentials(await account.identity(clients))

    async def _spot_role(self, clients: AwsClients) -> Findings:
        return aws_account.spot_role(await roles.has_spot_role(clients), wanted=self._pool.spot_wanted > 0)

    async def _region(self, clients: AwsClients, place: AwsRegion) -> Findings:
        """Asked in another region: credentials that are sound are refused in one that is not opted in."""
        try:
            status = await account.opt_in_status(clients, place.region)
        except CloudError as error:
            if is_refusal(error):
                return [self._unread(error, place.region)]
            return [
                skipped(
                    f"nobody says whether the account may use it: {error_text(error)}", subject=place.region
                )
            ]
        return aws_account.region(status, place.region)

    async def _clock_of(self, clients: AwsClients) -> Findings:
        reading = await account.clock_reading(clients, self._clock)
        return aws_account.clock(reading, self._config.pool.drain.margin)

    async def _permissions(self, clients: AwsClients, place: AwsRegion, tried: DryLaunches) -> Findings:
        try:
            statements = await self._statements(clients, place)
        except ValueError as error:
            return [fail(str(error), "correct notice_queue", place.region)]
        gatherer = Permissions(
            clients,
            pool=self._config.pool_name,
            caller=await account.identity(clients),
            launches=tried,
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
            key=self._table.disk.kms_key,
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

    async def _no_queue(self, place: AwsRegion) -> Findings:
        text = "no notice_queue is configured: the status of spot requests is the only source of the cloud's"
        return [skipped(text, subject=place.region)]

    async def _no_target_group(self) -> Findings:
        return [skipped("no target_group is configured: the gateway gets the requests")]

    async def _rules(self, clients: AwsClients, place: AwsRegion) -> Findings:
        found = await notices.queue(clients, self._table.regions[place.region].notice_queue)
        return aws_notices.rules(found, await notices.rules(clients, found.arn), place.region)

    async def _cap(self) -> Findings:
        found = await listed(self._config, self._clock)
        return money.cap(self._pool, bill.prices_of(self._pool, found.offerings), found.missing)

    async def _model(self) -> Findings:
        return aws_launch.model(dict(verdicts(self._config.pool)), self._config.pool.model_name)

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

    async def _idle_timeout(self, clients: AwsClients) -> Findings:
        group = await balancer.target_group(clients, name_of(self._table.target_group))
        pool, region = self._config.pool, self._regions[0][1].region
        command = engine_of(pool, self._clock).command(engine_spec(pool))
        keep_alive = float(command.env[KEEP_ALIVE])
        findings: list[Finding] = []
        for arn in group.balancers:
            seconds = await idle_timeout(clients, arn)
            findings += aws_balancer.idle_timeout(
                seconds,
                arn,
                region=region,
                keep_alive=keep_alive,
                answer=pool.drain.budget,
                stated=self._table.balancer_idle_timeout,
            )
        return findings or [skipped("no load balancer forwards to the target group", subject=group.name)]
