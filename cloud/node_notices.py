"""Which node this is, and that it will not last, by the metadata of its cloud or by its own systemd.

Standard library and its neighbours `cloud.node_*` only, Python 3.9 or newer. There is one reader for each
cloud, all of one shape, and one form of notice: its `kind`, the `deadline` that this cloud really gives, in
seconds since the epoch, `what` the cloud calls it, the cloud's own id of the `event`, and whether it was
`cancelled`.

A source that many clouds share is the end of the machine itself: they stop the operating system before they
take the machine, so systemd knows (`is_stopping`).

Source of the formats: the guides of EC2 ("Instance metadata and user data"), of Compute Engine ("Query
metadata server", "Spot VMs") and of Azure ("Scheduled Events for Linux VMs").
"""

# Like node_agent.py this runs where nothing of the project is installed and on older Pythons.
from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from cloud.node_metadata import Metadata, Refused, fetch, node_id

MOST_NOTICES = 16
OVER = ("canceled", "completed")  # states of a scheduled event of EC2 that comes no more
LAST_WORD_SECONDS = 20.0
"""From the moment systemd stops the machine until it is expected to be off."""

GCE = "computeMetadata/v1/instance/"
NOTICE_ATTRIBUTE = "orchestrator-notice-seconds"
"""The instance's attribute that holds the notice which was asked for when it was made."""
GCE_SECONDS = 30.0  # from the preemption of a Spot VM to its end, where no longer notice was asked for
GCE_HOST_SECONDS = 60.0  # from the change of maintenance-event to the maintenance of the host
GCE_WAIT = 60.0  # s that one long poll lasts

AZURE = "metadata/"
AZURE_EVENTS = "scheduledevents?api-version=2020-07-01"
AZURE_MACHINE = "instance/compute?api-version=2021-02-01"
AZURE_FIRST = 120.0  # s for the first look: it is what makes Azure write scheduled events
AZURE_KINDS = {
    "preempt": "interruption",
    "reboot": "maintenance",
    "redeploy": "maintenance",
    "terminate": "maintenance",
}
"""Types of scheduled events that take the engine away. A "Freeze" is a pause of seconds in which memory and
connections stay."""
AZURE_KEPT = 600.0  # s for which an event that vanished is reported as over
AZURE_REMEMBERED = 64


def told_notice(
    kind: str, deadline: float | None, what: str, event: str = "", over: bool = False
) -> dict[str, Any]:
    """One notice as it stands in a report."""
    return {"kind": kind, "deadline": deadline, "what": what[:64], "event": event[:64], "cancelled": over}


def read_json(text: str | None) -> Any:
    """What a JSON text holds, None for what is none."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_time(value: Any) -> float | None:
    """Seconds since the epoch of a time as the clouds write it, None for anything else."""
    if not isinstance(value, str) or len(value) > 64:
        return None
    text = value.strip()
    try:
        try:
            at = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
        except ValueError:
            at = parsedate_to_datetime(text)
        return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp()  # noqa: UP017
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def is_stopping(systemctl: str) -> bool:
    """Whether systemd is stopping this machine. False where it cannot be asked."""
    try:
        asked = subprocess.run(
            [systemctl, "is-system-running"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=2.0,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.stdout.strip() == b"stopping"


class Ec2:
    """EC2's metadata: a spot notice of two minutes, recommendations, scheduled events."""

    cloud = "aws"
    pace = 3600.0
    waits = False

    def __init__(self, base: str) -> None:
        self._imds = Metadata(base)

    def identity(self) -> tuple[str, str]:
        """The node's id and "spot" or "on-demand". Raises Refused."""
        node = node_id((self._imds.get("meta-data/instance-id") or "").strip())
        return node, (self._imds.get("meta-data/instance-life-cycle") or "").strip()[:32]

    def notices(self, now: float) -> list[dict[str, Any]]:
        """Every notice that is open, the most urgent first. Raises Refused."""
        return read_ec2(self._imds.get, now)

    def changed(self) -> list[dict[str, Any]]:
        """EC2 has nothing that can be waited for."""
        return []


