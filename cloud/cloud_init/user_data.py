"""What a machine is given for its first boot: cloud-init that makes it a node of a pool.

It installs systemd units: the engine with the pool's flags, what mounts the local disks before it, what
copies the units' words to the console while the node boots, and the node agent. It holds no secret: those are
fetched on the node, by reference, with the credentials of its role (`cloud.node_start`). The engine listens
on the node's private address only; who reaches that is the security group's affair.

On Azure, where the name of a machine is known before it is made, the node's own key for its reports travels
with it, and the agent's program too; there the machine fetches nothing with a role.

The whole travels compressed, which cloud-init undoes: EC2 takes 16 KiB, Azure four times as much. So that the
programs fit, they travel without their comments and documentation (`bare`) and with short names
(`short_names`), and units without their comments. Pure.

Source: the cloud-init reference (cloud-config, gzip compressed content), systemd.exec(5), systemd.service(5),
sysusers.d(5).
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Final, Literal

from cloud.agent_keys import agent_program
from cloud.cloud_init.bare import bare
from cloud.cloud_init.short_names import shortened
from cloud.ports import EngineCommand

LIMIT: Final = 16384
"""Bytes of user-data that EC2 takes, before it is encoded for the call."""
AZURE_LIMIT: Final = 65535
"""The same of custom data, which Azure calls it."""

_HOME: Final = "/opt/orchestrator"
_KEY: Final = f"{_HOME}/agent.key"
_USER: Final = "orchestrator-engine"
_RUN: Final = "/run/orchestrator-engine"
_PROGRAMS: Final = (
    "boot",
    "metadata",
    "aws",
    "azure",
    "gcp",
    "weights",
    "start",
    "console",
    "checks",
    "program",
    "container",
    "disks",
)
"""The programs `cloud.node_*` that a node may get, in an order in which they become small."""

_WORD: Final = re.compile(r"[A-Za-z0-9_./:@=+,\[\]-]+")
_CERTIFICATE: Final = re.compile(
    r"-----BEGIN ((?:X509 |TRUSTED )?CERTIFICATE)-----[A-Za-z0-9+/=\s]+-----END \1-----"
)

_SYSUSERS: Final = f"u {_USER} - - /var/lib/{_USER}\ng systemd-journal -\n"  # systemd's own, as a rule there

_ENGINE: Final = """[Unit]
Description=Inference engine of pool {pool}
Wants=network-online.target {disks}
After=network-online.target {disks} {after}
StartLimitIntervalSec=0

[Service]
{rights}{cloud}
StateDirectory={user}
RuntimeDirectory={user}
# How the last start went outlives it.
RuntimeDirectoryPreserve=yes
WorkingDirectory=/var/lib/{user}
Environment=HOME=/var/lib/{user} PYTHONPATH={home}
# The driver makes its device files when root asks for the GPUs first. One that hangs cannot be killed.
ExecStartPre=-+/bin/sh -c 'nvidia-smi > /dev/null & timeout 30 tail -s .2 -f --pid=$! /dev/null'
ExecStart=/usr/bin/python3 -m cloud.node_start engine {home}/engine.json --report {run}/boot.json
ExecStopPost=-/bin/sh -c 'echo "$SERVICE_RESULT $EXIT_CODE $EXIT_STATUS" > {run}/ended'{removal}
KillMode=mixed
KillSignal={signal}
TimeoutStopSec={grace}
Restart=always
RestartSec=2
LimitNOFILE=65536
LimitMEMLOCK=infinity{shield}

[Install]
WantedBy=multi-user.target
"""

_PROGRAM: Final = {
    "after": "",
    "rights": f"User={_USER}",
    "removal": "",
    "shield": """
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths=-/mnt/orchestrator
PrivateTmp=yes
RemoveIPC=yes
RestrictSUIDSGID=yes""",
}
"""What the engine's unit has for a program of the node, which has no rights."""

_CONTAINER: Final = {
    "after": "docker.service",
    "rights": "Environment=DOCKER_CONFIG=%h/.docker",
    "removal": "\nExecStopPost=-/usr/bin/python3 -m cloud.node_container",
    "shield": "",
}
"""What it has for a container: docker and podman are root's, and so is who is logged in at a registry."""

_DISKS: Final = """[Unit]
Description=Local disks of a node of pool {pool}
After=local-fs.target dlami-nvme.service
Before=orchestrator-engine.service

[Service]
Type=oneshot
RemainAfterExit=yes
Environment=PYTHONPATH={home}
ExecStart=/usr/bin/python3 -m cloud.node_disks
TimeoutStartSec=300

[Install]
WantedBy=multi-user.target
"""

