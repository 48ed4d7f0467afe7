"""What is done with a machine's disks. What is not surely blank and of the instance store stays as it is."""

import glob
import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud import node_disks
from cloud.node_disks import ARRAY_LABEL, LABEL, MODEL, Disk, Plan, is_blank, plan, why_not

GB = 10**9
DESTROYS = ("format", "stripe")


def entry(name="nvme1n1", **changes):
    """A disk as lsblk tells of it."""
    return {
        "name": name,
        "path": f"/dev/{name}",
        "type": "disk",
        "fstype": None,
        "label": None,
        "mountpoint": None,
        "model": MODEL,
        "ro": False,
        "size": 1900 * GB,
        **changes,
    }


def disk(name="nvme1n1", *, signatures=0, probed=2, **changes):
    return Disk(f"/dev/{name}", entry(name, **changes), signatures, probed)


def test_one_blank_disk_is_formatted():
    made = plan([disk()], striping=True)
    assert (made.action, made.devices, made.ok) == ("format", ("/dev/nvme1n1",), True)


def test_several_are_striped_where_mdadm_is_and_else_the_largest_serves():
    disks = [disk("nvme2n1"), disk("nvme1n1"), disk("nvme3n1", size=3800 * GB)]
    assert plan(disks, striping=True)[:2] == ("stripe", ("/dev/nvme1n1", "/dev/nvme2n1", "/dev/nvme3n1"))
    made = plan(disks, striping=False)
    assert (made.action, made.devices, made.ok) == ("format", ("/dev/nvme3n1",), False)
    assert "without 2 more: mdadm is not installed" in made.text


def test_a_machine_without_local_disks_goes_on():
    made = plan([], striping=True)
    assert (made.action, made.ok) == ("none", True)


FOREIGN = {
    "an EBS volume": {"model": "Amazon Elastic Block Store"},
    "no model": {"model": None},
    "a partition table": {"children": [entry("nvme1n1p1", type="part")]},
    "a file system": {"fstype": "xfs"},
    "our label on another file system": {"fstype": "xfs", "label": LABEL},
    "LVM": {"fstype": "LVM2_member"},
    "LUKS": {"fstype": "crypto_LUKS"},
    "a stripe of somebody": {"fstype": "linux_raid_member", "label": "host:data"},
    "a label alone": {"label": "data"},
    "in use as the root": {"mountpoint": "/", "fstype": "ext4"},
    "swap": {"mountpoint": "[SWAP]", "fstype": "swap"},
    "read-only": {"ro": True},
    "read-only, as older lsblk says it": {"ro": "1"},
    "nobody knows whether it can be written": {"ro": None},
    "no size": {"size": 0},
    "a partition": {"type": "part"},
    "a loop": {"type": "loop"},
    "signatures": {"signatures": 1},
    "wipefs failed": {"signatures": None},
    "blkid found something": {"probed": 0},
    "blkid is ambivalent": {"probed": 8},
    "blkid failed": {"probed": 4},
    "blkid is missing": {"probed": None},
}


@pytest.mark.parametrize("changes", FOREIGN.values(), ids=FOREIGN.keys())
def test_what_is_not_surely_blank_is_left_alone(changes):
    foreign = disk(**changes)
    assert not is_blank(foreign)
    made = plan([foreign], striping=True)
    assert (made.action, made.devices, made.ok) == ("none", (), False)
    assert made.text.startswith("left alone: /dev/nvme1n1: ")
    beside = plan([foreign, disk("nvme2n1")], striping=True)
    assert beside[:2] == ("format", ("/dev/nvme2n1",))
    both = plan([foreign, disk("nvme2n1"), disk("nvme3n1")], striping=True)
    assert both[:2] == ("stripe", ("/dev/nvme2n1", "/dev/nvme3n1"))


def test_a_disk_of_which_lsblk_does_not_tell_is_left_alone():
    assert plan([Disk("/dev/nvme1n1", None, 0, 2)], striping=True).action == "none"


def test_older_lsblk_tells_flags_and_sizes_as_texts():
    assert plan([disk(ro="0", size="1900000000000")], striping=True).action == "format"


def test_what_was_made_before_a_reboot_is_mounted_again():
    ours = disk(fstype="ext4", label=LABEL, signatures=1, probed=0)
    assert plan([ours, disk("nvme2n1")], striping=True)[:2] == ("mount", ("/dev/nvme1n1",))
    array = entry("md127", path="/dev/md127", type="raid0", fstype="ext4", label=LABEL, model=None)
    member = {"fstype": "linux_raid_member", "label": ARRAY_LABEL, "signatures": 1, "probed": 0}
    striped = [disk(name, children=[array], **member) for name in ("nvme1n1", "nvme2n1")]
    assert plan(striped, striping=True)[:2] == ("mount", ("/dev/md127",))
    apart = [disk(name, **member) for name in ("nvme1n1", "nvme2n1")]
    assert plan(apart, striping=True)[:2] == ("assemble", ("/dev/nvme1n1", "/dev/nvme2n1"))


