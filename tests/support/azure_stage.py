"""The stand-in for Azure as a process, and the places of a pool there."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUBSCRIPTION = "11111111-2222-3333-4444-555555555555"
REGION = "eastus"
GROUP = "rg-eastus"
SIZE = "Standard_NC24ads_A100_v4"
IMAGE = "microsoft-dsvm:ubuntu-hpc:2204:22.04.2026102001"
SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2fE0o3bq8x7mQy9pYh0f1q9m0m0Yw4u5v6w7x8y9z0 user@host"
_STAND_IN = Path(__file__).parent / "azure_stand_in"
_LIVING = ("Creating", "Updating", "starting", "running")


def subnet(group: str = GROUP) -> str:
    """The id of a subnet."""
    network = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{group}/providers/Microsoft.Network"
    return f"{network}/virtualNetworks/nodes/subnets/nodes"


class AzureStandIn:
    """A running stand-in. `url` is where Azure Resource Manager and the price list answer."""

    def __init__(self, url: str) -> None:
        self.url = url

    def order(self, name: str, **values: Any) -> dict[str, Any]:
        """Give an order; `Arm.order` lists them."""
        request = urllib.request.Request(f"{self.url}/_stand_in/{name}", json.dumps(values).encode())  # noqa: S310
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def machines(self, pool: str) -> list[dict[str, Any]]:
        """Every machine of a pool that is there or was."""
        found = self.order("machines")
        return [m for m in (*found["machines"], *found["ended"]) if m["pool"] == pool]

    def living(self, pool: str) -> dict[str, str]:
        """Machines of a pool that are not ending: name to market."""
        return {
            m["id"]: m["market"]
            for m in self.order("machines")["machines"]
            if m["pool"] == pool and m["state"] in _LIVING
        }


@contextlib.contextmanager
def running_stand_in() -> Iterator[AzureStandIn]:
    """The stand-in in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, str(_STAND_IN)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the stand-in for Azure did not start"
        yield AzureStandIn(json.loads(line)["url"])
    finally:
        process.kill()
        process.wait()