_CONSOLE: Final = """[Unit]
Description=What the units of pool {pool} write, on the console while the node boots
StartLimitIntervalSec=0

[Service]
Environment=PYTHONPATH={home}{cloud}
ExecStart=/usr/bin/python3 -m cloud.node_console {home}/engine.json{units}
StandardOutput=tty
TTYPath=/dev/console
StandardError=journal
Restart=always
RestartSec=5
Nice=10

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
{start}
Restart=always
RestartSec=5
# The engine's log tells how long its start took; Xid errors stand in the kernel log.
SupplementaryGroups=systemd-journal
AmbientCapabilities=CAP_SYSLOG
CapabilityBoundingSet=CAP_SYSLOG
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""


_FETCHED: Final = (
    "ExecStartPre=/usr/bin/python3 -m cloud.node_start key {where} --key-file {agent}/key"
    " --agent {agent}/agent.py\n"
    "ExecStart=/usr/bin/python3 {agent}/agent.py {where} --key-file {agent}/key"
    " --boot-file {run}/boot.json{cloud}"
)
_CARRIED_KEY: Final = (
    "LoadCredential=key:{home}/agent.key\n"
    "ExecStart=/usr/bin/python3 {home}/agent.py {where} --cloud azure"
    " --key-file ${{CREDENTIALS_DIRECTORY}}/key --boot-file {run}/boot.json"
)
"""How the agent comes to its key and its program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSetup:
    """What makes an instance a node."""

    pool: str
    command: EngineCommand  # starts the engine, its model at ``{model}`` where `weights` is given
    port: int  # of the engine
    secrets: Mapping[str, str] = field(default_factory=dict)  # variables of its environment to ARNs
    weights: str = ""  # a path or s3://BUCKET/PREFIX
    gpus: int = 0  # that the engine uses; like the next three for checks at boot
    gpus_on: Mapping[str, int] = field(default_factory=dict)  # on instance types with another command
    vllm: bool = False  # whether the engine is vLLM
    size: float = 0.0  # about how many bytes it downloads itself; 0: unknown
    local_disk: bool = True  # the machine's own NVMe disks take what is downloaded
    report_url: str = ""  # where the node's agent reports; empty: no agent
    trusted: str = ""  # certificates (PEM) that the agent trusts there; empty: those of the system
    cloud: Literal["aws", "azure", "gcp"] = "aws"
    key: str = ""  # of the agent's reports, in hex, where the node does not fetch it


def user_data(setup: NodeSetup) -> bytes:
    """The user-data as the cloud takes it. Raises ValueError when it is too large or a text cannot be in a
    unit."""
    packed = _packed(setup)
    who, limit = ("EC2", LIMIT) if setup.cloud == "aws" else ("Azure", AZURE_LIMIT)
    if len(packed) > limit:
        raise ValueError(
            f"the user-data of pool {setup.pool} has {len(packed)} bytes compressed, and {who} takes {limit};"
            f" shorten one of these by {len(packed) - limit}, or do without it: {_shares(setup, len(packed))}"
        )
    return packed


def _packed(setup: NodeSetup) -> bytes:
    return gzip.compress(cloud_config(setup).encode(), 9, mtime=0)


def _shares(setup: NodeSetup, whole: int) -> str:
    """What takes how much of user-data that is too large, by the keys of the configuration."""
    bare_command = replace(setup.command, argv=setup.command.argv[:1], env={}, on={})
    without = {
        "agents.ca_file": replace(setup, trusted=""),
        "engine.args and engine.env": replace(setup, command=bare_command),
        "engine.image": replace(setup, command=replace(setup.command, container=None)),
        "cloud.aws.engine_secrets": replace(setup, secrets={}),
        "cloud.aws.weights from S3": replace(setup, weights=""),
        "cloud.aws.disk.local": replace(setup, local_disk=False),
    }
    takes = sorted(((whole - len(_packed(less)), what) for what, less in without.items()), reverse=True)
    shares = "; ".join(f"{what} ({size} bytes)" for size, what in takes if size > 0)
    return f"{shares}. A certificate is small when its key is on an elliptic curve"


def unpacked(data: bytes) -> str:
    """The cloud-config in user-data; text that is not compressed as it is."""
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    return data.decode("utf-8", "replace")


