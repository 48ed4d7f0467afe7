"""A thousand machines that are listed and ended, and nothing else: moto takes seconds to list as many.

`furnish` makes them, running for an hour, with the tags of a pool. They take the place of moto's machines in
DescribeInstances and TerminateInstances; launches still go to moto.
"""

import time
from urllib.parse import parse_qs

_STARTED = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(time.time() - 3600))
_CODES = {"running": 16, "terminated": 48}


class Crowd:
    """The machines, by id."""

    def __init__(self):
        self._machines = {}

    def clear(self):
        """No machines."""
        self._machines.clear()

    def furnish(self, pool, spot, on_demand, instance_type, zone):
        """So many machines of each market, told from others by their numbers."""
        for number in range(spot + on_demand):
            name = f"i-{number:017x}"
            self._machines[name] = {
                "id": name,
                "market": "spot" if number < spot else "on-demand",
                "state": "running",
                "address": f"10.{number // 62500}.{number // 250 % 250}.{number % 250 + 1}",
                "type": instance_type,
                "zone": zone,
                "tags": {"orchestrator:pool": pool, "orchestrator:token": f"{pool}/1/{number}"},
            }
        return {"machines": list(self._machines)}

    def answer(self, action, body):
        """The answer to a call, None where moto answers."""
        if not self._machines or action not in ("DescribeInstances", "TerminateInstances"):
            return None
        fields = {key: values[0] for key, values in parse_qs(body.decode()).items()}
        return self._end(fields) if action == "TerminateInstances" else self._list(fields)

    def _end(self, fields):
        named = [value for key, value in fields.items() if key.startswith("InstanceId.")]
        for name in named:
            if name in self._machines:
                self._machines[name]["state"] = "terminated"
        items = "".join(f"<item><instanceId>{name}</instanceId></item>" for name in named)
        return _response("TerminateInstances", f"<instancesSet>{items}</instancesSet>")

    def _list(self, fields):
        found = [m for m in self._machines.values() if all(_fits(m, f) for f in _filters(fields))]
        start, size = int(fields.get("NextToken") or 0), int(fields.get("MaxResults") or 1000)
        more = f"<nextToken>{start + size}</nextToken>" if len(found) > start + size else ""
        items = "".join(map(_described, found[start : start + size]))
        return _response("DescribeInstances", f"<reservationSet>{items}</reservationSet>{more}")


def _filters(fields):
    """Each filter of a call: its name and values."""
    for key, name in fields.items():
        if key.startswith("Filter.") and key.endswith(".Name"):
            prefix = key.removesuffix("Name") + "Value."
            yield name, {value for other, value in fields.items() if other.startswith(prefix)}


def _fits(machine, asked):
    name, values = asked
    if name.startswith("tag:"):
        return machine["tags"].get(name.removeprefix("tag:")) in values
    return machine[{"instance-id": "id", "private-ip-address": "address"}[name]] in values


def _described(machine):
    state = machine["state"]
    tags = "".join(f"<item><key>{k}</key><value>{v}</value></item>" for k, v in machine["tags"].items())
    spot = "<instanceLifecycle>spot</instanceLifecycle>" if machine["market"] == "spot" else ""
    return (
        f"<item><instancesSet><item><instanceId>{machine['id']}</instanceId>"
        f"<instanceState><code>{_CODES[state]}</code><name>{state}</name></instanceState>"
        f"<instanceType>{machine['type']}</instanceType><launchTime>{_STARTED}</launchTime>"
        f"<placement><availabilityZone>{machine['zone']}</availabilityZone></placement>"
        f"<privateIpAddress>{machine['address']}</privateIpAddress><tagSet>{tags}</tagSet>{spot}"
        "</item></instancesSet></item>"
    )


def _response(action, text):
    return f"<{action}Response><requestId>crowd</requestId>{text}</{action}Response>".encode()
