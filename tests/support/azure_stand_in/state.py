"""Machines, disks and interfaces, and how time changes them."""

from __future__ import annotations

import ipaddress
import itertools
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

COMPUTE = "Microsoft.Compute"
FAILED = "failed"


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


@dataclass(eq=False)
class Machine:
    group: str
    name: str
    body: dict[str, Any]
    interface: str
    address: str
    made_at: float = field(default_factory=time.time)
    provisioning: str = "Creating"
    power: str = ""
    failure: tuple[str, str] = ("", "")
    due: float = 0.0  # when what is under way is done
    becomes: tuple[str, str] = ("Succeeded", "running")  # provisioning and power then
    failing: tuple[str, str] = ("", "")  # the failure that what is under way ends in
    console: str = ""
    ident: str = field(default_factory=lambda: str(uuid.uuid4()))
    preempted_at: float | None = None  # the end of its notice
    event: str = ""

    @property
    def spot(self) -> bool:
        return bool(self.body["properties"].get("priority") == "Spot")

    @property
    def tags(self) -> dict[str, str]:
        return dict(self.body.get("tags") or {})

    def statuses(self) -> list[dict[str, Any]]:
        code, message = self.failure
        state = self.provisioning.lower()
        said = f"ProvisioningState/{state}" + (f"/{code}" if state == FAILED and code else "")
        found = [
            {"code": said, "level": "Info", "displayStatus": self.provisioning, "time": iso(time.time())}
        ]
        if message and state == FAILED:
            found[0] |= {"level": "Error", "message": message}
        if self.power:
            found.append({"code": f"PowerState/{self.power}", "level": "Info", "displayStatus": self.power})
        return found


class State:
    """Everything that the subscription has."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.machines: dict[tuple[str, str], Machine] = {}
        self.disks: dict[str, dict[str, Any]] = {}
        self.interfaces: dict[str, dict[str, Any]] = {}
        self.ended: list[dict[str, Any]] = []  # every machine that ever was and is gone
        self.operations: dict[str, tuple[Machine, str]] = {}
        self.faults: list[dict[str, Any]] = []
        self.calls: dict[str, int] = {}
        self.bodies: dict[str, dict[str, Any]] = {}  # the last one by machine
        self.settings: dict[str, Any] = {
            "boot": 0.03,  # s until a machine runs
            "turn": 0.02,  # s until it is stopped, started or gone
            "notice": 30.0,  # s from a simulated eviction until the machine goes
            "page": 50,
            "network": "127.90.0.0/16",
            "dark": [],  # regions that do not answer
            "dark_subscription": False,
            "prices": {},  # (size) -> [on-demand, spot]
            "restrictions": {},  # size -> zones that this subscription may not use, or ["*"]
            "console": {},
            "forget_status": False,  # the subscription's list lacks what machines do
        }
        self._numbers = itertools.count(11)

    # -- machines --------------------------------------------------------------------------------

    def put(self, group: str, name: str, body: dict[str, Any], subscription: str) -> Machine:
        number = next(self._numbers)
        network = ipaddress.ip_network(self.settings["network"])
        address = str(network[number])
        root = f"/subscriptions/{subscription}/resourceGroups/{group}/providers"
        made = body["properties"]["networkProfile"]["networkInterfaceConfigurations"][0]
        interface = f"{root}/Microsoft.Network/networkInterfaces/{made['name']}-{uuid.uuid4().hex[:8]}"
        machine = Machine(group=group, name=name, body=body, interface=interface, address=address)
        where = f"{root}/{COMPUTE}/virtualMachines/{name}"
        self.interfaces[interface] = {
            "machine": machine,
            "goes": made["properties"].get("deleteOption") == "Delete",
            "address": address,
            "of": where,
        }
        disk = body["properties"]["storageProfile"]["osDisk"]
        self.disks[f"{group}/{disk.get('name') or name}"] = {
            "machine": machine,
            "goes": disk.get("deleteOption") == "Delete",
            "of": where,
        }
        machine.due = time.time() + self.settings["boot"]
        self.machines[group, name] = machine
        return machine

    def tick(self) -> None:
        """What is due by now has happened."""
        now = time.time()
        for key, machine in list(self.machines.items()):
            if machine.preempted_at is not None and machine.preempted_at <= now:
                machine.preempted_at = None
                self.evict(machine)
            if machine.due and machine.due <= now:
                machine.due = 0.0
                machine.provisioning, machine.power = machine.becomes
                machine.failure = machine.failing
                if machine.provisioning == "Gone":
                    self._end(key, machine)

    def turn(self, machine: Machine, now: tuple[str, str], then: tuple[str, str]) -> None:
        """Something begins: what is shown now, and what it will be."""
        machine.provisioning, machine.power = now
        machine.becomes, machine.failing = then, ("", "")
        machine.due = time.time() + self.settings["turn"]

    def evict(self, machine: Machine) -> None:
        if machine.body["properties"].get("evictionPolicy") == "Delete":
            self.delete(machine)
        else:
            self.turn(machine, ("Succeeded", "deallocating"), ("Succeeded", "deallocated"))

    def delete(self, machine: Machine) -> None:
        if machine.becomes[0] != "Gone":
            self.turn(machine, ("Deleting", machine.power), ("Gone", ""))

    def _end(self, key: tuple[str, str], machine: Machine) -> None:
        del self.machines[key]
        self.ended.append(self.shown(machine))
        for kept in (self.disks, self.interfaces):
            for name in [n for n, e in kept.items() if e["machine"] is machine]:
                if kept[name]["goes"]:
                    del kept[name]
                else:
                    kept[name]["of"] = ""

    def shown(self, machine: Machine) -> dict[str, Any]:
        """A machine as the stand-in's user sees it."""
        return {
            "id": machine.name,
            "group": machine.group,
            "region": machine.body["location"],
            "zone": (machine.body.get("zones") or [""])[0],
            "type": machine.body["properties"]["hardwareProfile"]["vmSize"],
            "market": "spot" if machine.spot else "on-demand",
            "pool": machine.tags.get("orchestrator:pool", ""),
            "token": machine.tags.get("orchestrator:token", ""),
            "state": machine.provisioning if machine.provisioning != "Succeeded" else machine.power,
            "address": machine.address,
        }
