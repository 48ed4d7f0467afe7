"""Type docs/how-to/first-day-on-aws.md into a shell, against a stand-in for AWS: from its text to a pool.

Every `sh` block of the page that is marked as needing an AWS account goes into one bash, in order, and every
`toml` block into the file that the page names. `aws` is the real command line and `orchestrator` the real
program; behind them stand tests/support/aws_shim and an engine at the address of every running machine. What
a reader has before and writes by hand is given here: a network, an image, a token. Where the page loses a
node on purpose, a spot machine is reclaimed; the balancer of the second pool is asked at its front.

    python tools/first_day.py [--quiet] [-o json]

It ends by itself with a summary, and exits with 1 when a command failed, naming its line, or a pool is not as
the page says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from aws_stage import AwsShim, EngineProcesses, credentials, free_port, kept, running_shim
from doc_blocks import ROOT, Block, blocks

PAGE = ROOT / "docs" / "how-to" / "first-day-on-aws.md"
TYPED = "needs an AWS account"
ENGINE_PORT = 8000
PRICES = {
    "g6.xlarge": 0.80,
    "g6.2xlarge": 0.98,
    "g5.12xlarge": 5.67,
    "g6e.12xlarge": 10.49,
    "g5.48xlarge": 16.29,
}
SPOT = {name: price / 2 for name, price in PRICES.items()}
PATIENCE = 120.0  # s for one block
MODELS = {
    "chat": "meta-llama/Llama-3.1-8B-Instruct",
    "llama": "hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4",
}


class FailedError(Exception):
    """A command of the page failed, or what it promises did not come."""


class Shell:
    """A bash that is fed block by block. Everything that is printed goes to one file."""

    def __init__(self, directory: Path, environment: Mapping[str, str], *, quiet: bool) -> None:
        self._log, self._quiet, self._shown = directory / ".typed", quiet, 0
        self._done, done = os.pipe()
        typed, self._type = os.pipe()
        with self._log.open("wb") as out:
            self._bash = subprocess.Popen(
                ["bash", "-s"],
                cwd=directory,
                env=dict(environment),
                stdin=typed,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=(done,),
                start_new_session=True,
            )
        os.close(done)
        os.close(typed)
        self._tell = f"echo >&{done}"
        self._write("set -Eeuo pipefail; trap 'echo \"exit $?: $BASH_COMMAND\"' ERR\n")

    def types(self, text: str, place: str) -> str:
        """Type a block and wait until it is done; what it printed. Raises FailedError."""
        self._write(f"{text}\n{self._tell}\n")
        ready = os.read(self._done, 1) if self._waits() else b""
        printed = self._new()
        if ready != b"\n":
            raise FailedError(f"{place}: {printed[-3000:]}")
        return printed

    def value(self, variable: str) -> str:
        """What a variable of the shell holds."""
        return self.types(f'echo "${{{variable}}}"', variable).strip().splitlines()[-1]

    def end(self) -> None:
        """End the shell and what it left running."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._bash.pid, number)
            except ProcessLookupError:
                break
            try:
                self._bash.wait(timeout=20.0)
            except subprocess.TimeoutExpired:
                continue
        os.close(self._done)
        os.close(self._type)

    def _waits(self) -> bool:
        return bool(select.select([self._done], [], [], PATIENCE)[0])

    def _write(self, text: str) -> None:
        try:
            os.write(self._type, text.encode())
        except BrokenPipeError:
            raise FailedError(f"the shell has ended: {self._new()[-3000:]}") from None

    def _new(self) -> str:
        printed = self._log.read_bytes()[self._shown :]
        self._shown += len(printed)
        text = printed.decode("utf-8", "replace")
        if not self._quiet:
            print(text, end="", flush=True)
        return text


def _make_image(ec2: Any, name: str) -> None:
    """What the machine that makes the image is for; it ends afterwards."""
    base = ec2.describe_images(Owners=["amazon"], Filters=[{"Name": "architecture", "Values": ["x86_64"]}])
    image = base["Images"][0]["ImageId"]
    machine = ec2.run_instances(ImageId=image, InstanceType="g6.xlarge", MinCount=1, MaxCount=1)
    node = machine["Instances"][0]["InstanceId"]
    ec2.create_image(InstanceId=node, Name=name)
    ec2.terminate_instances(InstanceIds=[node])