def read_ec2(get: Callable[[str], str | None], now: float) -> list[dict[str, Any]]:
    """The notices in EC2's metadata, the most urgent first. Raises Refused when it cannot be read."""
    found = []
    action = read_json(get("meta-data/spot/instance-action"))
    if isinstance(action, dict):
        found.append(
            told_notice("interruption", read_time(action.get("time")), str(action.get("action", "")))
        )
    else:
        # Older than instance-action; it may hold a time long past or no time at all.
        ends = read_time(get("meta-data/spot/termination-time"))
        if ends is not None and ends > now - 300:
            found.append(told_notice("interruption", ends, "terminate"))
    recommended = read_json(get("meta-data/events/recommendations/rebalance"))
    if isinstance(recommended, dict):
        found.append(told_notice("rebalance", None, ""))
    events = read_json(get("meta-data/events/maintenance/scheduled"))
    for event in events if isinstance(events, list) else []:
        if isinstance(event, dict) and event:
            over = str(event.get("State", "")).lower() in OVER
            code, identity = str(event.get("Code", "")), str(event.get("EventId", ""))
            found.append(told_notice("maintenance", read_time(event.get("NotBefore")), code, identity, over))
    return found[:MOST_NOTICES]


class Gce:
    """Compute Engine's metadata: the preemption of a Spot VM, by a long poll, and the host's maintenance.

    The preemption has no deadline of its own: it is when it was seen, and the notice that was asked for when
    the machine was made, which the attribute `NOTICE_ATTRIBUTE` holds. Host maintenance by which the machine
    moves as it runs is none.
    """

    cloud = "gcp"
    pace = 3600.0
    waits = True

    def __init__(self, base: str) -> None:
        self._base = base.rstrip("/")
        self._etag = "0"
        self._warning = GCE_SECONDS
        self._preempted_at: float | None = None
        self._host_at: float | None = None

    def identity(self) -> tuple[str, str]:
        """The node's name and "spot" or "on-demand". Raises Refused."""
        node = node_id((self._get("name") or "").strip())
        asked = (self._get("attributes/" + NOTICE_ATTRIBUTE) or "").strip()
        if asked.isascii() and asked.isdigit() and len(asked) < 5:
            self._warning = max(GCE_SECONDS, float(asked))
        spot = (self._get("scheduling/preemptible") or "").strip().upper() == "TRUE"
        return node, "spot" if spot else "on-demand"

    def notices(self, now: float) -> list[dict[str, Any]]:
        """The maintenance of the host, when it ends this machine. Raises Refused."""
        said = (self._get("maintenance-event") or "").strip()
        if said != "TERMINATE_ON_HOST_MAINTENANCE":
            self._host_at = None
            return []
        self._host_at = now if self._host_at is None else self._host_at
        return [told_notice("maintenance", self._host_at + GCE_HOST_SECONDS, said, "host-maintenance")]

    def changed(self) -> list[dict[str, Any]]:
        """The preemption as soon as there is one; after a minute without. Raises Refused, as for a 503."""
        if self._preempted_at is None:
            told: dict[str, str] = {}
            wait = f"?wait_for_change=true&timeout_sec={GCE_WAIT:.0f}&last_etag={self._etag}"
            said = self._get("preempted" + wait, GCE_WAIT + 5.0, told) or ""
            self._etag = told.get("etag", "0")
            if said.strip().upper() != "TRUE":
                return []
            self._preempted_at = time.time()  # noqa: TID251
        return [told_notice("interruption", self._preempted_at + self._warning, "preempted", "preempted")]

    def _get(self, path: str, timeout: float = 1.0, told: dict[str, str] | None = None) -> str | None:
        """A document of the instance's, None where there is none. Raises Refused."""
        told = {} if told is None else told
        url = f"{self._base}/{GCE}{path}"
        status, body = fetch(url, headers={"Metadata-Flavor": "Google"}, timeout=timeout, told=told)
        if told.get("metadata-flavor") != "Google" or status not in (200, 404):
            raise Refused(f"{url}: status {status}, not of Compute Engine's metadata")
        return body.decode("utf-8", "replace") if status == 200 else None


