"""What a RunInstances asks for, launch template included, and what EC2 refuses of it and moto does not."""

from images import volumes_of
from moto.ec2.exceptions import EC2ClientError
from moto.iam.models import iam_backends
from state import ACCOUNT

_MOST_TAGS = 50
_TYPES = {"instance", "volume", "network-interface", "elastic-gpu"}


class Asked:
    """A launch as asked for: `volumes` to make, `tags` by resource type. Raises EC2ClientError."""

    def __init__(self, shim, backend, read):
        given = read("LaunchTemplate", {})
        template = backend._get_template_from_args(given).data if given else {}
        image = read("ImageId") or template.get("ImageId")
        spot = read("InstanceMarketOptions.MarketType") == "spot"
        if not image:
            raise EC2ClientError("MissingParameter", "The request must contain the parameter ImageId")
        backend.describe_images(ami_ids=[image])
        _need_profile(read("IamInstanceProfile", {}) or template.get("IamInstanceProfile", {}))
        _need_key(backend, read("KeyName") or template.get("KeyName"))
        if read("SubnetId") and template.get("NetworkInterfaces"):
            raise EC2ClientError(
                "InvalidParameterCombination",
                "Network interfaces and an instance-level subnet ID may not be specified on the same request",
            )
        self.tags = {}
        for specification in [*template.get("TagSpecifications", ()), *read("TagSpecifications", [])]:
            _check_tags(specification, spot)
            kind = self.tags.setdefault(specification["ResourceType"], {})
            kind.update({tag["Key"]: tag.get("Value", "") for tag in specification.get("Tags", ())})
        overrides = [*template.get("BlockDeviceMappings", ()), *read("BlockDeviceMappings", [])]
        self.volumes = volumes_of(shim, backend, image, overrides)


def _need_profile(given):
    known = iam_backends[ACCOUNT]["aws"].instance_profiles.values()
    for field, values in (("Name", [p.name for p in known]), ("Arn", [p.arn for p in known])):
        if given.get(field) and given[field] not in values:
            raise EC2ClientError(
                "InvalidParameterValue",
                f"Value ({given[field]}) for parameter iamInstanceProfile.{field.lower()} is invalid. "
                f"Invalid IAM Instance Profile {field.lower()}",
            )


def _need_key(backend, name):
    if name and name not in backend.key_pairs:
        raise EC2ClientError("InvalidKeyPair.NotFound", f"The key pair '{name}' does not exist")


def _check_tags(specification, spot):
    kind, tags = specification["ResourceType"], specification.get("Tags", ())
    if kind not in _TYPES and not (spot and kind == "spot-instances-request"):
        raise EC2ClientError(
            "InvalidParameterValue", f"'{kind}' is not a valid taggable resource type for this operation."
        )
    if any(tag["Key"].lower().startswith("aws:") for tag in tags):
        raise EC2ClientError(
            "InvalidParameterValue",
            "Invalid value for tag key. Tag keys starting with 'aws:' are reserved for internal use",
        )
    if len({tag["Key"] for tag in tags}) < len(tags):
        raise EC2ClientError("InvalidParameterValue", "Duplicate tag key found. Tag keys must be unique.")
    if len(tags) > _MOST_TAGS:
        raise EC2ClientError("TagLimitExceeded", f"More than {_MOST_TAGS} tags specified.")