def test_what_is_mounted_stays():
    ours = disk(fstype="ext4", label=LABEL, mountpoint="/mnt/orchestrator", signatures=1, probed=0)
    assert plan([ours], striping=True).action == "kept"


def test_what_the_image_mounted_is_used_as_it_is():
    volume = entry("vg-lv", path="/dev/mapper/vg-lv", type="lvm", fstype="xfs", mountpoint="/opt/dlami/nvme")
    member = {"fstype": "LVM2_member", "signatures": 1, "probed": 0, "children": [volume]}
    made = plan([disk("nvme1n1", **member), disk("nvme2n1", **member)], striping=True)
    assert made[:2] == ("use", ("/opt/dlami/nvme",))


@pytest.mark.parametrize("where", ["/", "/boot", "/boot/efi", "/var", "/usr", "/home", "[SWAP]", "/tmp"])
def test_the_systems_own_file_systems_are_not_used(where):
    assert (
        plan([disk(mountpoint=where, fstype="ext4", probed=0, signatures=1)], striping=True).action == "none"
    )


ENTRY = st.fixed_dictionaries(
    {"path": st.just("/dev/nvme1n1"), "name": st.just("nvme1n1")},
    optional={
        "type": st.sampled_from(["disk", "part", "lvm", None]),
        "fstype": st.sampled_from([None, "", "ext4", "xfs", "linux_raid_member"]),
        "label": st.sampled_from([None, "", LABEL, ARRAY_LABEL, "data"]),
        "mountpoint": st.sampled_from([None, "", "/", "/opt/x", "/mnt/orchestrator"]),
        "model": st.sampled_from([MODEL, MODEL + "  ", "Amazon Elastic Block Store", None, 5]),
        "ro": st.sampled_from([True, False, "0", "1", None, "x"]),
        "size": st.sampled_from([0, 10**12, "1000000000000", None, -5, "x"]),
        "children": st.sampled_from([None, [], [{"path": "/dev/x", "mountpoint": None}]]),
    },
)
DISKS = st.lists(
    st.builds(
        Disk,
        st.sampled_from(["/dev/nvme1n1", "/dev/nvme2n1", "/dev/nvme3n1"]),
        st.none() | ENTRY,
        st.sampled_from([None, 0, 0, 1]),
        st.sampled_from([None, 0, 2, 2, 4, 8]),
    ),
    max_size=4,
    unique_by=lambda each: each.path,
)


@given(DISKS, st.booleans())
def test_nothing_is_destroyed_that_is_not_blank_whatever_the_tools_say(disks, striping):
    made = plan(disks, striping)
    by_path = {each.path: each for each in disks}
    assert made.text
    if made.action in DESTROYS:
        for path in made.devices:
            each = by_path[path]
            assert each.tree is not None
            assert not any(each.tree.get(key) for key in ("fstype", "label", "mountpoint", "children"))
            assert str(each.tree["model"]).strip() == MODEL
            assert (each.signatures, each.probed) == (0, 2)
        assert not any((d.tree or {}).get("mountpoint") == "/mnt/orchestrator" for d in disks)


# -- what the tools say of real images -------------------------------------------------------------------


