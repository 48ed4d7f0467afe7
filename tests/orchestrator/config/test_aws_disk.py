"""Disks, tags, key pair and weights of a pool on EC2: what is read, refused and warned of."""

from pathlib import Path
from typing import Any

import pytest

from cloud.aws import tags
from cloud.aws.disks import Disk
from orchestrator.config.tables.aws_disk import DiskTable
from tests.orchestrator.config.test_aws import built, faults

AT = "pool.llama.cloud.aws"
KEY = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def disk(**keys: Any) -> Disk:
    return DiskTable.model_validate(keys).as_disk()


def test_a_disk_of_which_nothing_is_said_is_left_as_it_is() -> None:
    assert disk() == Disk()
    assert disk(initialization_rate=300, local="off") == Disk(initialization_rate=300)


def test_a_disk_that_is_sized_is_fast() -> None:
    assert disk(size=300) == Disk(size=300, type="gp3", throughput=500)


def test_a_type_that_is_written_counts_alone() -> None:
    assert disk(type="gp3").root() == {"VolumeType": "gp3"}


def test_throughput_brings_the_operations_that_it_needs() -> None:
    assert disk(throughput=1000).root() == {"VolumeType": "gp3", "Throughput": 1000, "Iops": 4000}
    assert disk(throughput=750).root() == {"VolumeType": "gp3", "Throughput": 750}


def test_another_type_gets_no_throughput() -> None:
    assert disk(size=300, type="io2", iops=9000).root() == {
        "VolumeSize": 300,
        "VolumeType": "io2",
        "Iops": 9000,
    }


def test_a_key_encrypts() -> None:
    assert disk(kms_key=KEY) == Disk(encrypted=True, key=KEY)


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ({"size": 70_000}, "size", "1 to 65536 GiB"),
        ({"size": 20_000, "type": "gp2"}, "size", "1 to 16384 GiB"),
        ({"size": -1}, "size", "at least 0"),
        ({"throughput": 100}, "throughput", "125 to 2000 MiB/s"),
        ({"throughput": 2001}, "throughput", "125 to 2000 MiB/s"),
        ({"throughput": 500, "type": "gp2"}, "throughput", "belongs to gp3"),
        ({"iops": 3000, "type": "gp2"}, "iops", "cannot be chosen for gp2"),
        ({"iops": 2999}, "iops", "3000 to 80000 IOPS"),
        ({"type": "io2", "size": 100}, "iops", "is missing"),
        ({"throughput": 1000, "iops": 3000}, "iops", "write 4000 or more"),
        ({"size": 10, "iops": 6000}, "iops", "take 5000"),
        ({"initialization_rate": 99}, "initialization_rate", "100 to 300 MiB/s"),
        ({"initialization_rate": 301}, "initialization_rate", "100 to 300 MiB/s"),
        ({"kms_key": "my key"}, "kms_key", "alias/NAME"),
        ({"kms_key": KEY.replace("east", "west")}, "kms_key", "is a key of us-west-1"),
        ({"kms_key": KEY, "encrypted": False}, "encrypted", "leave one of them out"),
        ({"type": "st1"}, "type", "gp3"),
        ({"local": True}, "local", "auto"),
    ],
)
def test_what_ec2_would_refuse_is_refused(tmp_path: Path, keys: dict[str, Any], key: str, words: str) -> None:
    found = faults(tmp_path, disk=keys)
    assert list(found) == [f"{AT}.disk.{key}"]
    assert words in found[f"{AT}.disk.{key}"]


