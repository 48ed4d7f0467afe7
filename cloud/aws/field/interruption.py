"""The Fault Injection Service of AWS interrupts one spot machine, with the notice that EC2 gives by itself.

FIS finds the machine by the tag with its token, acts under a role of its own, and is told everything in a
template that is deleted again.

Source: the FIS user guide ("aws:ec2:send-spot-instance-interruptions", "IAM roles for AWS FIS experiments")
and its API reference. The shortest notice that it takes is two minutes.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from cloud.aws.clients import AwsClients, Lane
from cloud.aws.places import POOL_TAG, TOKEN_TAG
from cloud.errors import CloudError, Misconfigured, Uncertain
from cloud.ports import Clock, digest
from policies.model import Instance

ROLE: Final = "spot-orchestrator-fis"
"""The role under which FIS acts, as docs/how-to/interrupt-on-aws.md makes it."""

_LOOKS: Final = 30
_BETWEEN: Final = 2.0  # s
_STARTED: Final = ("running", "completed")
_FAILED: Final = ("failed", "stopped", "stopping", "cancelled")


async def interrupt(clients: AwsClients, machine: Instance, clock: Clock) -> None:
    """Have EC2 give a spot machine its notice, and take it two minutes later. Returns once it is on its way.

    Raises CloudError: Denied or Misconfigured where the caller or the role lacks a right, Uncertain.
    """
    share = clients.share()
    try:
        caller = await clients.call(Lane.LIST, "sts", "get_caller_identity", lost=CloudError)
        partition = str(caller["Arn"]).split(":")[1]
        role = f"arn:{partition}:iam::{caller['Account']}:role/{ROLE}"
        made = await clients.call(
            Lane.LAUNCH, "fis", "create_experiment_template", **_template(machine, role)
        )
        template = str(made["experimentTemplate"]["id"])
        try:
            await _run(clients, template, {POOL_TAG: machine.pool}, clock)
        finally:
            with contextlib.suppress(CloudError):  # it costs nothing
                await clients.call(Lane.LAUNCH, "fis", "delete_experiment_template", id=template)
    finally:
        await share.close()


def _template(machine: Instance, role: str) -> dict[str, Any]:
    """The parameters of CreateExperimentTemplate. The same machine gives the same template."""
    return {
        "clientToken": digest("interrupt", machine.id),
        "description": f"Interrupt {machine.id} with two minutes of notice",
        "roleArn": role,
        "targets": {
            "node": {
                "resourceType": "aws:ec2:spot-instance",
                "resourceTags": {POOL_TAG: machine.pool, TOKEN_TAG: machine.token},
                "filters": [{"path": "State.Name", "values": ["running"]}],
                "selectionMode": "ALL",
            }
        },
        "actions": {
            "interrupt": {
                "actionId": "aws:ec2:send-spot-instance-interruptions",
                "parameters": {"durationBeforeInterruption": "PT2M"},
                "targets": {"SpotInstances": "node"},
            }
        },
        "stopConditions": [{"source": "none"}],
        "tags": {POOL_TAG: machine.pool},
    }


async def _run(clients: AwsClients, template: str, tags: dict[str, str], clock: Clock) -> None:
    started = await clients.call(
        Lane.LAUNCH,
        "fis",
        "start_experiment",
        clientToken=digest("start", template),
        experimentTemplateId=template,
        tags=tags,
    )
    experiment = str(started["experiment"]["id"])
    for _ in range(_LOOKS):
        answer = await clients.call(Lane.LIST, "fis", "get_experiment", lost=CloudError, id=experiment)
        state = answer["experiment"]["state"]
        if state["status"] in _STARTED:
            return
        if state["status"] in _FAILED:
            why = state.get("reason", "no reason is given")
            raise Misconfigured(f"the experiment of FIS is {state['status']}: {why}")
        await clock.sleep(_BETWEEN)
    raise Uncertain(f"the experiment of FIS has not begun within {_LOOKS * _BETWEEN:.0f} s")