def cloud_config(setup: NodeSetup) -> str:
    """The same as text, for people. Raises ValueError."""
    files = written(setup)
    units = [path.rpartition("/")[2] for path in files if path.endswith(".service")]
    lines = ["#cloud-config", f"# A node of pool {_word(setup.pool)}.", "write_files:"]
    for path, content in files.items():
        mode = "0600" if path == _KEY else "0644"
        lines += [f"- path: {path}", f"  permissions: '{mode}'", "  content: |"]
        lines += [f"   {line}".rstrip(" ") for line in content.rstrip("\n").split("\n")]
    commands = [
        ["systemd-sysusers"],
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable", "--now", "--no-block", *units],
    ]
    lines += ["runcmd:", *(f"- {json.dumps(command)}" for command in commands)]
    return "\n".join(lines) + "\n"


def written(setup: NodeSetup) -> dict[str, str]:
    """The files that a node gets, by path. Raises ValueError."""
    command, pool = setup.command, _word(setup.pool)
    disks, weights = setup.local_disk, setup.weights.startswith("s3://")
    needed = {
        "disks": disks,
        "weights": weights,
        "azure": setup.cloud == "azure",
        "gcp": setup.cloud == "gcp",
        "container": command.container is not None,
        "program": command.container is None,
    }
    programs = [f"node_{name}.py" for name in _PROGRAMS if needed.get(name, True)]
    found = {f"{_HOME}/cloud/__init__.py": ""}
    found |= {f"{_HOME}/cloud/{name}": text for name, text in _carried(tuple(programs)).items()}
    engine = {
        "argv": list(command.argv),
        "on": {
            kind: {"argv": list(own.argv), "gpus": setup.gpus_on.get(kind, 0)}
            for kind, own in command.on.items()
        },
        "container": None if command.container is None else asdict(command.container),
        "env": dict(command.env),
        "secrets": dict(setup.secrets),
        "port": setup.port,
        "weights": setup.weights,
        "needs": {"gpus": setup.gpus, "vllm": setup.vllm, "weights": setup.size},
    }
    found[f"{_HOME}/engine.json"] = json.dumps(engine, indent=1) + "\n"
    found["/etc/sysusers.d/orchestrator-engine.conf"] = _SYSUSERS
    units = {"disks": _DISKS} if disks else {}
    units |= {"engine": _ENGINE, "console": _CONSOLE} | ({"agent": _AGENT} if setup.report_url else {})
    where = f"--url {_word(setup.report_url)}" if setup.report_url else ""
    if setup.report_url and setup.trusted:
        found[f"{_HOME}/trusted.pem"] = _certificates(setup.trusted)
        where += f" --ca-file {_HOME}/trusted.pem"
    if setup.key:
        found[_KEY] = f"{setup.key}\n"
        found[f"{_HOME}/agent.py"] = _agent()
    values = {
        "pool": pool,
        "home": _HOME,
        "run": _RUN,
        "agent": "/run/orchestrator-agent",
        "user": _USER,
        "disks": "orchestrator-disks.service" if disks else "",
        "units": "".join(f" orchestrator-{name}" for name in units if name != "console"),
        "signal": _word(command.stop_signal),
        "grace": math.ceil(max(each.stop_grace for each in (command, *command.on.values()))),
        "cloud": "" if setup.cloud == "aws" else f"\nEnvironment=ORCHESTRATOR_CLOUD={setup.cloud}",
        **(_PROGRAM if command.container is None else _CONTAINER),
    }
    start = _CARRIED_KEY if setup.key else _FETCHED
    values["start"] = start.format(where=where, **values)
    for name, text in units.items():
        lines = (line.rstrip() for line in text.format_map(values).splitlines() if line[:1] != "#")
        found[f"/etc/systemd/system/orchestrator-{name}.service"] = "\n".join(lines) + "\n"
    return found


@cache
def _agent() -> str:
    return bare(agent_program())


@cache
def _carried(programs: tuple[str, ...]) -> Mapping[str, str]:
    package = files("cloud")
    texts = {name: bare(package.joinpath(name).read_text("utf-8")) for name in programs}
    return shortened(texts, caller=agent_program())


def _certificates(text: str) -> str:
    """The certificates of a PEM file, without what else people keep in it: remarks, or a key. Raises
    ValueError where there is none."""
    found = [match[0] for match in _CERTIFICATE.finditer(text)]
    if not found:
        raise ValueError(
            "agents.ca_file (or tls_cert_file) holds no certificate (-----BEGIN CERTIFICATE-----)"
        )
    lines = (line.strip() for block in found for line in block.splitlines())
    return "".join(f"{line}\n" for line in lines if line)


def _word(text: str) -> str:
    """A text that means itself in a unit."""
    if not _WORD.fullmatch(text):
        raise ValueError(f"{text!r} cannot stand in a unit of systemd")
    return text
