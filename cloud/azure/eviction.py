"""Azure evicts a spot machine on request, as it evicts one by itself.

Source: Microsoft.Compute, "Virtual Machines - Simulate Eviction"; Azure Spot Virtual Machines, "Simulate an
eviction": the machine is evicted within 30 minutes of the call.
"""

from __future__ import annotations

from cloud.azure.clients import COMPUTE_VERSION, AzureAccount, AzureClients, Lane
from cloud.azure.places import AzureRegion


async def simulate_eviction(clients: AzureClients, place: AzureRegion, node: str) -> None:
    """Ask for it. Azure answers at once and evicts later. Raises CloudError, Uncertain."""

    def work(account: AzureAccount) -> None:
        machines = account.compute().virtual_machines
        machines.simulate_eviction(place.resource_group, node, api_version=COMPUTE_VERSION)

    share = clients.share()
    try:
        await clients.call(Lane.LAUNCH, "virtual_machines.simulate_eviction", work)
    finally:
        await share.close()
