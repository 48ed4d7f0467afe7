"""Entry point of ``python -m cloud.engines.simulated_server``."""

from __future__ import annotations

import sys

from cloud.startup import importing

with importing():
    from cloud.engines.simulated_server.process import main

sys.exit(main())
