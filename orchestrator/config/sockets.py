"""Where the control sockets of a daemon lie."""

from __future__ import annotations

from pathlib import Path
from typing import Final

DEFAULT_SOCKET: Final = Path("state/orchestrator.sock")
SERVICE_SOCKET: Final = Path("/run/spot-orchestrator/orchestrator.sock")
"""Of the daemon that runs as a service; see systemd/pool.toml."""

SOCKET_VARIABLE: Final = "ORCHESTRATOR_SOCKET"


def reading_socket(control: Path) -> Path:
    """The socket for reading alone, which lies beside the control socket."""
    return control.with_name(f"{control.stem}-read{control.suffix}")
