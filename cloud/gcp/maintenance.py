"""Google takes a spot machine on request: a maintenance of its host is simulated.

Source: Compute Engine, "Simulate a host maintenance event" ("how your applications handle preemption and
shutdown when using Spot VMs") and instances.simulateMaintenanceEvent.
"""

from __future__ import annotations

from typing import Final

from cloud.errors import CloudError
from cloud.gcp.client import GcpClient
from cloud.gcp.errors import of_operation
from cloud.ports import Clock
from policies.model import Instance

_LOOKS: Final = 15
_BETWEEN: Final = 2.0  # s


async def simulate_maintenance(client: GcpClient, machine: Instance, clock: Clock) -> None:
    """Ask for it, and see for a while whether Google refuses it afterwards. Raises CloudError, Uncertain."""
    zone = machine.placement.zone
    operation = await client.change("POST", f"zones/{zone}/instances/{machine.id}/simulateMaintenanceEvent")
    for _ in range(_LOOKS):
        if operation.get("status") == "DONE":
            break
        await clock.sleep(_BETWEEN)
        try:
            operation = await client.read(f"zones/{zone}/operations/{operation['name']}")
        except CloudError:  # it goes on, whoever can see it
            continue
    failure = of_operation(operation, f"maintenance of {machine.id}")
    if failure is not None:
        raise failure
