"""Asks Azure's instance metadata on a node, under the names that EC2's has.

Standard library and its neighbours `cloud.node_*` only, Python 3.9 or newer, so that user-data can carry it.
Source: "Azure Instance Metadata Service for virtual machines".
"""

# Like node_agent.py this runs where nothing of the project is installed and on older Pythons.
from __future__ import annotations

import json
from typing import Any

from cloud.node_metadata import Refused, fetch

INSTANCE = "/metadata/instance?api-version=2021-02-01"


class AzureMetadata:
    """What a node asks of EC2's metadata, from Azure's. `base`: where the service is."""

    def __init__(self, base: str, timeout: float = 2.0) -> None:
        self._base = base.rstrip("/")
        self._timeout = timeout

    def get(self, path: str) -> str | None:
        """The node's name, its size or its private address, by EC2's path; None for what Azure has not.

        Raises Refused.
        """
        url = f"{self._base}{INSTANCE}"
        status, body = fetch(url, headers={"Metadata": "true"}, timeout=self._timeout)
        if status != 200:
            raise Refused(f"{url}: status {status}")
        try:
            told: Any = json.loads(body)
            machine = told["compute"]
            if path == "meta-data/local-ipv4":
                return str(told["network"]["interface"][0]["ipv4"]["ipAddress"][0]["privateIpAddress"])
            known = {"meta-data/instance-id": "name", "meta-data/instance-type": "vmSize"}
            return str(machine[known[path]]) if path in known else None
        except (ValueError, KeyError, IndexError, TypeError):
            raise Refused(f"{url}: no description of a machine") from None


metadata = AzureMetadata
"""For `cloud.node_metadata.metadata_of`."""
