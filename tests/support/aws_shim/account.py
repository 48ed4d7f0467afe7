"""What an account has or has not: the role of spot launches, regions that it opted in to, a default key."""

import copy

from moto.core.responses import ActionResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import EC2Backend
from moto.ec2.responses.settings import Settings
from moto.iam.models import IAMBackend, Role
from state import ACCOUNT

_SPOT_ROLE = "AWSServiceRoleForEC2Spot"


def patch_account(shim):
    """Add it to moto in this process."""
    known_role, regions = IAMBackend.get_role, EC2Backend.describe_regions

    def get_role(self, role_name):
        if role_name != _SPOT_ROLE or not shim.settings["spot_role"]:
            return known_role(self, role_name)
        return Role(
            account_id=ACCOUNT,
            partition="aws",
            role_id="AROASPOT",
            name=_SPOT_ROLE,
            assume_role_policy_document="{}",
            path="/aws-service-role/spot.amazonaws.com/",
            permissions_boundary=None,
            description="",
            tags={},
            max_session_duration="3600",
        )

    def describe_regions(self, region_names=None):
        found = [copy.copy(region) for region in regions(self, region_names)]
        unknown = set(region_names or ()) - {region.name for region in found}
        if unknown:
            raise EC2ClientError("InvalidParameterValue", f"Invalid region provided: {sorted(unknown)}")
        for region in found:
            if region.name in shim.settings["opted_out"]:
                region.opt_in_status = "not-opted-in"
        return found

    def get_ebs_encryption_by_default(self):
        return ActionResult({"EbsEncryptionByDefault": bool(shim.settings["default_key"])})

    def get_ebs_default_kms_key_id(self):
        return ActionResult({"KmsKeyId": shim.settings["default_key"] or "alias/aws/ebs"})

    Settings.get_ebs_encryption_by_default = get_ebs_encryption_by_default
    Settings.get_ebs_default_kms_key_id = get_ebs_default_kms_key_id
    IAMBackend.get_role, EC2Backend.describe_regions = get_role, describe_regions
