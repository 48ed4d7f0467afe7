"""Working configurations of balancers: what `orchestrator balancer example` prints, and the tests start.

Each is a folder of text files in which `<<name>>` stands for a value of `Place`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Final

EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "haproxy": ("haproxy.cfg", "servers.cfg", "pool.toml"),
    "envoy": ("envoy.yaml", "endpoints.json", "pool.toml"),
    "nginx": ("nginx.conf", "targets.conf", "pool.toml"),
    "smg": ("command.txt", "pool.toml"),
    "sglang-router": ("command.txt", "pool.toml"),
    "vllm-router": ("command.txt", "pool.toml"),
}
"""The files of each balancer, in the order in which they are shown."""

_MARK: Final = re.compile(r"<<(\w+)>>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the example is used. Times in seconds; `folder` is where its files lie."""

    pool: str = "chat"
    listen_host: str = "0.0.0.0"  # noqa: S104 - written into a file for its reader to judge
    listen_port: int = 8080
    admin_port: int = 9901  # of the loopback
    folder: str = "/etc/spot-orchestrator/balancer"
    run: str = "/run/spot-orchestrator"  # for sockets and the number of the process
    interval: float = 1.0
    fall: int = 3


def example(kind: str, place: Place) -> Mapping[str, str]:
    """The files of an example by name. Raises KeyError for a balancer that has none."""
    values = {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in asdict(place).items()
    }
    folder = files(__package__) / kind
    return {
        name: _MARK.sub(lambda mark: values[mark[1]], (folder / name).read_text(encoding="utf-8"))
        for name in EXAMPLES[kind]
    }
