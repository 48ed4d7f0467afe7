"""A stand-in for the metadata of EC2 (IMDSv2's exact token flow), Compute Engine and Azure: one address for
each node.

Runs as a process and prints {"url": ...}, where it takes orders: POST /_imds/ORDER with a JSON body. It ends
when its standard input does.

node      {id, cloud, market, zone, ...}                gives {"url": ...}: the metadata of a new node; what
                                                        else there is says the class of the `cloud`: Node
                                                        ("aws", the default), GceNode, AzureNode
set       {node, required, enabled}                     change whether tokens are needed, whether it answers
interrupt {node, after, action, legacy, ends}           a spot notice, `after` seconds from now or at `ends`;
                                                        `legacy`: only in the older document
recommend {node}                                        a rebalance recommendation
maintain  {node, events}                                the list of scheduled events, as it is
put       {node, path, text}                            any document below /latest/; text null removes it
expire    {node}                                        every token given out so far is refused
preempt   {node, after, status, identity, machines}     a preemption on Compute Engine or Azure
schedule  {node, events}                                Azure: [kind, seconds from now, id, status] of each
fault     {node, path, kind, times}                     see _misbehave; `path` is a prefix below /latest/
calls     {node}                                        gives how often each path was asked for
"""

import json
import secrets
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from others import AzureHandler, AzureNode, GceHandler, GceNode, azure_event

TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"
LONGEST_TTL = 21600
REASONS = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    503: "Service Unavailable",
}
PAGE = """<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
\t"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>{code} - {reason}</title>
 </head>
 <body>
  <h1>{code} - {reason}</h1>
 </body>
</html>
"""


def utc(at):
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Node:
    """What one node's metadata says."""

    def __init__(
        self, *, id, market="spot", type="g6e.12xlarge", zone="us-east-1a", required=True, enabled=True
    ):
        self.required, self.enabled = required, enabled
        self.tokens = {}
        self.faults = []
        self.calls = Counter()
        self.documents = {
            "meta-data/ami-id": "ami-12345678",
            "meta-data/events/maintenance/scheduled": "[]",
            "meta-data/instance-id": id,
            "meta-data/instance-life-cycle": market,
            "meta-data/instance-type": type,
            "meta-data/local-ipv4": "127.0.0.1",
            "meta-data/placement/availability-zone": zone,
            "meta-data/placement/region": zone[:-1],
            "dynamic/instance-identity/document": json.dumps({"instanceId": id, "instanceType": type}),
        }

    def listing(self, path):
        """The children of a directory, sub-directories with a slash; empty when there is none such."""
        base = path.strip("/") + "/"
        below = [p.removeprefix(base) for p in self.documents if p.startswith(base)]
        return "\n".join(sorted({b.partition("/")[0] + ("/" if "/" in b else "") for b in below}))


