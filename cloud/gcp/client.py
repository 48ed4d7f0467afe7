"""Calls on Google's REST interfaces: one session, short time-outs, no retries.

The next turn of the loop is the retry. A call that changes something and gets no answer is Uncertain: it may
have taken effect.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import aiohttp
import orjson

from cloud.errors import CloudError, Uncertain
from cloud.gcp.errors import of_answer
from cloud.gcp.tokens import Tokens

COMPUTE: Final = "https://compute.googleapis.com"
BILLING: Final = "https://cloudbilling.googleapis.com"

PAGE: Final = 500  # the most that Compute Engine gives at once

_MOST_PAGES: Final = 200

Body = dict[str, Any]


class GcpClient:
    """Speaks for one project. Connections are made at their first use, also after `close`."""

    def __init__(
        self,
        project: str,
        tokens: Tokens,
        *,
        endpoint: str = "",
        timeout: float = 8.0,
        connect_timeout: float = 2.0,
        billing: str = "",
    ) -> None:
        self.project = project
        self._tokens = tokens
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=connect_timeout)
        self._compute = f"{(endpoint or COMPUTE).rstrip('/')}/compute/v1/projects/{project}"
        self._billing = (billing or endpoint or BILLING).rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def read(self, path: str, **params: str) -> Body:
        """GET below the project: `zones/ZONE/instances/NAME`. Raises CloudError."""
        return await self._call("GET", f"{self._compute}/{path}", params, None, CloudError)

    async def change(self, method: str, path: str, body: Body | None = None, **params: str) -> Body:
        """POST or DELETE below the project; gives the operation. Raises CloudError, Uncertain."""
        return await self._call(method, f"{self._compute}/{path}", params, body, Uncertain)

    async def pages(self, path: str, **params: str) -> AsyncIterator[Body]:
        """Every item of a list, to its end. Raises CloudError, also where only a part can be had."""
        async for page in self._pages(f"{self._compute}/{path}", {"maxResults": str(PAGE), **params}):
            for item in page.get("items") or ():
                yield item

    async def billing(self, path: str, **params: str) -> AsyncIterator[Body]:
        """Every page of a list of the Cloud Billing interface. Raises CloudError."""
        async for page in self._pages(f"{self._billing}/v1/{path}", params):
            yield page

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _pages(self, url: str, params: Mapping[str, str]) -> AsyncIterator[Body]:
        token = ""
        for _ in range(_MOST_PAGES):
            more = {"pageToken": token} if token else {}
            page = await self._call("GET", url, {**params, **more}, None, CloudError)
            yield page
            token = str(page.get("nextPageToken") or "")
            if not token:
                return
        raise CloudError(f"{url}: more than {_MOST_PAGES} pages")

    async def _call(
        self, method: str, url: str, params: Mapping[str, str], body: Body | None, lost: type[CloudError]
    ) -> Body:
        authorization = await self._tokens.header()
        if self._session is None:
            self._session = aiohttp.ClientSession()
        what = f"{method} {url.partition('/projects/')[2] or url}"
        try:
            async with self._session.request(
                method,
                url,
                params=params,
                data=None if body is None else orjson.dumps(body),
                headers={"Content-Type": "application/json"}
                | ({"Authorization": authorization} if authorization else {}),
                timeout=self._timeout,
                allow_redirects=False,
            ) as answer:
                status, text = answer.status, await answer.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:  # nothing was sent
            raise CloudError(f"{what}: {error}") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise lost(f"{what}: {type(error).__name__}: {error}") from error
        try:
            found: Any = orjson.loads(text) if text.strip() else {}
        except ValueError:
            found = None
        if status >= 300:
            raise of_answer(status, found, what, lost)
        if not isinstance(found, dict):
            raise lost(f"{what}: the answer is not an object of JSON")
        return found
