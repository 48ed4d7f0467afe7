"""The [[pool.NAME.balancer]] tables: load balancers that get the pool's nodes as targets."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from orchestrator.config.types import Duration, FilePath, Section, Strings, duration_key

BalancerKind = Literal["gateway", "haproxy", "envoy", "nginx", "smg", "sglang-router", "vllm-router"]

NGINX_SETTLES: Final = 1.5
"""Seconds, as `cloud.balancers.nginx.PROPAGATION`."""


class BalancerTable(Section):
    """A load balancer that gets the pool's nodes as targets. There may be several: each has the whole set,
    is written and read by itself, and none waits for another. With any, the gateway of this host gets targets
    only where one of them is of kind = "gateway". `orchestrator balancer example KIND` prints a working
    configuration of each."""

    kind: BalancerKind = Field(description="The program.", examples=["haproxy"])
    name: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_.-]{0,64}$",
        description="Its name in status, metrics and logs, one of its own in its pool. Default: its kind.",
        examples=["haproxy-east"],
    )
    url: str = Field(
        default="",
        description="Where the daemon reads it. envoy: its admin port. nginx: its status location. "
        "Routers: where their clients ask. gateway: control_listen of a gateway on another host, with "
        "https://; left out: the gateway of this host.",
        examples=["http://127.0.0.1:9901"],
    )
    socket: FilePath | None = Field(
        default=None,
        description="haproxy: its stats socket, of level admin.",
        examples=["/run/spot-orchestrator/haproxy.sock"],
        json_schema_extra={"default": None},
    )
    backend: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_.-]*$",
        description="What the targets belong to: backend of haproxy, cluster of envoy, upstream of nginx. "
        "Default: the pool's name.",
    )
    file: FilePath | None = Field(
        default=None,
        description="The file of targets that the daemon keeps. haproxy: the part of its configuration that "
        "holds the backend, so that a restart comes back with its servers; without it they are gone until "
        "the daemon's next look. envoy: its endpoints. nginx: what it includes.",
        examples=["/etc/spot-orchestrator/balancer/servers.cfg"],
        json_schema_extra={"default": None},
    )
    check: str = Field(
        default="",
        description="haproxy: how servers are checked, as its `server` lines say it. Default: "
        '"check inter 1s fall 3 rise 1".',
    )
    reload: Strings = Field(
        default=(),
        description="nginx: the command that has it read its configuration again.",
        examples=[["sudo", "-n", "systemctl", "reload", "nginx"]],
    )
    token_file: FilePath | None = Field(
        default=None,
        description="File with the token that it asks for. gateway with a url: its control_token_file. "
        "Routers: their API key, if there is one.",
        json_schema_extra={"default": None},
    )
    ca_file: FilePath | None = Field(
        default=None,
        description="gateway with a url: file with certificates (PEM) that are trusted beside the system's.",
        json_schema_extra={"default": None},
    )
    wait: Duration = duration_key(
        3.0,
        "Where no target that stays takes requests, how long the others are kept until a new one does.",
    )

    @property
    def title(self) -> str:
        """Its name within its pool."""
        return self.name or self.kind

    def token(self) -> str:
        """The token of its file, empty without one. Raises OSError."""
        return "" if self.token_file is None else self.token_file.read_text(encoding="utf-8").strip()
