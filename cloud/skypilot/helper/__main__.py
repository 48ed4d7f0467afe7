"""The helper's entry, `PYTHON -I .../helper/__main__.py HOME`, as `cloud.skypilot.process` starts it.

PYTHON belongs to an environment with SkyPilot and without the daemon. So the package `cloud` is made known
here as a folder, and nothing else of the daemon's environment is.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve standard input until it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if "cloud" not in sys.modules:
        package = ModuleType("cloud")
        package.__path__ = [str(Path(__file__).resolve().parents[2])]
        sys.modules["cloud"] = package
    # Whatever SkyPilot prints must not stand among the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    from cloud.skypilot.helper.serve import serve

    def machines() -> object:
        from cloud.skypilot.helper.machines import SkyMachines

        return SkyMachines()

    serve(Path(sys.argv[1]), sys.stdin.buffer, answers, machines)


if __name__ == "__main__":
    main()