def zeros(path: Path, size: int = 64 * 2**20) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def put(path: Path, at: int, what: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(what)
    return path


def partitioned(path: Path) -> Path:
    entry = struct.pack("<B3sB3sII", 0, b"\0" * 3, 0x83, b"\0" * 3, 2048, 4096)
    return put(path, 446, entry + b"\0" * 48 + b"\x55\xaa")


SIGNED = {
    "swap": lambda path: (subprocess.run(["mkswap", "-q", path], check=True), path)[1],
    "partitions": partitioned,
    "LVM": lambda path: put(path, 512, b"LABELONE" + struct.pack("<Q", 1) + b"\0" * 8 + b"LVM2 001"),
    "LUKS": lambda path: put(path, 0, b"LUKS\xba\xbe\x00\x01"),
    "ext4": lambda path: (subprocess.run(["mkfs.ext4", "-q", path], check=True), path)[1],
    "btrfs": lambda path: put(path, 0x10040, b"_BHRfS_M"),
}


@pytest.fixture
def tools():
    for tool in ("wipefs", "blkid", "mkfs.ext4", "mkswap"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed; on Debian: apt-get install util-linux e2fsprogs")


def examined(path: Path) -> Disk:
    """As it would be if lsblk, which tells of devices only, found nothing on it."""
    return node_disks.examine(str(path))._replace(tree=entry())


def test_an_image_of_zeros_is_blank(tools, tmp_path):
    image = zeros(tmp_path / "image")
    assert why_not(examined(image)) == ""
    assert "lsblk does not list it" in why_not(node_disks.examine(str(image)))


@pytest.mark.parametrize("kind", SIGNED)
def test_an_image_with_a_signature_is_not(kind, tools, tmp_path):
    found = examined(SIGNED[kind](zeros(tmp_path / "image")))
    assert (found.signatures == 0, found.probed == 2) != (True, True)
    assert not is_blank(found)


def test_a_device_that_cannot_be_read_is_not_blank(tools, tmp_path):
    assert not is_blank(examined(tmp_path / "missing"))


def test_without_the_tools_nothing_is_blank(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not is_blank(examined(zeros(tmp_path / "image")))


def test_a_machine_without_an_instance_store_is_only_looked_at():
    if glob.glob(node_disks.BY_ID):
        pytest.skip("this machine has an instance store")
    assert plan(node_disks.found(), striping=True).action == "none"


def test_partitions_and_other_names_of_a_disk_are_not_disks_of_their_own(tmp_path, monkeypatch):
    (tmp_path / "nvme1n1").touch()
    (tmp_path / "nvme1n1p1").touch()
    name = "nvme-Amazon_EC2_NVMe_Instance_Storage_AWS123"
    (tmp_path / name).symlink_to(tmp_path / "nvme1n1")
    (tmp_path / f"{name}_1").symlink_to(tmp_path / "nvme1n1")
    (tmp_path / f"{name}-part1").symlink_to(tmp_path / "nvme1n1p1")
    monkeypatch.setattr(node_disks, "BY_ID", str(tmp_path / "nvme-Amazon_EC2_NVMe_Instance_Storage_*"))
    assert [each.path for each in node_disks.found()] == [str(tmp_path / "nvme1n1")]


# -- doing it --------------------------------------------------------------------------------------------


def test_a_disk_that_got_something_since_the_plan_is_not_formatted(tools, tmp_path, monkeypatch):
    image = SIGNED["LVM"](zeros(tmp_path / "image"))
    look, before = node_disks.examine, image.read_bytes()
    monkeypatch.setattr(node_disks, "examine", lambda path: look(path)._replace(tree=entry()))
    with pytest.raises(OSError, match="not formatted after all"):
        node_disks.carry_out(Plan("format", (str(image),), ""), where=str(tmp_path / "mnt"))
    assert image.read_bytes() == before


def test_a_boot_goes_on_when_mounting_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(node_disks, "BOOT_FILE", str(tmp_path / "run" / "boot.json"))
    monkeypatch.setattr(node_disks, "found", lambda: [disk(fstype="ext4", label=LABEL)])
    monkeypatch.setattr(node_disks, "LOCAL_DISK", str(tmp_path / "mnt"))

    def refuse(*words):
        raise OSError(f"{words[0]}: status 32: wrong fs type")

    monkeypatch.setattr(node_disks, "_must", refuse)
    assert node_disks.main() == 0
    (check,) = json.loads((tmp_path / "run/boot.json").read_text())["checks"]
    assert (check["name"], check["ok"]) == ("local-disk", False)
    assert "wrong fs type; downloads go to the root volume" in check["text"]


LOOP = """
import sys
from cloud import node_disks
from cloud.node_disks import Plan
device, where = sys.argv[1:]
seen = node_disks.examine(device)
node_disks.MODEL = ""  # a loop has no model, and is no disk
node_disks.examine = lambda path: seen._replace(tree={**seen.tree, "type": "disk"})
node_disks.carry_out(Plan("format", (device,), ""), "nobody", where)
import os, pwd
assert os.path.ismount(where) and os.stat(where).st_uid == pwd.getpwnam("nobody").pw_uid
open(f"{where}/file", "w").close()
"""


@pytest.mark.slow
def test_a_blank_device_is_formatted_mounted_and_found_again(tools, tmp_path):
    """On a loop device, in a mount namespace of its own."""
    image = zeros(tmp_path / "image")
    made = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        words = ["unshare", "-m", os.environ.get("PYTHON", shutil.which("python3")), "-c", LOOP, device]
        environment = {**os.environ, "PYTHONPATH": str(Path(node_disks.__file__).parents[1])}
        done = subprocess.run([*words, tmp_path / "mnt"], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        again = node_disks.examine(device)
        assert (again.signatures, again.probed) == (1, 0)
        assert f'LABEL="{LABEL}"' in node_disks._run("blkid", "-p", device)[1]
        fixed = again._replace(tree={**again.tree, "fstype": "ext4", "label": LABEL})
        assert plan([fixed], striping=True)[:2] == ("mount", (device,))
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