class Reader:
    """Somebody who follows the page."""

    def __init__(self, shim: AwsShim, directory: Path, *, quiet: bool) -> None:
        self._shim, self._directory = shim, directory
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        given = {"AWS_ENDPOINT_URL": shim.url, "HF_TOKEN": "hf_token_of_a_test", "PATH": programs}
        self._shell = Shell(directory, {**os.environ, **given}, quiet=quiet)
        self._own = self._possessions()
        self.commands = 0
        self.answers: dict[str, str] = {}

    def _possessions(self) -> dict[str, str]:
        """What a reader has before, in the place of what the page names."""
        ec2 = self._shim.client("ec2")
        vpc = ec2.create_vpc(CidrBlock="127.82.0.0/16")["Vpc"]["VpcId"]
        gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
        ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
        of_vpc = [{"Name": "vpc-id", "Values": [vpc]}]
        table = ec2.describe_route_tables(Filters=of_vpc)["RouteTables"][0]["RouteTableId"]
        ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
        for number, zone in enumerate(("us-east-1a", "us-east-1b")):
            part = f"127.82.{16 * number}.0/20"
            made = ec2.create_subnet(VpcId=vpc, CidrBlock=part, AvailabilityZone=zone)["Subnet"]["SubnetId"]
            ec2.modify_subnet_attribute(SubnetId=made, MapPublicIpOnLaunch={"Value": True})
        _make_image(ec2, "chat-node-1")
        return {
            "vpc-0a1b2c3d4e5f60718": vpc,
            "127.0.0.1:8000": f"127.0.0.1:{free_port()}",
        }

    def reads(self, block: Block) -> None:
        """Type or write a block, as the page says. Raises FailedError."""
        text = block.body
        for named, own in self._own.items():
            text = text.replace(named, own)
        if block.language == "toml":
            pool = re.search(r"(?m)^\[pool\.(\w+)\]", text)
            if pool is None:
                raise FailedError(f"{block.place}: the file has no pool")
            text = text.replace("/var/lib/spot-orchestrator", str(self._directory / f"state-{pool[1]}"))
            for port in ("9477", "9478"):
                text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}")
            file = "pool.toml" if pool[1] == "chat" else f"{pool[1]}.toml"
            (self._directory / file).write_text(text, encoding="utf-8")
        elif block.language == "sh" and block.not_run == TYPED:
            self._shell.types(text, block.place)
            self.commands += 1

    def loses_a_node(self) -> None:
        """What the experiment of the page does: a spot node gets its notice. Raises FailedError."""
        spot = [m for m, market in self._shim.living("chat").items() if market == "spot"]
        if not spot:
            raise FailedError("no spot machine is there to be taken")
        self._shim.order("reclaim", node=spot[0], notice_s=20)
        self._until(lambda: spot[0] not in self._shim.living("chat"), "the machine is taken")
        self._shell.types("until orchestrator status --config pool.toml; do sleep 2; done", "replaced")

    def waits_for_spot(self) -> None:
        """What stood in for the node that was lost goes once spot is whole. Raises FailedError."""
        self._until(lambda: len(self._shim.living("chat")) == 4, "on-demand goes back to spot")

    def asks(self, port: int, model: str) -> None:
        """A client of the pool behind the balancer."""
        body = json.dumps({"model": model, "prompt": "Spot nodes are", "max_tokens": 8}).encode()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310
            self.answers["llama"] = json.loads(answer.read())["choices"][0]["text"]

    def _until(self, holds: Any, what: str) -> None:
        for _ in range(round(PATIENCE / 0.2)):
            if holds():
                return
            time.sleep(0.2)  # noqa: TID251 - the stand-in is asked again
        raise FailedError(f"not within {PATIENCE:.0f} s: {what}")

    def end(self) -> None:
        """Stop everything."""
        self._shell.end()


def follow(shim: AwsShim, directory: Path, *, quiet: bool) -> dict[str, Any]:
    """Read the page from its top to its end; what came of it. Raises FailedError."""
    page = PAGE.read_text(encoding="utf-8").splitlines()
    lost, balanced = (
        page.index("## 14. Lose a node on purpose"),
        page.index("## What only an account can show"),
    )
    reader = Reader(shim, directory, quiet=quiet)
    try:
        for block in blocks(PAGE):
            if lost and block.line > lost:
                reader.loses_a_node()
                lost = 0
            if block.line < balanced:
                reader.reads(block)
        reader.waits_for_spot()
        reader.asks(shim.order("front", group="llama")["port"], MODELS["llama"])
        living = {pool: list(shim.living(pool).values()) for pool in MODELS}
    finally:
        reader.end()
    return {"blocks": reader.commands, "machines": living, "answers": reader.answers}


def broken(found: dict[str, Any]) -> list[str]:
    """What the page promises and did not come, as sentences."""
    chat, llama = found["machines"]["chat"], found["machines"]["llama"]
    faults = []
    if (chat.count("spot"), chat.count("on-demand")) != (2, 2):
        faults.append(f"chat is to have 2 spot and 2 on-demand machines, and has {chat}")
    if llama != ["on-demand"]:
        faults.append(f"llama is to have one on-demand machine, and has {llama}")
    if not found["answers"].get("llama"):
        faults.append("the pool behind the balancer answered nothing")
    return faults


async def play(directory: Path, *, quiet: bool) -> dict[str, Any]:
    """The whole day on a stand-in of its own. Raises FailedError."""
    with running_shim() as shim:
        shim.order("set", boot=0.5, end=0.5, health_checks=True, on_demand_prices=PRICES, spot_prices=SPOT)
        async with kept(EngineProcesses(shim, ENGINE_PORT, models=MODELS)):
            return await asyncio.to_thread(follow, shim, directory, quiet=quiet)


def main() -> int:
    """Type the page; 0 when all of it went as it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-q", "--quiet", action="store_true", help="print only the summary")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    given = parser.parse_args()
    os.environ.update(credentials(), MOTO_IAM_LOAD_MANAGED_POLICIES="true")  # those of AWS itself
    directory = Path(tempfile.mkdtemp(prefix="orchestrator-first-day-"))
    try:
        found = asyncio.run(play(directory, quiet=given.quiet))
    except FailedError as error:
        print(f"the page does not lead to a pool: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if given.output == "json":
        print(json.dumps(found))
    else:
        print(f"{found['blocks']} blocks typed; machines: {found['machines']}; answers: {found['answers']}")
    faults = broken(found)
    for fault in faults:
        print(f"BROKEN: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
