"""The queue of notices and the rules that fill it, judged.

What is in the queue is believed, so the policy must let EventBridge send and nobody else; a rule that lets
an event through which nobody sends on is as bad as none.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from cloud.aws.doctor.notices import QueueFacts, RuleFacts
from cloud.aws.event_rules import RETENTION, RULES, queue_policy
from cloud.aws.events import LISTENED_TO
from orchestrator.doctor.findings import Finding, Findings, fail, ok, warn
from orchestrator.words import age

_SPOT: Final = "EC2 Spot Instance Interruption Warning"
_EVENTBRIDGE: Final = "events.amazonaws.com"
_SEND: Final = "sqs:sendmessage"
_LONG: Final = 3600.0  # s after which a warning is history


def queue(found: QueueFacts, region: str) -> Findings:
    """Retention, encryption and who may send."""
    return [*_keeping(found, region), *_senders(found, region)]


def rules(found: QueueFacts, filling: Sequence[RuleFacts], region: str) -> Findings:
    """Whether every event that the parser understands reaches the queue whole."""
    if not filling:
        return [
            fail(
                f"no EventBridge rule sends to {found.url}: no notice ever comes this way",
                _bootstrap(region),
                region,
            )
        ]
    findings = [*_broken(found, filling, region)]
    usable = [rule for rule in filling if rule.enabled and not rule.reshapes and _lets(found, rule)]
    through = {kind for rule in usable for kind in rule.matches}
    missing = [kind for _, kind in LISTENED_TO if kind not in through]
    for kind in missing:
        text = f'no rule lets "{kind}" through to the queue'
        advice = f"add it to a rule's pattern: {_pattern_with(kind)}"
        findings.append(fail(text, advice, region) if kind == _SPOT else warn(text, advice, region))
    if not missing:
        names = ", ".join(rule.name for rule in usable)
        findings.append(ok(f"all {len(LISTENED_TO)} kinds of event come through {names}", region))
    return findings


def _keeping(found: QueueFacts, region: str) -> Iterator[Finding]:
    set_it = (
        f"aws sqs set-queue-attributes --region {region} --queue-url {found.url} "
        f"--attributes MessageRetentionPeriod={RETENTION}"
    )
    if found.retention < RETENTION:
        yield warn(
            f"messages are kept for {age(found.retention)} only: a restart of the daemon may miss some",
            set_it,
            region,
        )
    elif found.retention > _LONG:
        yield warn(
            f"messages are kept for {age(found.retention)}: after a pause the daemon reads through old ones",
            set_it,
            region,
        )
    else:
        yield ok(
            f"the queue exists, keeps messages for {age(found.retention)}, and {found.waiting} wait", region
        )
    if found.key.rpartition("/")[2] == "sqs" and "alias/aws" in found.key:
        yield fail(
            "the queue is encrypted with the key alias/aws/sqs, which EventBridge cannot use, so nothing "
            "arrives",
            "use SQS's own encryption: aws sqs set-queue-attributes --region "
            f"{region} --queue-url {found.url} --attributes SqsManagedSseEnabled=true,KmsMasterKeyId=",
            region,
        )
    elif found.key:
        yield warn(
            f"the queue is encrypted with the key {found.key}; EventBridge needs a permission to use it",
            f"let {_EVENTBRIDGE} do kms:Decrypt and kms:GenerateDataKey in the key's policy",
            region,
        )


def _senders(found: QueueFacts, region: str) -> Iterator[Finding]:
    advice = f"replace the queue's policy: {json.dumps(queue_policy(found.arn, ['ARN-OF-EACH-RULE']))}"
    statements = _statements(found)
    if any(_denied(s) for s in statements):
        yield fail("the queue's policy denies sending to everybody, EventBridge included", advice, region)
        return
    sending = [s for s in statements if s.get("Effect") == "Allow" and _permits_sending(s)]
    bridges = [s for s in sending if _is_eventbridge(s)]
    if not bridges:
        yield fail("the queue's policy does not let EventBridge send, so nothing arrives", advice, region)
    account = found.arn.split(":")[4]
    for statement in sending:
        if not _is_eventbridge(statement):
            yield from _stranger(statement, account, advice, region)
        elif not _sources(statement):
            yield warn(
                "the queue's policy lets every rule of every account send, so others can forge notices",
                advice,
                region,
            )
    if bridges and all(_is_eventbridge(s) and _sources(s) for s in sending):
        yield ok("only EventBridge may send, for named rules", region)


def _stranger(statement: Mapping[str, Any], account: str, advice: str, region: str) -> Iterator[Finding]:
    """Somebody beside EventBridge may send. The owner's root only repeats what the account's IAM says."""
    for name in _principals(statement):
        if name in (f"arn:aws:iam::{account}:root", account):
            continue
        who = "everybody" if name == "*" else name
        yield fail(f"the queue's policy lets {who} send, who can forge notices then", advice, region)


def _broken(found: QueueFacts, filling: Sequence[RuleFacts], region: str) -> Iterator[Finding]:
    for rule in filling:
        if not rule.enabled:
            yield warn(
                f"the rule {rule.name} is disabled",
                f"aws events enable-rule --region {region} --name {rule.name}",
                region,
            )
        if rule.reshapes:
            yield fail(
                f"the rule {rule.name} sends something else than the event, which nobody can read",
                "remove Input, InputPath and InputTransformer from its target",
                region,
            )
        if not _lets(found, rule):
            yield fail(
                f"the queue's policy does not let the rule {rule.name} send, so what it matches is lost",
                f"add {rule.arn} to aws:SourceArn in the queue's policy",
                region,
            )


def _lets(found: QueueFacts, rule: RuleFacts) -> bool:
    """Whether the queue's policy takes messages of the rule."""
    for statement in _statements(found):
        if statement.get("Effect") == "Allow" and _permits_sending(statement) and _is_eventbridge(statement):
            sources = _sources(statement)
            if not sources or any(fnmatch.fnmatchcase(rule.arn, source) for source in sources):
                return True
    return False


