"""Images with the disks that a setting gives them, and what becomes of these disks.

moto knows one root volume for any image. EC2 makes every volume of the image's block device mappings, over
which template and launch may write, and leaves those behind at the end that are not deleted on termination.
"""

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import EC2Backend
from moto.ec2.models.amis import Ami

_STANDARD = ("ami-12345678", "ami-87654321")  # images that are always there
_ROOT = {"device": "/dev/sda1", "size": 8, "delete_on_termination": True}


def _made(backend, name, described):
    """An image of the settings; moto's models cannot be derived from."""
    zone = next(iter(EC2Backend.describe_availability_zones(backend))).name
    volumes = [{**_ROOT, "encrypted": False, "kms": "", **volume} for volume in described["volumes"]]
    image = Ami(
        backend,
        ami_id=name,
        name=name,
        region_name=zone,
        root_device_name=volumes[0]["device"],
        root_device_type="ebs",
        virtualization_type="hvm",
        architecture="x86_64",
    )
    image.described = described
    image.volumes = [{**volume, "snapshot": _snapshot(image, volume, zone)} for volume in volumes]
    return image


def _snapshot(image, volume, zone):
    backend, key = image.ec2_backend, volume["kms"] or None
    encrypted = volume["encrypted"]
    source = backend.create_volume(
        size=volume["size"], zone_name=zone, encrypted=encrypted, kms_key_id=key if encrypted else None
    )
    snapshot = backend.create_snapshot(source.id, "", image.owner_id, from_ami=image.id)
    snapshot.kms_key_id = key
    backend.delete_volume(source.id)
    return snapshot.id


def _mappings(image):
    """What DescribeImages tells of the disks. What an image of moto's own would leave behind is deleted."""
    volumes = getattr(image, "volumes", None) or [
        {**_ROOT, "device": image.root_device_name, "snapshot": image.ebs_snapshot.id, "encrypted": False}
    ]
    return [
        {
            "DeviceName": volume["device"],
            "Ebs": {
                "SnapshotId": volume["snapshot"],
                "VolumeSize": volume["size"],
                "DeleteOnTermination": volume["delete_on_termination"],
                "VolumeType": "gp3",
                "Encrypted": volume["encrypted"],
            },
        }
        for volume in volumes
    ]


def patch_images(shim):
    """Change moto's EC2 in this process."""
    describe = EC2Backend.describe_images

    def describe_images(self, ami_ids=None, filters=None, exec_users=None, owners=None):
        with shim.lock:
            _register(shim, self)
        return describe(self, ami_ids, filters, exec_users, owners)

    EC2Backend.describe_images = describe_images
    Ami.block_device_mappings = property(_mappings)


def _register(shim, backend):
    """Have the images of the settings, and none that were there before a change of them."""
    wanted = {**{name: {"volumes": [_ROOT]} for name in _STANDARD}, **shim.settings["images"]}
    for name, image in list(backend.amis.items()):
        described = getattr(image, "described", None)
        if described is not None and described != wanted.get(name):
            del backend.amis[name]
    for name, described in wanted.items():
        if name not in backend.amis:
            backend.amis[name] = _made(backend, name, described)


def volumes_of(shim, backend, image, overrides):
    """The volumes that a launch makes: those of the image, as template and launch write over them.

    Each is {"device", "size", "delete_on_termination", "encrypted", "kms", "type"}.
    """
    found = {}
    for volume in getattr(backend.amis.get(image), "volumes", [_ROOT]):
        found[volume["device"]] = {"encrypted": False, "kms": "", "type": "gp3", **volume}
    for mapping in overrides:
        device, ebs = mapping["DeviceName"], mapping.get("Ebs", {})
        if "NoDevice" in mapping:
            found.pop(device, None)
            continue
        if not ebs:
            continue  # instance store
        before = found.get(device, {"device": device, **{k: v for k, v in _ROOT.items() if k != "device"}})
        size = int(ebs.get("VolumeSize") or before["size"])
        if size < before["size"] and device in found:
            raise EC2ClientError(
                "InvalidBlockDeviceMapping",
                f"Volume of size {size}GB is smaller than snapshot, expect size>= {before['size']}GB",
            )
        found[device] = {
            "device": device,
            "size": size,
            "delete_on_termination": _flag(ebs.get("DeleteOnTermination", before["delete_on_termination"])),
            "encrypted": _flag(ebs.get("Encrypted", before.get("encrypted", False))),
            "kms": ebs.get("KmsKeyId") or before.get("kms", ""),
            "type": ebs.get("VolumeType") or "gp3",
            "iops": ebs.get("Iops"),
            "throughput": ebs.get("Throughput"),
        }
    for volume in found.values():
        if shim.settings["default_key"] and not volume["kms"]:
            volume["encrypted"], volume["kms"] = True, shim.settings["default_key"]
    return list(found.values())


def attach(backend, instance, volumes, tags):
    """Give a new machine its volumes in the place of those that moto made."""
    instance.teardown_defaults()
    for volume in volumes:
        made = backend.create_volume(
            size=volume["size"],
            zone_name=instance.placement.zone,
            encrypted=volume["encrypted"],
            kms_key_id=volume["kms"] or None,
            volume_type=volume["type"],
            iops=volume.get("iops"),
            throughput=volume.get("throughput"),
        )
        made.add_tags(tags)
        backend.attach_volume(made.id, instance.id, volume["device"], volume["delete_on_termination"])


def _flag(value):
    return value in (True, "true", "True")
