"""Block device mappings: what of an image's volumes a launch template says."""

import pytest

from cloud.aws.disks import Disk, devices, mappings, misfit

ROOT = {
    "DeviceName": "/dev/sda1",
    "Ebs": {
        "SnapshotId": "snap-1",
        "VolumeSize": 60,
        "VolumeType": "gp2",
        "DeleteOnTermination": True,
        "Encrypted": False,
    },
}
WEIGHTS = {
    "DeviceName": "/dev/sdf",
    "Ebs": {"SnapshotId": "snap-2", "VolumeSize": 200, "VolumeType": "gp3", "DeleteOnTermination": False},
}
EMPTY = {
    "DeviceName": "/dev/sdg",
    "Ebs": {"VolumeSize": 50, "VolumeType": "io2", "Iops": 4000, "DeleteOnTermination": False},
}
STORE = {"DeviceName": "/dev/sdb", "VirtualName": "ephemeral0"}
IMAGE = {"RootDeviceName": "/dev/sda1", "BlockDeviceMappings": [ROOT, STORE, WEIGHTS, EMPTY]}


def made(**disk) -> dict[str, dict]:
    return {m["DeviceName"]: m["Ebs"] for m in mappings(IMAGE, Disk(**disk))}


def test_no_volume_of_the_image_outlives_its_node():
    found = made()
    assert found.keys() == {"/dev/sda1", "/dev/sdf", "/dev/sdg"} == devices(IMAGE)
    assert all(ebs["DeleteOnTermination"] is True for ebs in found.values())


def test_nothing_else_is_said_of_a_volume_from_a_snapshot_by_default():
    assert made()["/dev/sda1"] == made()["/dev/sdf"] == {"DeleteOnTermination": True}


def test_an_empty_volume_stays_as_large_as_it_is():
    kept = {"VolumeSize": 50, "VolumeType": "io2", "Iops": 4000}
    assert made()["/dev/sdg"] == {"DeleteOnTermination": True, **kept}


def test_size_and_speed_are_those_of_the_root_volume_alone():
    found = made(size=300, type="gp3", throughput=1000, iops=4000)
    assert found["/dev/sda1"] == {
        "DeleteOnTermination": True,
        "VolumeSize": 300,
        "VolumeType": "gp3",
        "Throughput": 1000,
        "Iops": 4000,
    }
    assert found["/dev/sdf"] == {"DeleteOnTermination": True}


def test_what_comes_from_a_snapshot_is_initialised_at_the_rate():
    found = made(initialization_rate=300)
    rates = {device: ebs.get("VolumeInitializationRate") for device, ebs in found.items()}
    assert rates == {"/dev/sda1": 300, "/dev/sdf": 300, "/dev/sdg": None}


def test_every_volume_is_encrypted():
    for ebs in made(encrypted=True, key="alias/nodes").values():
        assert (ebs["Encrypted"], ebs["KmsKeyId"]) == (True, "alias/nodes")
    assert all("KmsKeyId" not in ebs for ebs in made(encrypted=True).values())


@pytest.mark.parametrize(
    ("image", "disk", "words"),
    [
        (IMAGE, Disk(size=59, type="gp3"), "has 60 GiB, and disk.size = 59; write 60 or more"),
        (IMAGE, Disk(size=60, type="gp3"), ""),
        (IMAGE, Disk(), ""),
        ({"RootDeviceName": "/dev/sda1", "BlockDeviceMappings": [STORE]}, Disk(), ""),
        ({"RootDeviceName": "/dev/sda1"}, Disk(size=9, type="gp3"), "is no EBS volume"),
    ],
)
def test_an_image_that_cannot_have_such_a_disk_is_found(image, disk, words):
    found = misfit(image, disk)
    assert words in found
    assert bool(found) == bool(words)
