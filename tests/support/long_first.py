"""The order in which test modules are handed to workers: long ones first, with something short beside them.

xdist hands out the modules with the most tests first. Here these are the quick ones, so that a run would end
with the longest modules, which wait for processes and leave the cores idle.
"""

from typing import Any

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

SECONDS = {
    "tests/orchestrator/gateway/faults/test_modes_chat.py": 60,
    "tests/test_docs.py": 60,
    "tests/system/test_aws_outages.py": 170,
    "tests/system/test_aws.py": 130,
    "tests/system/test_aws_kills.py": 120,
    "tests/system/test_documented.py": 120,
    "tests/system/test_pair.py": 120,
    "tests/system/test_fallback_told.py": 75,
    "tests/system/test_aws_balancer.py": 60,
    "tests/system/test_routes.py": 60,
    "tests/system/test_pools.py": 50,
    "tests/system/test_pair_pools.py": 50,
    "tests/system/test_doctor.py": 50,
    "tests/system/test_api_only.py": 40,
    "tests/system/test_provider_money.py": 40,
    "tests/simulation/test_crash.py": 40,
    "tests/system/test_aws_first_day.py": 75,
    "tests/system/test_demo.py": 90,
    "tests/system/test_gateway_kills.py": 75,
    "tests/system/test_reload.py": 75,
    "tests/system/test_monitoring.py": 65,
    "tests/system/test_outage.py": 65,
    "tests/system/test_daemon_life.py": 60,
    "tests/system/test_listeners.py": 50,
    "tests/system/test_journal.py": 50,
    "tests/orchestrator/gateway/faults/test_load.py": 45,
    "tests/orchestrator/gateway/test_moves.py": 45,
    "tests/simulation/test_campaign.py": 30,
    "tests/simulation/test_swarm.py": 30,
    "tests/system/test_routes_llamacpp.py": 30,
    "tests/orchestrator/backtest/test_whole.py": 25,
    "tests/orchestrator/gateway/test_llamacpp.py": 15,
    "tests/cloud/contract/test_engine_contract.py": 15,
    "tests/simulation/test_planted.py": 20,
}
"""What the longest modules take on two free cores, roughly."""

_SYSTEM_SECONDS = 20
"""For every other module that starts whole processes, in `tests/system`."""

_SECONDS_PER_TEST = 0.02
"""For the rest."""


class LongFirst(LoadFileScheduling):
    """Of the modules left, a worker gets the longest; every third worker the shortest.

    Long modules mostly wait and short ones mostly compute: together they fill the cores, and the workers meet
    at modules of a few seconds, so that they end together.
    """

    def _assign_work_unit(self, node: WorkerController) -> None:
        number = int(str(node.gateway.id).removeprefix("gw"))
        pick: Any = min if number % 3 == 2 else max
        self.workqueue.move_to_end(pick(self.workqueue, key=self._seconds), last=False)
        super()._assign_work_unit(node)

    def _seconds(self, module: str) -> float:
        if module in SECONDS:
            return SECONDS[module]
        system = module.startswith("tests/system/")
        return _SYSTEM_SECONDS if system else _SECONDS_PER_TEST * len(self.workqueue[module])
