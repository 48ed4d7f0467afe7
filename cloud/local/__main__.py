"""Run a local cloud by itself: `python -m cloud.local --config FILE`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from cloud.clock import SystemClock
from cloud.local.config import SetupError, load_config
from cloud.local.server import serve


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Exit code 0 after that, 1 when it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m cloud.local", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a JSON file")
    options = parser.parse_args(arguments)
    try:
        asyncio.run(serve(load_config(options.config), SystemClock()))
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
