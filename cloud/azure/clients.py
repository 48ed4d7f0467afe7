"""Azure's SDK from an event loop: one client, calls in small thread pools of their own, called lanes.

Why lanes: a notice or the end of a machine must not wait behind launches. Why threads: the SDK blocks. Why
one attempt: the daemon's next turn is the retry, with what is known by then. Long operations are only begun:
the first answer says whether Azure took it, and the list of machines shows what became of it.

Where Azure says how long to wait (429 with Retry-After), the lane asks nobody until then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, TypeVar

from cloud.azure.errors import retry_after, speaks_of_credentials, translate
from cloud.errors import CloudError, Throttled, Uncertain
from cloud.ports import Clock
from cloud.sharing import Share
from cloud.threads import WorkerThreads

Value = TypeVar("Value")

AZURE: Final = "https://management.azure.com"
NETWORK_VERSION: Final = "2024-05-01"
"""The version of Microsoft.Network's API in which interfaces are listed."""
COMPUTE_VERSION: Final = "2024-11-01"
"""The version of Microsoft.Compute's API in which machines are read and written."""
SKUS_VERSION: Final = "2021-07-01"
"""The newest version that lists what is sold in a region."""

_MOST_PAGES: Final = 500
"""Pages of one list; one that goes on longer goes round in circles."""

_LONGEST_WAIT = 600.0  # s that a Retry-After may silence a lane


class Lane(StrEnum):
    """Which thread pool a call runs in."""

    LAUNCH = "launch"  # launches, starts and stops
    END = "end"  # ends of machines, which wait for no launch
    LIST = "list"  # descriptions
    CONSOLE = "console"  # what machines wrote
    SKUS = "skus"  # what a region sells: an answer of megabytes


_WORKERS: Final = {Lane.LAUNCH: 8, Lane.END: 4, Lane.LIST: 4, Lane.CONSOLE: 2, Lane.SKUS: 1}


class AzureAccount:
    """The SDK of one subscription, made at the first call in the thread that makes it.

    `endpoint`: where Azure Resource Manager answers; a stand-in on this machine is asked over http and gets
    no credentials. Credentials are what azure-identity finds: variables, the machine's own identity, or
    whoever is logged in with `az`. Time-outs are seconds.
    """

    def __init__(
        self,
        subscription: str,
        *,
        endpoint: str = "",
        connect_timeout: float = 3.0,
        read_timeout: float = 10.0,
    ) -> None:
        self.subscription = subscription
        self.endpoint = (endpoint or AZURE).rstrip("/")
        self._connect_timeout, self._read_timeout = connect_timeout, read_timeout
        self._lock = threading.Lock()
        self._made: tuple[Any, Any] | None = None

    def compute(self) -> Any:
        """azure.mgmt.compute's client. Blocks. Raises what the SDK raises."""
        return self._clients()[0]

    def get(self, path: str, version: str) -> list[dict[str, Any]]:
        """Every page of a list of what has no client of its own here. Blocks. Raises what the SDK raises, and
        CloudError for a list without an end."""
        from azure.core.rest import HttpRequest

        pipeline, found = self._clients()[1], list[dict[str, Any]]()
        url, parameters = f"{self.endpoint}{path}", {"api-version": version}
        for _ in range(_MOST_PAGES):
            answer = pipeline.send_request(HttpRequest("GET", url, params=parameters))
            answer.raise_for_status()
            page = answer.json()
            found += page.get("value", [])
            url, parameters = page.get("nextLink") or "", {}
            if not url:
                return found
        raise CloudError(f"{path}: more than {_MOST_PAGES} pages")

    def download(self, url: str, most: int) -> bytes:
        """The end of what lies at an address that carries its own right to be read. Blocks."""
        from azure.core import PipelineClient
        from azure.core.rest import HttpRequest

        end = b""
        with PipelineClient(base_url="", policies=[], transport=self._transport()) as plain:
            answer = plain.send_request(HttpRequest("GET", url), stream=True)
            answer.raise_for_status()
            for part in answer.iter_bytes():
                end = (end + part)[-most:]
        return end

    def forget(self) -> None:
        """Look for credentials anew at the next call."""
        with self._lock:
            self._made = None

    def _clients(self) -> tuple[Any, Any]:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def _make(self) -> tuple[Any, Any]:
        from azure.core.pipeline import policies
        from azure.mgmt.compute import ComputeManagementClient
        from azure.mgmt.core import ARMPipelineClient

        credential, authentication = self._authentication()
        # Without retries, and without the policy that registers providers in the user's subscription.
        steps = [
            policies.RequestIdPolicy(),
            policies.UserAgentPolicy(base_user_agent="spot-orchestrator"),
            policies.ContentDecodePolicy(),
            authentication,
        ]
        transport = self._transport()
        compute = ComputeManagementClient(
            credential,
            self.subscription,
            base_url=self.endpoint,
            policies=steps,
            transport=transport,
        )
        return compute, ARMPipelineClient(base_url=self.endpoint, policies=steps, transport=transport)

    def _authentication(self) -> tuple[Any, Any]:
        if self.endpoint.startswith("http://"):  # a stand-in: the configuration takes no other
            from azure.core.pipeline.policies import SansIOHTTPPolicy

            return _Nobody(), SansIOHTTPPolicy()
        from azure.identity import DefaultAzureCredential
        from azure.mgmt.core.policies import ARMChallengeAuthenticationPolicy

        credential = DefaultAzureCredential(process_timeout=10)
        return credential, ARMChallengeAuthenticationPolicy(credential, f"{self.endpoint}/.default")

    def _transport(self) -> Any:
        from azure.core.pipeline.transport import RequestsTransport

        return RequestsTransport(connection_timeout=self._connect_timeout, read_timeout=self._read_timeout)


