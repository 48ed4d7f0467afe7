"""ELBv2 as it is and moto is not: initial, healthy, unhealthy, draining, ports, and balancers that route."""

import asyncio
import http.client
import itertools
import threading
import time
from dataclasses import dataclass, field

from alb import Alb
from moto.elbv2.exceptions import TargetGroupNotFoundError, TargetNotRunning
from moto.elbv2.models import ELBv2Backend, FakeHealthStatus, FakeTargetGroup, elbv2_backends
from state import ACCOUNT

_DELAY = "deregistration_delay.timeout_seconds"
_ALGORITHM = "load_balancing.algorithm.type"


@dataclass
class Record:
    """A target of a group: by (id, port), as in ELBv2 and unlike moto, which knows the id only."""

    name: str
    port: int
    at: float = field(default_factory=time.monotonic)
    healthy: bool | None = None
    checked_at: float = 0.0
    contrary: int = 0  # checks in a row that say something else than `healthy`
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
        time.sleep(0.01)
        if not shim.settings["health_checks"]:
            continue
        now = time.monotonic()
        with shim.lock:
            asked = [
                (group, record)
                for group in _groups()
                for record in records_of(group).values()
                if record.left_at is None and now - record.checked_at >= _interval(shim, group)
            ]
        for group, record in asked:
            record.checked_at = now
            _judge(group, record, _answers(group, _host(group, record), record.port))


def _interval(shim, group):
    """Seconds between two health checks."""
    scaled = shim.settings["health_interval"]
    return float(group.health_check_interval_seconds) if scaled is None else scaled


def _judge(group, record, good):
    """One check decides what a new target is; then it takes as many in a row as the group says."""
    record.contrary = record.contrary + 1 if good != record.healthy else 0
    enough = group.healthy_threshold_count if good else group.unhealthy_threshold_count
    if record.healthy is None or record.contrary >= int(enough):
        record.healthy, record.contrary = good, 0


def _answers(group, host, port):
    """Whether a target answers the group's path with a status that the group takes for good."""
    connection = http.client.HTTPConnection(host, port, timeout=1.0)
    try:
        connection.request("GET", group.health_check_path or "/")
        return _matches(group.matcher["HttpCode"], connection.getresponse().status)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _matches(codes, status):
    """Whether "200,202" or "200-299" names the status."""
    spans = [code.partition("-") for code in codes.split(",")]
    return any(int(low) <= status <= int(high or low) for low, _, high in spans)


class Fronts:
    """Balancers that route to target groups: to the healthy, to all where none is, and late as an ALB is."""

    def __init__(self, shim):
        self._shim = shim
        self._turn = itertools.count()
        self._fronts = {}
        self._loop = None

    def of(self, group):
        """The balancer of the group of that name: its port, the same after the group was made anew, and what
        it did so far."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True).start()
        if group not in self._fronts:
            alb = Alb(lambda: self._route(group), lambda: self._shim.settings["idle_timeout"])
            opening = asyncio.run_coroutine_threadsafe(alb.listen(), self._loop)
            self._fronts[group] = (opening.result(timeout=30), alb)
        port, alb = self._fronts[group]
        return {
            "port": port,
            "answers": alb.answers,
            "own": alb.own,
            "reused": alb.reused,
            "opened": alb.opened,
        }

    def _route(self, name):
        with self._shim.lock:
            group = next((g for g in _groups() if g.name == name), None)
            record = None if group is None else self._picked(group)
            if record is None:
                return None
            record.in_flight += 1
            return _host(group, record), record.port, lambda: self._over(record)

    def _picked(self, group):
        now, late = time.monotonic(), self._shim.settings["propagation"]
        held = [(record, _state(self._shim, group, record)[0]) for record in records_of(group).values()]
        routed = [
            record
            for record, state in held
            if (state == "draining" and now - record.left_at < late) or state == "healthy"
        ]
        routed = routed or [record for record, state in held if state not in ("draining", "unused")]
        if not routed:
            return None
        first = next(self._turn) % len(routed)
        if group.attributes[_ALGORITHM] == "least_outstanding_requests":
            return min(routed[first:] + routed[:first], key=lambda record: record.in_flight)
        return routed[first]

    def _over(self, record):
        with self._shim.lock:
            record.in_flight -= 1
