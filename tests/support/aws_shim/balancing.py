"""ELBv2 as it is and moto is not: initial, healthy, unhealthy, draining, ports, and balancers that route."""

import asyncio
import http.client
import itertools
import threading
import time
from dataclasses import dataclass, field

from aiohttp import ClientError, ClientSession, web
from moto.elbv2.exceptions import TargetGroupNotFoundError, TargetNotRunning
from moto.elbv2.models import ELBv2Backend, FakeHealthStatus, FakeTargetGroup, elbv2_backends
from state import ACCOUNT

_DELAY = "deregistration_delay.timeout_seconds"
_HOP = frozenset({"connection", "transfer-encoding", "content-length", "host", "keep-alive"})


@dataclass
class Record:
    """A target of a group: by (id, port), as in ELBv2 and unlike moto, which knows the id only."""

    name: str
    port: int
    at: float = field(default_factory=time.monotonic)
    healthy: bool | None = None
    left_at: float | None = None
    in_flight: int = 0


def records_of(group):
    """The group's targets."""
    if not hasattr(group, "shim_records"):
        group.shim_records = {}
    return group.shim_records


def patch_balancing(shim):
    """Change moto's target groups in this process."""

    def register(self, targets):
        with shim.lock:
            for target in targets:
                instance = self.ec2_backend.get_instance_by_id(target["Id"])
                if instance and instance.state != "running":
                    raise TargetNotRunning(instance_id=target["Id"])
            for target in targets:
                key = (target["Id"], int(target.get("Port") or self.port))
                held = records_of(self).get(key)
                if held is None or held.left_at is not None:
                    records_of(self)[key] = Record(*key, in_flight=held.in_flight if held else 0)

    def deregister(self, targets):
        with shim.lock:
            for target in targets:
                for key, record in records_of(self).items():
                    named = key[0] == target["Id"] and target.get("Port") in (None, "", key[1], str(key[1]))
                    if named and record.left_at is None:
                        record.left_at = time.monotonic()

    def deregister_terminated_instances(self, instance_ids):
        deregister(self, [{"Id": name} for name in instance_ids])

    def describe_target_health(self, target_group_arn, targets):
        group = self.target_groups.get(target_group_arn)
        if group is None:
            raise TargetGroupNotFoundError()
        with shim.lock:
            _let_go(shim, group)
            held = records_of(group)
            if not targets:
                return [_status(shim, group, record) for record in held.values()]
            found = []
            for target in targets:
                key = (target["Id"], int(target.get("Port") or group.port))
                if key in held:
                    found.append(_status(shim, group, held[key]))
                else:
                    reason = (
                        "unused",
                        "Target.NotRegistered",
                        "Target is not registered to the target group",
                    )
                    found.append(FakeHealthStatus(key[0], str(key[1]), group.health_check_port, *reason))
            return found

    FakeTargetGroup.register, FakeTargetGroup.deregister = register, deregister
    FakeTargetGroup.deregister_terminated_instances = deregister_terminated_instances
    ELBv2Backend.describe_target_health = describe_target_health
    threading.Thread(target=_check_for_ever, args=(shim,), daemon=True).start()


def _let_go(shim, group):
    """Forget targets whose deregistration is complete."""
    delay = float(group.attributes[_DELAY])
    held = records_of(group)
    for key, record in list(held.items()):
        if record.left_at is None:
            continue
        idle = shim.settings["idle_ends_draining"] and record.in_flight == 0
        if idle or time.monotonic() - record.left_at >= delay:
            del held[key]


def _state(shim, group, record):
    """State, reason and description."""
    if record.left_at is not None:
        return "draining", "Target.DeregistrationInProgress", "Target deregistration is in progress"
    instance = group.ec2_backend.get_instance_by_id(record.name)
    if instance and instance.state != "running":
        return "unused", "Target.InvalidState", f"Target is in the {instance.state} state"
    initial = ("initial", "Elb.InitialHealthChecking", "Initial health checks in progress")
    if shim.settings["health_checks"]:
        if record.healthy is None:
            return initial
        if not record.healthy:
            return "unhealthy", "Target.ResponseCodeMismatch", "Health checks failed with these codes: [503]"
    elif time.monotonic() - record.at < shim.settings["target_initial"]:
        return "initial", "Elb.RegistrationInProgress", "Target registration is in progress"
    return "healthy", None, None


def _status(shim, group, record):
    return FakeHealthStatus(
        record.name, str(record.port), group.health_check_port, *_state(shim, group, record)
    )


def _host(group, record):
    instance = group.ec2_backend.get_instance_by_id(record.name)
    return instance.private_ip if instance else record.name


def _groups():
    return [
        group
        for backend in list(elbv2_backends[ACCOUNT].values())
        for group in list(backend.target_groups.values())
    ]


def _check_for_ever(shim):
    while True:
        time.sleep(shim.settings["health_interval"])
        if not shim.settings["health_checks"]:
            continue
        with shim.lock:
            asked = [(group, record) for group in _groups() for record in records_of(group).values()]
        for group, record in asked:
            if record.left_at is None:
                record.healthy = _answers(_host(group, record), record.port)


def _answers(host, port):
    connection = http.client.HTTPConnection(host, port, timeout=1.0)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Fronts:
    """Balancers that route to target groups: round robin over the healthy, fail open, late as an ALB is."""

    def __init__(self, shim):
        self._shim = shim
        self._turn = itertools.count()
        self._ports = {}
        self._loop = None
        self._session = None

    def port(self, group):
        """Where the balancer of the group of that name listens; the same after the group was made anew."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True).start()
        if group not in self._ports:
            opening = asyncio.run_coroutine_threadsafe(self._open(group), self._loop)
            self._ports[group] = opening.result(timeout=30)
        return self._ports[group]

    async def _open(self, group):
        if self._session is None:
            self._session = ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", lambda request: self._pass_on(group, request))
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner.addresses[0][1]

    async def _pass_on(self, name, request):
        picked = self._pick(name)
        if picked is None:
            return web.Response(status=503, text="no target")
        host, record = picked
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _HOP}
        body = await request.read()
        try:
            async with self._session.request(
                request.method, f"http://{host}:{record.port}{request.rel_url}", headers=headers, data=body
            ) as answer:
                response = web.StreamResponse(status=answer.status)
                for key, value in answer.headers.items():
                    if key.lower() not in _HOP:
                        response.headers.add(key, value)
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response
        except (ClientError, OSError):
            return web.Response(status=502, text="the target failed")
        finally:
            with self._shim.lock:
                record.in_flight -= 1

    def _pick(self, name):
        with self._shim.lock:
            group = next((g for g in _groups() if g.name == name), None)
            if group is None:
                return None
            now, late = time.monotonic(), self._shim.settings["propagation"]
            held = list(records_of(group).values())
            routed = [
                r
                for r in held
                if (r.left_at is None and _state(self._shim, group, r)[0] == "healthy")
                or (r.left_at is not None and now - r.left_at < late)
            ]
            routed = routed or [r for r in held if r.left_at is None]
            if not routed:
                return None
            record = routed[next(self._turn) % len(routed)]
            record.in_flight += 1
            return _host(group, record), record
