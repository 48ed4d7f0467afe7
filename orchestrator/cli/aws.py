"""`orchestrator aws`: what a pool on AWS needs there."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from orchestrator.cli import shared
from orchestrator.cli.shared import CommandError, PlainOutput

if TYPE_CHECKING:
    from orchestrator.config.load import Config

_DAEMON_ROLE: Final = "DAEMON_ROLE_ARN"
_File = Annotated[Path, Parameter(help='The TOML file of a pool with cloud.kind = "aws".')]


def bootstrap(
    file: _File,
    /,
    *,
    plan: Annotated[bool, Parameter(negative="", help="Only show what would change (the default).")] = False,
    apply: Annotated[bool, Parameter(negative="", help="Show it, then change it.")] = False,
    security_group: Annotated[
        bool,
        Parameter(negative="", help="Make a security group where the file names none; see allow_from."),
    ] = False,
    yes: Annotated[
        bool, Parameter(name=["--yes", "-y"], negative="", help="Do not ask before the change.")
    ] = False,
    pool: shared.WhichPool = None,
    output: PlainOutput = "table",
) -> int:
    """Make on AWS what a pool needs there: queue, event rules, launch template, settings of the target group.

    What differs is shown first. A run that broke off is finished by the next one; one more changes nothing.
    What exists and does not carry the pool's tag is left alone, and then nothing is changed. A new version of
    the launch template is made only when its content differs; nodes get it once the file names the version.

    For example:
      orchestrator aws bootstrap pool.toml --plan
      orchestrator aws bootstrap pool.toml --apply --security-group
      orchestrator aws bootstrap pool.toml --apply --yes -o json | jq '.settings'
    """
    if plan and apply:
        raise CommandError("--plan and --apply are two things; choose one", shared.USAGE)
    config = _config(file, pool)
    return asyncio.run(_bootstrap(config, str(file), apply, security_group, yes, output))


async def _bootstrap(
    config: Config, file: str, apply: bool, security_group: bool, yes: bool, output: str
) -> int:
    from cloud.clock import SystemClock
    from cloud.errors import CloudError
    from orchestrator.cli.bootstrap import bootstrap_of, unwritten, view
    from orchestrator.render import bootstrap as render

    try:
        run = bootstrap_of(config, SystemClock(), make_group=security_group)
    except (OSError, ValueError) as error:
        raise CommandError(f"{file}: {error}") from error
    failure = ""
    try:
        try:
            changes = await run.plan()
        except CloudError as error:
            raise CommandError(f"nothing was changed: {error}") from error
        table = output != "json"
        if table:
            shared.print_text(render.plan(view(run, changes)["parts"], shared.look(output)))
        if apply and run.pending and not run.refused:
            if not yes:
                await asyncio.to_thread(_agree)
            try:
                await run.apply()
            except CloudError as error:
                failure = str(error)
    finally:
        await run.close()
    shown = view(run, changes, failure)
    if table:
        name = f"pool.{config.pool_name}.cloud.aws.regions"
        shared.print_text(render.outcome(shown, unwritten(config, shown), name))
    else:
        shared.print_json(shown)
    return shared.OK if shown["ok"] else shared.ERROR


def _agree() -> None:
    """Ask. Raises CommandError without a yes."""
    if not sys.stdin.isatty():
        raise CommandError("--apply asks before it changes anything; answer with --yes where nobody can")
    print("Change this? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was changed")


def policy(
    file: _File,
    /,
    *,
    node_role: Annotated[
        str,
        Parameter(metavar="ARN", help="Role that the launch template gives to nodes, if not the file's."),
    ] = "",
    doctor: Annotated[
        bool,
        Parameter(negative="", help="Print instead what `orchestrator doctor` needs beside the daemon."),
    ] = False,
    bootstrap: Annotated[
        bool, Parameter(negative="", help="Print instead what `orchestrator aws bootstrap` needs.")
    ] = False,
    field_test: Annotated[
        bool,
        Parameter(
            negative="",
            help="Print instead what `orchestrator doctor --field-test aws` needs beside the daemon.",
        ),
    ] = False,
    node: Annotated[
        bool,
        Parameter(
            negative="", help="Print instead what the nodes' role needs: the engine's secrets, the weights."
        ),
    ] = False,
    kms: Annotated[
        str,
        Parameter(
            metavar="ARN",
            help="Print instead the commands by which EC2's role for spot and the daemon's may use this key "
            "of KMS's, which the image's or the nodes' volumes are encrypted with.",
        ),
    ] = "",
    pool: shared.WhichPool = None,
) -> int:
    """Print the IAM policy that the daemon needs for a pool: what it calls, and nothing else.

    Nodes need no key pair and no open port 22 for a way in: attach AWS's own AmazonSSMManagedInstanceCore to
    their role beside what --node prints, and Session Manager gives a shell.

    For example:
      orchestrator aws policy pool.toml > policy.json
      orchestrator aws policy pool.toml --node-role arn:aws:iam::123456789012:role/node
      orchestrator aws policy pool.toml --doctor > doctor-policy.json
      orchestrator aws policy pool.toml --bootstrap > bootstrap-policy.json
      orchestrator aws policy pool.toml --field-test > field-test-policy.json
      orchestrator aws policy pool.toml --node > node-policy.json
      orchestrator aws policy pool.toml --kms arn:aws:kms:us-east-1:123456789012:key/1234abcd
    """
    printed = {"doctor": doctor, "bootstrap": bootstrap, "field-test": field_test, "node": node}
    chosen = [name for name, wanted in printed.items() if wanted]
    if len(chosen) + bool(kms) > 1:
        names = ", ".join(f"--{name}" for name in printed)
        raise CommandError(f"{names} and --kms print different things; choose one", shared.USAGE)
    config = _config(file, pool)
    if kms:
        shared.print_text(_grants(kms))
        return shared.OK
    try:
        made = _policy(config, "".join(chosen), node_role)
    except ValueError as error:
        raise CommandError(f"{file}: {error}") from error
    print(json.dumps(made, indent=2))
    return shared.OK


def _grants(key: str) -> str:
    """The commands that let EC2 start machines whose volumes have this key. Raises CommandError."""
    from cloud.aws.keys import grant_command
    from cloud.aws.spot_role import spot_role_arn

    parts = key.split(":")
    if len(parts) != 6 or parts[2] != "kms" or not parts[5].startswith("key/"):
        raise CommandError(f"{key} is not the ARN of a key; write arn:aws:kms:REGION:ACCOUNT:key/ID")
    _, partition, _, region, account, _ = parts
    grants = [grant_command(region, key, who) for who in (spot_role_arn(account, partition), _DAEMON_ROLE)]
    return "\n".join(
        [
            "# Without the first spot machines end while they are pending, without the second the others.",
            f"# {_DAEMON_ROLE} is the role that the daemon runs with.",
            *grants,
            "",
        ]
    )


def _policy(config: Config, whose: str, node_role: str) -> dict[str, Any]:
    """The policy of the daemon, or of whom is named. Raises ValueError."""
    from cloud.aws import iam
    from cloud.aws.bootstrap.wanted import queue_name
    from cloud.aws.field.interruption import ROLE as FIS_ROLE
    from cloud.aws.load_balancer import name_of
    from orchestrator.wiring.aws import places

    table, name = config.pool.cloud.aws, config.pool_name
    group = name_of(table.target_group)
    if whose == "doctor":
        return iam.doctor_policy(places(table), target_group=group)
    if whose == "field-test":
        return iam.field_test_policy(name, places(table), role=FIS_ROLE)
    if whose == "node":
        return iam.node_policy(table.engine_secrets, table.weights, next(iter(table.regions)))
    if whose == "bootstrap":
        names = {region: queue_name(name, given.notice_queue) for region, given in table.regions.items()}
        return iam.bootstrap_policy(name, places(table), queues=names, target_group=group)
    queues = {region: given.notice_queue for region, given in table.regions.items() if given.notice_queue}
    return iam.policy(
        name,
        places(table),
        queues=queues,
        target_group=group,
        node_role=node_role or table.node_role,
        key=table.disk.kms_key,
    )


def _config(file: Path, pool: str | None) -> Config:
    """The configuration of a pool on AWS. Raises CommandError."""
    config = shared.read_config(file)
    on_aws = [name for name, settings in config.pools.items() if "aws" in settings.cloud.kinds]
    config = shared.one_pool(config, pool, on_aws)
    if "aws" not in config.pool.cloud.kinds:
        raise CommandError(
            f"{file}: the pool runs on {' and '.join(config.pool.cloud.kinds)}; write cloud.kind = "
            '"aws" first'
        )
    return config.on_cloud("aws")
