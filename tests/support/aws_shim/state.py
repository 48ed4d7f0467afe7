"""What the stand-in remembers beside moto: settings, faults that are due, what happens later."""

import heapq
import itertools
import threading
import time
from dataclasses import dataclass, field

from moto.ec2.models import ec2_backends
from moto.elbv2.models import elbv2_backends
from moto.events.models import events_backends
from moto.sqs.models import sqs_backends

ACCOUNT = "123456789012"
REGION = "us-east-1"

DEFAULTS = {
    "boot": 0.05,  # s from pending to running
    "stop": 0.05,  # s from stopping to stopped
    "end": 0.05,  # s from shutting-down to terminated
    "remember": 3600.0,  # s for which a terminated machine is still described
    "statuses": {},  # machine -> what DescribeInstanceStatus says of it, with times in seconds from now
    "describe_lag": 0.0,  # s until DescribeInstances shows a new machine
    "capacity": {},  # "MARKET:TYPE:ZONE" -> machines that can still be launched; missing means any number
    "quota": {},  # market -> most machines alive; missing means no quota
    "target_initial": 0.05,  # s that a target is initial when health_checks is off
    "health_checks": False,  # whether targets are really asked, as the group says; else they are healthy
    "health_interval": 0.05,  # s between two health checks of a target; None: as the group says
    "propagation": 0.0,  # s that a front goes on sending to a deregistered target
    "idle_timeout": 60.0,  # s that a front keeps connections without traffic, and waits for a target
    "idle_ends_draining": False,  # a draining target without requests in flight is let go before the delay
    "spot_prices": {},  # "TYPE" or "TYPE:ZONE" -> USD/h
    "on_demand_prices": {},  # type -> USD/h
    "expired_keys": [],  # access keys that are refused
    "pricing": True,  # whether the price list answers
    "caller": "arn:aws:iam::123456789012:user/orchestrator",  # who asks
    "principals": [],  # further users and roles that IAM's simulator knows
    "denied": [],  # IAM actions that nobody may do
    "opted_out": [],  # regions that the account has not opted in to
    "quotas": {},  # quota code -> vCPUs; missing means more than enough
    "scores": {},  # zone id -> spot placement score
    "launch_faults": {},  # market or "*" -> {"code", "message", "after"}: accepted, ends so while pending
    "run_bucket": None,  # [burst, a second] of launches; with it starts, stops and ends keep to theirs too
    "spot_role": True,  # whether the account has AWSServiceRoleForEC2Spot
    "tag_authorisation": True,  # machines without a pool's tag, and unknown ones, may not be changed
    "unsupported": {},  # "TYPE:ZONE" or TYPE -> "zone" or "configuration": what of it EC2 does not support
    "volume_quota": None,  # GiB of all volumes of a region
    "default_key": "",  # customer key that encrypts every volume that names none
    "key_grants": {},  # customer key -> markets whose launches may use it; missing means none may
    "reservations": {},  # "TYPE:ZONE" -> capacity reservation that on-demand launches there run in
    "images": {},  # image -> {"volumes": [{"device", "size", "delete_on_termination", "encrypted", "kms"}]}
    "console": {},  # instance id or "*" -> what the machine wrote on its console
    "experiment_notice": None,  # s of notice of an experiment of FIS; None: as its template says
    "clock": 0.0,  # s that the answers' Date is ahead
}


@dataclass
class Fault:
    """The next `times` calls of an action do not go as they should.

    kind: "error" answers with `code` and nothing is done; "lose" does the call and closes the connection;
    "drop" closes it before anything is done; "delay" does the call after so many `seconds`; "hold" does it
    once `release` is ordered. `after`: so many calls of the action go well first.
    """

    action: str
    kind: str
    times: int = 1
    after: int = 0
    code: str = ""
    status: int = 400
    message: str = "injected"
    seconds: float = 0.0


@dataclass
class Shim:
    """The stand-in's own state. One lock guards it and everything in moto that is not thread-safe."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    settings: dict = field(default_factory=dict)
    faults: list = field(default_factory=list)
    outages: set = field(default_factory=set)  # services that close every connection
    silent_regions: set = field(default_factory=set)  # regions that answer 503 to every call
    calls: dict = field(default_factory=dict)  # action -> calls that arrived
    tokens: dict = field(default_factory=dict)  # (region, token) -> (fingerprint, reservation)
    requests: dict = field(default_factory=dict)  # spot instance request id -> request
    buckets: dict = field(default_factory=dict)  # (region, action) -> authority.Bucket

    era: int = 0  # resets so far
    gate: threading.Event = field(default_factory=threading.Event)  # what is held waits for it

    def __post_init__(self):
        self._later = []
        self._serial = itertools.count()
        self.settings = {**DEFAULTS}
        threading.Thread(target=self._run, daemon=True).start()

    def reset(self):
        """No machines, targets, queues and rules, and no faults. Networks and launch templates stay, since
        making them takes moto most of a second."""
        with self.lock:
            self.era += 1
            self.release()
            self._later.clear()
            named = (self.outages, self.silent_regions)
            for kept in (*named, self.faults, self.calls, self.tokens, self.requests, self.buckets):
                kept.clear()
            self.settings = {**DEFAULTS}
            for backend in ec2_backends[ACCOUNT].values():
                backend.reservations.clear()
                backend.volumes.clear()
            for service in (elbv2_backends, sqs_backends, events_backends):
                for backend in service[ACCOUNT].values():
                    backend.reset()

    def release(self):
        """Let the calls go on that are held, and hold no more until that is asked for again."""
        with self.lock:
            self.faults[:] = [fault for fault in self.faults if fault.kind != "hold"]
            self.gate.set()
            self.gate = threading.Event()

    def later(self, seconds, happen):
        """Have something happen after so many seconds, under the lock."""
        with self.lock:
            heapq.heappush(self._later, (time.monotonic() + seconds, next(self._serial), happen))

    def fault_for(self, action):
        """The fault that this call meets, if any; counts it."""
        with self.lock:
            for fault in self.faults:
                if fault.action not in (action, "*"):
                    continue
                if fault.after > 0:
                    fault.after -= 1
                    continue
                fault.times -= 1
                if fault.times <= 0:
                    self.faults.remove(fault)
                return fault
        return None

    def _run(self):
        while True:
            time.sleep(0.01)
            with self.lock:
                while self._later and self._later[0][0] <= time.monotonic():
                    heapq.heappop(self._later)[2]()
