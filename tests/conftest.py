"""What tests of more than one layer share: the stand-in for AWS, and what to do for want of a program."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

REQUIRE_DEBIAN = "ORCHESTRATOR_REQUIRE_DEBIAN"
"""1 in the continuous check, which installs the Debian packages: what is missing there fails the test."""

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would everything they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_SHIM = Path(__file__).parent / "support" / "aws_shim"


def _lacking(text: str) -> NoReturn:
    """Skip the test for want of a part of Debian, or fail it where every part is required."""
    if os.environ.get(REQUIRE_DEBIAN) == "1":
        pytest.fail(f"{text} ({REQUIRE_DEBIAN} is set)")
    pytest.skip(text)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """`@pytest.mark.debian("promtool", package="prometheus")`: the test needs these programs."""
    for mark in item.iter_markers("debian"):
        for program in mark.args:
            if shutil.which(program) is None:
                _lacking(f"{program} is not installed; on Debian: apt-get install {mark.kwargs['package']}")


@pytest.fixture(scope="session")
def lacking() -> Callable[[str], NoReturn]:
    """For what no program's name can tell, such as a right or a kernel's ability: `lacking("why")`."""
    return _lacking


class AwsShim:
    """A running stand-in for AWS. `url` is the endpoint of every service."""

    def __init__(self, url: str) -> None:
        self.url = url

    def order(self, name: str, **values: Any) -> dict[str, Any]:
        """Give an order; tests/support/aws_shim/orders.py lists them."""
        request = urllib.request.Request(f"{self.url}/_shim/{name}", json.dumps(values).encode())  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                found: dict[str, Any] = json.loads(answer.read())
                return found
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{name} {values}: {error.read().decode()}") from None


@pytest.fixture(scope="session")
def aws_shim_process() -> Iterator[AwsShim]:
    """The stand-in's process, with credentials for it in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", "/dev/null")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        patch.delenv("AWS_PROFILE", raising=False)
        process = subprocess.Popen(
            [sys.executable, str(_SHIM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "the stand-in for AWS did not start"
            yield AwsShim(json.loads(line)["url"])
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def aws_shim(aws_shim_process: AwsShim) -> AwsShim:
    """The stand-in with no machines, targets, queues or rules, default settings and no faults."""
    aws_shim_process.order("reset")
    return aws_shim_process
