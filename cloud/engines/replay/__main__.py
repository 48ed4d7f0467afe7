"""Runs the server: see `cloud.engines.replay.process`."""

import sys

from cloud.engines.replay.process import main

if __name__ == "__main__":
    sys.exit(main())
