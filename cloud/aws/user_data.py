"""The user-data of a launch template: cloud-init that makes an instance a node of a pool.

It installs two systemd units: the engine with the pool's flags, and the node agent. It holds no secret: those
are fetched on the node, by reference, with the credentials of its role (`cloud.node_start`). The engine
listens on the node's private address only; who reaches that is the security group's affair.

The whole travels compressed, which cloud-init undoes: EC2 takes 16 KiB, and the agent alone is larger. Pure.

Source: the cloud-init reference (cloud-config, gzip compressed content), systemd.exec(5), systemd.service(5).
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Final

from cloud.ports import EngineCommand

LIMIT: Final = 16384
"""Bytes of user-data that EC2 takes, before it is encoded for the call."""

_HOME: Final = "/opt/orchestrator"
_PROGRAMS: Final = ("node_agent.py", "node_metadata.py", "node_start.py")
_WORD: Final = re.compile(r"[A-Za-z0-9_./:@=+,\[\]-]+")

_ENGINE: Final = """[Unit]
Description=Inference engine of pool {pool}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
DynamicUser=yes
StateDirectory=orchestrator-engine
WorkingDirectory=/var/lib/orchestrator-engine
Environment=HOME=/var/lib/orchestrator-engine PYTHONPATH={home}
# The driver makes its device files when root asks for the GPUs first.
ExecStartPre=-+/bin/sh -c 'timeout 30 nvidia-smi > /dev/null'
ExecStart=/usr/bin/python3 -m cloud.node_start engine {home}/engine.json
KillMode=mixed
KillSignal={signal}
TimeoutStopSec={grace}
Restart=always
RestartSec=2
LimitNOFILE=65536
LimitMEMLOCK=infinity

[Install]
WantedBy=multi-user.target
"""

_AGENT: Final = """[Unit]
Description=Node agent of pool {pool}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
DynamicUser=yes
RuntimeDirectory=orchestrator-agent
RuntimeDirectoryMode=0700
Environment=PYTHONPATH={home}
ExecStartPre=/usr/bin/python3 -m cloud.node_start key {where} --key-file /run/orchestrator-agent/key
ExecStart=/usr/bin/python3 -m cloud.node_agent {where} --key-file /run/orchestrator-agent/key
Restart=always
RestartSec=5
# Xid errors stand in the kernel log.
AmbientCapabilities=CAP_SYSLOG
CapabilityBoundingSet=CAP_SYSLOG
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSetup:
    """What makes an instance a node.

    `command` starts the engine, on `port`; `secrets` maps variables of its environment to ARNs. `report_url`:
    where the node's agent reports, empty for no agent; `trusted`: the certificates (PEM) that it trusts
    there, empty for those of the system.
    """

    pool: str
    command: EngineCommand
    port: int
    secrets: Mapping[str, str] = field(default_factory=dict)
    report_url: str = ""
    trusted: str = ""


def user_data(setup: NodeSetup) -> bytes:
    """The user-data as EC2 takes it. Raises ValueError when it is too large or a text cannot be in a unit."""
    packed = gzip.compress(cloud_config(setup).encode(), 9, mtime=0)
    if len(packed) > LIMIT:
        raise ValueError(
            f"the user-data of pool {setup.pool} has {len(packed)} bytes compressed, and EC2 takes {LIMIT}; "
            "shorten agents.ca_file or engine.args"
        )
    return packed


def unpacked(data: bytes) -> str:
    """The cloud-config in user-data; text that is not compressed as it is."""
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    return data.decode("utf-8", "replace")


def cloud_config(setup: NodeSetup) -> str:
    """The same as text, for people. Raises ValueError."""
    units = ["orchestrator-engine.service", *(["orchestrator-agent.service"] if setup.report_url else [])]
    lines = ["#cloud-config", f"# A node of pool {_word(setup.pool)}.", "write_files:"]
    for path, content in written(setup).items():
        lines += [f"- path: {path}", "  permissions: '0644'", "  content: |"]
        lines += [f"    {line}".rstrip(" ") for line in content.rstrip("\n").split("\n")]
    commands = [["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", "--no-block", *units]]
    lines += ["runcmd:", *(f"- {json.dumps(command)}" for command in commands)]
    return "\n".join(lines) + "\n"


def written(setup: NodeSetup) -> dict[str, str]:
    """The files that a node gets, by path. Raises ValueError."""
    package = files("cloud")
    found = {f"{_HOME}/cloud/__init__.py": "# What runs on the node beside the engine.\n"}
    found |= {f"{_HOME}/cloud/{name}": package.joinpath(name).read_text("utf-8") for name in _PROGRAMS}
    command, pool = setup.command, _word(setup.pool)
    engine = {
        "argv": list(command.argv),
        "env": dict(command.env),
        "secrets": dict(setup.secrets),
        "port": setup.port,
    }
    found[f"{_HOME}/engine.json"] = json.dumps(engine, indent=1) + "\n"
    found["/etc/systemd/system/orchestrator-engine.service"] = _ENGINE.format(
        pool=pool, home=_HOME, signal=_word(command.stop_signal), grace=math.ceil(command.stop_grace)
    )
    if setup.report_url:
        where = f"--url {_word(setup.report_url)}"
        if setup.trusted:
            found[f"{_HOME}/trusted.pem"] = setup.trusted
            where += f" --ca-file {_HOME}/trusted.pem"
        agent = _AGENT.format(pool=pool, home=_HOME, where=where)
        found["/etc/systemd/system/orchestrator-agent.service"] = agent
    return found


def _word(text: str) -> str:
    """A text that means itself in a unit."""
    if not _WORD.fullmatch(text):
        raise ValueError(f"{text!r} cannot stand in a unit of systemd")
    return text
