"""What must hold for a pool on Google Cloud, as far as its keys tell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from cloud.gcp.places import BUILD_LABEL, POOL_LABEL, STANDBY_LABEL
from orchestrator.config.errors import Found
from orchestrator.config.tables.file import ConfigFile
from orchestrator.config.tables.gcp import GcpTable
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.config.types import is_credential, unreadable
from orchestrator.units import shown

_PROJECT: Final = re.compile(r"(?:[a-z][a-z0-9.-]*[a-z0-9]:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")
_REGION: Final = re.compile(r"[a-z]+(?:-[a-z]+)+\d+")
_IMAGE: Final = re.compile(r"projects/[^/]+/global/images/(?:family/)?[a-z][-a-z0-9]*")
_TEMPLATE: Final = re.compile(r"projects/[^/]+/(?:global|regions/[^/]+)/instanceTemplates/[^/]+")
_ACCOUNT: Final = re.compile(r"[^@\s]+@[^@\s]+\.gserviceaccount\.com")
_LABEL: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_VALUE: Final = re.compile(r"[a-z0-9_-]{0,63}")
_OURS: Final = (POOL_LABEL, STANDBY_LABEL, BUILD_LABEL)


def gcp_errors(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """What keeps a pool from running on Google Cloud."""
    gcp, at = pool.cloud.gcp, (*at, "cloud", "gcp")
    if not _PROJECT.fullmatch(gcp.project):
        said = f"{shown(gcp.project)} is no project's id" if gcp.project else "is missing"
        yield (*at, "project"), f"{said}; write one such as ml-serving"
    if not gcp.instance_types:
        yield (*at, "instance_types"), 'is missing; write instance_types = ["g2-standard-12"]'
    for name in sorted(pool.units.keys() - set(gcp.instance_types)) if gcp.instance_types else ():
        yield (
            (*at[:-2], "units", name),
            f"{shown(name)} is not one of cloud.gcp.instance_types; correct the name or add the type there",
        )
    if gcp.image and gcp.instance_template:
        yield (*at, "instance_template"), "says what image says; write one of the two"
    elif not gcp.image and not gcp.instance_template:
        yield (
            (*at, "image"),
            "is missing; write the path of an image or of a family, such as "
            "projects/PROJECT/global/images/family/NAME, or an instance_template",
        )
    for key, text, form in (
        ("image", gcp.image, _IMAGE),
        ("instance_template", gcp.instance_template, _TEMPLATE),
        ("service_account", gcp.service_account, _ACCOUNT),
    ):
        if text and not form.fullmatch(text):
            yield (*at, key), f"{shown(text)} is none; write its whole path, or its whole e-mail"
    if gcp.poll_operations <= 0:
        yield (*at, "poll_operations"), 'is 0, which leaves no time at all; write "5s"'
    for key, value in gcp.labels.items():
        if key in _OURS:
            yield (*at, "labels", key), "is a label of the orchestrator's own; choose another"
        elif not _LABEL.fullmatch(key) or not _VALUE.fullmatch(value):
            yield (*at, "labels", key), "Google takes small letters, digits, - and _ in labels"
    file = gcp.credentials_file
    if file is not None and not is_credential(file) and (fault := unreadable(file)):
        yield (*at, "credentials_file"), fault
    yield from _region_errors((*at, "regions"), gcp)


def gcp_warnings(at: tuple[str, ...], pool: PoolConfig) -> Iterator[Found]:
    """What is doubtful about a pool on Google Cloud."""
    gcp, here = pool.cloud.gcp, (*at, "cloud", "gcp")
    if pool.agents.listen is None:
        yield (
            (*at, "agents", "listen"),
            "is not set, and Google gives the notice of a preemption to the machine alone: without agents on "
            "nodes it is heard when the machine is already being taken",
        )
    elif not gcp.service_account and gcp.start_engine and not gcp.instance_template:
        yield (
            (*here, "service_account"),
            "is not set, so nodes cannot prove who they are, and get no keys for their agents; write the "
            "e-mail of one, which needs no role",
        )


def shared_on_gcp(_parsed: ConfigFile) -> Iterator[Found]:
    """Pools tell their machines by their label, and share nothing."""
    yield from ()


def _region_errors(at: tuple[str, ...], gcp: GcpTable) -> Iterator[Found]:
    if not gcp.regions:
        yield at, f"is missing; write a table [{'.'.join(at)}.us-central1]"
    for name, region in gcp.regions.items():
        if not _REGION.fullmatch(name):
            yield (*at, name), f"{shown(name)} is not the name of a region; write one such as us-central1"
        if not region.zones:
            yield (*at, name, "zones"), f'is missing; write zones = ["{name}-a"]'
        for zone in region.zones:
            if not re.fullmatch(rf"{re.escape(name)}-[a-z]", zone):
                yield (*at, name, "zones"), f"{shown(zone)} is not a zone of {name}"
        for key, prices in (
            ("on_demand_prices", region.on_demand_prices),
            ("spot_prices", region.spot_prices),
        ):
            for kind in sorted(prices.keys() - set(gcp.instance_types)):
                yield (*at, name, key, kind), f"{shown(kind)} is not one of cloud.gcp.instance_types"
