"""What is asked and moto has not: consoles, IAM's simulator, pattern tests, quotas, placement scores.

Who may do what is the setting `denied`, for calls and for the simulator alike.
"""

import base64
import json
from datetime import timedelta

from identity import assumed_role
from moto.core.exceptions import JsonRESTError
from moto.core.responses import ActionResult
from moto.core.utils import utcnow
from moto.ec2.responses.general import General
from moto.ec2.responses.instances import InstanceResponse
from moto.ec2.responses.spot_instances import SpotInstances
from moto.events.models import EventPattern, EventPatternParser
from moto.events.responses import EventsHandler
from moto.iam.exceptions import NotFoundException, ValidationError
from moto.iam.responses import IamResponse
from moto.servicequotas.exceptions import NoSuchResource
from moto.servicequotas.models import ServiceQuotasBackend
from moto.sts.models import STSBackend

_EVENT_FIELDS = ("id", "detail-type", "source", "account", "time", "region", "resources")
_EC2_QUOTAS = ("L-3819A6DF", "L-7212CCBC", "L-C4BD4855", "L-DB2E81BA", "L-417A185B")


def _lets_through(filters, status):
    """Whether a status passes all filters of the call; a filter that is not known here is an error."""
    has = {
        "event.code": [event["Code"] for event in status.get("Events", ())],
        "instance-status.status": [status.get("InstanceStatus", {}).get("Status", "ok")],
        "system-status.status": [status.get("SystemStatus", {}).get("Status", "ok")],
    }
    return all(set(has[name]) & set(values) for name, values in filters.items())


def _timed(value):
    """A status with its times as times; orders give them in seconds from now."""
    if isinstance(value, list):
        return [_timed(each) for each in value]
    if not isinstance(value, dict):
        return value
    times = ("NotBefore", "NotAfter", "ImpairedSince")
    return {
        name: utcnow() + timedelta(seconds=each) if name in times else _timed(each)
        for name, each in value.items()
    }


def patch_looks(shim):
    """Add the calls to moto in this process."""

    identify = STSBackend.get_caller_identity

    def get_caller_identity(self, access_key_id, region):
        if assumed_role(access_key_id) is not None:
            return identify(self, access_key_id, region)
        return "AIDAEXAMPLE", shim.settings["caller"], self.account_id

    def simulate_principal_policy(self):
        source = self._get_param("PolicySourceArn")
        kind = source.partition("::")[2].partition(":")[2].partition("/")[0]
        if kind not in ("user", "group", "role"):
            raise ValidationError(
                f"Invalid Entity Arn: {source} does not clearly define entity type and name."
            )
        if source not in (shim.settings["caller"], *shim.settings["principals"]):
            raise NotFoundException(f"The principal {source} cannot be found.")
        results = [
            {
                "EvalActionName": action,
                "EvalResourceName": resource,
                "EvalDecision": "implicitDeny" if action in shim.settings["denied"] else "allowed",
                "MatchedStatements": [],
                "MissingContextValues": [],
            }
            for action in self._get_param("ActionNames", [])
            for resource in self._get_param("ResourceArns", []) or ["*"]
        ]
        return ActionResult({"EvaluationResults": results, "IsTruncated": False})

    def test_event_pattern(self):
        pattern, event = self._get_param("EventPattern"), json.loads(self._get_param("Event"))
        missing = [field for field in _EVENT_FIELDS if field not in event]
        if missing:
            raise JsonRESTError("ValidationException", f"Parameter Event misses {', '.join(missing)}.")
        parsed = EventPatternParser(pattern).parse()
        matches = EventPattern(pattern, parsed).matches_event(event)
        return json.dumps({"Result": matches}), self.response_headers

    def get_console_output(self):
        node = self.ec2_backend.get_instance(self._get_param("InstanceId")).id
        text = shim.settings["console"].get(node, shim.settings["console"].get("*"))
        written = {} if text is None else {"Output": base64.b64encode(text.encode()).decode()}
        return ActionResult({"InstanceId": node, "Timestamp": utcnow(), **written})

    def describe_instance_status(self):
        self.error_on_dryrun()
        wanted = self._filters_from_querystring()
        there = {instance.id for instance in self.ec2_backend.all_running_instances()}
        found = [
            {"InstanceId": node, **_timed(status)}
            for node, status in shim.settings["statuses"].items()
            if node in there and _lets_through(wanted, status)
        ]
        return ActionResult({"InstanceStatuses": found})

    def get_service_quota(self, service_code, quota_code):
        if service_code != "ec2" or quota_code not in _EC2_QUOTAS:
            raise NoSuchResource
        value = float(shim.settings["quotas"].get(quota_code, 10_000.0))
        return {"ServiceCode": "ec2", "QuotaCode": quota_code, "Value": value, "Adjustable": True}

    def get_spot_placement_scores(self):
        self.error_on_dryrun()
        scores = [
            {"Region": self.region, "AvailabilityZoneId": zone, "Score": score}
            for zone, score in sorted(shim.settings["scores"].items())
        ]
        return ActionResult({"SpotPlacementScores": scores[:10]})

    General.get_console_output = get_console_output
    InstanceResponse.describe_instance_status = describe_instance_status
    STSBackend.get_caller_identity = get_caller_identity
    IamResponse.simulate_principal_policy = simulate_principal_policy
    EventsHandler.test_event_pattern = test_event_pattern
    ServiceQuotasBackend.get_service_quota = get_service_quota
    SpotInstances.get_spot_placement_scores = get_spot_placement_scores
