"""The certificate that the gateway shows its clients, judged: does it work, how long, is it the newest."""

from __future__ import annotations

from dataclasses import dataclass

from cloud.serving.certificates import Certificate, day
from orchestrator.config.checks.certificates import doubt
from orchestrator.doctor.findings import Findings, fail, ok, skipped, warn

_REPLACE = "orchestrator gateway --config FILE --replace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a running gateway says of the certificate that it shows, valid until `expires` (seconds since the
    epoch). `fault`: why it does not show another one that lies in the files."""

    expires: float
    names: tuple[str, ...]
    fault: str


def certificate(filed: Certificate | None, shown: Shown | None, *, runs: bool, now: float) -> Findings:
    """`filed` lies in the files, None where this process cannot read them. `shown` is None for a gateway that
    speaks plain HTTP, or that does not run (`runs`)."""
    if runs and shown is None:
        return [fail("the gateway that runs speaks plain HTTP", f"{_REPLACE}: it starts with HTTPS then")]
    if shown is not None and shown.fault:
        until = f"clients are shown the one before it, until {day(shown.expires)}"
        advice = "write a certificate with its private key; the gateway takes it up by itself"
        return [fail(f"the newest certificate is not shown: {shown.fault}; {until}", advice)]
    if filed is not None and shown is not None and filed.expires != shown.expires:
        text = (
            f"the gateway shows one until {day(shown.expires)}, the file has one until {day(filed.expires)}"
        )
        return [warn(text, f"look again in a moment; if it stays so: {_REPLACE}")]
    found = filed if filed is not None else shown
    if found is None:
        return [skipped("the service manager hands it over, and no gateway answers that says what it is")]
    begins = 0.0 if filed is None else filed.begins
    for_names = f"for {', '.join(found.names)}" if found.names else "without any name"
    chain = f" by its chain ({filed.authority})" if filed is not None and filed.authority else ""
    text = f"valid until {day(found.expires)}{chain}, {for_names}"
    if said := doubt(begins, found.expires, now):
        judge = fail if found.expires <= now else warn
        return [
            judge(f"it {said.partition('; ')[0]} ({text})", "renew it; the gateway takes it up by itself")
        ]
    if not found.names:
        return [warn(text, "make one whose subjectAltName holds the names that clients ask for")]
    return [ok(text)]