class _Nobody:
    """Stands where the SDK wants a credential; nothing asks it."""

    def get_token(self, *_scopes: str, **_options: Any) -> Any:
        raise NotImplementedError


class AzureClients:
    """The lanes of one region."""

    def __init__(
        self,
        account: AzureAccount,
        region: str,
        *,
        clock: Clock,
    ) -> None:
        self.account, self.region = account, region
        self._clock = clock
        self._pools: dict[Lane, WorkerThreads] = {}
        self._silent_until: dict[Lane, float] = {}
        self._users = 0

    async def call(
        self,
        lane: Lane,
        name: str,
        work: Callable[[AzureAccount], Value],
        *,
        lost: type[CloudError] = Uncertain,
    ) -> Value:
        """One call, once; `work` makes it in a thread. Raises the CloudError that the answer means, `lost`
        when no usable answer came."""
        wait = self._silent_until.get(lane, 0.0) - self._clock.steady()
        if wait > 0.0:
            raise Throttled(f"{name} in {self.region}: Azure asks to wait {wait:.0f} s more; not asked")
        try:
            return await self._pool(lane).run(lambda: work(self.account))
        except CloudError:
            raise
        except Exception as error:
            if speaks_of_credentials(error):
                self.account.forget()
            meaning = translate(error, f"{name} in {self.region}", lost=lost)
            if isinstance(meaning, Throttled):
                silence = min(_LONGEST_WAIT, retry_after(error) or 0.0)
                self._silent_until[lane] = self._clock.steady() + silence
            raise meaning from error

    def share(self) -> Share:
        """A share of the lanes for one adapter; the threads end with the last share."""
        self._users += 1
        return Share(self)

    async def release(self) -> None:
        """One share is given up."""
        self._users -= 1
        if self._users <= 0:
            pools, self._pools = self._pools, {}
            for pool in pools.values():
                pool.close()

    def _pool(self, lane: Lane) -> WorkerThreads:
        pool = self._pools.get(lane)
        if pool is None:
            pool = WorkerThreads(f"azure-{self.region}-{lane}", _WORKERS[lane])
            self._pools[lane] = pool
        return pool
