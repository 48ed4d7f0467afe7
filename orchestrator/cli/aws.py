"""`orchestrator aws`: what a pool on AWS needs there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError


def policy(
    file: Annotated[Path, Parameter(help='The TOML file of a pool with cloud.kind = "aws".')],
    /,
    *,
    node_role: Annotated[
        str, Parameter(metavar="ARN", help="Role that the launch template gives to nodes, if it gives one.")
    ] = "",
    doctor: Annotated[
        bool,
        Parameter(negative="", help="Print instead what `orchestrator doctor` needs beside the daemon."),
    ] = False,
) -> int:
    """Print the IAM policy that the daemon needs for a pool: what it calls, and nothing else.

    For example:
      orchestrator aws policy pool.toml > policy.json
      orchestrator aws policy pool.toml --node-role arn:aws:iam::123456789012:role/node
      orchestrator aws policy pool.toml --doctor > doctor-policy.json
    """
    from orchestrator.config import ConfigError, load_config

    try:
        config = load_config(file)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return shared.ERROR
    if config.pool.cloud.kind != "aws":
        raise CommandError(
            f'{file}: the pool runs on {config.pool.cloud.kind}; write cloud.kind = "aws" first'
        )
    from cloud.aws import iam
    from cloud.aws.load_balancer import name_of
    from orchestrator.wiring_aws import places

    table = config.pool.cloud.aws
    group = name_of(table.target_group)
    if doctor:
        print(json.dumps(iam.doctor_policy(places(table), target_group=group), indent=2))
        return shared.OK
    queues = {name: region.notice_queue for name, region in table.regions.items() if region.notice_queue}
    try:
        made = iam.policy(
            config.pool_name,
            places(table),
            queues=queues,
            target_group=group,
            node_role=node_role,
        )
    except ValueError as error:
        raise CommandError(f"{file}: {error}") from error
    print(json.dumps(made, indent=2))
    return shared.OK
