"""Launches as EC2 answers them and moto does not: tokens, capacity, quotas, roles, machines that fail."""

import hashlib
import threading
import time

from asked import Asked
from images import attach
from machines import PENDING, SHUTTING_DOWN, TERMINATED, is_in, put, request_status, run
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import EC2Backend
from moto.ec2.models.instances import StateReason
from moto.ec2.responses.instances import InstanceResponse

_NO_TOKEN = "ABCDE"  # what moto takes for a call without a token


def patch_launches(shim):
    """Change moto's EC2 in this process."""
    launch, respond = EC2Backend.run_instances, InstanceResponse.run_instances
    at_hand = threading.local()  # what the call of this thread asks for

    def run_instances(self, image_id, count, user_data, groups, **given):
        with shim.lock:
            token = given.get("client_token")
            named = None if token in (None, _NO_TOKEN) else (self.region_name, token)
            asked = at_hand.asked
            print_ = _fingerprint(image_id, count, user_data, given)
            if named in shim.tokens:
                return _again(*shim.tokens[named], print_)
            _need_role(shim, _market(given))
            _need_support(shim, self, given)
            _need_room(shim, self, asked.volumes)
            _take_capacity(shim, self, count, given)
            given["block_device_mappings"] = []  # moto makes none; `attach` does
            reservation = launch(self, image_id, count, user_data, groups, **given)
            for instance in reservation.instances:
                attach(self, instance, asked.volumes, asked.tags.get("volume", {}))
                _begin(shim, instance, given, _fault(shim, _market(given), asked.volumes))
            if named is not None:
                shim.tokens[named] = (print_, reservation)
            return reservation

    def launched(self):
        read = self._get_param
        with shim.lock:
            at_hand.asked = Asked(shim, self.ec2_backend, read)
        # moto launches MinCount.
        self._get_param = lambda name, default=None, **kw: read(
            "MaxCount" if name == "MinCount" else name, kw.get("if_none", default)
        )
        return respond(self)

    EC2Backend.run_instances, InstanceResponse.run_instances = run_instances, launched


def _fingerprint(image_id, count, user_data, given):
    relevant = ("instance_type", "subnet_id", "placement", "launch_template", "instance_market_options")
    parts = [image_id, count, str(user_data), [(key, given.get(key)) for key in relevant]]
    parts.append(sorted((kind, sorted(tags.items())) for kind, tags in (given.get("tags") or {}).items()))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _again(before, reservation, now):
    if before != now:
        raise EC2ClientError(
            "IdempotentParameterMismatch",
            "Arguments on this idempotent request are inconsistent with arguments used in previous requests.",
        )
    if all(is_in(instance, SHUTTING_DOWN, TERMINATED) for instance in reservation.instances):
        raise EC2ClientError(
            "IdempotentInstanceTerminated",
            "The client token you have provided is associated with an instance that has been terminated.",
        )
    return reservation


def _market(given):
    return "spot" if given.get("instance_market_options") == "spot" else "on-demand"


def _zone(backend, given):
    subnet = given.get("subnet_id")
    return backend.get_subnet(subnet).availability_zone if subnet else given.get("placement")


def _need_support(shim, backend, given):
    """`Unsupported` means two things, which only its message tells apart."""
    kind, zone, table = given.get("instance_type"), _zone(backend, given), shim.settings["unsupported"]
    what = table.get(f"{kind}:{zone}", table.get(kind))
    if what == "zone":
        raise EC2ClientError(
            "Unsupported",
            f"Your requested instance type ({kind}) is not supported in your requested Availability Zone "
            f"({zone}). Please retry your request by not specifying an Availability Zone.",
        )
    if what is not None:
        raise EC2ClientError(
            "Unsupported",
            "The requested configuration is currently not supported. Please check the documentation for "
            "supported configurations.",
        )


def _need_room(shim, backend, volumes):
    quota = shim.settings["volume_quota"]
    if quota is None:
        return
    held = sum(int(volume.size) for volume in backend.volumes.values())
    if held + sum(volume["size"] for volume in volumes) > quota:
        raise EC2ClientError(
            "VolumeLimitExceeded", "You have exceeded your maximum gp3 storage limit in this region."
        )


def _fault(shim, market, volumes):
    """Why a machine that is accepted will not run: a setting, or a key that its launch may not use."""
    keys = {volume["kms"] for volume in volumes} - {""}
    if any(market not in shim.settings["key_grants"].get(key, ()) for key in keys):
        return {"code": "Client.InternalError", "message": "Client error on launch"}
    table = shim.settings["launch_faults"]
    return table.get(market, table.get("*"))


def _take_capacity(shim, backend, count, given):
    market, name, zone = _market(given), given.get("instance_type"), _zone(backend, given)
    quota = shim.settings["quota"].get(market)
    if quota is not None:
        alive = [
            i
            for i in backend.all_instances()
            if not is_in(i, SHUTTING_DOWN, TERMINATED) and (i.lifecycle == "spot") == (market == "spot")
        ]
        if len(alive) + count > quota:
            code = "MaxSpotInstanceCountExceeded" if market == "spot" else "VcpuLimitExceeded"
            raise EC2ClientError(code, "You have requested more than your current limit allows.")
    capacity, key = shim.settings["capacity"], f"{market}:{name}:{zone}"
    if key in capacity:
        if capacity[key] < count:
            raise EC2ClientError(
                "InsufficientInstanceCapacity",
                f"We currently do not have sufficient {name} capacity in the Availability Zone you requested "
                f"({zone}).",
            )
        capacity[key] -= count


def _need_role(shim, market):
    """The first spot launch of an account makes the role, where the caller may make roles."""
    if market == "spot" and not shim.settings["spot_role"]:
        raise EC2ClientError(
            "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
            "The provided credentials do not have permission to create the service-linked role for EC2 Spot "
            "Instances.",
        )


def _fail(instance, fault):
    """End a machine that was accepted and cannot be started, in EC2's words."""
    instance.terminate()
    put(instance, TERMINATED)
    code = fault["code"]
    instance.state_reason = StateReason(f"{code}: {fault.get('message', 'Client error on launch')}", code)


def _begin(shim, instance, given, fault):
    instance.shown_at = time.monotonic() + shim.settings["describe_lag"]
    put(instance, PENDING)
    instance.state_reason = StateReason("pending", "pending")
    if fault is None:
        shim.later(shim.settings["boot"], lambda: is_in(instance, PENDING) and run(instance))
    else:
        shim.later(fault.get("after", 0.05), lambda: is_in(instance, PENDING) and _fail(instance, fault))
    place = f"{instance.instance_type}:{instance.placement.zone}"
    spot = _market(given) == "spot"
    instance.capacity_reservation_id = None if spot else shim.settings["reservations"].get(place)
    instance.spot_instance_request_id = None
    if _market(given) == "spot":
        request = f"sir-{hashlib.sha256(instance.id.encode()).hexdigest()[:8]}"
        instance.spot_instance_request_id = request
        shim.requests[request] = {
            "SpotInstanceRequestId": request,
            "Region": instance.ec2_backend.region_name,
            "InstanceId": instance.id,
            "State": "active",
            "Type": "one-time",
            "Status": request_status("fulfilled", "Your spot request is fulfilled."),
            "Tags": [],
        }
