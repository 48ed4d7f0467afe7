"""Machines as EC2 changes and shows them and moto does not: delays, spot requests, lagging descriptions."""

import copy
import fnmatch
import time
import uuid

from moto.core.responses import ActionResult
from moto.ec2 import utils as ec2_utils
from moto.ec2.exceptions import EC2ClientError, InvalidInstanceIdError
from moto.ec2.models import EC2Backend, ec2_backends
from moto.ec2.models.instances import Instance, StateReason
from moto.ec2.responses.spot_instances import SpotInstances
from moto.events import events_backends
from state import ACCOUNT, REGION

PENDING, RUNNING, SHUTTING_DOWN = (0, "pending"), (16, "running"), (32, "shutting-down")
TERMINATED, STOPPING, STOPPED = (48, "terminated"), (64, "stopping"), (80, "stopped")


def put(instance, state):
    instance._state.code, instance._state.name = state


def run(instance):
    """A machine runs; EC2 gives no reason for that."""
    put(instance, RUNNING)
    instance.state_reason = None


def is_in(instance, *states):
    return instance._state.name in {name for _, name in states}


def patch_machines(shim):
    """Change moto's EC2 in this process."""
    _patch_changes(shim)
    _patch_descriptions(shim)


def request_status(code, message):
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    return {"Code": code, "Message": message, "UpdateTime": now}


def _patch_changes(shim):
    end = Instance.terminate

    def terminate(self):
        with shim.lock:
            previous = type(self._state)(self._state.name, self._state.code)
            if is_in(self, SHUTTING_DOWN, TERMINATED):
                return previous
            end(self)
            put(self, SHUTTING_DOWN)
            shim.later(shim.settings["end"], lambda: put(self, TERMINATED))
            shim.later(shim.settings["end"] + shim.settings["remember"], lambda: _forget(self))
            request = shim.requests.get(getattr(self, "spot_instance_request_id", None))
            if request is not None and request["State"] == "active":
                request["State"] = "closed"
                request["Status"] = request_status("instance-terminated-by-user", "You ended it.")
            return previous

    def stop(self):
        with shim.lock:
            previous = type(self._state)(self._state.name, self._state.code)
            if self.lifecycle == "spot":
                raise EC2ClientError(
                    "UnsupportedOperation",
                    f"You can't stop the Spot Instance '{self.id}' because it is associated with a one-time "
                    "Spot Instance request. You can only stop Spot Instances associated with persistent "
                    "Spot Instance requests.",
                )
            if is_in(self, PENDING, SHUTTING_DOWN, TERMINATED):
                raise _wrong_state(self, "stopped")
            if is_in(self, RUNNING):
                put(self, STOPPING)
                code = "Client.UserInitiatedShutdown"
                self.state_reason = StateReason(f"{code}: User initiated shutdown", code)
                shim.later(shim.settings["stop"], lambda: is_in(self, STOPPING) and put(self, STOPPED))
            return previous

    def start(self):
        with shim.lock:
            previous = type(self._state)(self._state.name, self._state.code)
            if is_in(self, STOPPING, SHUTTING_DOWN, TERMINATED):
                raise _wrong_state(self, "started")
            if is_in(self, STOPPED):
                put(self, PENDING)
                self.state_reason = StateReason("pending", "pending")
                shim.later(shim.settings["boot"], lambda: is_in(self, PENDING) and run(self))
            return previous

    Instance.terminate, Instance.stop, Instance.start = terminate, stop, start


def _forget(instance):
    """EC2 describes a machine for about an hour after its end."""
    backend = instance.ec2_backend
    for name, reservation in list(backend.reservations.items()):
        if instance in reservation.instances:
            del backend.reservations[name]
    backend.tags.pop(instance.id, None)


def _wrong_state(instance, wanted):
    return EC2ClientError(
        "IncorrectInstanceState",
        f"The instance '{instance.id}' is not in a state from which it can be {wanted}.",
    )


