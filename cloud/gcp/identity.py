"""Which machine of Google asks for its key: the token that Google signed for it, held against the challenge.

The node asks its metadata server for a token whose audience is the challenge (`cloud.node_gcp`). Google signs
into it the machine's project, zone and name. So it is worth nothing later or elsewhere, and no call to Google
is made but for the certificates, which google-auth fetches.
Source: Compute Engine, "Verify the identity of VMs"; google.oauth2.id_token.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from cloud.errors import CloudError, Denied
from cloud.node_gcp import AUDIENCE, PROOF
from cloud.threads import WorkerThreads

_CERTIFICATES: Final = "https://www.googleapis.com/oauth2/v1/certs"
_ISSUERS: Final = ("https://accounts.google.com", "accounts.google.com")
_LONGEST: Final = 8192  # characters of a token


class MachineIdentity:
    """Judges the proofs of nodes: see `cloud.agent_keys.Identify`.

    `account`: the e-mail of the nodes' service account; empty for whichever an instance template gives.
    """

    def __init__(self, *, project: str, account: str = "", certificates: str = _CERTIFICATES) -> None:
        self._project, self._account, self._certificates = project, account, certificates
        self._threads = WorkerThreads("gcp-identity", 2)
        self._request: Any = None

    async def __call__(self, headers: Mapping[str, str], challenge: str) -> str:
        """The name of the machine that Google signed this for. Raises CloudError, Denied."""
        given = {name.lower(): value for name, value in headers.items()}
        token = given.get(PROOF.lower(), "")
        if not token or len(token) > _LONGEST:
            raise Denied("no token of Google's")
        claims = await self._threads.run(partial(self._verified, token, AUDIENCE + challenge))
        if claims.get("iss") not in _ISSUERS:
            raise Denied(f"signed by {claims.get('iss')}, not by Google")
        if self._account and claims.get("email") != self._account:
            raise Denied(f"it has the service account {claims.get('email')}, which is not the nodes'")
        google = claims.get("google")
        machine = google.get("compute_engine") if isinstance(google, Mapping) else None
        if not isinstance(machine, Mapping) or not machine.get("instance_name"):
            raise Denied("a token of no machine; ask for one with format=full")
        if machine.get("project_id") != self._project:
            raise Denied(f"a machine of project {machine.get('project_id')}, which is not the pool's")
        return str(machine["instance_name"])

    def _verified(self, token: str, audience: str) -> Mapping[str, Any]:
        try:
            import google.auth.transport.requests
            from google.auth.exceptions import GoogleAuthError, TransportError
            from google.oauth2 import id_token
        except ImportError:
            raise CloudError("google-auth is not installed: pip install 'spot-orchestrator[gcp]'") from None
        if self._request is None:
            self._request = google.auth.transport.requests.Request()
        try:
            claims: Mapping[str, Any] = id_token.verify_token(
                token, self._request, audience=audience, certs_url=self._certificates
            )
        except TransportError as error:
            raise CloudError(f"the certificates of Google cannot be read: {error}") from error
        except (GoogleAuthError, ValueError) as error:
            raise Denied(f"no proof: {error}") from error
        return claims
