"""Providers and routes, judged: is the API reached, is the key accepted, are its models there and priced, do
the routes of the gateway lead where the file says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.doctor.findings import Finding, Findings, fail, ok, skipped, warn
from orchestrator.words import plural

_SKEW = 30.0  # s that this machine's clock may be off
_OK = 200
_UNKNOWN = frozenset({404, 405})
_REFUSED = frozenset({401, 403})

_AS_THE_GATEWAY = (
    "run this as root or as the gateway's user; where the key is a credential of its unit: systemd-run "
    "--pipe -p LoadCredential=NAME orchestrator doctor --config FILE --only providers"
)


class Trouble(StrEnum):
    """Why nothing came back."""

    NAME = "name"  # it has no address
    CONNECTION = "connection"  # nobody listens there, or a network drops packets
    CERTIFICATE = "certificate"  # who answers cannot prove to be it
    OTHER = "other"


_ADVICE: Mapping[Trouble, str] = {
    Trouble.NAME: "correct url, or this machine's resolver (/etc/resolv.conf)",
    Trouble.CONNECTION: "correct url, or open the way there (firewall, route); the gateway uses no proxy",
    Trouble.CERTIFICATE: "write its certificates into ca_file where it is a gateway of yours, else correct "
    "url; a wrong clock on this machine has the same effect",
    Trouble.OTHER: "look at what answers at that address",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back for a question after models."""

    status: int  # 0: nothing came, for `trouble`
    said: str = ""  # describes the trouble
    trouble: Trouble = Trouble.OTHER
    models: frozenset[str] | None = None  # None: it lists none
    skew: float | None = None  # seconds by which its clock is ahead of ours; None: it gives no time


def reached(url: str, answer: Answer, *, key: str | None) -> Findings:
    """Whether the provider answers, and what it says to the key. `key`: why that could not be shown, empty
    where it was, None where the file names none."""
    if not answer.status:
        return [fail(f"{url} cannot be reached: {answer.said}", _ADVICE[answer.trouble])]
    findings: list[Finding] = []
    if key:
        findings.append(skipped(f"{url} answers; its key was not tried: {key}", _AS_THE_GATEWAY))
    elif answer.status in _REFUSED:
        advice = "put a key into api_key_file that is in force; the gateway reads it again by itself"
        findings.append(fail(f"{url} does not accept the key ({answer.status}{_of(answer.said)})", advice))
    elif answer.status == _OK or answer.status in _UNKNOWN:
        lists = "accepts the key" if key is not None else "answers, and asks for no key"
        none = f"answers, and has no list of models ({answer.status})"
        findings.append(ok(f"{url} {lists if answer.status == _OK else none}"))
    else:
        advice = "wait and look again; requests that are routed there are tried again by themselves"
        findings.append(warn(f"{url} answers {answer.status}{_of(answer.said)}", advice))
    if answer.skew is not None and abs(answer.skew) > _SKEW:
        text = f"its clock is {answer.skew:+.0f} s against ours: caps begin anew with the UTC day"
        findings.append(warn(text, "set this machine's clock, with NTP"))
    return findings


def _of(said: str) -> str:
    return f": {said[:200]}" if said else ""


def models(wanted: Collection[str], missing: Collection[str]) -> Findings:
    """Whether the models that routes ask for are there; `missing` are those of which it says it has none."""
    if not wanted:
        return [skipped("no route asks it for anything", "name it in the `to` of a [[route]]")]
    lacking = [
        fail("it does not know this model", "correct the route's model, or ask for access to it", model)
        for model in sorted(missing)
    ]
    return lacking or [ok(f"it has {', '.join(sorted(wanted))}")]


def prices(sources: Mapping[str, str], *, capped: bool) -> Findings:
    """Whether what its models cost is known. `sources`: where each model's price is from, else empty."""
    unknown = [model for model, source in sources.items() if not source]
    advice = "write [provider.NAME.price.MODEL] with input and output in US dollars per million tokens"
    if unknown:
        state = fail if capped else warn
        then = "requests are refused under a cap" if capped else "it is booked as unknown"
        return [state(f"its price is not known: {then}", advice, model) for model in unknown]
    return [ok(f"{model}: {source}") for model, source in sources.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One route as the gateway has it: its names, where requests go now, why not to others."""

    models: tuple[str, ...]
    goes_to: str
    left_out: Sequence[str]
    servable: bool


def routes(wanted: Sequence[tuple[str, ...]], served: Sequence[Served] | None, error: str) -> Findings:
    """Whether the gateway serves the routes of the file, and whether each has somebody who answers."""
    if served is None:
        return [skipped(f"no gateway says where its requests go: {error}")]
    held = {each.models for each in served}
    if lacking := [names[0] for names in wanted if names not in held]:
        text = f"the gateway has other routes than the file: it lacks {', '.join(lacking)}"
        return [fail(text, "orchestrator gateway --config FILE --replace")]
    findings: list[Finding] = []
    for each in served:
        why = "; ".join(each.left_out)
        if not each.servable:
            advice = "bring its pool back, or give the route a provider"
            findings.append(fail(f"nobody answers for it: {why}", advice, each.models[0]))
        elif each.left_out:
            text = f"its requests go to {each.goes_to}: {why}"
            findings.append(warn(text, "orchestrator explain pool says why", each.models[0]))
    whole = f"{plural(len(served), 'route')}, and requests go to the first backend of each"
    return findings or [ok(whole)]
