"""What EC2 looks at before it looks at a call itself: region, rate and rights.

In order: the region must be opted into; the account's buckets must hold a token (the EC2 API reference,
"Request throttling for the Amazon EC2 API"); and a machine may be changed by its tags only, as the daemon's
policy says. So a machine that is no more, or not yet, is refused like one that is not the pool's: EC2 looks
for rights before it looks for machines. The user of `AwsShim.client` is an administrator.
"""

import time
from urllib.parse import parse_qs

from moto.ec2.models import ec2_backends
from state import ACCOUNT, Fault

ADMINISTRATOR = "user"

_POOL_TAG = "orchestrator:pool"
_CHANGES = ("TerminateInstances", "StopInstances", "StartInstances")
_BUCKETS = {  # burst, a second
    "StartInstances": (5, 2.0),
    "StopInstances": (5, 2.0),
    "TerminateInstances": (100, 5.0),
}


class Bucket:
    """Tokens that come back by the second."""

    def __init__(self, burst, rate):
        self._burst, self._rate = burst, rate
        self._tokens, self._at = burst, time.monotonic()

    def take(self):
        """Whether there was a token."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def closed(shim, service, region, action):
    """The refusal of a region that is not opted into: it does not know the account's keys. None else."""
    if region not in shim.settings["opted_out"] or service in ("iam", "sts", "pricing"):
        return None
    if service == "ec2":
        words = "AWS was not able to validate the provided access credentials"
        return Fault(action=action, kind="error", code="AuthFailure", status=401, message=words)
    words = "The security token included in the request is invalid."
    return Fault(action=action, kind="error", code="UnrecognizedClientException", status=403, message=words)


def throttled(shim, region, action):
    """The refusal of one call too many, None else."""
    launches = shim.settings["run_bucket"]
    size = launches if action == "RunInstances" else _BUCKETS.get(action)
    if launches is None or size is None:
        return None
    with shim.lock:
        if shim.buckets.setdefault((region, action), Bucket(*size)).take():
            return None
    words = "Request limit exceeded."
    return Fault(action=action, kind="error", code="RequestLimitExceeded", status=503, message=words)


def unauthorised(shim, key, region, action, body):
    """The refusal of a change of what carries no pool's tag, as far as EC2 shows it. None else."""
    if action not in _CHANGES or key == ADMINISTRATOR or not shim.settings["tag_authorisation"]:
        return None
    named = [v[0] for name, v in parse_qs(body.decode()).items() if name.startswith("InstanceId.")]
    backend = ec2_backends[ACCOUNT][region]
    with shim.lock:
        known = {instance.id: instance for instance in backend.all_instances()}
        for node in named:
            shown = node in known and getattr(known[node], "shown_at", 0.0) <= time.monotonic()
            if not shown or _POOL_TAG not in backend.tags.get(node, {}):
                return _not_allowed(shim, action, region, node)
    return None


def _not_allowed(shim, action, region, node):
    arn = f"arn:aws:ec2:{region}:{ACCOUNT}:instance/{node}"
    message = (
        f"You are not authorized to perform this operation. User: {shim.settings['caller']} is not "
        f"authorized to perform: ec2:{action} on resource: {arn} because no identity-based policy allows the "
        f"ec2:{action} action."
    )
    return Fault(action=action, kind="error", code="UnauthorizedOperation", status=403, message=message)
