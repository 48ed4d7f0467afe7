#!/usr/bin/env python3
"""Runs on an EC2 node: fetches the node's own key, and starts the engine with its address and its secrets.

Standard library and its neighbours `cloud.node_*` only, Python 3.9 or newer, so that user-data can carry it.
What the node may have it asks for with the credentials of its instance role, so user-data holds no secret.

key     Proves to the control host which instance this is, and writes the key that it gives. The proof is a
        request to STS, signed here and sent there by the control host: STS answers it with the instance's id.
        A challenge of the control host is part of what is signed, so the proof is worth nothing later or
        elsewhere.
engine  Reads a JSON file {"argv", "env", "secrets", "port"}, fills {host} with the node's private address and
        {port} with the port, fetches the secrets into the environment, and becomes the engine. A secret is
        the ARN of a parameter of SSM or of a secret of Secrets Manager, under the name of its variable.

Examples:
  python3 -m cloud.node_start key --url https://control:9465 --key-file /run/orchestrator-agent/key
  python3 -m cloud.node_start engine /opt/orchestrator/engine.json
"""

# Like node_agent.py this runs where nothing of the project is installed and on older Pythons.
from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import os
import ssl
import sys
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from cloud.node_metadata import IMDS, Metadata, Refused, fetch, node_id

STS_BODY = b"Action=GetCallerIdentity&Version=2011-06-15"
STS_TYPE = "application/x-www-form-urlencoded; charset=utf-8"
CHALLENGE = "X-Orchestrator-Challenge"
_ROLE = "meta-data/iam/security-credentials/"
_CALL_SECONDS = 10.0


class Aws:
    """Signed calls with the credentials of the instance's role."""

    def __init__(self, imds: Metadata) -> None:
        role = (_needed(imds, _ROLE)).split()[0]
        held = json.loads(_needed(imds, _ROLE + role))
        self.region = _needed(imds, "meta-data/placement/region").strip()
        self._domain = (imds.get("meta-data/services/domain") or "amazonaws.com").strip()
        self._id, self._secret, self._token = held["AccessKeyId"], held["SecretAccessKey"], held["Token"]

    def url(self, service: str, region: str) -> str:
        """Where a service answers; a stand-in is named as for AWS's own tools."""
        return os.environ.get("AWS_ENDPOINT_URL") or f"https://{service}.{region}.{self._domain}"

    def signed(
        self, service: str, region: str, headers: Mapping[str, str], body: bytes, now: float
    ) -> dict[str, str]:
        """The headers of a POST to the root of a service, with its signature.

        Source: AWS Signature Version 4 (Create a signed AWS API request).
        """
        at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        scope = f"{at[:8]}/{region}/{service}/aws4_request"
        sent = {**headers, "X-Amz-Date": at, "X-Amz-Security-Token": self._token}
        sent["Host"] = urlsplit(self.url(service, region)).netloc
        lines = sorted((name.lower(), " ".join(value.split())) for name, value in sent.items())
        names = ";".join(name for name, _ in lines)
        head = "".join(f"{name}:{value}\n" for name, value in lines)
        request = f"POST\n/\n\n{head}\n{names}\n{hashlib.sha256(body).hexdigest()}"
        text = f"AWS4-HMAC-SHA256\n{at}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        key = b"AWS4" + self._secret.encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        credential = f"Credential={self._id}/{scope}"
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
        status, answer = fetch(url, "POST", sent, body, _CALL_SECONDS, _trust(url))
        if status != 200:
            raise Refused(f"{arn}: status {status}: {_said(answer)}")
        found = json.loads(answer)
        value = found["Parameter"]["Value"] if service == "ssm" else found.get("SecretString")
        if not isinstance(value, str):
            raise Refused(f"{arn}: it holds no text")
        return value


def fetch_key(imds: Metadata, url: str, file: str, ca_file: str) -> None:
    """Prove to the control host who this is and write the key that it gives. Raises Refused."""
    node = node_id(_needed(imds, "meta-data/instance-id").strip())
    base, trust = f"{url.rstrip('/')}/v1/nodes/{node}", _trust(url, ca_file)
    challenge = _asked(f"{base}/challenge", {}, trust)["challenge"]
    aws = Aws(imds)
    headers = {"Content-Type": STS_TYPE, CHALLENGE: str(challenge)}
    signed = aws.signed("sts", aws.region, headers, STS_BODY, time.time())  # noqa: TID251
    key = str(_asked(f"{base}/key", {"challenge": challenge, "headers": signed}, trust)["key"])
    bytes.fromhex(key)
    with open(os.open(f"{file}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(key + "\n")
    os.replace(f"{file}.new", file)


def engine(imds: Metadata, file: str) -> tuple[list[str], dict[str, str]]:
    """The command line and environment of the engine that a file describes. Raises Refused."""
    with open(file, encoding="utf-8") as source:
        given = json.load(source)
    host, port = _needed(imds, "meta-data/local-ipv4").strip(), str(given["port"])
    argv = [word.replace("{host}", host).replace("{port}", port) for word in given["argv"]]
    # The path to this module is not the engine's business.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment.update(given["env"])
    if given["secrets"]:
        aws = Aws(imds)
        environment.update({name: aws.secret(arn) for name, arn in given["secrets"].items()})
    return argv, environment


def _needed(imds: Metadata, path: str) -> str:
    text = imds.get(path)
    if not text or not text.strip():
        what = "the instance has no role" if path.startswith(_ROLE) else "the metadata lacks it"
        raise Refused(f"{path}: {what}")
    return text


def _asked(url: str, body: Mapping[str, Any], trust: ssl.SSLContext | None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    status, answer = fetch(url, "POST", headers, json.dumps(body).encode(), _CALL_SECONDS, trust)
    if status != 200:
        raise Refused(f"{url}: status {status}: {_said(answer)}")
    found = json.loads(answer)
    return found if isinstance(found, dict) else {}


def _trust(url: str, ca_file: str = "") -> ssl.SSLContext | None:
    return ssl.create_default_context(cafile=ca_file or None) if url.startswith("https:") else None


def _said(answer: bytes) -> str:
    return " ".join(answer[:200].decode("utf-8", "replace").split())


def main(arguments: list[str] | None = None) -> int:
    """Fetch the key, or become the engine."""
    about, _, examples = (__doc__ or "").partition("Examples:")
    parser = argparse.ArgumentParser(
        prog="node_start.py",
        description=about.strip(),
        epilog="examples:" + examples.rstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    imds = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or IMDS
    parser.add_argument("--imds", default=imds, help="the instance metadata service (%(default)s)")
    what = parser.add_subparsers(dest="what", required=True)
    key = what.add_parser("key", help="fetch this node's key")
    key.add_argument("--url", required=True, help="the control host's listener for node reports, https://")
    key.add_argument("--key-file", required=True, help="where the key goes, in hex")
    key.add_argument("--ca-file", default="", help="certificates to trust (the system's)")
    start = what.add_parser("engine", help="become the engine")
    start.add_argument("file", help="JSON file that describes it")
    options = parser.parse_args(arguments)
    try:
        metadata = Metadata(options.imds)
        if options.what == "key":
            fetch_key(metadata, options.url, options.key_file, options.ca_file)
            return 0
        argv, environment = engine(metadata, options.file)
        os.execvpe(argv[0], argv, environment)  # noqa: S606 - the program is the pool's engine
    except (Refused, OSError, ValueError, KeyError) as error:
        print(f"node-start: {options.what}: {error}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
