"""The stand-in's door: orders of the tests, faults, the price list; the rest goes to moto.

reset                                       an empty account, default settings, no faults
set       {SETTING: VALUE, ...}             see state.DEFAULTS
fault     {action, kind, times, after, ...}   see state.Fault
outage    {services: [...], regions: [...]} these services close every connection, these regions answer 503
                                            to every call; without names all is well again
reclaim   {node or nodes, notice_s, ...}    spot machines are taken back, at one instant
halt      {node, region}                    a machine stops and nobody asked: no event, no request says so
recommend {node, region}                    a rebalance recommendation
tell      {kind, detail, node, region, source}   any event on the default bus
front     {group}                           gives {"port": N, ...}: where the balancer of this target group
                                            listens, and what it answered so far
calls                                       gives how many calls of each action arrived since the reset
machines                                    gives every machine in short, which moto takes long for
furnish   {pool, spot, on_demand, ...}      machines that are only listed and ended: see crowd.py
begin, land, done {key, ...}                calls of one access key, its end at one of them: see effects.py
"""

import contextlib
import io
import json
import socket
import sys
import time
import traceback
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

import machines
from authority import closed, throttled, unauthorised
from balancing import Fronts
from crowd import Crowd
from effects import Effects
from identity import forged
from market import products
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from state import DEFAULTS, Fault

_PREFIX = "/_shim/"
_LONGEST_HOLD = 60.0  # s


class Application:
    """WSGI: one door for every service."""

    def __init__(self, shim):
        self._shim = shim
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._fronts = Fronts(shim)
        self._effects = Effects()
        self._crowd = Crowd()
        self._touched = True  # something was asked since the last reset

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] == _PREFIX + "reset":
            touched, self._touched = self._touched, False
            if not touched:
                return _json({}, start_response)
            return self._ask(environ, start_response)
        self._touched = True
        try:
            return self._ask(environ, start_response)
        finally:
            self._touched = True  # also where a reset came in between

    def _ask(self, environ, start_response):
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        path = environ["PATH_INFO"]
        if path.startswith(_PREFIX):
            return self._order(path.removeprefix(_PREFIX), json.loads(body or b"{}"), start_response)
        (service, region), action, era = _scope_of(environ), _action_of(environ, body), self._shim.era
        with self._shim.lock:
            self._shim.calls[action] = self._shim.calls.get(action, 0) + 1
        if service in self._shim.outages:
            return _hang_up(environ, start_response)
        if region in self._shim.silent_regions:
            down = Fault(action=action, kind="error", code="ServiceUnavailable", status=503)
            return _refuse(down, service, start_response)
        fault = self._shim.fault_for(action)
        if _key_of(environ) in self._shim.settings["expired_keys"]:
            fault = Fault(action=action, kind="error", code="ExpiredToken", message="The token has expired.")
        if f"{service}:{action.removesuffix('Batch')}" in self._shim.settings["denied"]:
            fault = _denial(service, action)
        fault = fault or closed(self._shim, service, region, action)
        fault = fault or throttled(self._shim, region, action)
        if fault is None and action == "GetCallerIdentity":
            fault = forged(environ, body)
        if fault is not None and fault.kind == "error":
            return _refuse(fault, service, start_response)
        if fault is not None and fault.kind == "drop":
            return _hang_up(environ, start_response)
        if fault is not None and fault.kind == "delay":
            time.sleep(fault.seconds)
        if fault is not None and fault.kind == "hold":
            self._shim.gate.wait(_LONGEST_HOLD)
        if service == "pricing":
            return self._price_list(json.loads(body), start_response)
        listed = self._crowd.answer(action, body)
        if listed is not None:
            return _xml(listed, start_response, "200 OK")
        refusal = unauthorised(self._shim, _key_of(environ), region, action, body)
        if refusal is not None:
            return _refuse(refusal, service, start_response)
        if fault is not None and fault.kind == "lose":
            b"".join(self._answer(environ, action, lambda *_: None, era))
            return _hang_up(environ, start_response)
        return self._effects.perform(
            _key_of(environ),
            action,
            body,
            call=lambda start=start_response: self._answer(environ, action, start, era),
            hang_up=lambda: _hang_up(environ, start_response),
        )

    def _answer(self, environ, action, start_response, era):
        """What moto says. A call from before a reset that was held up has no place in the new account.

        A description is written while nothing changes: a machine's state and the reason for it are of one
        moment.
        """
        if self._shim.era != era:
            return _hang_up(environ, start_response)
        if action != "DescribeInstances":
            return self._moto(environ, start_response)
        with self._shim.lock:
            return [b"".join(self._moto(environ, start_response))]

    def _order(self, order, given, start_response):
        shim = self._shim
        try:
            answer = {}
            match order:
                case "reset":
                    shim.reset()
                    self._effects.clear()
                    self._crowd.clear()
                case "set":
                    unknown = given.keys() - DEFAULTS.keys()
                    if unknown:
                        raise ValueError(f"no such setting: {sorted(unknown)}")
                    with shim.lock:
                        shim.settings.update(given)
                case "fault":
                    with shim.lock:
                        shim.faults.append(Fault(**given))
                case "release":
                    shim.release()
                case "outage":
                    shim.outages = set(given.get("services", ()))
                    shim.silent_regions = set(given.get("regions", ()))
                case "reclaim":
                    with shim.lock:
                        for node in given.pop("nodes", None) or [given.pop("node")]:
                            machines.reclaim(shim, node, **given)
                case "halt":
                    with shim.lock:
                        machines.halt(shim, **given)
                case "recommend":
                    with shim.lock:
                        machines.recommend(shim, **given)
                case "tell":
                    with shim.lock:
                        machines.tell(**given)
                case "front":
                    answer = self._fronts.of(given["group"])
                case "calls":
                    answer = dict(shim.calls)
                case "machines":
                    with shim.lock:
                        answer = {"machines": machines.listed()}
                case "furnish":
                    answer = self._crowd.furnish(**given)
                case "begin" | "land" | "done":
                    answer = self._effects.order(order, given)
                case _:
                    raise ValueError(f"no such order: {order}")
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            return _json({"error": f"{type(error).__name__}: {error}"}, start_response, "400 Bad Request")
        return _json(answer, start_response)

    def _price_list(self, body, start_response):
        if not self._shim.settings["pricing"]:
            fault = Fault(action="", kind="error", code="AccessDeniedException", message="not authorized")
            return _refuse(fault, "pricing", start_response)
        return _json(products(self._shim, body), start_response)


