"""`python -m orchestrator.gateway '{"targets_file": ..., "socket": ...}'`: a gateway from JSON settings.

The keys are those of `config.one_pool`, `charge` as texts in USD per million tokens. People start it with
`orchestrator gateway`; this entry is for programs that start a gateway and have its settings at hand. Exit
codes: 0 stopped, 1 cannot start, 2 usage.
"""

from __future__ import annotations

import sys
from pathlib import Path

import orjson

from orchestrator.gateway.app import serve
from orchestrator.gateway.config import GatewayConfig, GatewayError, one_pool
from orchestrator.gateway.handover import inheritance
from orchestrator.units import parse_host_port
from policies.spend import Rates

_PATHS = (
    "targets_file", "socket", "keys_file", "tls_cert_file", "tls_key_file", "usage_file", "spend_file",
)  # fmt: skip
_TUPLES = ("adapters", "allow_paths", "allowed_hosts", "loaded", "trusted_proxies")


def config_from_json(text: str) -> GatewayConfig:
    """The settings from a JSON object. Raises GatewayError."""
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise GatewayError(f"gateway: settings are not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise GatewayError("gateway: settings: expected a JSON object")
    for name in _PATHS:
        if name in fields:
            fields[name] = Path(fields[name])
    for name in _TUPLES:
        if name in fields:
            fields[name] = tuple(fields[name])
    try:
        if "charge" in fields:
            fields["charge"] = Rates.of(**fields["charge"])
        if "metrics_listen" in fields:
            fields["metrics_listen"] = parse_host_port(fields["metrics_listen"])
        return one_pool(**fields)
    except (TypeError, ValueError) as error:
        raise GatewayError(f"gateway: settings: {error}") from None


def main(arguments: list[str]) -> int:
    """Run a gateway; returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m orchestrator.gateway JSON", file=sys.stderr)
        return 2
    try:
        with inheritance() as given:
            serve(config_from_json(arguments[0]), given)
    except GatewayError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
