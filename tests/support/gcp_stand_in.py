"""A stand-in for Compute Engine and the billing catalogue, over http on the loopback.

It knows machines, operations and their order of states, request ids, filters, pages and the errors of both
shapes, as google-cloud-compute 1.57 sends and reads them: tests/cloud/gcp/test_vendor_sdk.py drives it with
that client. Times are short and real.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import uuid
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

ROOT = "/compute/v1/projects/{project}"
LINK = "https://www.googleapis.com/compute/v1"
NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")

TYPES: dict[str, dict[str, Any]] = {
    "g2-standard-4": {"guestCpus": 4, "memoryMb": 16384, "gpus": [("nvidia-l4", 1)]},
    "g2-standard-24": {"guestCpus": 24, "memoryMb": 98304, "gpus": [("nvidia-l4", 2)]},
}
SKUS = (
    ("G2 Instance Core running in Iowa", "CPU", "OnDemand", 0.025),
    ("G2 Instance Ram running in Iowa", "RAM", "OnDemand", 0.003),
    ("Nvidia L4 GPU running in Iowa", "GPU", "OnDemand", 0.56),
    ("Spot Preemptible G2 Instance Core running in Iowa", "CPU", "Preemptible", 0.01),
    ("Spot Preemptible G2 Instance Ram running in Iowa", "RAM", "Preemptible", 0.001),
    ("Nvidia L4 GPU attached to Spot Preemptible VMs running in Iowa", "GPU", "Preemptible", 0.17),
    ("Commitment v1: G2 Cpu in Iowa", "CPU", "Commit1Yr", 0.016),
    ("G2 Custom Instance Core running in Iowa", "CPU", "OnDemand", 9.0),
)
"""Description, resource group, usage type, USD of a unit: invented prices."""


@dataclass
class Fault:
    """What happens to the next calls that fit."""

    match: re.Pattern[str]  # of "METHOD path"
    times: int
    status: int = 0  # 0: the call takes effect and its answer is lost
    reason: str = ""


@dataclass
class GcpStandIn:
    """One project."""

    project: str = "p"
    zones: tuple[str, ...] = ("us-central1-a", "us-central1-b")
    step: float = 0.03  # s between two states
    machines: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    operations: dict[str, dict[str, Any]] = field(default_factory=dict)
    consoles: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)  # "METHOD path" of every call
    bodies: list[dict[str, Any]] = field(default_factory=list)  # of inserts that were accepted
    launched: int = 0  # machines that were ever made
    no_room: int = 0  # operations that will find none
    dark: set[str] = field(default_factory=set)  # zones that do not answer
    remembers: bool = True  # request ids
    quotas: dict[str, float] = field(
        default_factory=lambda: {"NVIDIA_L4_GPUS": 8.0, "PREEMPTIBLE_NVIDIA_L4_GPUS": 2.0}
    )
    url: str = ""
    _asked: dict[str, str] = field(default_factory=dict)  # request id to operation
    _faults: deque[Fault] = field(default_factory=deque)
    _serials: Any = field(default_factory=lambda: itertools.count(7_000_000_000_000_000_001))
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _runner: Any = None

    # -- orders ------------------------------------------------------------------------------------

    def fault(self, match: str, *, times: int = 1, status: int = 0, reason: str = "") -> None:
        """The next calls whose "METHOD path" has this in it fail, or lose their answer."""
        self._faults.append(Fault(re.compile(match), times, status, reason))

    def preempt(self, name: str, notice: float) -> None:
        """Google takes a machine: the operation, then STOPPING, then its deletion."""
        (key,) = [key for key in self.machines if key[1] == name]
        operation = self._operation(key[0], "compute.instances.preempted", key[1], user="system")
        operation["statusMessage"] = "Instance was preempted."
        self._later(self._take(key, operation, notice))

    # -- serving -----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Listen on a port of its own."""
        app = web.Application(middlewares=[self._guarded])
        zone, machine = f"{ROOT}/zones/{{zone}}", f"{ROOT}/zones/{{zone}}/instances/{{name}}"
        app.router.add_post(f"{zone}/instances", self._insert)
        app.router.add_get(f"{zone}/instances", self._list)
        app.router.add_get(f"{ROOT}/aggregated/instances", self._aggregated)
        app.router.add_get(machine, self._get)
        app.router.add_delete(machine, self._delete)
        app.router.add_post(f"{machine}/stop", self._stop)
        app.router.add_post(f"{machine}/start", self._start)
        app.router.add_post(f"{machine}/simulateMaintenanceEvent", self._simulate)
        app.router.add_get(f"{machine}/serialPort", self._serial)
        app.router.add_get(f"{zone}/operations", self._operations)
        app.router.add_get(f"{zone}/operations/{{operation}}", self._get_operation)
        app.router.add_post(f"{zone}/operations/{{operation}}/wait", self._wait)
        app.router.add_get(f"{zone}/machineTypes/{{type}}", self._machine_type)
        app.router.add_get(f"{ROOT}/regions/{{region}}", self._region)
        app.router.add_get("/v1/services/6F81-5844-456A/skus", self._skus)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        """Stop listening, and all that goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._runner.cleanup()

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Any) -> web.StreamResponse:
        call = f"{request.method} {request.path}"
        self.calls.append(call)
        zone = request.match_info.get("zone")
        if zone in self.dark:
            return _error(503, "backendError", "The service is currently unavailable.")
        if zone is not None and zone not in self.zones:
            return _error(400, "invalid", f"Invalid value for field 'zone': '{zone}'. Unknown zone.")
        if request.match_info.get("project", self.project) != self.project:
            return _error(403, "forbidden", f"Required permission for 'projects/{request.path}'")
        fault = next((f for f in self._faults if f.match.search(call)), None)
        if fault is not None:
            fault.times -= 1
            if fault.times <= 0:
                self._faults.remove(fault)
            if fault.status:
                return _error(fault.status, fault.reason, f"{fault.reason} of the stand-in")
        answer = await handler(request)
        if fault is not None:  # it took effect
            assert request.transport is not None
            request.transport.close()
        return answer

    # -- machines ----------------------------------------------------------------------------------

    async def _insert(self, request: web.Request) -> web.Response:
        zone, body = request.match_info["zone"], await request.json()
        asked = request.query.get("requestId")
        if asked is not None:
            try:
                valid = uuid.UUID(asked).int != 0
            except ValueError:
                valid = False
            if not valid:
                return _error(400, "invalid", f"Invalid value for field 'requestId': '{asked}'")
            if self.remembers and asked in self._asked:
                return web.json_response(self.operations[self._asked[asked]])
        wrong = self._fault_of(zone, body, "sourceInstanceTemplate" in request.query)
        if wrong:
            return _error(400, "invalid", wrong)
        name = body["name"]
        if (zone, name) in self.machines:
            path = f"projects/{self.project}/zones/{zone}/instances/{name}"
            return _error(409, "alreadyExists", f"The resource '{path}' already exists")
        kind = body["machineType"].rpartition("/")[2]
        if kind not in TYPES:
            path = f"projects/{self.project}/{body['machineType']}"
            return _error(404, "notFound", f"The resource '{path}' was not found")
        operation = self._operation(zone, "insert", name)
        if asked is not None:
            self._asked[asked] = operation["name"]
        self.bodies.append(body)
        self._later(self._make(zone, body, operation))
        return web.json_response(operation)

    def _fault_of(self, zone: str, body: dict[str, Any], by_template: bool) -> str:
        if not NAME.fullmatch(body.get("name") or ""):
            return f"Invalid value for field 'resource.name': '{body.get('name')}'"
        if not str(body.get("machineType") or "").endswith(tuple(f"/{kind}" for kind in (*TYPES, "unknown"))):
            return f"Invalid value for field 'resource.machineType': '{body.get('machineType')}'"
        for key, value in (body.get("labels") or {}).items():
            if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key) or not re.fullmatch("[a-z0-9_-]{0,63}", value):
                return f"Invalid value for field 'resource.labels': '{key}={value}'"
        if by_template:
            return ""
        if not any(disk.get("boot") for disk in body.get("disks") or ()):
            return "Invalid value for field 'resource.disks': ''. Boot disk must be specified."
        if not body.get("networkInterfaces"):
            return "Invalid value for field 'resource.networkInterfaces': ''. At least one is needed."
        plan = body.get("scheduling") or {}
        notice = plan.get("preemptionNoticeDuration")
        if notice and plan.get("provisioningModel") != "SPOT":
            return "Preemption notice duration can be set for Spot VMs only."
        if notice and int(notice.get("seconds", 0)) not in (0, 120):
            return "Preemption notice duration must be 0 or 120 seconds."
        return ""

    async def _make(self, zone: str, body: dict[str, Any], operation: dict[str, Any]) -> None:
        operation["status"] = "RUNNING"
        key, room = (zone, body["name"]), self.no_room <= 0
        self.no_room -= 0 if room else 1
        serial = next(self._serials)
        machine = {
            **body,
            "kind": "compute#instance",
            "id": str(serial),
            "zone": f"{LINK}/projects/{self.project}/zones/{zone}",
            "machineType": f"{LINK}/projects/{self.project}/{body['machineType']}",
            "selfLink": self._link(*key),
            "creationTimestamp": _now(),
            "status": "PROVISIONING",
        }
        machine["networkInterfaces"] = [
            {**each, "networkIP": f"10.128.0.{serial % 250}"}
            for each in body.get("networkInterfaces") or [{}]
        ]
        operation["targetId"] = machine["id"]
        if room:
            self.machines[key] = machine
            self.launched += 1
        await asyncio.sleep(self.step)
        if not room:
            self._failed(operation, zone)
            return
        machine["status"] = "STAGING"
        await asyncio.sleep(self.step)
        if machine["status"] == "STAGING":
            machine["status"] = "RUNNING"
        self._done(operation)

    async def _get(self, request: web.Request) -> web.Response:
        machine = self.machines.get(self._key(request))
        return self._unknown(request) if machine is None else web.json_response(machine)

    async def _list(self, request: web.Request) -> web.Response:
        zone = request.match_info["zone"]
        items = [machine for (at, _), machine in sorted(self.machines.items()) if at == zone]
        return _page(request, "compute#instanceList", items)

    async def _aggregated(self, request: web.Request) -> web.Response:
        items: dict[str, Any] = {}
        for zone in self.zones:
            all_of = [machine for (at, _), machine in sorted(self.machines.items()) if at == zone]
            found = [machine for machine in all_of if _fits(machine, request.query.get("filter", ""))]
            items[f"zones/{zone}"] = (
                {"instances": found} if found else {"warning": {"code": "NO_RESULTS_ON_PAGE"}}
            )
        return web.json_response({"kind": "compute#instanceAggregatedList", "id": "a", "items": items})

    async def _delete(self, request: web.Request) -> web.Response:
        key = self._key(request)
        if key not in self.machines:
            return self._unknown(request)
        operation = self._operation(key[0], "delete", key[1])
        self._later(self._end(key, operation))
        return web.json_response(operation)

    async def _end(self, key: tuple[str, str], operation: dict[str, Any]) -> None:
        operation["status"] = "RUNNING"
        self.machines[key]["status"] = "STOPPING"
        await asyncio.sleep(self.step)
        self.machines.pop(key, None)
        self._done(operation)

    async def _take(self, key: tuple[str, str], operation: dict[str, Any], notice: float) -> None:
        await asyncio.sleep(notice)
        if key in self.machines:
            await self._end(key, operation)
            self._done(self._operation(key[0], "delete", key[1], user="system"))
        self._done(operation)

    async def _stop(self, request: web.Request) -> web.Response:
        return await self._turn(request, "stop", {"RUNNING": "STOPPING", "STAGING": "STOPPING"}, "TERMINATED")

    async def _start(self, request: web.Request) -> web.Response:
        key = self._key(request)
        if key in self.machines and self.machines[key]["status"] == "STOPPING":
            return _error(400, "resourceNotReady", f"The resource '{key[1]}' is not ready")
        return await self._turn(request, "start", {"TERMINATED": "PROVISIONING"}, "RUNNING")

    async def _turn(
        self, request: web.Request, word: str, on_the_way: dict[str, str], goal: str
    ) -> web.Response:
        key = self._key(request)
        if key not in self.machines:
            return self._unknown(request)
        machine, operation = self.machines[key], self._operation(key[0], word, key[1])
        before = machine["status"]
        if before not in on_the_way:
            self._done(operation)
            return web.json_response(operation)

        async def change() -> None:
            operation["status"] = "RUNNING"
            await asyncio.sleep(self.step)
            if word == "start" and self.no_room > 0:
                self.no_room -= 1
                machine["status"] = before
                self._failed(operation, key[0])
                return
            machine["status"] = goal
            self._done(operation)

        machine["status"] = on_the_way[before]
        self._later(change())
        return web.json_response(operation)

    async def _simulate(self, request: web.Request) -> web.Response:
        key = self._key(request)
        if key not in self.machines:
            return self._unknown(request)
        self.preempt(key[1], self.step)
        return web.json_response(self._done(self._operation(key[0], "simulateMaintenanceEvent", key[1])))

    async def _serial(self, request: web.Request) -> web.Response:
        key = self._key(request)
        if key not in self.machines:
            return self._unknown(request)
        text = self.consoles.get(key[1], "")
        return web.json_response(
            {"kind": "compute#serialPortOutput", "contents": text, "next": str(len(text))}
        )

    # -- operations --------------------------------------------------------------------------------

    async def _operations(self, request: web.Request) -> web.Response:
        zone = request.match_info["zone"]
        items = [op for op in self.operations.values() if op["zone"].endswith(f"/{zone}")]
        return _page(request, "compute#operationList", items)

    async def _get_operation(self, request: web.Request) -> web.Response:
        operation = self.operations.get(request.match_info["operation"])
        return self._unknown(request) if operation is None else web.json_response(operation)

    async def _wait(self, request: web.Request) -> web.Response:
        operation = self.operations.get(request.match_info["operation"])
        while operation is not None and operation["status"] != "DONE":  # noqa: ASYNC110 - many change it
            await asyncio.sleep(self.step / 4)
        return await self._get_operation(request)

    def _operation(self, zone: str, word: str, target: str, user: str = "daemon@p") -> dict[str, Any]:
        serial = next(self._serials)
        name = f"operation-{serial}"
        self.operations[name] = {
            "kind": "compute#operation",
            "id": str(serial),
            "name": name,
            "zone": f"{LINK}/projects/{self.project}/zones/{zone}",
            "operationType": word,
            "targetLink": self._link(zone, target),
            "user": user,
            "status": "PENDING",
            "progress": 0,
            "insertTime": _now(),
            "selfLink": f"{LINK}/projects/{self.project}/zones/{zone}/operations/{name}",
        }
        return self.operations[name]

    def _done(self, operation: dict[str, Any]) -> dict[str, Any]:
        operation |= {"status": "DONE", "progress": 100, "endTime": _now()}
        return operation

    def _failed(self, operation: dict[str, Any], zone: str) -> None:
        text = f"The zone 'projects/{self.project}/zones/{zone}' does not have enough resources available."
        self._done(operation)
        operation |= {
            "error": {"errors": [{"code": "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "message": text}]},
            "httpErrorStatusCode": 503,
            "httpErrorMessage": "SERVICE UNAVAILABLE",
        }

    # -- what is sold ------------------------------------------------------------------------------

    async def _machine_type(self, request: web.Request) -> web.Response:
        kind = TYPES.get(request.match_info["type"])
        if kind is None:
            return self._unknown(request)
        gpus = [{"guestAcceleratorType": n, "guestAcceleratorCount": c} for n, c in kind["gpus"]]
        rest = {key: value for key, value in kind.items() if key != "gpus"}
        named = {"kind": "compute#machineType", "name": request.match_info["type"], "accelerators": gpus}
        return web.json_response({**named, **rest, "zone": request.match_info["zone"]})

    async def _region(self, request: web.Request) -> web.Response:
        quotas = [{"metric": name, "limit": limit, "usage": 0.0} for name, limit in self.quotas.items()]
        named = {"kind": "compute#region", "name": request.match_info["region"], "status": "UP"}
        return web.json_response({**named, "quotas": quotas})

    async def _skus(self, request: web.Request) -> web.Response:
        at, size = int(request.query.get("pageToken") or 0), 3
        rows = [
            {
                "description": text,
                "category": {"resourceFamily": "Compute", "resourceGroup": group, "usageType": usage},
                "serviceRegions": ["us-central1"],
                "pricingInfo": [
                    {
                        "pricingExpression": {
                            "usageUnit": "h",
                            "tieredRates": [
                                {"unitPrice": {"currencyCode": "USD", "units": "0", "nanos": int(usd * 1e9)}}
                            ],
                        }
                    }
                ],
            }
            for text, group, usage, usd in SKUS[at : at + size]
        ]
        following = str(at + size) if at + size < len(SKUS) else ""
        return web.json_response({"skus": rows, "nextPageToken": following})

    # -- parts -------------------------------------------------------------------------------------

    def _key(self, request: web.Request) -> tuple[str, str]:
        return request.match_info["zone"], request.match_info["name"]

    def _link(self, zone: str, name: str) -> str:
        return f"{LINK}/projects/{self.project}/zones/{zone}/instances/{name}"

    def _unknown(self, request: web.Request) -> web.Response:
        path = request.path.partition("/compute/v1/")[2]
        return _error(404, "notFound", f"The resource '{path}' was not found")

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _error(status: int, reason: str, text: str) -> web.Response:
    row = {"message": text, "domain": "global", "reason": reason}
    return web.json_response({"error": {"code": status, "message": text, "errors": [row]}}, status=status)


def _page(request: web.Request, kind: str, items: list[dict[str, Any]]) -> web.Response:
    """One page of what fits the filter; two items at most, so that readers turn pages."""
    items = [item for item in items if _fits(item, request.query.get("filter", ""))]
    at, size = int(request.query.get("pageToken") or 0), min(2, int(request.query.get("maxResults", 500)))
    more = {"nextPageToken": str(at + size)} if at + size < len(items) else {}
    return web.json_response({"kind": kind, "id": "list", "items": items[at : at + size], **more})


def _fits(item: dict[str, Any], text: str) -> bool:
    """The filters of AIP-160 that are used: KEY = "VALUE", KEY > "VALUE", and the older KEY eq "REGEX"."""
    for key, word, value in re.findall(r'\(?([\w.-]+)\s*(=|>|\beq\b)\s*"?([^")]*)"?\)?', text):
        found: Any = item
        first, _, rest = key.partition(".")
        found = (item.get(first) or {}).get(rest) if rest else item.get(first)
        if word == "eq":
            fits = re.fullmatch(value, str(found)) is not None
        elif word == ">":
            fits = datetime.fromisoformat(str(found)) > datetime.fromisoformat(value)
        else:
            fits = str(found) == value
        if not fits:
            return False
    return True