class Handler(BaseHTTPRequestHandler):
    """One request to one node's metadata."""

    server_version = "EC2ws"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_PUT(self):
        node = self.server.node
        node.calls["token"] += 1
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self._misbehave("token"):
            return
        lifetime = self.headers.get(TTL, "")
        if not node.enabled or "X-Forwarded-For" in self.headers or self.path != "/latest/api/token":
            self._refuse(403)
        elif not lifetime.isdecimal() or not 1 <= int(lifetime) <= LONGEST_TTL:
            self._refuse(400)
        else:
            token = secrets.token_urlsafe(40) + "=="
            node.tokens[token] = time.monotonic() + int(lifetime)
            self._send(200, token.encode(), {TTL: lifetime})

    def do_GET(self):
        node = self.server.node
        path = self.path.removeprefix("/latest/")
        node.calls[path] += 1
        if self._misbehave(path):
            return
        token = self.headers.get(TOKEN)
        left = node.tokens.get(token, 0.0) - time.monotonic() if token is not None else 0.0
        if not node.enabled:
            self._refuse(403)
        elif (token is None and node.required) or (token is not None and left <= 0):
            self._refuse(401)
        else:
            text = node.documents.get(path.rstrip("/")) or node.listing(path)
            headers = {} if token is None else {TTL: str(int(left))}
            if self.path.startswith("/latest/") and text:
                self._send(200, text.encode(), headers)
            else:
                self._refuse(404)

    def _misbehave(self, path):
        """Do what an order said: hang, drip, close, huge, garbage, redirect, or a status such as 503."""
        faults = self.server.node.faults
        fault = next((f for f in faults if path.startswith(f["path"])), None)
        if fault is None:
            return False
        fault["times"] -= 1
        if fault["times"] <= 0:
            faults.remove(fault)
        self.close_connection = True
        kind = fault["kind"]
        if kind in ("hang", "drip"):
            for _ in range(150):
                try:
                    self.wfile.write(b"H" if kind == "drip" else b"")
                    self.wfile.flush()
                except OSError:
                    break
                time.sleep(0.1)
        elif kind == "huge":
            self._send(200, b"x" * 1_000_000)
        elif kind == "garbage":
            self._send(200, b"\xff\xfe{]\0 not what it should be")
        elif kind == "noise":
            self.wfile.write(b"\0\1\2 this is no HTTP\r\n\r\n")
        elif kind == "redirect":
            self._send(302, b"", {"Location": "http://127.0.0.1:9/"})
        elif kind != "close":
            self._refuse(int(kind))
        return True

    def _refuse(self, code):
        page = PAGE.format(code=code, reason=REASONS.get(code, "Error")).encode()
        self._send(code, page, {"Content-Type": "text/html"})

    def _send(self, code, body, headers=None):
        self.send_response(code, REASONS.get(code))
        for name, value in ({"Content-Type": "text/plain"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True


class Orders(BaseHTTPRequestHandler):
    """The door for orders."""

    nodes: ClassVar[dict[str, Node]] = {}

    def log_message(self, *_):
        pass

    def do_POST(self):
        values = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        try:
            answer = getattr(self, "_" + self.path.removeprefix("/_imds/"))(**values) or {}
            code = 200
        except (AttributeError, KeyError, TypeError) as error:
            answer, code = {"error": f"{self.path}: {error!r}"}, 400
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _node(self, cloud="aws", **values):
        kinds = {"aws": (Node, Handler), "gcp": (GceNode, GceHandler), "azure": (AzureNode, AzureHandler)}
        make, handler = kinds[cloud]
        node = self.nodes[values["id"]] = make(**values)
        return {"url": serve(handler, node)}

    def _preempt(self, node, after=30.0, status="Scheduled", identity="", machines=None):
        there = self.nodes[node]
        if isinstance(there, AzureNode):
            there.schedule([azure_event(node, "Preempt", after, status, identity, machines)])
        else:
            there.put("instance/preempted", "TRUE")

    def _schedule(self, node, events):
        self.nodes[node].schedule(
            [azure_event(node, kind, after, status, identity) for kind, after, identity, status in events]
        )

    def _set(self, node, **values):
        for name, value in values.items():
            setattr(self.nodes[node], name, value)

    def _interrupt(self, node, after=120.0, action="terminate", legacy=False, ends=None):
        documents = self.nodes[node].documents
        at = utc(time.time() + after if ends is None else ends)
        if action == "terminate":
            documents["meta-data/spot/termination-time"] = at
        if not legacy:
            documents["meta-data/spot/instance-action"] = json.dumps({"action": action, "time": at})

    def _recommend(self, node):
        text = json.dumps({"noticeTime": utc(time.time())})
        self.nodes[node].documents["meta-data/events/recommendations/rebalance"] = text

    def _maintain(self, node, events):
        self.nodes[node].documents["meta-data/events/maintenance/scheduled"] = json.dumps(events)

    def _put(self, node, path, text):
        if isinstance(self.nodes[node], GceNode):
            self.nodes[node].put(path, text)
        elif text is None:
            self.nodes[node].documents.pop(path, None)
        else:
            self.nodes[node].documents[path] = text

    def _expire(self, node):
        self.nodes[node].tokens.clear()

    def _fault(self, node, path, kind, times=1):
        self.nodes[node].faults.append({"path": path, "kind": str(kind), "times": times})

    def _calls(self, node):
        return dict(self.nodes[node].calls)


def serve(handler, node=None):
    """Start a server on a free port; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.node = node
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


if __name__ == "__main__":
    print(json.dumps({"url": serve(Orders)}), flush=True)
    sys.stdin.read()
