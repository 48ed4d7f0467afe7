"""The role with which EC2 starts spot machines: who calls the API makes it once for each account.

Without it every spot launch is denied. Source: the EC2 user guide ("Service-linked role for Spot Instance
requests").
"""

from __future__ import annotations

from typing import Final

SPOT_ROLE: Final = "AWSServiceRoleForEC2Spot"

MAKE_SPOT_ROLE: Final = "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"
"""The command that makes it."""


def spot_role_arn(account: str, partition: str = "aws") -> str:
    """The role's ARN."""
    return f"arn:{partition}:iam::{account}:role/aws-service-role/spot.amazonaws.com/{SPOT_ROLE}"
