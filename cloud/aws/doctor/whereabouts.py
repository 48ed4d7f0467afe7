"""In which network this host is, by EC2's instance metadata.

Source: the EC2 user guide ("Instance metadata categories": network/interfaces/macs/MAC/vpc-id; IMDSv2).
"""

from __future__ import annotations

import os
from typing import Final

import aiohttp

_ADDRESS: Final = "http://169.254.169.254"
_PATIENCE: Final = 2.0  # s; on EC2 it answers in milliseconds
_MOST: Final = 1024  # bytes of an answer


async def own_network() -> str:
    """The VPC of this host; empty where no metadata service answers. Never raises."""
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return ""
    base = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", _ADDRESS).rstrip("/")
    timeout = aiohttp.ClientTimeout(total=_PATIENCE)
    try:
        async with aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as session:
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
            async with session.put(f"{base}/latest/api/token", headers=lifetime) as answer:
                token = {"X-aws-ec2-metadata-token": await _text(answer)}
            async with session.get(f"{base}/latest/meta-data/mac", headers=token) as answer:
                mac = await _text(answer)
            path = f"/latest/meta-data/network/interfaces/macs/{mac}/vpc-id"
            async with session.get(f"{base}{path}", headers=token) as answer:
                found = await _text(answer)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return ""
    return found if found.startswith("vpc-") else ""


async def _text(answer: aiohttp.ClientResponse) -> str:
    return (await answer.content.read(_MOST)).decode("ascii").strip()
