"""The calls of Azure Resource Manager that are answered, and the orders of the stand-in's user."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from azure_stand_in import sold
from azure_stand_in.checks import Refusal, check
from azure_stand_in.state import COMPUTE, Machine, State

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SUBSCRIPTION = "/subscriptions/{subscription}"
GROUP = SUBSCRIPTION + "/resourceGroups/{group}"
MACHINES = "/providers/Microsoft.Compute/virtualMachines"
ACTIONS: web.AppKey[dict[tuple[str, str], str]] = web.AppKey("actions")
"""What a call is called in faults and counts, by method and path."""


def application(state: State) -> web.Application:
    app = web.Application(middlewares=[_answering(state)], client_max_size=4 << 20)
    app[ACTIONS] = {}
    arm = Arm(state)
    one = GROUP + MACHINES + "/{name}"
    routes: list[tuple[str, str, Handler, str]] = [
        ("PUT", one, arm.put, "create"),
        ("GET", one, arm.get, "get"),
        ("DELETE", one, arm.delete, "delete"),
        ("GET", one + "/instanceView", arm.instance_view, "instance-view"),
        ("POST", one + "/start", arm.start, "start"),
        ("POST", one + "/deallocate", arm.deallocate, "stop"),
        ("POST", one + "/simulateEviction", arm.simulate_eviction, "simulate-eviction"),
        ("POST", one + "/retrieveBootDiagnosticsData", arm.diagnostics, "console"),
        ("GET", GROUP + MACHINES, arm.list_group, "list"),
        ("GET", SUBSCRIPTION + MACHINES, arm.list_subscription, "list-all"),
        ("GET", GROUP + "/providers/Microsoft.Network/networkInterfaces", arm.list_interfaces, "interfaces"),
        ("GET", GROUP + "/providers/Microsoft.Compute/disks", arm.list_disks, "disks"),
        ("GET", SUBSCRIPTION + "/providers/Microsoft.Compute/skus", arm.skus, "skus"),
        (
            "GET",
            SUBSCRIPTION + "/providers/Microsoft.Compute/locations/{region}/operations/{id}",
            arm.operation,
            "operation",
        ),
        ("GET", "/api/retail/prices", arm.prices, "prices"),
        ("GET", "/_logs/{group}/{name}", arm.log, "log"),
        ("GET", "/_imds/{name}/metadata/scheduledevents", arm.scheduled_events, "imds"),
        ("GET", "/_imds/{name}/metadata/instance/compute", arm.imds_compute, "imds"),
        ("POST", "/_stand_in/{order}", arm.order, ""),
    ]
    for method, path, handler, action in routes:
        app.router.add_route(method, path, handler)
        app[ACTIONS][method, path] = action
    return app


def _answering(state: State) -> Any:
    """Faults, and refusals as Azure words them."""

    @web.middleware
    async def answering(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        path = "" if resource is None else resource.canonical
        action = request.app[ACTIONS].get((request.method, path), "")
        state.tick()
        if not action:
            return await handler(request)
        state.calls[action] = state.calls.get(action, 0) + 1
        if not action.startswith(("imds", "log", "prices")) and "api-version" not in request.query:
            return refused(400, "MissingApiVersionParameter", "The api-version query parameter is required.")
        if action in ("list-all",) and state.settings["dark_subscription"]:
            return refused(503, "ServiceUnavailable", "The subscription cannot be listed.")
        if request.match_info.get("group", "").removeprefix("rg-") in state.settings["dark"]:
            await asyncio.sleep(float(state.settings.get("dark_for", 30.0)))
            return refused(504, "GatewayTimeout", "The gateway did not receive a response.")
        fault = _fault(state, action)
        if fault is not None and fault["kind"] == "error":
            headers = {"Retry-After": str(fault["retry_after"])} if "retry_after" in fault else {}
            return refused(fault["status"], fault["code"], fault.get("message", "It failed."), headers)
        if fault is not None and fault["kind"] == "hang":
            await asyncio.sleep(fault.get("seconds", 30.0))
        try:
            answer = await handler(request)
        except Refusal as refusal:
            answer = refused(refusal.status, refusal.code, refusal.message)
        if fault is not None and fault["kind"] == "lose":  # it took effect, and nobody hears of it
            assert request.transport is not None
            request.transport.close()
        if fault is not None and fault["kind"] == "fail-later":
            found = state.machines[request.match_info["group"], request.match_info["name"]]
            found.becomes = ("Failed", "deallocated" if action == "start" else "")
            found.failing = (fault["code"], fault.get("message", "It failed."))
        return answer

    return answering


def _fault(state: State, action: str) -> dict[str, Any] | None:
    for fault in state.faults:
        if fault["action"] in ("*", action):
            fault["times"] -= 1
            if fault["times"] <= 0:
                state.faults.remove(fault)
            return fault
    return None


def refused(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"code": code, "message": message}}, status=status, headers=headers)


class Arm:
    """The handlers."""

    def __init__(self, state: State) -> None:
        self.state = state

    # -- one machine -----------------------------------------------------------------------------

    async def put(self, request: web.Request) -> web.Response:
        group, name = request.match_info["group"], request.match_info["name"]
        body = await request.json()
        known = self.state.machines.get((group, name))
        if known is not None and request.headers.get("If-None-Match") == "*":
            raise Refusal(
                412, "PreconditionFailed", "The condition '*' in the If-None-Match header was not satisfied."
            )
        check(name, body)
        self.state.bodies[name] = body
        if known is not None:
            if body["properties"]["osProfile"] != known.body["properties"]["osProfile"]:
                raise Refusal(
                    409, "PropertyChangeNotAllowed", "Changing property 'osProfile' is not allowed."
                )
            return web.json_response(self._view(request, known))
        size, region = body["properties"]["hardwareProfile"]["vmSize"], body["location"]
        zone = (body.get("zones") or [""])[0]
        restricted = self.state.settings["restrictions"].get(size, ())
        if "*" in restricted or zone in restricted:
            raise Refusal(
                409,
                "SkuNotAvailable",
                f"The requested VM size {size} is currently not available in location '{region}'.",
            )
        machine = self.state.put(group, name, body, request.match_info["subscription"])
        return web.json_response(
            self._view(request, machine), status=201, headers=self._operation(request, machine, "create")
        )

    async def get(self, request: web.Request) -> web.Response:
        machine = self._machine(request)
        view = self._view(request, machine)
        if request.query.get("$expand") == "instanceView":
            view["properties"]["instanceView"] = {"statuses": machine.statuses()}
        return web.json_response(view)

    async def instance_view(self, request: web.Request) -> web.Response:
        return web.json_response({"statuses": self._machine(request).statuses()})

    async def delete(self, request: web.Request) -> web.Response:
        machine = self.state.machines.get((request.match_info["group"], request.match_info["name"]))
        if machine is None:
            return web.Response(status=204)
        self.state.delete(machine)
        return web.Response(status=202, headers=self._operation(request, machine, "delete"))

    async def start(self, request: web.Request) -> web.Response:
        machine = self._settled(request)
        if machine.power in ("deallocated", "stopped"):
            self.state.turn(machine, ("Updating", "starting"), ("Succeeded", "running"))
        return web.Response(status=202, headers=self._operation(request, machine, "start"))

    async def deallocate(self, request: web.Request) -> web.Response:
        machine = self._settled(request)
        if machine.power != "deallocated":
            self.state.turn(machine, ("Updating", "deallocating"), ("Succeeded", "deallocated"))
        return web.Response(status=202, headers=self._operation(request, machine, "deallocate"))

    async def simulate_eviction(self, request: web.Request) -> web.Response:
        machine = self._settled(request)
        if not machine.spot:
            raise Refusal(409, "OperationNotAllowed", "The machine is not a Spot machine.")
        self.preempt(machine, self.state.settings["notice"])
        return web.Response(status=204)

    async def diagnostics(self, request: web.Request) -> web.Response:
        machine = self._machine(request)
        log = f"{request.url.origin()}/_logs/{machine.group}/{machine.name}?sig=s"
        return web.json_response({"consoleScreenshotBlobUri": log, "serialConsoleLogBlobUri": log})

    async def log(self, request: web.Request) -> web.Response:
        text = self._machine(request).console or self.state.settings["console"].get(
            request.match_info["name"], ""
        )
        if not text:
            return web.Response(status=404, text="<Error><Code>BlobNotFound</Code></Error>")
        return web.Response(body=text.encode())

    def preempt(self, machine: Machine, seconds: float) -> None:
        machine.preempted_at, machine.event = time.time() + seconds, str(uuid.uuid4())

    def _machine(self, request: web.Request) -> Machine:
        group, name = request.match_info["group"], request.match_info["name"]
        machine = self.state.machines.get((group, name))
        if machine is None:
            raise Refusal(
                404,
                "ResourceNotFound",
                f"The Resource 'virtualMachines/{name}' under resource group '{group}' was not found.",
            )
        return machine

    def _settled(self, request: web.Request) -> Machine:
        machine = self._machine(request)
        if machine.provisioning == "Deleting":
            raise Refusal(409, "OperationNotAllowed", "The machine is being deleted.")
        return machine

    def _operation(self, request: web.Request, machine: Machine, what: str) -> dict[str, str]:
        ident = str(uuid.uuid4())
        self.state.operations[ident] = (machine, what)
        region, subscription = machine.body["location"], request.match_info["subscription"]
        at = f"{request.url.origin()}/subscriptions/{subscription}/providers/{COMPUTE}"
        where = f"{at}/locations/{region}/operations/{ident}"
        return {"Azure-AsyncOperation": f"{where}?api-version=2024-11-01", "Retry-After": "0"}

    async def operation(self, request: web.Request) -> web.Response:
        machine, _what = self.state.operations[request.match_info["id"]]
        failed = machine.provisioning == "Failed"
        status = "InProgress" if machine.due else ("Failed" if failed else "Succeeded")
        answer: dict[str, Any] = {"name": request.match_info["id"], "status": status}
        if status == "Failed":
            answer["error"] = {"code": machine.failure[0], "message": machine.failure[1]}
        return web.json_response(answer)

    def _view(self, request: web.Request, machine: Machine) -> dict[str, Any]:
        """A machine as the model view tells it: without its power, and without what is secret."""
        subscription = request.match_info["subscription"]
        wanted = json.loads(json.dumps(machine.body["properties"]))
        wanted["osProfile"].pop("customData", None)
        wanted["networkProfile"] = {
            "networkInterfaces": [
                {"id": machine.interface, "properties": {"primary": True, "deleteOption": "Delete"}}
            ]
        }
        group = f"/subscriptions/{subscription}/resourceGroups/{machine.group.upper()}"
        return {
            "id": f"{group}{MACHINES}/{machine.name}",
            "name": machine.name,
            "type": f"{COMPUTE}/virtualMachines",
            "location": machine.body["location"],
            "tags": machine.tags,
            **({"zones": machine.body["zones"]} if machine.body.get("zones") else {}),
            "properties": {
                **wanted,
                "vmId": machine.ident,
                "provisioningState": machine.provisioning,
                "timeCreated": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(machine.made_at))
                + ".1234567+00:00",
            },
        }

    # -- lists -----------------------------------------------------------------------------------

    async def list_group(self, request: web.Request) -> web.Response:
        group = request.match_info["group"]
        return self._paged(request, [self._view(request, m) for m in self._in(group)])

    async def list_subscription(self, request: web.Request) -> web.Response:
        if request.query.get("statusOnly") != "true":
            return self._paged(request, [self._view(request, m) for m in self.state.machines.values()])
        if self.state.settings["forget_status"]:
            return web.json_response({"value": []})
        found = []
        for machine in self.state.machines.values():
            view = self._view(request, machine)
            view["properties"] = {
                "vmId": machine.ident,
                "provisioningState": machine.provisioning,
                "instanceView": {"statuses": machine.statuses()},
            }
            found.append(view)
        return self._paged(request, found)

    async def list_interfaces(self, request: web.Request) -> web.Response:
        at = f"/resourceGroups/{request.match_info['group']}/".lower()
        found = [
            {
                "id": ident,
                "name": ident.rpartition("/")[2],
                "location": entry["machine"].body["location"],
                "properties": {
                    **({"virtualMachine": {"id": entry["of"]}} if entry["of"] else {}),
                    "ipConfigurations": [
                        {"name": "first", "properties": {"privateIPAddress": entry["address"]}}
                    ],
                },
            }
            for ident, entry in self.state.interfaces.items()
            if at in ident.lower()
        ]
        return self._paged(request, found)

    async def list_disks(self, request: web.Request) -> web.Response:
        group = request.match_info["group"]
        found = [
            {"name": name.partition("/")[2], "location": "x", "managedBy": entry["of"], "properties": {}}
            for name, entry in self.state.disks.items()
            if name.startswith(f"{group}/")
        ]
        return self._paged(request, found)

    async def skus(self, request: web.Request) -> web.Response:
        region = request.query.get("$filter", "").partition("'")[2].rstrip("'")
        return self._paged(request, sold.skus(region, self.state.settings))

    async def prices(self, request: web.Request) -> web.Response:
        items = sold.prices(request.query.get("$filter", ""), self.state.settings)
        start, page = int(request.query.get("$skip", 0)), self.state.settings["page"]
        more = start + page < len(items)
        following = str(request.url.update_query({"$skip": str(start + page)})) if more else None
        answer = {"Items": items[start : start + page], "NextPageLink": following, "Count": len(items)}
        return web.json_response(answer)

    def _in(self, group: str) -> list[Machine]:
        return [m for m in self.state.machines.values() if m.group.lower() == group.lower()]

    def _paged(self, request: web.Request, found: list[dict[str, Any]]) -> web.Response:
        start, page = int(request.query.get("$skiptoken", 0)), self.state.settings["page"]
        answer: dict[str, Any] = {"value": found[start : start + page]}
        if start + page < len(found):
            answer["nextLink"] = str(request.url.update_query({"$skiptoken": str(start + page)}))
        return web.json_response(answer)

    # -- a machine's own metadata ----------------------------------------------------------------

    async def scheduled_events(self, request: web.Request) -> web.Response:
        if request.headers.get("Metadata") != "true":
            return web.json_response(
                {"error": "Bad request. Required metadata header not specified"}, status=400
            )
        events = []
        for machine in self.state.machines.values():
            if machine.name == request.match_info["name"] and machine.preempted_at is not None:
                at = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(machine.preempted_at))
                events.append(
                    {
                        "EventId": machine.event,
                        "EventType": "Preempt",
                        "ResourceType": "VirtualMachine",
                        "Resources": [machine.name],
                        "EventStatus": "Scheduled",
                        "NotBefore": at,
                        "EventSource": "Platform",
                    }
                )
        return web.json_response({"DocumentIncarnation": len(events), "Events": events})

    async def imds_compute(self, request: web.Request) -> web.Response:
        machine = next(
            (m for m in self.state.machines.values() if m.name == request.match_info["name"]), None
        )
        if machine is None or request.headers.get("Metadata") != "true":
            return web.json_response({"error": "Bad request"}, status=400)
        return web.json_response(
            {
                "name": machine.name,
                "location": machine.body["location"],
                "priority": "Spot" if machine.spot else "Regular",
                "vmId": machine.ident,
                "vmSize": machine.body["properties"]["hardwareProfile"]["vmSize"],
            }
        )

    # -- orders ----------------------------------------------------------------------------------

    async def order(self, request: web.Request) -> web.Response:
        """What the stand-in's user wants: see the branches."""
        state, given = self.state, await request.json() if request.can_read_body else {}
        order = request.match_info["order"]
        answer: dict[str, Any] = {}
        if order == "reset":
            state.reset()
        elif order == "set":
            state.settings |= given
        elif order == "fault":
            state.faults.append(
                {"times": 1, "kind": "error", "status": 500, "code": "InternalServerError", **given}
            )
        elif order in ("evict", "preempt"):
            machine = next(m for m in state.machines.values() if m.name == given["node"])
            if order == "evict":
                state.evict(machine)
            else:
                self.preempt(machine, given["seconds"])
        elif order == "console":
            next(m for m in state.machines.values() if m.name == given["node"]).console = given["text"]
        elif order == "machines":
            state.tick()
            answer = {"machines": [state.shown(m) for m in state.machines.values()], "ended": state.ended}
        elif order == "left":
            state.tick()
            answer = {
                "machines": sorted(name for _, name in state.machines),
                "disks": sorted(state.disks),
                "interfaces": sorted(state.interfaces),
            }
        elif order == "calls":
            answer = {"calls": dict(state.calls), "bodies": state.bodies}
        else:
            return web.json_response({"error": f"no order {order}"}, status=400)
        return web.json_response(answer)
