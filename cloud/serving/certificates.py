"""A certificate with its private key, as a server shows it: read, tried, and what it says of itself.

Both are PEM files (RFC 7468); the certificate's may hold the chain up to its authority. A pair is tried by a
handshake in memory before anybody is shown it, and what it says is what such a client reads of it.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

_NO_CHECK_TIME: Final = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL (X509_VERIFY_PARAM_set_flags(3)): one that has expired is read too."""
_WORDS: Final = {
    "": "there is no whole certificate with its private key in PEM",
    "KEY_VALUES_MISMATCH": "the private key is not that of the certificate",
}


class CertificateError(Exception):
    """There is no pair that could be shown. The message says why in one sentence, without what files hold."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key that work together."""

    context: ssl.SSLContext  # the server's side of connections
    begins: float  # seconds since the epoch; valid from here with the whole chain in its file
    expires: float  # likewise
    names: tuple[str, ...]  # DNS names and addresses
    authority: str = ""  # whose certificate in the chain expires first; empty: its own


def load(cert_file: Path, key_file: Path) -> Certificate:
    """Read a pair and try it. Raises CertificateError; one that has expired is no error here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    files = f"{cert_file}, {key_file}"
    try:
        for file in (cert_file, key_file):
            file.open("rb").close()
        context.load_cert_chain(cert_file, key_file, password=_no_password)
        shown, chain = _shown(context), _authorities(cert_file)
    except ssl.SSLError as error:
        raise CertificateError(f"{files}: {_words(error)}") from None
    except OSError as error:
        raise CertificateError(f"{error.filename}: {(error.strerror or str(error)).lower()}") from None
    except _Locked:
        raise CertificateError(f"{key_file}: it is encrypted; give it without a pass phrase") from None
    first = min((shown, *chain), key=lambda each: _moment(each, "notAfter"))
    return Certificate(
        context,
        begins=max(_moment(each, "notBefore") for each in (shown, *chain)),
        expires=_moment(first, "notAfter"),
        names=tuple(name for kind, name in shown.get("subjectAltName", ()) if kind in ("DNS", "IP Address")),
        authority="" if first is shown else _name(first),
    )


def day(at: float) -> str:
    """A moment as certificates give it, in UTC; `at` in seconds since the epoch."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


class _Locked(Exception):
    """The private key is encrypted."""


def _no_password() -> str:
    """Instead of OpenSSL's own question, which waits for an answer at the terminal."""
    raise _Locked


def _shown(server: ssl.SSLContext) -> dict[str, Any]:
    """What a client reads of the certificate. Raises SSLError where none would take it."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    itself = _shake_hands(server, client).getpeercert(binary_form=True)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cadata=itself)
    client.verify_flags |= ssl.VerifyFlags(ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME)
    return dict(_shake_hands(server, client).getpeercert() or {})


def _authorities(cert_file: Path) -> list[dict[str, Any]]:
    """Those between it and the root, which clients take from nobody. Raises SSLError, OSError."""
    store = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    store.load_verify_locations(cert_file)
    return [dict(each) for each in store.get_ca_certs() if each["subject"] != each["issuer"]]


def _moment(certificate: dict[str, Any], field: str) -> float:
    return float(ssl.cert_time_to_seconds(str(certificate[field])))


def _name(certificate: dict[str, Any]) -> str:
    """Whose it is, by the last part of its subject."""
    return str(certificate["subject"][-1][0][1])


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """A handshake in memory; the client's side of it. Raises SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asks = client.wrap_bio(to_client, to_server)
    sides = [asks, server.wrap_bio(to_server, to_client, server_side=True)]
    while sides:
        for side in tuple(sides):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            sides.remove(side)
    return asks


def _words(error: ssl.SSLError) -> str:
    """What OpenSSL says, in words where there are better ones."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"no client takes the certificate: {error.verify_message}"
    reason = error.reason or ""
    return _WORDS.get(reason, reason.replace("_", " ").lower())
