"""`orchestrator` for a balancer that lets go of a target at once, as that of the stand-in for AWS does.

A pool with a target group must let a drained node settle for 25 s. Nothing else is changed, and nothing is
changed for anybody else.

    python tests/support/quick_balancer.py run --config pool.toml
"""

import sys

from cloud.aws import load_balancer
from orchestrator.__main__ import main

load_balancer.PROPAGATION = 0.0
sys.exit(main())
