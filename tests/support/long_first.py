"""The order in which test modules are handed to workers: long ones first, with something short beside them.

xdist hands out the modules with the most tests first. Here these are the quick ones, so that a run would end
with the longest modules, which wait for processes and leave the cores idle.
"""

from typing import Any

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

SECONDS = {
    "tests/system/test_containers.py": 230,
    "tests/system/test_aws_outages.py": 160,
    "tests/system/test_documented.py": 150,
    "tests/orchestrator/gateway/faults/test_modes_chat.py": 140,
    "tests/cloud/local/test_containers.py": 130,
    "tests/system/test_aws_first_day.py": 120,
    "tests/system/test_aws.py": 115,
    "tests/system/test_demo.py": 110,
    "tests/orchestrator/gateway/test_adapters_equal.py": 105,
    "tests/cloud/contract/test_engine_contract.py": 95,
    "tests/system/test_gpus.py": 90,
    "tests/system/test_pair.py": 90,
    "tests/system/test_aws_kills.py": 85,
    "tests/system/test_fallback_told.py": 85,
    "tests/system/test_monitoring.py": 80,
    "tests/system/test_azure.py": 75,
    "tests/system/test_faults.py": 75,
    "tests/system/test_routes.py": 65,
    "tests/orchestrator/gateway/test_processes.py": 60,
    "tests/system/test_outage.py": 60,
    "tests/system/test_real_engines_llamacpp.py": 60,
    "tests/cloud/aws/bootstrap/test_bootstrap.py": 55,
    "tests/orchestrator/backtest/test_full_daemon.py": 55,
    "tests/orchestrator/gateway/faults/test_modes_anthropic.py": 55,
    "tests/orchestrator/gateway/test_played_engines.py": 55,
    "tests/cloud/aws/test_alb.py": 50,
    "tests/system/test_aws_balancer.py": 50,
    "tests/system/test_bad_input.py": 50,
    "tests/system/test_daemon_life.py": 50,
    "tests/system/test_operator.py": 50,
    "tests/orchestrator/doctor/test_on_aws_first_day.py": 45,
    "tests/simulation/test_compare_decisions.py": 45,
    "tests/system/test_bootstrap.py": 45,
    "tests/system/test_embedding_pool.py": 45,
    "tests/orchestrator/doctor/test_on_aws.py": 40,
    "tests/simulation/test_campaign.py": 40,
    "tests/system/test_journal.py": 40,
    "tests/system/test_secrets.py": 40,
    "tests/cloud/agent/test_node_weights.py": 35,
    "tests/orchestrator/cli/test_cli_process.py": 35,
    "tests/orchestrator/cli/test_simulate.py": 35,
    "tests/orchestrator/gateway/accounts/test_keys_processes.py": 35,
    "tests/orchestrator/gateway/test_tls.py": 35,
    "tests/system/test_adapters_llamacpp.py": 35,
    "tests/system/test_gateway_kills.py": 35,
    "tests/cloud/aws/notices/test_notice_queue.py": 30,
    "tests/cloud/contract/test_instances_contract.py": 30,
    "tests/orchestrator/gateway/continuation/test_stitching.py": 30,
    "tests/orchestrator/gateway/faults/test_load.py": 30,
    "tests/simulation/test_starts.py": 30,
    "tests/system/test_doctor.py": 30,
    "tests/system/test_exhaustion.py": 30,
    "tests/system/test_pair_pools.py": 30,
    "tests/cloud/engines/test_simulated_server.py": 25,
    "tests/cloud/serving/test_requests.py": 25,
    "tests/orchestrator/doctor/test_engine_claims.py": 25,
    "tests/orchestrator/gateway/faults/test_modes_tls.py": 25,
    "tests/orchestrator/gateway/test_llamacpp.py": 25,
    "tests/orchestrator/gateway/test_moves.py": 25,
    "tests/simulation/test_crash.py": 25,
    "tests/simulation/test_money.py": 25,
    "tests/simulation/test_replay.py": 25,
    "tests/simulation/test_swarm.py": 25,
    "tests/system/test_gateway_lost.py": 25,
    "tests/system/test_reload.py": 25,
    "tests/test_mutants.py": 25,
    "tests/test_repository.py": 25,
    "tests/cloud/agent/test_node_start.py": 20,
    "tests/cloud/cloud_init/test_bare.py": 20,
    "tests/orchestrator/backtest/test_replay.py": 20,
    "tests/orchestrator/doctor/test_try_node.py": 20,
    "tests/orchestrator/gateway/faults/test_modes_completions.py": 20,
    "tests/orchestrator/gateway/test_provider.py": 20,
    "tests/orchestrator/monitoring/test_alerts.py": 20,
    "tests/policies/test_adapter_set.py": 20,
    "tests/policies/test_gpu_health.py": 20,
    "tests/policies/test_properties.py": 20,
    "tests/simulation/test_pair.py": 20,
    "tests/simulation/test_planted.py": 20,
    "tests/simulation/test_state.py": 20,
    "tests/system/test_agents.py": 20,
    "tests/system/test_https.py": 20,
    "tests/systemd/test_node_units.py": 20,
    "tests/test_fresh_seeds.py": 20,
    "tests/cloud/aws/test_iam.py": 15,
    "tests/cloud/contract/test_balancer_contract.py": 15,
    "tests/cloud/engines/test_simulated_dialects.py": 15,
    "tests/orchestrator/api/test_gauges.py": 15,
    "tests/orchestrator/api/test_reloading.py": 15,
    "tests/orchestrator/backtest/test_picture.py": 15,
    "tests/orchestrator/gateway/test_engines.py": 15,
    "tests/orchestrator/schemas/test_schemas.py": 15,
    "tests/policies/test_scenarios.py": 15,
    "tests/simulation/test_outages.py": 15,
    "tests/simulation/test_pools.py": 15,
    "tests/system/test_adapters.py": 15,
    "tests/system/test_api_only.py": 15,
    "tests/system/test_key_limits.py": 15,
    "tests/system/test_no_spot.py": 15,
    "tests/system/test_pools.py": 15,
    "tests/system/test_replay.py": 15,
    "tests/system/test_routes_llamacpp.py": 15,
    "tests/test_docs.py": 15,
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
