"""Clients of boto3, as the adapters make them."""

from __future__ import annotations

from typing import Any

import botocore.loaders
import pytest

from cloud.aws.clients import AwsClients, Lane


async def asked(shim: Any, region: str) -> None:
    clients = AwsClients(region, endpoint=shim.url)
    answer = await clients.call(Lane.LIST, "ec2", "describe_vpcs")
    await clients.close()
    assert answer["Vpcs"]


async def test_descriptions_of_services_are_read_once_for_all_regions(
    aws_shim: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asked(aws_shim, "us-east-1")
    read: list[str] = []
    load = botocore.loaders.JSONFileLoader.load_file

    def recorded(self: Any, path: str) -> Any:
        read.append(path)
        return load(self, path)

    monkeypatch.setattr(botocore.loaders.JSONFileLoader, "load_file", recorded)
    await asked(aws_shim, "us-west-2")
    assert read == []