class Azure:
    """Azure's scheduled events: a preemption of a Spot VM up to half a minute ahead, often much less.

    A document tells the events of all machines of a set. An event that has started has no time: it is now.
    One that vanished is over, or was called off. Nothing is acknowledged, which would only start it earlier.
    """

    cloud = "azure"
    pace = 1.0
    waits = False

    def __init__(self, base: str) -> None:
        self._base = base.rstrip("/")
        self._name = ""
        self._answered = False
        self._seen: dict[str, dict[str, Any]] = {}  # by event id, as they were reported
        self._over: dict[str, float] = {}  # when each of them was missing first

    def identity(self) -> tuple[str, str]:
        """The node's name and "spot" or "on-demand". Raises Refused."""
        machine = read_json(self._get(AZURE_MACHINE, 1.0))
        if not isinstance(machine, dict):
            raise Refused(f"{self._base}: the metadata does not say which machine this is")
        self._name = node_id(str(machine.get("name", "")))
        return self._name, "spot" if str(machine.get("priority", "")).lower() == "spot" else "on-demand"

    def notices(self, now: float) -> list[dict[str, Any]]:
        """The events of this machine. Raises Refused."""
        document = read_json(self._get(AZURE_EVENTS, 2.0 if self._answered else AZURE_FIRST))
        events = document.get("Events") if isinstance(document, dict) else None
        if not isinstance(events, list):
            raise Refused(f"{self._base}: the scheduled events are no list")
        self._answered = True
        there = {}
        for event in events:
            notice = self._read(event, now)
            if notice is not None:
                there[notice["event"]] = notice
        for identity in [known for known in self._seen if known not in there]:
            since = self._over.setdefault(identity, now)
            self._seen[identity]["cancelled"] = True
            if now - since > AZURE_KEPT or len(self._seen) > AZURE_REMEMBERED:
                del self._seen[identity], self._over[identity]
        self._seen.update(there)
        found = sorted(self._seen.values(), key=lambda n: (n["cancelled"], n["kind"], n["deadline"]))
        return [dict(notice) for notice in found[:MOST_NOTICES]]

    def _read(self, event: Any, now: float) -> dict[str, Any] | None:
        if not isinstance(event, dict):
            return None
        what, identity, machines = event.get("EventType"), event.get("EventId"), event.get("Resources")
        kind = AZURE_KINDS.get(str(what).lower())
        ours = isinstance(machines, list) and self._name.lower() in [str(name).lower() for name in machines]
        if kind is None or not ours or not isinstance(identity, str) or not identity:
            return None
        self._over.pop(identity, None)
        known = self._seen.get(identity)
        starts = read_time(event.get("NotBefore"))
        if starts is None:
            starts = now if known is None else min(known["deadline"], now)
        return told_notice(kind, starts, str(what), identity)

    def changed(self) -> list[dict[str, Any]]:
        """Azure has nothing that can be waited for."""
        return []

    def _get(self, path: str, timeout: float) -> str:
        url = f"{self._base}/{AZURE}{path}"
        status, body = fetch(url, headers={"Metadata": "true"}, timeout=timeout)
        if status != 200:
            raise Refused(f"{url}: status {status}")
        return body.decode("utf-8", "replace")


READERS = (Ec2, Gce, Azure)
CLOUDS = tuple(reader.cloud for reader in READERS)
Reader = Any  # one of READERS


def reader_of(cloud: str, base: str) -> Reader:
    """The reader of a cloud, or with "auto" of the one whose metadata answer at `base`. Raises Refused."""
    refused = []
    for kind in READERS:
        if cloud not in (kind.cloud, "auto"):
            continue
        reader: Reader = kind(base)
        try:
            reader.identity()
        except Refused as error:
            refused.append(str(error))
            continue
        return reader
    raise Refused("; ".join(refused))
