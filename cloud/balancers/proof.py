"""How each kind of balancer is proved; see `cloud.proof`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from cloud.proof import Proof, Proved

BALANCERS: Final[Mapping[str, Proved]] = MappingProxyType(
    {
        "gateway": Proved(proof=Proof.PROGRAM, by="the gateway of this distribution"),
        "haproxy": Proved(proof=Proof.PROGRAM, by="HAProxy 2.8.25"),
        "envoy": Proved(proof=Proof.PROGRAM, by="Envoy 1.40.0"),
        "nginx": Proved(proof=Proof.PROGRAM, by="nginx 1.31.3"),
        "smg": Proved(proof=Proof.PROGRAM, by="smg 1.13.0"),
        "sglang-router": Proved(proof=Proof.PROGRAM, by="sglang-router 0.3.2"),
        "vllm-router": Proved(proof=Proof.PROGRAM, by="vllm-router 0.1.17"),
        "target-group": Proved(proof=Proof.STAND_IN, by="boto3, which the adapter uses, on moto"),
    }
)
"""By name: the gateway, the target group of AWS, and every kind of `pool.NAME.balancer`."""
