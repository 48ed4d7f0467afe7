#!/usr/bin/env python3
"""Runs on a node: fetches the node's own key, and starts the engine with its address and its secrets.

Standard library and its neighbours `cloud.node_*` only, Python 3.9 or newer, so that user-data can carry it.
What the node may have it asks for with the credentials of its instance role, so user-data holds no secret.

key     Proves to the control host which instance this is, and writes the key that it gives, and the agent's
        program, which fits that control host and need not be in the user-data. The proof is a
        request to STS, signed here and sent there by the control host: STS answers it with the instance's id.
        A challenge of the control host is part of what is signed, so the proof is worth nothing later or
        elsewhere. On Compute Engine the proof is a token that Google signed (`cloud.node_gcp`).
engine  Reads a JSON file {"argv", "on", "env", "secrets", "port", "weights", "needs", "container"}, looks
        whether the machine can run the engine, fetches the secrets into the environment, brings the weights,
        and becomes it. {host} in its words is the node's private address, {port} the port, {model} where the
        weights are, {gpus} the number of GPUs. A secret is the ARN of a parameter of SSM or of a secret of
        Secrets Manager, under the name of its variable. "weights" is empty, a path or s3://BUCKET/PREFIX;
        "needs" is {"gpus": how many, "vllm": whether it is vLLM, "weights": bytes}. "on" has {"argv", "gpus"}
        of the instance types on which it is started otherwise. "container" is null, or what the engine runs
        in (`cloud.node_container`), whose image is fetched: its home, the local disk and the weights are
        there where they are on the node. Every step goes into the boot report. A start that fails is tried
        again at a growing pace.

Options, which this explains so that nodes need not carry it: --imds the metadata service; --url the control
host's listener for node reports, --key-file where the key goes, in hex, --agent where its program goes,
--ca-file certificates to trust instead of the system's; --report the boot report.

Examples:
  python3 -m cloud.node_start key --url https://control:9465 --key-file key --agent agent.py
  python3 -m cloud.node_start engine /opt/orchestrator/engine.json
"""

# Like node_agent.py this runs where nothing of the project is installed and on older Pythons.
from __future__ import annotations

import argparse
import json
import os
import re
import ssl
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from cloud.node_aws import CALL_SECONDS, Aws, needed, said, trusting
from cloud.node_boot import BOOT_FILE, Boot, pause
from cloud.node_checks import ENGINE_HOME, ask, count_gpus, disk_of, environment_for, look
from cloud.node_metadata import IMDS, Metadata, Refused, fetch, metadata_of, node_id

STS_BODY = b"Action=GetCallerIdentity&Version=2011-06-15"
STS_TYPE = "application/x-www-form-urlencoded; charset=utf-8"
_NEXT = "; restart"
CHALLENGE = "X-Orchestrator-Challenge"


