"""Headers as a proxy sets them (RFC 9110, 7.6): which pass, which end here, and what is added on the way.

What says where a request comes from is ours to say: a node gets `X-Forwarded-For`, `-Proto` and `-Host` from
the gateway, and of what the client sent under such names nothing, unless it is a proxy that is trusted.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

from aiohttp import hdrs, web
from multidict import CIMultiDict, MultiMapping

from orchestrator.gateway.dialects.messages_in import auth_headers

PSEUDONYM = "spot-orchestrator"
"""What the gateway calls itself, in `Server` and `Via`; versions are nobody's business."""

_HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization",
        "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
_NOT_FORWARDED = _HOP_BY_HOP | {
    *("host", "content-length", "expect", "accept-encoding", "x-request-id"),
    *("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"),
}
_NEITHER = _NOT_FORWARDED | {"forwarded", "x-real-ip"}
"""Nor headers about origins, from a client that is no proxy of ours."""
_KEYS = frozenset({"authorization", "x-api-key"})
"""Where clients show theirs."""
_ORIGIN_PREFIX = "x-forwarded-"
_NOT_RETURNED = _HOP_BY_HOP | {"content-length", "x-request-id", "server", "alt-svc"}
"""`Alt-Svc` would have clients leave the gateway for the node."""
_FOR, _PROTO, _HOST = "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"
_PEERS_KNOWN = 4096


class Forwarding:
    """Makes the headers for a node. `trusted`: addresses and networks of the proxies in front of the gateway;
    `api_key`: what the gateway shows to nodes instead of the client's own. `own_keys`: what clients show is a
    key for the gateway, and ends here. Raises ValueError for what is no network.
    """

    def __init__(self, trusted: Iterable[str], api_key: str | None, *, own_keys: bool = False) -> None:
        networks = [ipaddress.ip_network(text, strict=False) for text in trusted]
        self._api_key = api_key
        ends = _KEYS if own_keys else frozenset()
        self._ends, self._ends_of_others = _NOT_FORWARDED | ends, _NEITHER | ends

        @functools.lru_cache(_PEERS_KNOWN)
        def trusts(peer: str) -> bool:
            return bool(peer) and any(ipaddress.ip_address(peer) in network for network in networks)

        self._trusts = trusts

    def to_node(self, request: web.BaseRequest, request_id: str) -> CIMultiDict[str]:
        """The headers for the node.

        Hop-by-hop headers end here. The answer is asked for uncompressed, since the gateway must read it to
        know whether it is whole. The client's Authorization, or what stands for it, passes unless the gateway
        has a key of its own, or asks clients for keys.
        """
        given, peer = request.headers, _peer(request)
        trusted = self._trusts(peer)
        out = _without(given, self._ends if trusted else self._ends_of_others, origins=trusted)
        before = given.getall(_FOR, []) if trusted else []
        out[_FOR] = ", ".join([*before, peer or "unknown"])
        out[_PROTO] = (given.get(_PROTO) if trusted else None) or request.scheme
        host = (given.get(_HOST) if trusted else None) or given.get(hdrs.HOST)
        if host is not None:
            out[_HOST] = host
        auth_headers(out)
        out.add(hdrs.VIA, f"{request.version.major}.{request.version.minor} {PSEUDONYM}")
        out["Accept-Encoding"] = "identity"
        out["X-Request-Id"] = request_id
        if self._api_key is not None:
            out["Authorization"] = f"Bearer {self._api_key}"
        return out


def returned(headers: MultiMapping[str]) -> CIMultiDict[str]:
    """The headers for the client, of those of a node."""
    out = _without(headers, _NOT_RETURNED, origins=True)
    out.add(hdrs.VIA, f"1.1 {PSEUDONYM}")
    return out


def _without(headers: MultiMapping[str], names: frozenset[str], *, origins: bool) -> CIMultiDict[str]:
    """A copy without `names`, without what Connection names, and without X-Forwarded-* but for `origins`."""
    listed = headers.getall(hdrs.CONNECTION, None)
    if listed:
        names = names | {name.strip().lower() for line in listed for name in line.split(",")}
    return CIMultiDict(
        [
            (name, value)
            for name, value in headers.items()
            if (low := name.lower()) not in names and (origins or not low.startswith(_ORIGIN_PREFIX))
        ]
    )


def _peer(request: web.BaseRequest) -> str:
    """The address of the caller, empty when it is gone."""
    found = request.protocol.peername
    text = found[0] if isinstance(found, tuple) else ""
    return text.removeprefix("::ffff:") if "." in text else text.partition("%")[0]