def _statements(found: QueueFacts) -> list[Mapping[str, Any]]:
    listed = (found.policy or {}).get("Statement", [])
    return [s for s in (listed if isinstance(listed, list) else [listed]) if isinstance(s, dict)]


def _permits_sending(statement: Mapping[str, Any]) -> bool:
    if "NotAction" in statement:
        return not any(fnmatch.fnmatchcase(_SEND, a.lower()) for a in _texts(statement["NotAction"]))
    return any(fnmatch.fnmatchcase(_SEND, a.lower()) for a in _texts(statement.get("Action")))


def _denied(statement: Mapping[str, Any]) -> bool:
    """Whether it denies sending to EventBridge whatever the circumstances."""
    if statement.get("Effect") != "Deny" or statement.get("Condition") or not _permits_sending(statement):
        return False
    if "NotPrincipal" in statement:
        return _EVENTBRIDGE not in _names(statement["NotPrincipal"])
    principals = _principals(statement)
    return "*" in principals or _EVENTBRIDGE in principals


def _is_eventbridge(statement: Mapping[str, Any]) -> bool:
    """EventBridge and nobody else. Everybody with a source counts: only services of AWS name a source."""
    principals = _principals(statement)
    return principals == [_EVENTBRIDGE] or (principals == ["*"] and bool(_sources(statement)))


def _principals(statement: Mapping[str, Any]) -> list[str]:
    return _names(statement.get("Principal", "*"))  # NotPrincipal means everybody else


def _names(given: object) -> list[str]:
    if isinstance(given, dict):
        return [name for names in given.values() for name in _texts(names)]
    return _texts(given)


def _sources(statement: Mapping[str, Any]) -> list[str]:
    """The rules that a statement is limited to, as patterns."""
    found = []
    for operator, keys in (statement.get("Condition") or {}).items():
        if operator.lower() in ("arnequals", "arnlike", "stringequals", "stringlike") and isinstance(
            keys, dict
        ):
            found += [t for key, v in keys.items() if key.lower() == "aws:sourcearn" for t in _texts(v)]
    return [source for source in found if source != "*"]


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for text in value if isinstance(text, str)] if isinstance(value, Iterable) else []


def _pattern_with(kind: str) -> str:
    for pattern in RULES.values():
        if kind in pattern["detail-type"]:
            return json.dumps({**pattern, "detail-type": [kind]})
    raise ValueError(f"no rule is for {kind}")


def _bootstrap(region: str) -> str:
    patterns = json.dumps(list(RULES.values()))
    return (
        f"run `orchestrator aws bootstrap FILE --apply`, or make a rule in {region} with each of these "
        f"patterns: {patterns}"
    )
