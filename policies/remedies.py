"""What a person can do about machines that do not start: from a provider's words to a sentence and commands.

What it decides: nothing. It reads the reason of a failed boot and the end of its console. What a refused call
means its adapter says itself, in its error.
Why: what a provider says of an end is often a code that means nothing to a newcomer.
Never: anything is done because of it, or stated as certain: what a machine wrote is its own word, and gives
only which of these fixed sentences is shown.

Source of the codes: the EC2 user guide ("Troubleshoot instance launch issues", "Reasons for state changes",
"Grant access to customer managed keys for use with encrypted AMIs and EBS snapshots"). Words in capitals in a
command are for the reader to put in.

Example:
    >>> found = remedy("Client.VolumeLimitExceeded: Volume limit exceeded", "us-east-1", Market.SPOT)
    >>> found.text
    'ask AWS for a higher quota of EBS storage in us-east-1'
    >>> remedy("nobody knows why", "us-east-1", Market.SPOT) is None
    True
"""

from __future__ import annotations

import re

from policies.model import Market
from policies.value import value


@value
class Remedy:
    """What to do, in half a sentence, and commands to type."""

    text: str
    commands: tuple[str, ...] = ()


_GRANT = "orchestrator aws policy CONFIG --kms KEY-ARN"
"""Prints the grants of a key, for EC2's role for spot and for the daemon's."""

_KEY = Remedy(
    text="most often its volumes are encrypted with a KMS key that {who} may not use: grant it, or take an "
    "image and a default encryption without a key of your own",
    commands=(_GRANT,),
)

_BY_REASON: tuple[tuple[str, Remedy], ...] = (
    (r"Client\.InternalError", _KEY),
    (
        r"\bKMS|kms:",
        Remedy(
            text="a KMS key cannot be used: see whether it is enabled and in {region}, and grant it to {who}",
            commands=("aws kms describe-key --region {region} --key-id KEY-ARN", _GRANT),
        ),
    ),
    (
        r"VolumeLimitExceeded|MaxIOPSLimitExceeded",
        Remedy(
            text="ask AWS for a higher quota of EBS storage in {region}",
            commands=("aws service-quotas list-service-quotas --region {region} --service-code ebs",),
        ),
    ),
    (
        r"InvalidSnapshot|InvalidAMIID|InvalidBlockDevice",
        Remedy(
            text="the image, or a snapshot that it names, is not in {region} or not shared with this account",
            commands=("aws ec2 describe-images --region {region} --image-ids IMAGE",),
        ),
    ),
    (
        r"InstanceInitiatedShutdown",
        Remedy(
            text="the machine switched itself off: see what it wrote, and turn off in the image what reboots "
            "or shuts down by itself, such as unattended upgrades"
        ),
    ),
    (
        r"Server\.InternalError",
        Remedy(text="a fault of EC2's own: try again or use another zone; report it to AWS if it goes on"),
    ),
)
"""By the provider's words, the first that is found."""

_BY_CONSOLE: tuple[tuple[str, Remedy], ...] = (
    (
        r"image \S+: there is none",
        Remedy(text="the container's image is not in its registry: correct engine.image"),
    ),
    (
        r"image \S+: the registry refuses it",
        Remedy(text="the registry needs a login for the container's image: log in there on the nodes"),
    ),
    (
        r"image \S+: the registry does not answer",
        Remedy(text="the registry of the container's image does not answer the nodes: see their way there"),
    ),
    (
        r"image \S+: the disk is full",
        Remedy(text="the container's image does not fit the disk: set cloud.aws.disk.size to hold it too"),
    ),
    (
        r"(?s): image: \S+ is fetched(?!.*: (?:start|failed): )",
        Remedy(
            text="the container's image was still being fetched: keep it on the machine image or beside the "
            "nodes, or raise health.boot_timeout"
        ),
    ),
    (
        r"No space left on device",
        Remedy(text="its disk is full: set cloud.aws.disk.size to twice the size of the weights"),
    ),
    (
        r"CUDA out of memory|No available memory for the cache blocks|than the maximum number of tokens",
        Remedy(
            text="the model does not fit its GPUs: set --max-model-len, or take more GPUs or smaller weights",
            commands=("orchestrator validate CONFIG",),
        ),
    ),
    (
        r"gated repo|401 Client Error|403 Client Error",
        Remedy(text="the model may not be downloaded: give the engine a token of Hugging Face that may"),
    ),
    (
        r"Cannot find the config file for",
        Remedy(text="the weights are not quantised as --quantization says: leave it out, or take others"),
    ),
    (
        r"ninja.{0,40}not found|nvcc.{0,40}not found|No such file or directory: '[^']*(?:ninja|nvcc)'",
        Remedy(text="the image lacks a compiler, nvcc or ninja, which the engine needs as it starts"),
    ),
    (
        r"NVIDIA-SMI has failed|Found no NVIDIA driver|CUDA driver version is insufficient",
        Remedy(text="the image has no GPU driver that works with its engine"),
    ),
    (r"Out of memory: Killed process", Remedy(text="the machine has too little main memory for the weights")),
)
"""By what the machine wrote, the first that is found."""

_SLOW = Remedy(
    text="the machine ran and its engine was not ready in time: see what it wrote; where that is nothing "
    "wrong, this host may not reach it (network, security group), or health.boot_timeout is too short",
    commands=("orchestrator doctor --config CONFIG",),
)


def remedy(why: str, region: str, market: Market, console: str = "") -> Remedy | None:
    """What to do about a machine that ended with these words, and wrote this last.

    None where nothing is known.
    """
    found = _first(_BY_REASON, why) or _first(_BY_CONSOLE, console)
    if found is None and re.search(r"not ready \d+ s after its start", why):
        found = _SLOW
    return None if found is None else _filled(found, region, market)


def _first(table: tuple[tuple[str, Remedy], ...], text: str) -> Remedy | None:
    return next((found for pattern, found in table if re.search(pattern, text)), None)


def _filled(found: Remedy, region: str, market: Market) -> Remedy:
    """With the region, and who has to be allowed: for spot EC2's own role, else the daemon's."""
    who = "the service-linked role for spot" if market is Market.SPOT else "the daemon's role"
    words = {"region": region, "who": who}
    return Remedy(text=found.text.format(**words), commands=tuple(c.format(**words) for c in found.commands))
