"""The keys of the gateway's clients, judged: are they asked for, does the newest file hold, who ends soon."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from orchestrator.doctor.findings import Finding, Findings, fail, ok, skipped, warn
from orchestrator.words import age, plural
from policies.keys import ClientKey, KeyState

_SOON: Final = 14 * 86_400.0
_REPLACE: Final = "orchestrator gateway --config FILE --replace"
_PUT_RIGHT: Final = (
    "put the file right (orchestrator keys list says what is wrong); the gateway reads it again by itself"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayKeys:
    """What a running gateway says of its keys: how many hold, whether it has `read` any, and why it does not
    take the file as it is now."""

    valid: int
    read: bool
    fault: str


def client_keys(
    filed: Iterable[ClientKey] | None, gateway: GatewayKeys | None, *, runs: bool, now: float
) -> Findings:
    """`filed` are in the file, None where this process cannot read it. `gateway` is None for a gateway that
    asks for no keys, or that does not run (`runs`)."""
    if runs and gateway is None:
        return [fail("the gateway that runs asks nobody for a key", f"{_REPLACE}: it asks for them then")]
    if gateway is not None and gateway.fault and not gateway.read:
        return [fail(f"every request is refused: the file {gateway.fault}", _PUT_RIGHT)]
    if gateway is not None and gateway.fault:
        return [fail(f"a change has no effect, revoked keys included: the file {gateway.fault}", _PUT_RIGHT)]
    keys = None if filed is None else [key for key in filed if key.state(now) is KeyState.VALID]
    if keys is None and gateway is None:
        return [skipped("this user cannot read the file, and no gateway answers that says what is in it")]
    held = gateway.valid if gateway is not None else len(keys or ())
    if not held:
        advice = "orchestrator keys new NAME --config FILE"
        return [fail("no key is in force: every request is refused", advice)]
    return [*_ending(keys or (), now)] or [ok(f"{plural(held, 'key')} in force")]


def _ending(keys: Iterable[ClientKey], now: float) -> Iterable[Finding]:
    for key in keys:
        if key.expires is not None and key.expires - now < _SOON:
            text = f"it expires in {age(key.expires - now)}"
            yield warn(text, "make its client a new key: orchestrator keys new NAME --config FILE", key.name)
