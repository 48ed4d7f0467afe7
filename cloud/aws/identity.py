"""Which instance signed a request: STS is asked, with the request that the instance signed itself.

The credentials of an instance role carry the instance's id as the name of their session, and only EC2 gives
them out, as long as EC2 alone may assume the role. So STS's answer to GetCallerIdentity proves who signed it.
The request goes to STS's own address, which is known here and not taken from the node, and holds nothing of
the node's but the signature, its date and its token.

Source: the STS API reference (GetCallerIdentity), the IAM user guide (role session names on EC2).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import aiohttp

from cloud.errors import CloudError, Denied
from cloud.node_start import CHALLENGE, STS_BODY, STS_TYPE

_ROLE = re.compile(r"arn:(aws[a-z-]*):iam::(\d{12}):role/(?:[!-~]+/)?([\w+=,.@-]{1,64})")
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=\w{16,128}/\d{8}/([a-z0-9-]{1,32})/sts/aws4_request, "
    r"SignedHeaders=([a-z0-9;-]{1,256}), Signature=[0-9a-f]{64}"
)
_DATE = re.compile(r"\d{8}T\d{6}Z")
_TOKEN = re.compile(r"[!-~]{1,8192}")
_CALLER = re.compile(r"<Arn>arn:(aws[a-z-]*):sts::(\d{12}):assumed-role/([^/<]+)/(i-[0-9a-f]{8,17})</Arn>")
_MOST_READ = 64 * 1024


class CallerIdentity:
    """Judges the proofs of nodes: see `cloud.agent_keys.Identify`.

    `role`: the ARN of the role that nodes have. `regions`: where they run. `endpoint`: of a stand-in for AWS,
    empty for AWS itself. Raises ValueError for a role that is none.
    """

    def __init__(self, *, role: str, regions: Collection[str], endpoint: str = "") -> None:
        found = _ROLE.fullmatch(role)
        if found is None:
            raise ValueError(f"{role!r} is not the ARN of a role; write it as arn:aws:iam::ACCOUNT:role/NAME")
        self._role, self._regions, self._endpoint = found.groups(), frozenset(regions), endpoint

    async def __call__(self, headers: Mapping[str, str], challenge: str) -> str:
        """The id of the instance that signed these headers with that challenge. Raises CloudError, Denied."""
        given = {name.lower(): value for name, value in headers.items()}
        authorization = given.get("authorization", "")
        found = _AUTHORIZATION.fullmatch(authorization)
        if found is None or not _DATE.fullmatch(given.get("x-amz-date", "")):
            raise Denied("no signature of STS's")
        if not _TOKEN.fullmatch(given.get("x-amz-security-token", "")):
            raise Denied("not signed with the credentials of a role")
        region, signed = found[1], found[2].split(";")
        if region not in self._regions:
            raise Denied(f"signed for {region}, where this pool has no nodes")
        if not {"host", CHALLENGE.lower(), "x-amz-security-token"} <= set(signed):
            raise Denied("the challenge is not part of what was signed")
        sent = {
            "Authorization": authorization,
            "Content-Type": STS_TYPE,
            "X-Amz-Date": given["x-amz-date"],
            "X-Amz-Security-Token": given["x-amz-security-token"],
            CHALLENGE: challenge,
        }
        return self._instance(*await self._ask(self._url(region), sent))

    def _url(self, region: str) -> str:
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        return self._endpoint or f"https://sts.{region}.{domain}"

    async def _ask(self, url: str, headers: Mapping[str, str]) -> tuple[int, str]:
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=8.0)) as session,
                session.post(url, data=STS_BODY, headers=headers, allow_redirects=False) as answer,
            ):
                body = await answer.content.read(_MOST_READ)
                return answer.status, body.decode("utf-8", "replace")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise CloudError(f"{url}: no answer: {error}") from error

    def _instance(self, status: int, text: str) -> str:
        if status == 429 or status >= 500:
            raise CloudError(f"STS answers {status}")
        found = _CALLER.search(text) if status == 200 else None
        if found is None:
            raise Denied(f"STS knows no instance by this signature (status {status})")
        if found.groups()[:3] != self._role:
            raise Denied(f"{found[4]} has the role {found[3]} of account {found[2]}, which is not the nodes'")
        return found[4]
