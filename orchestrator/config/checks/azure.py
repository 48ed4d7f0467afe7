"""What keeps a pool from running on Azure, and what is doubtful."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from cloud.azure.places import OWN_TAGS, AzureRegion, Image
from orchestrator.config.errors import Found, Key
from orchestrator.config.tables.azure import AzureRegionTable, AzureTable
from orchestrator.config.tables.file import ConfigFile
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.units import shown

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_REGION: Final = re.compile(r"[a-z]{3,}[0-9]?")
_KEY: Final = re.compile(r"(ssh-rsa|ssh-ed25519) [A-Za-z0-9+/=]+( [ -~]*)?")
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_RESERVED_USERS: Final = ("root", "admin", "administrator", "user", "guest", "test")
_TAG: Final = re.compile(r"[<>%&\\?/]")
_MOST_TAGS: Final = 50 - len(OWN_TAGS)
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


def azure_errors(at: Key, pool: PoolConfig) -> Iterator[Found]:
    """What keeps a pool from running on Azure."""
    azure, at = pool.cloud.azure, (*at, "cloud", "azure")
    if not azure.instance_types:
        yield (*at, "instance_types"), 'is missing; write instance_types = ["Standard_NC24ads_A100_v4"]'
    for name in sorted(pool.units.keys() - set(azure.instance_types)) if azure.instance_types else ():
        yield (
            (*at[:-2], "units", name),
            f"{shown(name)} is not one of cloud.azure.instance_types; correct the name or add the size there",
        )
    if not _UUID.fullmatch(azure.subscription):
        yield (
            (*at, "subscription"),
            f"{shown(azure.subscription)} is no id of a subscription; `az account show --query id` gives it",
        )
    try:
        Image(text=azure.image)
    except ValueError as error:
        yield (*at, "image"), str(error)
    yield from _access_errors(at, azure)
    if azure.weights and not azure.weights.startswith("/"):
        yield (*at, "weights"), f"{shown(azure.weights)} is not an absolute path on the node's image"
    yield from _tag_errors((*at, "tags"), azure)
    if not azure.regions:
        yield (*at, "regions"), f"is missing; write a table [{'.'.join(map(str, at))}.regions.eastus]"
    for name, region in azure.regions.items():
        yield from _region_errors((*at, "regions", name), name, region)


def _access_errors(at: Key, azure: AzureTable) -> Iterator[Found]:
    """Who logs in on nodes, and whom the daemon asks."""
    if not _KEY.fullmatch(azure.ssh_public_key):
        yield (
            (*at, "ssh_public_key"),
            "is no public key that Azure takes; write the line of an id_ed25519.pub or id_rsa.pub",
        )
    if not _USER.fullmatch(azure.admin_user) or azure.admin_user in _RESERVED_USERS:
        yield (*at, "admin_user"), f"{shown(azure.admin_user)} is no name that Azure takes for a user"
    for key in ("endpoint", "prices_endpoint"):
        url = urlsplit(getattr(azure, key))
        if url.scheme == "http" and url.hostname not in _LOOPBACK:
            yield (
                (*at, key),
                f"{getattr(azure, key)} is not encrypted; only a stand-in on this machine may be asked so",
            )
        elif url.geturl() and url.scheme not in ("http", "https"):
            yield (*at, key), f"{shown(getattr(azure, key))} is no URL; write https://..., or leave it out"


def _tag_errors(at: Key, azure: AzureTable) -> Iterator[Found]:
    for name, value in azure.tags.items():
        if not name or len(name) > 512 or _TAG.search(name) or len(value) > 256:
            yield (
                (*at, name),
                "is a tag that Azure refuses: names have no <>%&\\?/ and 512 characters at most, values 256",
            )
        elif name.lower().startswith("orchestrator:"):
            yield (*at, name), "is one of the pool's own tags, by which it finds what is its; choose another"
    if len(azure.tags) > _MOST_TAGS:
        yield at, f"are {len(azure.tags)}; Azure takes 50 on a machine, and {len(OWN_TAGS)} are the pool's"


def _region_errors(at: Key, name: str, region: AzureRegionTable) -> Iterator[Found]:
    if not _REGION.fullmatch(name):
        yield at, f"{shown(name)} is no name of a region; `az account list-locations -o table` lists them"
    if not region.resource_group:
        yield (*at, "resource_group"), "is missing; make one with az group create, and name it here"
    if not region.subnet:
        yield (*at, "subnet"), "is missing; az network vnet subnet show --query id gives it"
        return
    try:
        AzureRegion(
            region=name,
            resource_group=region.resource_group,
            subnet=region.subnet,
            zones=region.zones,
            instance_types=("any",),
            image=Image(text="a:b:c:1"),
            ssh_public_key="",
        )
    except ValueError as error:
        yield (*at, "zones" if "zone" in str(error) else "subnet"), str(error).removeprefix(f"{name}: ")


def azure_warnings(at: Key, pool: PoolConfig) -> Iterator[Found]:
    """What is doubtful about a pool on Azure."""
    if pool.agents.listen is None:
        yield (
            (*at, "agents", "listen"),
            "is off, and only the agents of nodes hear of evictions on Azure: nodes would go unannounced; "
            "turn the listener on",
        )


def azure_among(_parsed: ConfigFile) -> Iterator[Found]:
    """Pools tell their machines apart by tags, so they may share all that a file names."""
    yield from ()
