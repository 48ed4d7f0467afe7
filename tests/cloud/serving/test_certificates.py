"""A certificate with its private key: read, tried, and told."""

from __future__ import annotations

import ssl
import time
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509 import ExtendedKeyUsageOID

from cloud.serving.certificates import CertificateError, day, load
from tests.support.certificates import Pair, authority, pair


def spoil(made: Pair, how: str) -> None:
    """Break the files of a pair."""
    if how == "half of the certificate":
        made.certificate.write_bytes(made.shown[:200])
    elif how == "half of the chain":
        made.certificate.write_bytes(made.shown + made.shown[:200])
    elif how == "half of the key":
        made.key.write_bytes(made.secret[:60])
    elif how == "nothing in it":
        made.certificate.write_bytes(b"")
    elif how == "another key":
        made.key.write_bytes(pair(made.key.parent).secret)
    elif how == "gone":
        made.key.unlink()
    elif how == "no file":
        made.key.unlink()
        made.key.mkdir()
    elif how == "a pass phrase":
        key, locked = load_pem_private_key(made.secret, None), BestAvailableEncryption(b"open-sesame")
        made.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("half of the certificate", "no whole certificate"),
        ("half of the chain", "bad end line"),
        ("half of the key", "no whole certificate"),
        ("nothing in it", "no whole certificate"),
        ("another key", "the private key is not that of the certificate"),
        ("gone", "listener.key: no such file"),
        ("no file", "listener.key: is a directory"),
        ("a pass phrase", "listener.key: it is encrypted"),
    ],
)
def test_what_is_no_pair_is_told_without_what_is_in_it(tmp_path: Path, how: str, words: str) -> None:
    made = pair(tmp_path).write()
    spoil(made, how)
    with pytest.raises(CertificateError, match=words) as raised:
        load(made.certificate, made.key)
    secret = [line for line in made.secret.decode().splitlines() if "KEY" not in line]
    assert not any(line in str(raised.value) for line in secret)


def test_one_that_no_client_would_take_is_refused(tmp_path: Path) -> None:
    made = pair(tmp_path, purpose=ExtendedKeyUsageOID.CLIENT_AUTH).write()
    with pytest.raises(CertificateError, match="no client takes the certificate: unsuitable"):
        load(made.certificate, made.key)


@pytest.mark.parametrize(("begins", "ends"), [(-1, 30), (-30, -1), (1, 30)])
def test_its_names_and_times_are_told_whenever_it_is_valid(tmp_path: Path, begins: int, ends: int) -> None:
    names = ("127.0.0.1", "::1", "llm.example", "*.pool.example")
    made = pair(tmp_path, names=names, begins=timedelta(days=begins), ends=timedelta(days=ends)).write()
    found = load(made.certificate, made.key)
    assert found.expires - found.begins == (ends - begins) * 86400.0
    assert found.names == ("127.0.0.1", "0:0:0:0:0:0:0:1", "llm.example", "*.pool.example")


@pytest.mark.parametrize(
    ("days", "root", "expires", "whose"),
    [(5, False, 5, "Between CA"), (90, False, 30, ""), (5, True, 30, "")],
    ids=["ends first", "lasts", "a root that clients have of their own"],
)
def test_it_holds_no_longer_than_its_chain(
    tmp_path: Path, days: int, root: bool, expires: int, whose: str
) -> None:
    signs = authority("Between CA", ends=timedelta(days=days), root=root)
    made = pair(tmp_path, authority=signs).write()
    found = load(made.certificate, made.key)
    assert round((found.expires - time.time()) / 86400) == expires
    assert found.authority == whose


def test_a_chain_in_the_wrong_order_is_no_pair(tmp_path: Path) -> None:
    signs = authority("Between CA", ends=timedelta(days=90))
    made = pair(tmp_path, authority=signs).write()
    itself = made.shown.removesuffix(signs.shown)
    made.certificate.write_bytes(signs.shown + itself)
    with pytest.raises(CertificateError, match="the private key is not that of the certificate"):
        load(made.certificate, made.key)


def test_a_moment_is_told_in_utc() -> None:
    assert day(1_795_941_392) == "2026-11-29 08:36:32Z"


def test_only_tls_of_today_is_spoken(tmp_path: Path) -> None:
    made = pair(tmp_path).write()
    context = load(made.certificate, made.key).context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    assert all("DHE" in c["name"] or c["protocol"] == "TLSv1.3" for c in context.get_ciphers())
