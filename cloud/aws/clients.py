"""boto3 from an event loop: clients made once, calls in small thread pools of their own, called lanes.

Why lanes: a notice must never wait behind a list of a thousand machines or behind launches that time out.
Why threads: boto3 blocks, and parsing a page takes tens of milliseconds, which an event loop has not got.
Why one attempt: the daemon's next turn is the retry, with what is known by then, and an answer that AWS
gave is reported as it is. A call that is cancelled goes on in its thread until its time-out; every call of
the adapters is harmless when it lands late (tokens, level-triggered writes).
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from enum import StrEnum
from typing import Any

from cloud.aws.errors import speaks_of_credentials, translate
from cloud.errors import CloudError, Uncertain
from cloud.sharing import Share
from cloud.threads import WorkerThreads

CallEnded = Callable[[str, str, str, float], None]
"""Called after every call: region, "service.operation", how it ended ("ok", or an error's word), seconds."""

Answer = Mapping[str, Any]  # boto3 has no types: its answers are read here and in the adapters' parsers only


class Lane(StrEnum):
    """Which thread pool a call runs in."""

    URGENT = "urgent"  # load balancers and whatever else a notice sets off
    LAUNCH = "launch"  # launches, starts and stops
    END = "end"  # ends of machines, which wait for no launch
    LIST = "list"  # descriptions
    CONSOLE = "console"  # what machines wrote: many that fail at once hold up no list
    SPOT_PRICES = "spot-prices"
    PRICE_LIST = "price-list"  # a list that hangs holds up nothing else
    NOTICE = "notice"  # what notice sources ask for and delete
    POLL = "poll"  # waits for messages


_WORKERS = {
    Lane.URGENT: 4,
    Lane.LAUNCH: 8,
    Lane.END: 4,
    Lane.LIST: 4,
    Lane.CONSOLE: 2,
    Lane.SPOT_PRICES: 2,
    Lane.PRICE_LIST: 4,
    Lane.NOTICE: 2,
    Lane.POLL: 2,
}


class AwsClients:
    """The clients of one region.

    `endpoint`: where every service answers, for a stand-in of AWS; empty means AWS itself. `profile`: a
    profile of the shared credentials file; empty means boto3's usual search, which renews by itself.
    Time-outs are seconds: `read_timeout` for one answer, `poll_wait` more for a long poll. `call_ended` is
    called after every call that was answered or failed.
    """

    def __init__(
        self,
        region: str,
        *,
        endpoint: str = "",
        profile: str = "",
        connect_timeout: float = 2.0,
        read_timeout: float = 8.0,
        poll_wait: float = 20.0,
        call_ended: CallEnded = lambda *_: None,
    ) -> None:
        self.region = region
        self._endpoint = endpoint or None
        self._profile = profile or None
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._poll_wait = poll_wait
        self._call_ended = call_ended
        self._lock = threading.Lock()  # a boto3 session is not thread-safe; its clients are
        self._session: Any = None
        self._clients: dict[tuple[Lane, str, str], Any] = {}
        self._pools: dict[Lane, WorkerThreads] = {}
        self._users = 0

    def share(self) -> Share:
        """A share of the clients for one adapter; the threads end with the last share."""
        self._users += 1
        return Share(self)

    async def call(
        self,
        lane: Lane,
        service: str,
        operation: str,
        *,
        lost: type[CloudError] = Uncertain,
        region: str = "",
        **parameters: Any,
    ) -> Answer:
        """One call, once. `operation` is boto3's name, such as "run_instances"; `region` overrides ours.

        Raises the CloudError that the answer means; `lost` when no usable answer came.
        """
        where = region or self.region

        def work() -> Answer:
            client = self._client(lane, service, where)
            answer: Answer = getattr(client, operation)(**parameters)
            return answer

        seconds = asyncio.get_running_loop().time
        began, name = seconds(), f"{service}.{operation}"
        try:
            answer = await self._pool(lane).run(work)
        except CloudError as error:
            self._call_ended(where, name, error.word, seconds() - began)
            raise
        except Exception as error:
            if speaks_of_credentials(error):
                self._forget_credentials()
            meaning = translate(error, f"{name} in {where}", lost=lost)
            self._call_ended(where, name, meaning.word, seconds() - began)
            raise meaning from error
        self._call_ended(where, name, "ok", seconds() - began)
        return answer

    async def pages(
        self,
        lane: Lane,
        service: str,
        operation: str,
        *,
        lost: type[CloudError] = CloudError,
        region: str = "",
        **parameters: Any,
    ) -> AsyncIterator[Answer]:
        """Every page of a listing, one call each. Raises when any page fails: half a list is no list."""
        token: dict[str, str] = {}
        while True:
            page = await self.call(lane, service, operation, lost=lost, region=region, **parameters, **token)
            yield page
            following = page.get("NextToken")
            if not following:
                return
            token = {"NextToken": following}

    async def close(self) -> None:
        """End the threads once their calls are done. Idempotent; a later call makes new ones."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()

    async def release(self) -> None:
        """One share is given up."""
        self._users -= 1
        if self._users <= 0:
            await self.close()

    def _pool(self, lane: Lane) -> WorkerThreads:
        pool = self._pools.get(lane)
        if pool is None:
            pool = WorkerThreads(f"aws-{lane}", _WORKERS[lane])
            self._pools[lane] = pool
        return pool

    def _forget_credentials(self) -> None:
        """Look for credentials anew at the next call: boto3 reads keys in files and variables only once, so
        renewed ones would not be found without a restart. Calls under way keep their clients."""
        with self._lock:
            self._session = None
            self._clients = {}

    def _client(self, lane: Lane, service: str, region: str) -> Any:
        """The client of a lane, made at its first call: that takes up to 200 ms, so in the lane's thread."""
        client = self._clients.get((lane, service, region))
        if client is not None:
            return client
        with self._lock:
            client = self._clients.get((lane, service, region))
            if client is None:
                client = self._made(lane, service, region)
                self._clients[(lane, service, region)] = client
        return client

    def _made(self, lane: Lane, service: str, region: str) -> Any:
        from botocore.config import Config

        if self._session is None:
            self._session = _session(self._profile, self.region)
        wait = self._poll_wait if lane is Lane.POLL else 0.0
        config = Config(
            connect_timeout=self._connect_timeout,
            read_timeout=self._read_timeout + wait,
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=_WORKERS[lane],
            tcp_keepalive=True,
            user_agent_extra="spot-orchestrator",
        )
        return self._session.client(service, region_name=region, endpoint_url=self._endpoint, config=config)


@functools.cache
def _descriptions() -> Any:
    """What boto3 knows of the services, read once in a process: 200 ms and tens of megabytes for EC2."""
    from botocore.session import Session

    return Session().get_component("data_loader")


def _session(profile: str | None, region: str) -> Any:
    """A session with credentials of its own, and the descriptions of services that all sessions share."""
    import boto3
    from botocore.session import Session

    core = Session()
    session = boto3.Session(profile_name=profile, region_name=region, botocore_session=core)
    core.register_component("data_loader", _descriptions())  # after boto3, which adds to the paths of its own
    return session
