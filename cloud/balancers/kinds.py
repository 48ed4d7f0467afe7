"""The load balancers that adapters exist for, as data: what each is called and needs. Imports no adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of balancer. `needs` and `takes`: keys of its table, without `kind`, `name` and `wait`."""

    title: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    change: str  # how a change reaches it
    restart: str  # what its restart does to its targets


KINDS: Final[Mapping[str, Kind]] = {
    "gateway": Kind(
        title="the embedded gateway",
        takes=("url", "token_file", "ca_file"),
        change="its control socket",
        restart="comes back with its targets, from its file",
    ),
    "haproxy": Kind(
        title="HAProxy",
        needs=("socket",),
        takes=("backend", "file", "check"),
        change="its runtime API",
        restart="comes back with its targets, from a file of its configuration",
    ),
    "envoy": Kind(
        title="Envoy",
        needs=("url", "file"),
        takes=("backend",),
        change="a file of endpoints that it watches",
        restart="comes back with its targets, from that file",
    ),
    "nginx": Kind(
        title="nginx",
        needs=("url", "file", "reload"),
        takes=("backend",),
        change="a file that it includes, and a reload",
        restart="comes back with its targets, from that file",
    ),
    "smg": Kind(
        title="smg",
        needs=("url",),
        takes=("token_file",),
        change="its REST API",
        restart="comes back empty, and is filled at the next look",
    ),
    "sglang-router": Kind(
        title="sglang-router",
        needs=("url",),
        takes=("token_file",),
        change="its REST API",
        restart="comes back empty, and is filled at the next look",
    ),
    "vllm-router": Kind(
        title="vllm-router",
        needs=("url",),
        takes=("token_file",),
        change="its REST API",
        restart="comes back empty, and is filled at the next look",
    ),
}
