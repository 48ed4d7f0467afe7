"""Experiments of the Fault Injection Service, of which moto remembers what was asked for and does nothing."""

import re

import machines
from moto.ec2.models import ec2_backends
from moto.fis.models import FISBackend
from state import ACCOUNT

_DURATION = re.compile(r"PT(\d+)M")


def patch_experiments(shim):
    """Have moto's experiments interrupt the spot machines that they name by tag."""
    start = FISBackend.start_experiment

    def start_experiment(self, client_token, experiment_template_id, experiment_options=None, tags=None):
        started = start(self, client_token, experiment_template_id, experiment_options, tags)
        for action in started["actions"].values():
            if action["actionId"] == "aws:ec2:send-spot-instance-interruptions":
                seconds = 60.0 * int(
                    _DURATION.fullmatch(action["parameters"]["durationBeforeInterruption"])[1]
                )
                named = started["targets"][action["targets"]["SpotInstances"]]
                with shim.lock:
                    for node in _named(self.region_name, named["resourceTags"]):
                        notice = shim.settings["experiment_notice"] or seconds
                        machines.reclaim(shim, node, notice_s=notice, region=self.region_name)
        return started

    FISBackend.start_experiment = start_experiment


def _named(region, wanted):
    """The running spot machines that carry these tags."""
    backend = ec2_backends[ACCOUNT][region]
    return [
        instance.id
        for instance in backend.all_instances()
        if instance.lifecycle == "spot"
        and instance.state == "running"
        and wanted.items() <= backend.tags.get(instance.id, {}).items()
    ]
