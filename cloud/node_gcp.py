"""`cloud.node_start` on a machine of Google: what that asks of the metadata, and the proof of who it is.

Standard library and its neighbours `cloud.node_*` only, Python 3.9 or newer, so that a startup script can
carry it. Source: Compute Engine, "Query metadata server" and "Verify the identity of VMs".
"""

# Like node_agent.py this runs where nothing of the project is installed and on older Pythons.
from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from cloud.node_metadata import Metadata, Refused, fetch

GCE = "computeMetadata/v1/instance/"
CHALLENGE = "X-Orchestrator-Challenge"  # the header of what is signed that has the challenge
AUDIENCE = "orchestrator/"  # for whom a proof is made, with the control host's challenge behind it
PROOF = "X-Google-Identity"
_PATHS = {
    "meta-data/instance-id": "name",
    "meta-data/instance-type": "machine-type",  # projects/NUMBER/machineTypes/TYPE
    "meta-data/local-ipv4": "network-interfaces/0/ip",
}


class Signer:
    """What proves the machine to the control host: a token of Google's for that challenge alone."""

    region = ""

    def __init__(self, imds: Any) -> None:
        self._imds = imds

    def signed(self, _service: str, _region: str, headers: Mapping[str, str], *_rest: Any) -> dict[str, str]:
        """The headers of the proof, in place of those that are to be signed. Raises Refused."""
        audience = quote(AUDIENCE + headers[CHALLENGE], safe="")
        token = self._imds.document(f"service-accounts/default/identity?audience={audience}&format=full")
        if not token or not token.strip():
            raise Refused("the machine has no service account; set cloud.gcp.service_account")
        return {PROOF: token.strip()}


class Gce(Metadata):
    """The documents of EC2's metadata that starting an engine needs, by those of Compute Engine."""

    signer = Signer

    def __init__(self, base: str, timeout: float = 2.0) -> None:
        super().__init__(base, timeout)
        self._root, self._within = base.rstrip("/"), timeout

    def get(self, path: str) -> str | None:
        """A document by its path on EC2, None where there is none. Raises Refused."""
        known = _PATHS.get(path)
        text = None if known is None else self.document(known)
        return text.rpartition("/")[2] if text and known == "machine-type" else text

    def document(self, path: str) -> str | None:
        """A document by its own path below the instance, None where there is none. Raises Refused."""
        url = f"{self._root}/{GCE}{path}"
        status, body = fetch(url, headers={"Metadata-Flavor": "Google"}, timeout=self._within)
        if status not in (200, 404):
            raise Refused(f"{url}: status {status}")
        return body.decode("utf-8", "replace") if status == 200 else None


metadata = Gce
"""For `cloud.node_metadata.metadata_of`."""
