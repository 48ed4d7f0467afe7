"""The certificate that clients of the gateway are shown: whether it works, and for how long."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cloud.clock import SystemClock
from cloud.serving.certificates import Certificate, CertificateError, load
from orchestrator.config.errors import Found
from orchestrator.config.gateways import place
from orchestrator.config.tables.file import ConfigFile, Role
from orchestrator.config.tables.gateway import SharedGatewayTable
from orchestrator.config.types import is_credential, is_open, unreadable
from orchestrator.units import format_duration

SOON: Final = 14 * 86400.0
"""Seconds before a certificate expires from which on that is said."""

_KEYS: Final = ("tls_cert_file", "tls_key_file")


def certificate_errors(parsed: ConfigFile, role: Role) -> Iterator[Found]:
    """What keeps the gateway from serving HTTPS. Only the gateway and who checks all can read its key."""
    files = {key: file for key in _KEYS if (file := getattr(parsed.gateway, key)) is not None}
    if len(files) == 1:
        (missing,) = set(_KEYS) - files.keys()
        at = place(parsed.gateway, parsed.pool, missing)
        yield at, "is missing; HTTPS needs certificate and private key, so write both or neither"
    if len(files) < len(_KEYS) or role not in ("gateway", "any"):
        return
    faults = 0
    for key, file in files.items():
        fault = _file_fault(file, role)
        if fault:
            faults += 1
            yield place(parsed.gateway, parsed.pool, key), fault
    if not faults and not any(map(is_credential, files.values())):
        try:
            load(files["tls_cert_file"], files["tls_key_file"])
        except CertificateError as error:
            yield place(parsed.gateway, parsed.pool, "tls_cert_file"), f"{error}; give both in PEM"


def _file_fault(file: Path, role: Role) -> str:
    if is_credential(file):
        given = "no service manager gave this process credentials; name a file"
        return "" if role == "any" else f"{file}: {given}"
    return unreadable(file)


def certificate_warnings(parsed: ConfigFile, role: Role) -> Iterator[Found]:
    """What is doubtful about a pair that works, and about none."""
    if role not in ("gateway", "any"):
        return
    gateway = parsed.gateway
    if gateway.tls_cert_file is None and _tells_keys(gateway):
        yield (
            place(gateway, parsed.pool, "tls_cert_file"),
            f"is not set, and {gateway.listen} can be reached from other machines: the keys of clients can "
            "be read on the way; write a certificate, or trusted_proxies where a proxy of yours speaks HTTPS",
        )
    found = certificate_of(gateway)
    if found is None:
        return
    key = parsed.gateway.tls_key_file
    if key is not None and is_open(key):
        at = place(parsed.gateway, parsed.pool, "tls_key_file")
        yield at, f"{key} can be read by other users; close it with chmod 600"
    if said := doubt(found.begins, found.expires, SystemClock().now()):
        whose = f" (its chain: {found.authority})" if found.authority else ""
        at = place(parsed.gateway, parsed.pool, "tls_cert_file")
        yield at, f"{parsed.gateway.tls_cert_file}{whose} {said}"


def _tells_keys(gateway: SharedGatewayTable) -> bool:
    """Whether clients show keys that travel over a network, and no proxy hides them there."""
    return gateway.keys_file is not None and not gateway.listen.loopback and not gateway.trusted_proxies


def certificate_of(gateway: SharedGatewayTable) -> Certificate | None:
    """The pair of a configuration; None where there is none that works or that this process can read."""
    if gateway.tls_cert_file is None or gateway.tls_key_file is None:
        return None
    try:
        return load(gateway.tls_cert_file, gateway.tls_key_file)
    except CertificateError:
        return None


def doubt(begins: float, expires: float, now: float) -> str:
    """What is said of a certificate that expires soon or has, or is not valid yet; empty for any other."""
    if expires <= now:
        return f"expired {_about(now - expires)} ago: clients refuse it; renew it"
    if begins > now:
        return f"is not valid for another {_about(begins - now)}: clients refuse it until then"
    return f"expires in {_about(expires - now)}; renew it" if expires - now < SOON else ""


def _about(seconds: float) -> str:
    """A time in its two largest units, at most."""
    unit = 86400 if seconds >= 2 * 86400 else 3600 if seconds >= 2 * 3600 else 60
    return format_duration(seconds // unit * unit)
