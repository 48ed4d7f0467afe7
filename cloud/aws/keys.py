"""Keys of KMS's that a user made: who has to be granted one, so that EC2 can start machines with it.

EC2 accepts a launch whose volumes are encrypted with such a key, and ends the machine while it is pending
when it may not use the key. An AWS managed key needs no grants.

Source: the EC2 user guide ("Grant AWSServiceRoleForEC2Spot access to customer managed keys for use with
encrypted AMIs and EBS snapshots") and the EBS user guide ("Requirements for Amazon EBS encryption").
"""

from __future__ import annotations

from typing import Final

OPERATIONS: Final = (
    "CreateGrant",
    "Decrypt",
    "DescribeKey",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "ReEncryptFrom",
    "ReEncryptTo",
)
"""What a grant has to permit."""


def grant_command(region: str, key: str, grantee: str) -> str:
    """The command that grants a key, by id or ARN, to a user or role."""
    return (
        f"aws kms create-grant --region {region} --key-id {key} --grantee-principal {grantee} "
        f"--operations {' '.join(OPERATIONS)}"
    )
