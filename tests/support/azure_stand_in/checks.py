"""What Azure would refuse of a machine that is asked for, as far as this stand-in knows."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

# Members that the API knows, of those that are in use here. Azure refuses what it does not know.
_KNOWN: dict[str, set[str]] = {
    "": {"location", "tags", "zones", "identity", "properties", "plan", "id", "name", "type", "etag"},
    "properties": {
        "hardwareProfile",
        "storageProfile",
        "osProfile",
        "networkProfile",
        "diagnosticsProfile",
        "priority",
        "evictionPolicy",
        "billingProfile",
    },
    "properties.storageProfile": {"imageReference", "osDisk", "dataDisks"},
    "properties.storageProfile.osDisk": {
        "name",
        "createOption",
        "caching",
        "diskSizeGB",
        "managedDisk",
        "deleteOption",
        "osType",
    },
    "properties.osProfile": {
        "computerName",
        "adminUsername",
        "adminPassword",
        "customData",
        "linuxConfiguration",
    },
    "properties.osProfile.linuxConfiguration": {"disablePasswordAuthentication", "ssh", "provisionVMAgent"},
    "properties.networkProfile": {"networkApiVersion", "networkInterfaces", "networkInterfaceConfigurations"},
    "properties.diagnosticsProfile": {"bootDiagnostics"},
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}[A-Za-z0-9]")


class Refusal(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def check(name: str, body: dict[str, Any]) -> None:
    """Raises Refusal."""
    if not _NAME.fullmatch(name):
        raise Refusal(400, "InvalidParameter", f"The name {name} of the virtual machine is not valid.")
    for path, known in _KNOWN.items():
        at: Any = body
        for part in filter(None, path.split(".")):
            at = at.get(part) or {}
        if odd := set(at) - known:
            raise Refusal(
                400,
                "InvalidRequestContent",
                f"Could not find member '{sorted(odd)[0]}' on object of type '{path}'.",
            )
    if not body.get("location"):
        raise Refusal(400, "LocationRequired", "The location property is required for this definition.")
    wanted = body["properties"]
    for part in ("hardwareProfile", "storageProfile", "osProfile", "networkProfile"):
        if not wanted.get(part):
            raise Refusal(400, "InvalidParameter", f"Required parameter '{part}' is missing (null).")
    _check_system(wanted["osProfile"])
    _check_network(wanted["networkProfile"])
    _check_spot(wanted)
    for key in body.get("tags") or {}:
        if re.search(r"[<>%&\\?/]", key):
            raise Refusal(400, "InvalidTagNameCharacters", f"The tag name {key} has reserved characters.")
    if any(zone not in ("1", "2", "3") for zone in body.get("zones") or ()):
        raise Refusal(400, "InvalidAvailabilityZone", "The zone(s) are not supported.")


def _check_system(system: dict[str, Any]) -> None:
    linux = system.get("linuxConfiguration") or {}
    keys = (linux.get("ssh") or {}).get("publicKeys") or []
    if not system.get("adminPassword") and not keys:
        raise Refusal(
            400,
            "InvalidParameter",
            "Authentication using either SSH or by user name and password must be enabled in Linux profile.",
        )
    for key in keys:
        if not str(key.get("keyData", "")).startswith(("ssh-rsa ", "ssh-ed25519 ")):
            raise Refusal(
                400,
                "InvalidParameter",
                "The value of parameter linuxConfiguration.ssh.publicKeys.keyData is invalid.",
            )
    try:
        data = base64.b64decode(system.get("customData") or "", validate=True)
    except binascii.Error:
        raise Refusal(
            400, "InvalidParameter", "Custom data in OSProfile must be in Base64 encoding."
        ) from None
    if len(data) > 65535:
        raise Refusal(400, "InvalidParameter", "Custom data in OSProfile is too long.")


def _check_network(network: dict[str, Any]) -> None:
    made = network.get("networkInterfaceConfigurations") or []
    if made and not network.get("networkApiVersion"):
        raise Refusal(
            400,
            "InvalidParameter",
            "Required parameter 'networkProfile.networkApiVersion' is missing (null).",
        )
    if not made:
        raise Refusal(400, "InvalidParameter", "The network profile has no interface.")
    for entry in made[0]["properties"]["ipConfigurations"]:
        if "/subnets/" not in entry["properties"]["subnet"]["id"]:
            raise Refusal(400, "InvalidResourceReference", "The subnet was not found.")


def _check_spot(wanted: dict[str, Any]) -> None:
    spot = wanted.get("priority") == "Spot"
    if not spot and (wanted.get("evictionPolicy") or wanted.get("billingProfile")):
        raise Refusal(400, "InvalidParameter", "evictionPolicy and billingProfile are of Spot machines only.")
    if spot and wanted.get("evictionPolicy") not in ("Delete", "Deallocate"):
        raise Refusal(400, "InvalidParameter", "The eviction policy is not valid.")
