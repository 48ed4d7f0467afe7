"""The stand-in for Azure as the vendor's own SDK sees it: its typed models, its pollers, its errors.

What the adapters send is the same that the SDK's models make, so neither is a fantasy of ours.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.mgmt.compute import ComputeManagementClient, models
from azure.mgmt.network import NetworkManagementClient
from azure_pool import place
from azure_stage import GROUP, SIZE, SSH_KEY, SUBSCRIPTION, subnet

from cloud.azure.machines import launch_body, name_of
from cloud.ports import EngineCommand, LaunchRequest
from policies.model import Market, Placement, StandbyKind

pytestmark = pytest.mark.slow

WHERE = Placement(provider="azure", region="eastus", zone="eastus-2", instance_type=SIZE, market=Market.SPOT)
REQUEST = LaunchRequest(
    token="pool/1/2/3",
    pool="pool",
    placement=WHERE,
    command=EngineCommand(argv=("x",), build="b"),
    standby=StandbyKind.STOPPED,
)
NAME = name_of(REQUEST.token)
SECURITY = f"{subnet().partition('/virtualNetworks')[0]}/networkSecurityGroups/n"


class Nobody:
    def get_token(self, *_scopes: str, **_options: Any) -> Any:
        raise NotImplementedError


@pytest.fixture
def sdk(stand: Any) -> Any:
    """The vendor's clients, with all that they come with but credentials."""
    options: Any = {
        "base_url": stand.stand_in.url,
        "authentication_policy": SansIOHTTPPolicy(),
        "retry_total": 0,
        "polling_interval": 0,
    }
    compute = ComputeManagementClient(Nobody(), SUBSCRIPTION, **options)
    return compute, NetworkManagementClient(Nobody(), SUBSCRIPTION, **options)


def by_models(tags: dict[str, str]) -> models.VirtualMachine:
    """The machine of the request, made of the SDK's own classes."""
    interface = models.VirtualMachineNetworkInterfaceConfiguration(
        name=f"{NAME}-nic",
        properties=models.VirtualMachineNetworkInterfaceConfigurationProperties(
            primary=True,
            delete_option="Delete",
            network_security_group=models.SubResource(id=SECURITY),
            ip_configurations=[
                models.VirtualMachineNetworkInterfaceIPConfiguration(
                    name="first",
                    properties=models.VirtualMachineNetworkInterfaceIPConfigurationProperties(
                        subnet=models.SubResource(id=subnet()), primary=True
                    ),
                )
            ],
        ),
    )
    key = models.SshPublicKey(path=f"/home/{place().admin_user}/.ssh/authorized_keys", key_data=SSH_KEY)
    publisher, offer, sku, version = place().image.text.split(":")
    return models.VirtualMachine(
        location="eastus",
        zones=["2"],
        tags=tags,
        identity=models.VirtualMachineIdentity(type="UserAssigned", user_assigned_identities={"/id": {}}),
        properties=models.VirtualMachineProperties(
            hardware_profile=models.HardwareProfile(vm_size=SIZE),
            storage_profile=models.StorageProfile(
                image_reference=models.ImageReference(
                    publisher=publisher, offer=offer, sku=sku, version=version
                ),
                os_disk=models.OSDisk(
                    name=f"{NAME}-os",
                    create_option="FromImage",
                    disk_size_gb=128,
                    managed_disk=models.ManagedDiskParameters(storage_account_type="Premium_LRS"),
                    delete_option="Delete",
                ),
            ),
            os_profile=models.OSProfile(
                computer_name=NAME,
                admin_username="orchestrator",
                custom_data=base64.b64encode(b"#cloud-config\n").decode(),
                linux_configuration=models.LinuxConfiguration(
                    disable_password_authentication=True, ssh=models.SshConfiguration(public_keys=[key])
                ),
            ),
            network_profile=models.NetworkProfile(
                network_api_version="2022-11-01", network_interface_configurations=[interface]
            ),
            diagnostics_profile=models.DiagnosticsProfile(
                boot_diagnostics=models.BootDiagnostics(enabled=True)
            ),
            priority="Spot",
            eviction_policy="Delete",
            billing_profile=models.BillingProfile(max_price=-1),
        ),
    )


def ours() -> dict[str, Any]:
    region = place(security_group=SECURITY, identity="/id")
    return launch_body(REQUEST, region, b"#cloud-config\n")


