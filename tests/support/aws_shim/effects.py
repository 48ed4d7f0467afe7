"""Calls that change something, by who makes them, and the end of a caller at exactly one of them.

A caller is told from others by its access key. Its calls of each action are numbered as they arrive, from 1
after `begin`. A kill names one of them and a moment:

before    the caller dies and the call is never made
late      the caller dies and the call takes effect only when `land` is ordered
after     the call takes effect, the caller dies, and nobody is answered
answered  the caller is answered, and dies so many seconds later
"""

import os
import signal
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import parse_qs

CHANGES = ("RunInstances", "TerminateInstances", "RegisterTargets", "DeregisterTargets", "AddTags")
MOMENTS = ("before", "late", "after", "answered")

_LONGEST_LATE = 60.0  # s


@dataclass
class Kill:
    """Who dies, at which call, and when."""

    pid: int
    action: str
    number: int
    moment: str
    seconds: float = 0.0

    def __post_init__(self):
        if self.action not in CHANGES or self.moment not in MOMENTS:
            raise ValueError(f"no such point: {self}")


@dataclass
class Caller:
    """What one access key did."""

    log: list = field(default_factory=list)  # changes that took effect, in order
    arrived: dict = field(default_factory=dict)  # action -> calls
    kill: Kill | None = None
    killed: bool = False
    gate: threading.Event = field(default_factory=threading.Event)

    def arrives(self, action):
        """Count a call; the moment of it at which the caller dies, "" for none."""
        number = self.arrived[action] = self.arrived.get(action, 0) + 1
        if self.killed or self.kill is None or (self.kill.action, self.kill.number) != (action, number):
            return ""
        self.killed = True
        return self.kill.moment


class Effects:
    """The callers of a stand-in."""

    def __init__(self):
        self._lock = threading.Lock()
        self._callers = {}

    def clear(self):
        """Forget every caller."""
        with self._lock:
            self._callers.clear()

    def order(self, order, given):
        """`begin` {key, kill?}: count anew; `land` {key}; `done` {key}: what became of it."""
        key = given["key"]
        with self._lock:
            if order == "begin":
                kill = given.get("kill")
                self._callers[key] = Caller(kill=Kill(**kill) if kill else None)
                return {}
            caller = self._callers[key]
            if order == "land":
                caller.gate.set()
                return {}
            return {"log": list(caller.log), "arrived": dict(caller.arrived), "killed": caller.killed}

    def perform(self, key, action, body, call, hang_up):
        """Let a call take effect, or end its caller at it. `call` makes it, `hang_up` answers nobody.

        `call` takes the function that starts an answer, if not the one of the caller's own connection.
        """
        with self._lock:
            caller = self._callers.get(key) if action in CHANGES else None
            moment = caller.arrives(action) if caller is not None else ""
        if caller is None:
            return call()
        kill = caller.kill
        if moment in ("before", "late"):
            os.kill(kill.pid, signal.SIGKILL)
            if moment == "before":
                return hang_up()
            caller.gate.wait(_LONGEST_LATE)
        unheard = moment in ("late", "after")
        answer = call(lambda *_: None) if unheard else call()
        if unheard:
            b"".join(answer)
        with self._lock:
            caller.log.append({"action": action, "subjects": subjects(action, body)})
        if moment == "after":
            os.kill(kill.pid, signal.SIGKILL)
        if moment == "answered":
            return _Farewell(answer, kill)
        return hang_up() if unheard else answer


class _Farewell(list):
    """An answer after whose last byte the caller dies: a WSGI server closes what it has sent."""

    def __init__(self, answer, kill):
        super().__init__(answer)
        self._kill = kill

    def close(self):
        time.sleep(self._kill.seconds)
        os.kill(self._kill.pid, signal.SIGKILL)


def subjects(action, body):
    """What a call is about: tokens, machines or targets."""
    fields = parse_qs(body.decode())
    wanted = {"RunInstances": "ClientToken", "TerminateInstances": "InstanceId."}.get(action, "")
    if action.endswith("Targets"):
        return sorted(value[0] for name, value in fields.items() if name.endswith(".Id"))
    return sorted(value[0] for name, value in fields.items() if wanted and name.startswith(wanted))
