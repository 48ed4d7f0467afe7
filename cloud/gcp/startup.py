"""The startup script of a machine of Google: it makes the machine a node of a pool. Pure.

Google's guest agent runs it at every boot, on every image that Google publishes, with or without cloud-init.
It writes the files that `cloud.cloud_init` gives any node, enables the units, and starts them.
"""

from __future__ import annotations

import json
from typing import Final

from cloud.cloud_init.user_data import NodeSetup, written

LIMIT: Final = 256 * 1024
"""Bytes that one value of a machine's metadata may have."""

_SCRIPT: Final = """#!/usr/bin/python3
# A node of pool {pool}. Written by the orchestrator at the launch.
import os
import subprocess

FILES = {files}
for path, text in FILES.items():
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "w") as file:
        file.write(text)
    os.chmod(path + ".new", 0o644)
    os.replace(path + ".new", path)
UNITS = [os.path.basename(path) for path in FILES if path.endswith(".service")]
for command in (
    ["systemd-sysusers"],
    ["systemctl", "daemon-reload"],
    ["systemctl", "enable", "--now", "--no-block"] + UNITS,
):
    subprocess.run(command, check=True)
"""


def startup_script(setup: NodeSetup) -> str:
    """The script. Raises ValueError when it is too large or a text cannot be in a unit."""
    script = _SCRIPT.format(pool=setup.pool, files=json.dumps(written(setup), indent=1))
    size = len(script.encode())
    if size > LIMIT:
        raise ValueError(
            f"the startup script of pool {setup.pool} has {size} bytes, and Google takes {LIMIT}"
        )
    return script