def _patch_descriptions(shim):
    described, by_ids = EC2Backend.describe_instances, EC2Backend.get_multi_instances_by_id
    ec2_utils.filter_dict_attribute_mapping.update(
        {
            "client-token": "client_token",
            "capacity-reservation-id": "capacity_reservation_id",
            "instance-lifecycle": "lifecycle",
            "spot-instance-request-id": "spot_instance_request_id",
        }
    )

    def shown(instance):
        return getattr(instance, "shown_at", 0.0) <= time.monotonic()

    def describe_instances(self, filters=None):
        with shim.lock:
            found = described(self, filters)
        return [reservation for reservation in found if all(map(shown, reservation.instances))]

    def get_multi_instances_by_id(self, instance_ids, filters=None):
        found = by_ids(self, instance_ids, filters)
        hidden = [instance.id for instance in found if not shown(instance)]
        if hidden:
            raise InvalidInstanceIdError(hidden)
        return found

    def describe_spot_instance_requests(self):
        self.error_on_dryrun()
        wanted = self._get_param("SpotInstanceRequestIds", [])
        filters = self._filters_from_querystring()
        with shim.lock:
            here = [r for r in shim.requests.values() if r["Region"] == self.region]
            found = [r for r in here if not wanted or r["SpotInstanceRequestId"] in wanted]
            found = [copy.deepcopy(r) for r in found if _request_matches(r, filters)]
        for request in found:
            del request["Region"]
        start, size = int(self._get_param("NextToken") or 0), int(self._get_param("MaxResults", 1000))
        more = str(start + size) if len(found) > start + size else ""
        return ActionResult({"SpotInstanceRequests": found[start : start + size], "NextToken": more})

    EC2Backend.describe_instances = describe_instances
    EC2Backend.get_multi_instances_by_id = get_multi_instances_by_id
    SpotInstances.describe_spot_instance_requests = describe_spot_instance_requests


def _request_matches(request, filters):
    values = {
        "state": request["State"],
        "status-code": request["Status"]["Code"],
        "instance-id": request["InstanceId"],
        "spot-instance-request-id": request["SpotInstanceRequestId"],
    }
    return all(
        any(fnmatch.fnmatchcase(values[name], pattern) for pattern in patterns)
        for name, patterns in filters.items()
    )


def listed():
    """Every machine that is remembered, in short."""
    found = []
    for backend in ec2_backends[ACCOUNT].values():
        for instance in backend.all_instances():
            tags = backend.tags.get(instance.id, {})  # moto's own way reads the tags of everything
            found.append(
                {
                    "id": instance.id,
                    "market": "spot" if instance.lifecycle == "spot" else "on-demand",
                    "state": instance.state,
                    "zone": instance.placement.zone,
                    "address": instance.private_ip,
                    "token": instance.client_token,
                    "pool": tags.get("orchestrator:pool", ""),
                }
            )
    return found


# -- what EC2 does by itself ----------------------------------------------------------------------


def tell(kind, detail, node, region=REGION, source="aws.ec2", age=0.0):
    """Publish an event on the default bus, as EC2 writes it; `age`: so many seconds late."""
    event = {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": kind,
        "source": source,
        "account": ACCOUNT,
        "time": int(time.time() - age),  # moto writes it as "2026-01-01T00:00:00Z"
        "region": region,
        "resources": [f"arn:aws:ec2:{region}:{ACCOUNT}:instance/{node}"],
        "detail": detail,
    }
    bus = events_backends[ACCOUNT][region].describe_event_bus("default")
    for rule in list(bus.rules.values()):
        rule.send_to_targets(event, transform_input=False)  # transformers need a library of their own


def halt(shim, node, region=REGION):
    """Stop a machine as EC2 stops it by itself, a one-time spot machine too; no event is sent."""
    instance = ec2_backends[ACCOUNT][region].get_instance(node)
    put(instance, STOPPING)
    shim.later(shim.settings["stop"], lambda: is_in(instance, STOPPING) and put(instance, STOPPED))


def recommend(shim, node, region=REGION):
    """A rebalance recommendation."""
    tell("EC2 Instance Rebalance Recommendation", {"instance-id": node}, node, region)


def reclaim(shim, node, notice_s=120.0, event=True, copies=1, late=0.0, region=REGION):
    """Take a spot machine back: its request says so at once, the event goes out, and then it ends.

    Without a notice (0) nobody is told before. The event comes in so many `copies`, and so many seconds
    `late`: so much less is left of the notice, and the request says nothing then.
    """
    instance = ec2_backends[ACCOUNT][region].get_instance(node)
    request = shim.requests.get(instance.spot_instance_request_id)
    if notice_s > 0:
        if request is not None and not late:
            request["State"] = "closed"
            request["Status"] = request_status(
                "instance-terminated-no-capacity", "Your Spot instance was terminated: no capacity."
            )
        if event:
            detail = {"instance-id": node, "instance-action": "terminate"}
            for _ in range(copies):
                tell("EC2 Spot Instance Interruption Warning", detail, node, region, age=late)
    shim.later(notice_s - late, lambda: _take(shim, instance, region))


def _take(shim, instance, region):
    if is_in(instance, SHUTTING_DOWN, TERMINATED):
        return
    instance.terminate()
    put(instance, TERMINATED)
    code = "Server.SpotInstanceTermination"
    instance.state_reason = StateReason(f"{code}: Spot instance termination", code)
    detail = {"instance-id": instance.id, "state": "terminated"}
    tell("EC2 Instance State-change Notification", detail, instance.id, region)
