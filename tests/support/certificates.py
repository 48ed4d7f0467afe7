"""Certificates for tests: each signs itself, and its key lies beside it."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclass(frozen=True)
class Pair:
    """A certificate and its key in PEM, and where they are written."""

    certificate: Path
    key: Path
    shown: bytes
    secret: bytes

    def write(self) -> Pair:
        """Put both where they belong, the certificate first, as tools that renew them do."""
        self.certificate.write_bytes(self.shown)
        self.key.write_bytes(self.secret)
        self.key.chmod(0o600)
        return self

    def trust(self) -> ssl.SSLContext:
        """A client that trusts this certificate alone."""
        return ssl.create_default_context(cadata=self.shown.decode())


@dataclass(frozen=True)
class Authority:
    """One that a client's own root has signed: its certificate in PEM follows those that it signs."""

    name: x509.Name
    key: ec.EllipticCurvePrivateKey
    shown: bytes


def authority(name: str, *, ends: timedelta, root: bool = False) -> Authority:
    """An authority whose certificate ends at a time from this moment; a `root` signs itself."""
    key, subject = ec.generate_private_key(ec.SECP256R1()), _subject(name)
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(
            subject if root else _subject("root"), subject, key.public_key(), x509.random_serial_number()
        )
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key if root else ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    return Authority(subject, key, made.public_bytes(serialization.Encoding.PEM))


def pair(
    directory: Path,
    *,
    names: Sequence[str] = ("127.0.0.1", "localhost"),
    begins: timedelta = timedelta(days=-1),
    ends: timedelta = timedelta(days=30),
    purpose: x509.ObjectIdentifier = x509.ExtendedKeyUsageOID.SERVER_AUTH,
    common: str = "gateway",
    authority: Authority | None = None,
) -> Pair:
    """A pair for listener.crt and listener.key of a directory, valid between two times from this moment. It
    signs itself, or `authority` does, whose own certificate follows it then.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(common)
    now = datetime.now(UTC)
    issuer, signer = (subject, key) if authority is None else (authority.name, authority.key)
    made = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), False)
        .add_extension(x509.ExtendedKeyUsage([purpose]), False)
        .sign(signer, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    shown = made.public_bytes(pem) + (b"" if authority is None else authority.shown)
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Pair(directory / "listener.crt", directory / "listener.key", shown, secret)


def _subject(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)