def fetch_key(imds: Metadata, url: str, file: str, program: str, ca_file: str) -> None:
    """Prove to the control host who this is and write the key and the agent that it gives. Raises Refused."""
    node = node_id(needed(imds, "meta-data/instance-id").strip())
    base, trust = f"{url.rstrip('/')}/v1/nodes/{node}", trusting(url, ca_file)
    challenge = _asked(f"{base}/challenge", {}, trust)["challenge"]
    aws = getattr(imds, "signer", Aws)(imds)
    headers = {"Content-Type": STS_TYPE, CHALLENGE: str(challenge)}
    signed = aws.signed("sts", aws.region, headers, STS_BODY, time.time())  # noqa: TID251
    given = _asked(f"{base}/key", {"challenge": challenge, "headers": signed}, trust)
    bytes.fromhex(given["key"])
    for path, text, mode in ((program, given["agent"], 0o644), (file, given["key"] + "\n", 0o600)):
        with open(os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as out:
            out.write(text)
        os.replace(f"{path}.new", path)


def engine(imds: Metadata, imds_url: str, file: str, boot: Boot) -> tuple[list[str], dict[str, str]]:
    """The command line and environment of the engine that a file describes, after all checks.

    Brings its weights where they are in S3. Raises Refused, OSError, ValueError, KeyError.
    """
    with open(file, encoding="utf-8") as source:
        given = json.load(source)
    boot.stage("checks")
    given = of_this_type(given, imds)
    host, port = needed(imds, "meta-data/local-ipv4").strip(), str(given["port"])
    environment = environment_for(given["argv"][0], given["env"], os.environ)
    failed = []
    inside = given.get("container")
    way: Any = import_module(f"cloud.node_{'container' if inside else 'program'}")  # the one that is here
    for check in look(given.get("needs") or {}, way.checks(given, environment), environment, imds_url):
        boot.check(check.name, check.ok, check.text)
        failed += [f"{check.name}: {check.text}"] if check.fatal else []
    if failed:
        raise Refused("; ".join(failed))
    aws = Aws(imds) if given["secrets"] or given.get("weights", "").startswith("s3://") else None
    if given["secrets"] and aws is not None:
        boot.stage("secrets", f"{len(given['secrets'])} to fetch")
        environment.update({name: aws.secret(arn) for name, arn in given["secrets"].items()})
    filled = {"{host}": host, "{port}": port, "{model}": model_of(given, aws, environment, boot)}
    if any("{gpus}" in word for word in given["argv"]):
        filled["{gpus}"] = str(count_gpus(ask))
    words = re.compile("|".join(map(re.escape, filled)))
    argv = [words.sub(lambda m: filled[m[0]], word) for word in given["argv"]]
    if inside:
        argv = way.command(given, argv, filled["{model}"], environment, boot)
    return argv, environment


def of_this_type(given: dict[str, Any], imds: Metadata) -> dict[str, Any]:
    """The description as it holds for this machine's instance type. Raises Refused."""
    own = given.get("on") or {}
    found = own.get(needed(imds, "meta-data/instance-type").strip()) if own else None
    if found is None:
        return given
    return {**given, "argv": found["argv"], "needs": {**(given.get("needs") or {}), "gpus": found["gpus"]}}


def model_of(given: Mapping[str, Any], aws: Aws | None, environment: Mapping[str, str], boot: Boot) -> str:
    """Where the engine finds its model, which is brought there from S3; empty for where it looks itself."""
    weights, home = given.get("weights", ""), environment.get("HOME") or ENGINE_HOME
    if not weights.startswith("s3://"):
        if weights and not os.access(weights, os.R_OK | (os.X_OK if os.path.isdir(weights) else 0)):
            what = "is not there, or the engine's user may not read it"
            raise Refused(f"weights: {weights} {what}; correct cloud.aws.weights or the image")
        return str(weights)
    if aws is None:
        raise Refused(f"weights: {weights}: the instance has no role")
    from cloud.node_weights import Copy, place_of  # user-data carries it where it is needed

    # A complete copy that came with the image, or outlived a stop, is used where it is.
    at_home = place_of(weights, home)
    whole = os.path.exists(f"{at_home}/.complete")
    directory = at_home if whole else place_of(weights, disk_of(home))
    os.makedirs(directory, exist_ok=True)
    boot.stage("weights", f"{weights} to {directory}")

    def tell(there: int, total: int, rate: float) -> None:
        text = f"{there / 1e9:.1f} of {total / 1e9:.1f} GB, {rate / 1e6:.0f} MB/s"
        boot.stage("weights", text, aloud=False)

    doubt = Copy(aws, weights, directory, tell).bring()
    text = f"{directory} is complete" + (f", and was not compared with S3: {doubt}" if doubt else "")
    boot.check("weights", not doubt, text)
    return directory


def start(imds: Metadata, options: argparse.Namespace) -> int:
    """Become the engine. Where that cannot be, say why, wait, and end, so that systemd tries again."""
    boot = Boot(options.report)
    wait = pause(boot.restarts)
    try:
        if wait:
            why = boot.before.partition(_NEXT)[0]
            boot.stage("failed", f"{why}{_NEXT} {boot.restarts} follows in {wait:.0f} s", ok=False)
            time.sleep(wait)  # noqa: TID251
        argv, environment = engine(imds, options.imds, options.file, boot)
        boot.stage("start", f"{argv[0]} starts")
        os.execvpe(argv[0], argv, environment)  # noqa: S606 - the program is the pool's engine
    except (Refused, OSError) as error:
        boot.stage("failed", str(error), ok=False)
    except Exception as error:  # whatever it is, it is told
        boot.stage("failed", f"{type(error).__name__}: {error}", ok=False)
    return 1


def _asked(url: str, body: Mapping[str, Any], trust: ssl.SSLContext | None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    status, answer = fetch(url, "POST", headers, json.dumps(body).encode(), CALL_SECONDS, trust)
    if status != 200:
        raise Refused(f"{url}: status {status}: {said(answer)}")
    found = json.loads(answer)
    return found if isinstance(found, dict) else {}


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
    parser.add_argument("--imds", default=imds)
    what = parser.add_subparsers(dest="what", required=True)
    key = what.add_parser("key", help="fetch this node's key")
    key.add_argument("--url", required=True)
    key.add_argument("--key-file", required=True)
    key.add_argument("--agent", required=True)
    key.add_argument("--ca-file", default="")
    become = what.add_parser("engine", help="become the engine")
    become.add_argument("file")
    become.add_argument("--report", default=BOOT_FILE)
    options = parser.parse_args(arguments)
    metadata = metadata_of(options.imds)
    if options.what == "engine":
        return start(metadata, options)
    try:
        fetch_key(metadata, options.url, options.key_file, options.agent, options.ca_file)
    except (Refused, OSError, ValueError, KeyError) as error:
        print(f"node-start: {options.what}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