def _scope_of(environ):
    """Service and region of the signature: Credential=KEY/DATE/REGION/SERVICE/aws4_request."""
    scope = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition(",")[0].split("/")
    return (scope[3], scope[2]) if len(scope) == 5 else ("", "")


def _key_of(environ):
    """The access key in the signature."""
    return environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition("/")[0]


def _action_of(environ, body):
    target = environ.get("HTTP_X_AMZ_TARGET", "")
    if target:
        return target.rpartition(".")[2]
    if environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        return parse_qs(body.decode()).get("Action", [""])[0]
    return ""


def _denial(service, action):
    """What IAM's no looks like, in the words of the service."""
    code = {"ec2": "UnauthorizedOperation", "sqs": "AccessDenied", "iam": "AccessDenied"}.get(service)
    message = f"You are not authorized to perform {service}:{action}"
    return Fault(
        action=action, kind="error", code=code or "AccessDeniedException", status=403, message=message
    )


def _hang_up(environ, start_response):
    """Close the connection without an answer."""
    with contextlib.suppress(OSError):  # the caller has gone already
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    start_response("200 OK", [("Content-Length", "0")])
    return [b""]


def _refuse(fault, service, start_response):
    """An error in the words of the service's protocol."""
    code, message = escape(fault.code), escape(fault.message)
    if service == "ec2":
        text = (
            f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
            "<RequestID>00000000-0000-0000-0000-000000000000</RequestID></Response>"
        )
    elif service in ("elasticloadbalancing", "iam", "sts"):
        text = (
            f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>"
            "<RequestId>00000000-0000-0000-0000-000000000000</RequestId></ErrorResponse>"
        )
    else:
        body = {"__type": fault.code, "message": fault.message}
        return _json(body, start_response, f"{fault.status} Refused")
    return _xml(text.encode(), start_response, f"{fault.status} Refused")


def _xml(data, start_response, status):
    start_response(status, [("Content-Type", "text/xml"), ("Content-Length", str(len(data)))])
    return [data]


def _json(answer, start_response, status="200 OK"):
    data = json.dumps(answer).encode()
    headers = [("Content-Type", "application/x-amz-json-1.1"), ("Content-Length", str(len(data)))]
    start_response(status, headers)
    return [data]
