"""The metadata of Compute Engine and of Azure, as a node asks for them.

Compute Engine: every request needs ``Metadata-Flavor: Google`` and every answer has it and an ETag, which
changes with the value; ``wait_for_change=true`` answers once the value differs from ``last_etag``, or after
``timeout_sec``; ``X-Forwarded-For`` is refused. Azure: every request needs ``Metadata: true`` and an
``api-version``; scheduled events come as one document for the whole set of machines, whose incarnation rises.

Source: "Query metadata server" (Compute Engine), "Azure Instance Metadata Service" and "Scheduled Events".
"""

import hashlib
import json
import threading
import time
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

GCE = "/computeMetadata/v1/"


class GceNode:
    """What one node's metadata say. `notice`: what was asked for when it was made; None: nothing."""

    def __init__(self, *, id, market="spot", zone="us-central1-a", notice=None):
        self.changed = threading.Condition()
        self.faults = []
        self.calls = Counter()
        self.documents = {
            "instance/name": id,
            "instance/id": "1234567890123456789",
            "instance/zone": f"projects/123456789012/zones/{zone}",
            "instance/scheduling/preemptible": "TRUE" if market == "spot" else "FALSE",
            "instance/scheduling/on-host-maintenance": "TERMINATE",
            "instance/preempted": "FALSE",
            "instance/maintenance-event": "NONE",
        }
        if notice is not None:
            self.documents["instance/attributes/orchestrator-notice-seconds"] = str(notice)

    def put(self, path, text):
        with self.changed:
            if text is None:
                self.documents.pop(path, None)
            else:
                self.documents[path] = text
            self.changed.notify_all()


class AzureNode:
    """What one node's metadata say. `others`: machines of the same set, whose events are shown too."""

    def __init__(self, *, id, market="spot", zone="1", others=()):
        self.faults = []
        self.calls = Counter()
        self.id, self.others = id, list(others)
        self.incarnation = 1
        self.events = []
        self.machine = {
            "name": id,
            "vmId": "02aab8a4-74ef-476e-8182-f6d2ba4166a6",
            "location": "eastus",
            "zone": zone,
            "vmSize": "Standard_NC24ads_A100_v4",
            "priority": "Spot" if market == "spot" else "Regular",
            "evictionPolicy": "Delete" if market == "spot" else "",
        }

    def schedule(self, events):
        self.events = events
        self.incarnation += 1


def azure_event(node, kind, after, status="Scheduled", identity="", machines=None):
    """One scheduled event as Azure writes it; one that has started has no time."""
    started = status == "Started"
    return {
        "EventId": identity or "C7061BAC-AFDC-4513-B24B-AA5F13A16123",
        "EventStatus": status,
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": [node] if machines is None else machines,
        "NotBefore": "" if started else formatdate(time.time() + after, usegmt=True),
        "Description": "The virtual machine is being evicted" if kind == "Preempt" else "Host maintenance",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
    }


class _Handler(BaseHTTPRequestHandler):
    """One request. Orders may have the next ones fail: a status, or "hang"."""

    protocol_version = "HTTP/1.1"
    sys_version = ""

    def log_message(self, *_):
        pass

    def fails(self, path):
        node = self.server.node
        node.calls[path] += 1
        fault = next((f for f in node.faults if path.startswith(f["path"])), None)
        if fault is None:
            return False
        fault["times"] -= 1
        if fault["times"] <= 0:
            node.faults.remove(fault)
        if fault["kind"] == "hang":
            self.close_connection = True
            time.sleep(15.0)
        else:
            self.send(int(fault["kind"]), "The service is unavailable.")
        return True

    def send(self, code, text, headers=None):
        body = text.encode()
        self.send_response(code)
        for name, value in ({"Content-Type": "application/text"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True


class GceHandler(_Handler):
    """Compute Engine's metadata of one node."""

    server_version = "Metadata Server for VM"

    def do_GET(self):
        parts = urlsplit(self.path)
        asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        path = parts.path.removeprefix(GCE).rstrip("/")
        if not parts.path.startswith(GCE):
            self.send(404, "Not Found")
        elif self.headers.get("Metadata-Flavor") != "Google" or "X-Forwarded-For" in self.headers:
            self.send(403, "Forbidden")
        elif not self.fails(path):
            self.answer(path, asked)

    def answer(self, path, asked):
        node = self.server.node
        ends = time.monotonic() + float(asked.get("timeout_sec", 3600))
        with node.changed:
            first = etag(node.documents.get(path))
            known = asked.get("last_etag", first)
            while asked.get("wait_for_change") == "true" and etag(node.documents.get(path)) == known:
                left = ends - time.monotonic()
                if left <= 0 or not node.changed.wait(left):
                    break
            text = node.documents.get(path)
        told = {"Metadata-Flavor": "Google", "ETag": etag(text)}
        self.send(404 if text is None else 200, "not there" if text is None else text, told)

    def do_PUT(self):
        self.send(405, "Method Not Allowed", {"Metadata-Flavor": "Google"})


def etag(text):
    return hashlib.sha256(repr(text).encode()).hexdigest()[:16]


class AzureHandler(_Handler):
    """Azure's metadata of one node."""

    server_version = "IMDS"

    def do_GET(self):
        node = self.server.node
        parts = urlsplit(self.path)
        asked, path = parse_qs(parts.query), parts.path.removeprefix("/metadata/")
        if self.headers.get("Metadata") != "true" or "X-Forwarded-For" in self.headers:
            self.say(400, {"error": "Bad request. Required metadata header not specified"})
        elif "api-version" not in asked:
            self.say(400, {"error": "Bad request. api-version is invalid or was not specified"})
        elif self.fails(path):
            pass
        elif path == "instance/compute":
            self.say(200, node.machine)
        elif path == "scheduledevents":
            self.say(200, {"DocumentIncarnation": node.incarnation, "Events": node.events})
        else:
            self.say(404, {"error": "Not found"})

    def do_PUT(self):
        self.say(405, {"error": "Method not allowed"})

    def do_POST(self):
        self.server.node.calls["acknowledged"] += 1
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.say(200, {})

    def say(self, code, found):
        self.send(code, json.dumps(found), {"Content-Type": "application/json; charset=utf-8"})