def test_a_launch_is_what_the_sdks_models_make_of_it() -> None:
    body = ours()
    assert by_models(body["tags"]).as_dict() == body


async def test_the_sdk_makes_lists_stops_starts_and_deletes_a_machine(stand: Any, sdk: Any) -> None:
    await asyncio.to_thread(_a_life, sdk)
    assert await stand.order("left") == {"machines": [], "disks": [], "interfaces": []}


def _a_life(sdk: Any) -> None:
    compute, network = sdk
    machines = compute.virtual_machines
    made = machines.begin_create_or_update(GROUP, NAME, by_models({"orchestrator:pool": "pool"})).result()
    assert (made.name, made.provisioning_state, made.priority) == (NAME, "Succeeded", "Spot")
    assert made.os_profile.custom_data is None  # Azure shows it to nobody
    assert [m.name for m in machines.list(GROUP)] == [NAME]
    assert [m.name for m in machines.list_all()] == [NAME]
    (status,) = machines.list_all(status_only="true")
    assert "PowerState/running" in [s.code for s in status.instance_view.statuses]
    (interface,) = network.network_interfaces.list(GROUP)
    assert interface.id == made.network_profile.network_interfaces[0].id
    assert interface.ip_configurations[0].private_ip_address.startswith("127.")
    assert [d.name for d in compute.disks.list_by_resource_group(GROUP)] == [f"{NAME}-os"]
    machines.begin_deallocate(GROUP, NAME).result()
    assert machines.instance_view(GROUP, NAME).statuses[1].code == "PowerState/deallocated"
    machines.begin_start(GROUP, NAME).result()
    assert (
        machines.get(GROUP, NAME, expand="instanceView").instance_view.statuses[1].code
        == "PowerState/running"
    )
    machines.begin_delete(GROUP, NAME).result()
    with pytest.raises(ResourceNotFoundError) as met:
        machines.get(GROUP, NAME)
    assert met.value.error is not None
    assert met.value.error.code == "ResourceNotFound"


async def test_the_sdk_sees_a_launch_fail_later(stand: Any, sdk: Any) -> None:
    await stand.order("fault", action="create", kind="fail-later", code="AllocationFailed", message="no room")
    with pytest.raises(HttpResponseError, match="no room"):
        await asyncio.to_thread(
            lambda: sdk[0].virtual_machines.begin_create_or_update(GROUP, NAME, by_models({})).result()
        )


async def test_the_sdk_reads_what_is_sold(stand: Any, sdk: Any) -> None:
    await stand.order("set", restrictions={SIZE: ["3"]})
    rows = await asyncio.to_thread(lambda: list(sdk[0].resource_skus.list(filter="location eq 'eastus'")))
    size = next(row for row in rows if row.name == SIZE)
    assert size.restrictions[0].restriction_info.zones == ["3"]
    assert sorted(size.location_info[0].zones) == ["1", "2", "3"]
    assert {c.name: c.value for c in size.capabilities}["LowPriorityCapable"] == "True"


async def test_the_sdk_simulates_an_eviction(stand: Any, sdk: Any) -> None:
    machines = sdk[0].virtual_machines
    await asyncio.to_thread(lambda: machines.begin_create_or_update(GROUP, NAME, by_models({})).result())
    await asyncio.to_thread(machines.simulate_eviction, GROUP, NAME)
    assert await asyncio.to_thread(lambda: [m.name for m in machines.list(GROUP)]) == [NAME]


@pytest.mark.parametrize(
    "change",
    [
        {"properties": {"priority": None}},
        {"properties": {"evictionPolicy": "Hibernate"}},
        {"properties": {"colour": "blue"}},
        {"zones": ["9"]},
        {"tags": {"a/b": "c"}},
        {"properties": {"osProfile": {"computerName": NAME, "adminUsername": "u"}}},
    ],
)
async def test_what_azure_would_refuse_is_refused(stand: Any, sdk: Any, change: dict[str, Any]) -> None:
    body = ours()
    body |= {key: value for key, value in change.items() if key != "properties"}
    body["properties"] |= change.get("properties", {})
    with pytest.raises(HttpResponseError) as met:
        await asyncio.to_thread(
            sdk[0].virtual_machines.begin_create_or_update, GROUP, NAME, body, polling=False
        )
    assert met.value.status_code == 400