@pytest.mark.parametrize(
    "keys",
    [
        {"size": 1, "iops": 3000},  # three thousand are there whatever the size
        {"throughput": 2000},
        {"size": 100, "type": "io1", "iops": 5000},
        {"kms_key": "alias/nodes"},
        {"kms_key": "mrk-1234abcd12ab34cd56ef1234567890ab"},
        {"kms_key": KEY, "encrypted": True},
    ],
)
def test_what_ec2_takes_is_taken(tmp_path: Path, keys: dict[str, Any]) -> None:
    assert built(tmp_path, disk=keys).warnings == ()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("aws:team", "ml", "only AWS"),
        ("AWS:team", "ml", "only AWS"),
        ("Name", "mine", "one of the pool's own tags"),
        ("orchestrator:pool", "other", "one of the pool's own tags"),
        ("orchestrator:new", "x", "one of the pool's own tags"),
        ("", "ml", "is empty"),
        (" team", "ml", "space"),
        ("k" * 129, "ml", "129 characters"),
        ("team", "v" * 257, "257 characters"),
        ("team", "a;b", "letters, digits"),
        ("te*m", "ml", "letters, digits"),
    ],
)
def test_tags_that_cannot_be_are_refused(tmp_path: Path, key: str, value: str, words: str) -> None:
    (text,) = faults(tmp_path, tags={key: value}).values()
    assert words in text


def test_tags_are_as_many_as_there_is_room_for(tmp_path: Path) -> None:
    made = {f"key{number}": "" for number in range(tags.MOST)}
    assert built(tmp_path, tags=made).pool.cloud.aws.tags == made
    found = faults(tmp_path, tags={**made, "one": "more"})
    assert f"{tags.MOST} or fewer" in found[f"{AT}.tags"]


def test_tags_of_every_sort_of_letter_are_taken(tmp_path: Path) -> None:
    made = {"Kostenstelle:Süd": "a b+c-d=e.f_g:h/i@j 1", "k" * 128: "v" * 256}
    assert built(tmp_path, tags=made).pool.cloud.aws.tags == made


@pytest.mark.parametrize("weights", ["llama", "s3://", "s3://Bucket/x", "http://host/x", "s3://b/a b"])
def test_weights_that_are_nowhere_are_refused(tmp_path: Path, weights: str) -> None:
    assert "s3://BUCKET/PREFIX" in faults(tmp_path, weights=weights)[f"{AT}.weights"]


@pytest.mark.parametrize("weights", ["s3://my-bucket", "s3://my.bucket/a/b/", "/opt/weights"])
def test_weights_are_in_a_bucket_or_on_the_node(tmp_path: Path, weights: str) -> None:
    assert built(tmp_path, weights=weights).pool.cloud.aws.weights == weights


@pytest.mark.parametrize("name", [" ops", "ops ", "k" * 256])
def test_a_key_pair_has_a_name_of_ec2(tmp_path: Path, name: str) -> None:
    assert "key pair" in faults(tmp_path, key_name=name)[f"{AT}.key_name"]


@pytest.mark.parametrize("timeout", ["0s", "4001s"])
def test_an_idle_timeout_is_one_that_a_balancer_can_have(tmp_path: Path, timeout: str) -> None:
    assert "4000s" in faults(tmp_path, balancer_idle_timeout=timeout)[f"{AT}.balancer_idle_timeout"]


LLAMA = {"model": "meta-llama/Llama-3.1-8B-Instruct", "engine": {"kind": "vllm"}}
LARGE = {
    "model": "meta-llama/Llama-3.1-70B-Instruct",
    "engine": {"kind": "vllm", "args": ["--tensor-parallel-size", "8", "--max-model-len", "8192"]},
}


def warned(tmp_path: Path, pool: dict[str, Any], **aws: Any) -> dict[str, str]:
    config = built(tmp_path, pool=pool, instance_types=["p5.48xlarge"], **aws)
    return {w.key.removeprefix(f"{AT}.disk."): w.text for w in config.warnings if ".disk." in w.key}


def test_weights_that_the_disk_brings_too_late_are_warned_of(tmp_path: Path) -> None:
    found = warned(tmp_path, LARGE, weights="/opt/weights")
    assert (
        "131 GiB of weights / 125 MiB/s (the root volume) + 180 s for machine and engine = 1257 s"
        in found["throughput"]
    )
    assert "health.boot_timeout = 15m" in found["throughput"]
    assert "throughput" in warned(tmp_path, LARGE, disk={"local": "off"})


