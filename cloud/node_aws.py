"""Signed calls to AWS from a node, with the credentials of its instance role.

Standard library and its neighbours `cloud.node_*` only, Python 3.9 or newer, so that user-data can carry it.
Source: AWS Signature Version 4 (Create a signed AWS API request).
"""

# Like node_agent.py this runs where nothing of the project is installed and on older Pythons.
from __future__ import annotations

import hashlib
import hmac
import json
import os
import ssl
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from cloud.node_metadata import Metadata, Refused, fetch

ROLE = "meta-data/iam/security-credentials/"
CALL_SECONDS = 10.0
_RENEW_SECONDS = 300.0  # EC2 offers new credentials at least five minutes before the old ones run out


class Aws:
    """Signs as the instance's role. Threads may share one. Raises Refused when the instance has no role."""

    def __init__(self, imds: Metadata) -> None:
        self._imds = imds
        self.region = needed(imds, "meta-data/placement/region").strip()
        self._domain = (imds.get("meta-data/services/domain") or "amazonaws.com").strip()
        self._renew_at = 0.0
        self._held = ("", "", "")
        self._credentials()

    def url(self, service: str, region: str) -> str:
        """Where a service answers; a stand-in is named as for AWS's own tools."""
        return os.environ.get("AWS_ENDPOINT_URL") or f"https://{service}.{region}.{self._domain}"

    def signed(
        self,
        service: str,
        region: str,
        headers: Mapping[str, str],
        body: bytes,
        now: float,
        call: str = "POST /",
        query: str = "",
    ) -> dict[str, str]:
        """The headers of a request, with its signature. `call`: its method and its path, which is escaped
        already; `query`: its parameters, escaped and sorted."""
        name, secret, token = self._credentials()
        at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        scope = f"{at[:8]}/{region}/{service}/aws4_request"
        sent = {**headers, "X-Amz-Date": at, "X-Amz-Security-Token": token}
        sent["Host"] = urlsplit(self.url(service, region)).netloc
        lines = sorted((name.lower(), " ".join(value.split())) for name, value in sent.items())
        names = ";".join(name for name, _ in lines)
        head = "".join(f"{name}:{value}\n" for name, value in lines)
        method, _, path = call.partition(" ")
        request = f"{method}\n{path}\n{query}\n{head}\n{names}\n{hashlib.sha256(body).hexdigest()}"
        text = f"AWS4-HMAC-SHA256\n{at}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        key = b"AWS4" + secret.encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        credential = f"Credential={name}/{scope}"
        sent["Authorization"] = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"
        return sent

    def secret(self, arn: str) -> str:
        """What a parameter of SSM or a secret of Secrets Manager holds. Raises Refused."""
        parts = arn.split(":", 5)
        if len(parts) != 6 or parts[2] not in ("ssm", "secretsmanager"):
            raise Refused(f"{arn}: not the ARN of a parameter of SSM or of a secret of Secrets Manager")
        service, region = parts[2], parts[3]
        if service == "ssm":
            target, asked = "AmazonSSM.GetParameter", {"Name": arn, "WithDecryption": True}
        else:
            target, asked = "secretsmanager.GetSecretValue", {"SecretId": arn}
        headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": target}
        body = json.dumps(asked).encode()
        sent = self.signed(service, region, headers, body, time.time())  # noqa: TID251
        url = self.url(service, region)
        status, answer = fetch(url, "POST", sent, body, CALL_SECONDS, trusting(url))
        if status != 200:
            raise Refused(f"{arn}: status {status}: {said(answer)}")
        found = json.loads(answer)
        value = found["Parameter"]["Value"] if service == "ssm" else found.get("SecretString")
        if not isinstance(value, str):
            raise Refused(f"{arn}: it holds no text")
        return value

    def _credentials(self) -> tuple[str, str, str]:
        """Key id, secret and token. Those at hand hold while the metadata do not answer."""
        now = time.monotonic()  # noqa: TID251
        if not self._held[0] or now >= self._renew_at:
            try:
                role = needed(self._imds, ROLE).split()[0]
                found = json.loads(needed(self._imds, ROLE + role))
                self._held = (found["AccessKeyId"], found["SecretAccessKey"], found["Token"])
            except (Refused, ValueError, KeyError):
                if not self._held[0]:
                    raise
            self._renew_at = now + _RENEW_SECONDS
        return self._held


def needed(imds: Metadata, path: str) -> str:
    """A document of the metadata that must be there. Raises Refused."""
    text = imds.get(path)
    if not text or not text.strip():
        what = "the instance has no role" if path.startswith(ROLE) else "the metadata lacks it"
        raise Refused(f"{path}: {what}")
    return text


def trusting(url: str, ca_file: str = "") -> ssl.SSLContext | None:
    """Whom to trust at an address: the system's certificates unless others are given."""
    return ssl.create_default_context(cafile=ca_file or None) if url.startswith("https:") else None


def said(answer: bytes) -> str:
    """The beginning of an answer, on one line."""
    return " ".join(answer[:200].decode("utf-8", "replace").split())
