"""The order in which test modules are handed to workers: long ones first, with something short beside them.

xdist hands out the modules with the most tests first. Here these are the quick ones, so that a run would end
with the longest modules, which wait for processes and leave the cores idle.
"""

from typing import Any

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

SECONDS = {
    "tests/system/test_aws.py": 140,
    "tests/system/test_containers.py": 130,
    "tests/system/test_aws_first_day.py": 120,
    "tests/system/test_aws_outages.py": 110,
    "tests/system/test_documented.py": 105,
    "tests/system/test_demo.py": 95,
    "tests/cloud/local/test_containers.py": 90,
    "tests/system/test_aws_kills.py": 80,
    "tests/system/test_pair.py": 75,
    "tests/system/test_faults.py": 70,
    "tests/system/test_monitoring.py": 65,
    "tests/system/test_real_engines_llamacpp.py": 60,
    "tests/system/test_gateway_kills.py": 55,
    "tests/system/test_aws_balancer.py": 50,
    "tests/system/test_pools.py": 50,
    "tests/orchestrator/gateway/faults/test_modes_chat.py": 45,
    "tests/system/test_daemon_life.py": 45,
    "tests/system/test_journal.py": 45,
    "tests/system/test_api_only.py": 40,
    "tests/system/test_listeners.py": 40,
    "tests/system/test_provider_money.py": 40,
    "tests/orchestrator/gateway/faults/test_load.py": 35,
    "tests/orchestrator/gateway/test_processes.py": 35,
    "tests/system/test_reload.py": 35,
    "tests/system/test_routes.py": 35,
    "tests/orchestrator/backtest/test_full_daemon.py": 30,
    "tests/system/test_doctor.py": 30,
    "tests/system/test_operator.py": 30,
    "tests/system/test_pair_pools.py": 30,
    "tests/system/test_fallback_told.py": 30,
    "tests/system/test_gateway_lost.py": 30,
    "tests/system/test_secrets.py": 30,
    "tests/orchestrator/gateway/continuation/test_stitching.py": 25,
    "tests/orchestrator/gateway/test_moves.py": 25,
    "tests/system/test_exhaustion.py": 25,
    "tests/system/test_routes_llamacpp.py": 25,
    "tests/cloud/aws/notices/test_notice_queue.py": 20,
    "tests/orchestrator/doctor/test_try_node.py": 20,
    "tests/simulation/test_campaign.py": 20,
    "tests/simulation/test_crash.py": 20,
    "tests/simulation/test_planted.py": 20,
    "tests/simulation/test_swarm.py": 20,
    "tests/systemd/test_node_units.py": 20,
    "tests/cloud/agent/test_node_weights.py": 15,
    "tests/cloud/aws/test_alb.py": 15,
    "tests/cloud/aws/test_iam.py": 15,
    "tests/cloud/contract/test_engine_contract.py": 15,
    "tests/orchestrator/cli/test_simulate.py": 15,
    "tests/orchestrator/gateway/test_llamacpp.py": 15,
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