def test_a_disk_that_is_fast_enough_closes_the_sum(tmp_path: Path) -> None:
    assert warned(tmp_path, LARGE, disk={"local": "off", "size": 300}) == {}
    assert warned(tmp_path, LARGE, weights="/w", disk={"size": 300, "initialization_rate": 300}) == {}


def test_a_disk_that_does_not_hold_the_weights_is_warned_of(tmp_path: Path) -> None:
    found = warned(tmp_path, LLAMA, disk={"size": 20, "local": "off"})
    assert found["size"].endswith("write size = 45 or more")
    assert warned(tmp_path, LLAMA, disk={"size": 45, "local": "off"}) == {}
    assert "size" in warned(tmp_path, LLAMA, weights="/w", disk={"size": 20})
    assert warned(tmp_path, LLAMA, disk={"size": 20}) == {}  # they go to the machine's own disks


def test_the_rate_at_which_the_image_comes_counts(tmp_path: Path) -> None:
    slow = warned(tmp_path, LARGE, weights="/w", disk={"size": 300, "initialization_rate": 100})
    assert "/ 100 MiB/s" in slow["throughput"]


def test_weights_in_the_image_come_slowly_at_first(tmp_path: Path) -> None:
    assert "block by block" in warned(tmp_path, LLAMA, weights="/w")["initialization_rate"]


def test_the_machines_own_disks_are_fast(tmp_path: Path) -> None:
    assert warned(tmp_path, LARGE) == {}
    assert warned(tmp_path, LARGE, weights="s3://bucket/llama") == {}
    assert warned(tmp_path, LARGE, weights="/mnt/orchestrator/llama") == {}


def test_an_unknown_size_is_not_guessed(tmp_path: Path) -> None:
    odd = {"model": "acme/odd", "engine": {"kind": "vllm"}}
    assert warned(tmp_path, odd, disk={"local": "off"}) == {}


def boot_warnings(tmp_path: Path, model: str, *args: str, timeout: float = 900.0, **aws: Any) -> list[str]:
    pool = {
        "model": model,
        "engine": {"kind": "vllm", "args": [*args, "--max-model-len", "4096"]},
        "health": {"boot_timeout": timeout},
    }
    found = built(tmp_path, pool=pool, instance_types=["p5.48xlarge"], **aws).warnings
    return [w.text for w in found if w.key == "pool.llama.health.boot_timeout"]


def test_a_download_that_takes_too_long_is_warned_of(tmp_path: Path) -> None:
    """405 billion parameters in 8 bits, at 250 MiB/s from Hugging Face and twice that from S3."""
    large, eight = "meta-llama/Llama-3.1-405B-Instruct-FP8", "--tensor-parallel-size=8"
    (text,) = boot_warnings(tmp_path, large, eight)
    assert "462 GiB of weights / 250 MiB/s (the download from Hugging Face, by assumption)" in text
    assert 'write boot_timeout = "42m"' in text
    assert boot_warnings(tmp_path, large, eight, timeout=42 * 60.0) == []
    (text,) = boot_warnings(tmp_path, large, eight, weights="s3://bucket/llama")
    assert "/ 500 MiB/s" in text
    assert boot_warnings(tmp_path, large, eight, weights="/mnt/orchestrator/llama") == []


def test_weights_that_the_engine_quantises_come_as_they_were_trained(tmp_path: Path) -> None:
    plain = "meta-llama/Llama-3.1-70B-Instruct"
    (text,) = boot_warnings(tmp_path, plain, "--quantization", "fp8", timeout=600.0)
    assert "131 GiB of weights" in text
    assert boot_warnings(tmp_path, f"{plain}-FP8", "--quantization", "fp8", timeout=600.0) == []


def test_a_model_that_is_a_path_of_the_image_comes_from_its_disk(tmp_path: Path) -> None:
    local = {**LARGE, "model": "/opt/llama-3.1-70b"}
    assert "/ 125 MiB/s (the root volume)" in warned(tmp_path, local)["throughput"]
