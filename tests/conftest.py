"""What tests of more than one layer share: the stand-in for AWS, and what to do for want of a program."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

from aws_stage import AwsShim, credentials, running_shim

REQUIRE_DEBIAN = "ORCHESTRATOR_REQUIRE_DEBIAN"
"""1 in the continuous check, which installs the Debian packages: what is missing there fails the test."""

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would everything they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(scope="session")
def aws_shim_process() -> Iterator[AwsShim]:
    """The stand-in's process, with credentials for it in the environment."""
    with pytest.MonkeyPatch.context() as patch, running_shim() as shim:
        for name, value in credentials().items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        yield shim


@pytest.fixture
def aws_shim(aws_shim_process: AwsShim) -> AwsShim:
    """The stand-in with no machines, targets, queues or rules, default settings and no faults."""
    aws_shim_process.order("reset")
    return aws_shim_process
