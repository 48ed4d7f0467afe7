"""The helper as a child: its end is Uncertain and costs a pause, its memory is bounded."""

import asyncio
import json
import os
import signal

import pytest
from sky_stage import played_settings

from cloud.errors import CloudError, Misconfigured, Uncertain
from cloud.skypilot import process
from cloud.skypilot.process import Helper, HelperSettings, environment, shared

pytestmark = pytest.mark.slow

WHAT = {"token": "t", "cluster": "c"}


async def test_its_end_is_uncertain_and_the_next_question_starts_another(stage, asked):
    daemon = stage.daemon()
    stage.cloud.fault("launch", "die")
    with pytest.raises(Uncertain, match="ended with 9 "):
        await daemon.instances.launch(asked())
    assert (daemon.helper.state.up, daemon.helper.state.ends) == (False, 1)
    launched = await daemon.instances.launch(asked())
    assert launched.id == f"m-{stage.cloud.machines()[0]['id']}"
    assert (daemon.helper.state.up, len(stage.cloud.machines())) == (True, 1)


@pytest.mark.parametrize("gives_up", ["the helper's own time", "the daemon"])
async def test_one_that_is_frozen_is_ended_and_another_started(stage, monkeypatch, gives_up):
    patience = 60.0 if gives_up == "the daemon" else 0.2
    monkeypatch.setattr(process, "SECONDS", {**process.SECONDS, "terminate": patience, "info": 1.0})
    helper = stage.daemon().helper
    await helper.ask("terminate", what=WHAT)
    frozen = helper.pid
    os.kill(frozen, signal.SIGSTOP)
    with pytest.raises((Uncertain, TimeoutError)):
        async with asyncio.timeout(0.3):
            await helper.ask("terminate", what=WHAT)
    await stage.until(lambda: helper.state.ends == 1)
    await helper.ask("terminate", what=WHAT)
    assert helper.pid != frozen


async def test_one_that_is_only_slow_is_left_alone(stage, monkeypatch):
    monkeypatch.setattr(process, "SECONDS", {**process.SECONDS, "terminate": 0.2})
    helper = stage.daemon().helper
    await helper.ask("info")
    slow = helper.pid
    stage.cloud.fault("terminate", "hold", seconds=1.0, times=3)
    for _ in range(3):
        with pytest.raises(Uncertain):
            await helper.ask("terminate", what=WHAT)
    await helper.ask("info")
    assert (helper.pid, helper.state.ends) == (slow, 0)


async def test_a_start_that_takes_longer_than_a_call_may_goes_on_for_the_next(stage):
    helper = stage.daemon(settings=played_settings(stage.home, environment={"PLAYED_IMPORT": "1.5"})).helper
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await helper.ask("info")
    async with asyncio.timeout(60):
        assert (await helper.ask("info"))["pid"] == helper.pid
    assert (stage.cloud.asked("begin"), helper.state.ends) == (1, 0)


async def test_one_that_is_frozen_in_its_start_is_ended_and_counted(stage, monkeypatch):
    monkeypatch.setattr(process, "_START_SECONDS", 0.3)
    helper = stage.daemon(settings=played_settings(stage.home, environment={"PLAYED_IMPORT": "60"})).helper
    for ends in (1, 2):
        with pytest.raises(CloudError, match="did not start"):
            await helper.ask("info")
        assert (helper.state.ends, helper.pid) == (ends, None)
    assert 0.0 < helper.pause() <= 1.0


async def test_a_close_in_the_middle_of_a_start_leaves_nothing(stage):
    helper = stage.daemon(settings=played_settings(stage.home, environment={"PLAYED_IMPORT": "60"})).helper
    waiting = asyncio.ensure_future(helper.ask("info"))
    await stage.until(lambda: stage.cloud.asked("begin") == 1)
    pid = helper.pid
    async with asyncio.timeout(10):
        await helper.close()
    with pytest.raises(CloudError):
        await waiting
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_what_nobody_waits_for_any_more_is_not_done_unless_it_was_begun(stage):
    helper = stage.daemon().helper
    await helper.ask("info")
    stage.cloud.fault("terminate", "hold", seconds=1.0, times=2)
    held = [asyncio.ensure_future(helper.ask("terminate", what=WHAT)) for _ in range(2)]
    await stage.until(lambda: stage.cloud.asked("terminate") == 2)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await helper.ask("terminate", what=WHAT)
    await helper.ask("terminate", what=WHAT)
    await asyncio.gather(*held)
    assert stage.cloud.asked("terminate") == 3


SAYS = "import json, sys; say = lambda **v: print(json.dumps(v), flush=True); say(hello='x', rss=1)\n"


def speaking(home, program):
    """A helper that answers as the program does, for each question with its number `n`."""
    loop = f"for line in sys.stdin:\n    n = json.loads(line)['id']\n    {program}\n"
    return played_settings(home, entry=("-c", SAYS + loop))


async def test_an_answer_that_comes_twice_or_for_nobody_is_passed_over(stage):
    program = "say(id=n + 1, ok='early'); say(id=n, ok=n); say(id=n, ok='again'); say(id=n - 1, ok='late')"
    helper = stage.daemon(settings=speaking(stage.home, program)).helper
    assert [await helper.ask("info") for _ in range(4)] == [1, 2, 3, 4]
    assert helper.state.ends == 0


async def test_what_it_writes_for_people_never_holds_it_up(stage):
    """As a bar of progress does, which ends no line for days; more than a line and a pipe hold."""
    program = "sys.stderr.write('at 1 %\\r' * 500_000 + 'x' * 3_000_000); sys.stderr.flush(); say(id=n, ok=n)"
    helper = stage.daemon(settings=speaking(stage.home, program)).helper
    async with asyncio.timeout(30):
        assert [await helper.ask("info") for _ in range(2)] == [1, 2]


@pytest.mark.parametrize(
    "program",
    [
        "say(ok=1)",
        "say(id=None, ok=1)",
        "say(id=n, ok=1, rss='much')",
        "say(id=n, error=5)",
        "say(id=n, error=None)",
        "print('[]', flush=True)",
        "sys.stdout.buffer.write(b'\\xff\\n'); sys.stdout.flush()",
        "print('x' * 2000000, flush=True)",
    ],
)
async def test_what_is_no_answer_in_between_ends_it_and_leaves_the_outcome_open(stage, program):
    helper = stage.daemon(settings=speaking(stage.home, program)).helper
    async with asyncio.timeout(30):
        with pytest.raises(Uncertain):
            await helper.ask("info")
    assert (helper.state.up, helper.state.ends) == (False, 1)


async def test_everybody_who_waits_is_told_of_its_end(stage):
    helper = stage.daemon().helper
    await helper.ask("info")
    stage.cloud.fault("prices", "hold", seconds=30.0, times=2)
    args = {"cloud": "aws", "region": "r", "zones": ["a"], "types": ["g6.xlarge"], "spot": True}
    waiting = [asyncio.ensure_future(helper.ask("prices", **args)) for _ in range(2)]
    await stage.until(lambda: stage.cloud.asked("prices") == 2)
    os.kill(helper.pid, signal.SIGKILL)
    for each in waiting:
        with pytest.raises(Uncertain, match="ended with -9 "):
            await each


async def test_one_that_keeps_ending_is_started_at_a_growing_pace(stage, hand_clock):
    helper = stage.daemon(clock=hand_clock).helper
    waits = []
    for _ in range(9):
        stage.cloud.fault("terminate", "die")
        with pytest.raises(Uncertain):
            await helper.ask("terminate", what=WHAT)
        waits.append(helper.pause())
        if waits[-1]:
            with pytest.raises(CloudError, match="started again in"):
                await helper.ask("info")
        hand_clock.at += waits[-1]
    assert waits == [0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 60.0, 60.0, 60.0]


async def test_one_that_lasted_is_started_at_once(stage, hand_clock):
    helper = stage.daemon(clock=hand_clock).helper
    for _ in range(3):
        stage.cloud.fault("terminate", "die")
        with pytest.raises(Uncertain):
            await helper.ask("terminate", what=WHAT)
        hand_clock.at += helper.pause()
    await helper.ask("info")
    hand_clock.at += 301.0
    stage.cloud.fault("terminate", "die")
    with pytest.raises(Uncertain):
        await helper.ask("terminate", what=WHAT)
    assert helper.pause() == 0.0


async def test_a_python_that_is_none_says_so(stage, tmp_path):
    missing = played_settings(tmp_path / "home", python=tmp_path / "nothing" / "python")
    with pytest.raises(Misconfigured, match="cannot be started"):
        await Helper(missing, stage.clock).ask("info")


async def test_one_that_does_not_start_says_its_last_words(stage, tmp_path):
    broken = played_settings(tmp_path / "home", entry=("-c", "raise SystemExit('no module named sky')"))
    helper = Helper(broken, stage.clock)
    with pytest.raises(CloudError, match="no module named sky"):
        await helper.ask("info")
    await helper.close()


async def test_what_is_no_answer_ends_it(stage, tmp_path):
    babbling = played_settings(tmp_path / "home", entry=("-c", "print('hello', flush=True); input()"))
    helper = Helper(babbling, stage.clock)
    with pytest.raises(CloudError, match="no answer"):
        await helper.ask("info")
    assert not helper.state.up
    await helper.close()


async def test_one_that_holds_too_much_is_renewed_once_it_is_idle(stage):
    helper = stage.daemon(settings=played_settings(stage.home, most_memory=1)).helper
    first = await helper.ask("info")
    assert first["rss"] > 1
    pids = set()
    for _ in range(3):
        pids.add((await helper.ask("info"))["pid"])
    assert len(pids) == 3
    assert helper.state.ends == 0


async def test_its_home_is_its_own_and_holds_the_configuration(stage, tmp_path):
    key = tmp_path / "key"
    key.write_text("secret")
    settings = played_settings(
        stage.home, config={"aws": {"remote_identity": "none"}}, credentials={".runpod/config.toml": key}
    )
    helper = stage.daemon(settings=settings).helper
    assert (await helper.ask("info"))["user"] == "deadbeef"
    assert stage.home.stat().st_mode & 0o777 == 0o700
    assert json.loads((stage.home / ".sky" / "config.yaml").read_text()) == settings.config
    assert (stage.home / ".runpod" / "config.toml").read_text() == "secret"


async def test_pools_with_the_same_home_share_one_helper_until_the_last_gives_it_up(stage):
    settings = played_settings(stage.home)
    first, second = shared(settings, stage.clock), shared(settings, stage.clock)
    assert first.helper is second.helper
    await first.ask("info")
    await first.close()
    await first.close()
    assert (await second.ask("info"))["version"] == "played"
    await second.close()
    assert not second.helper.state.up
    anew = shared(settings, stage.clock)
    assert anew.helper is not second.helper
    await anew.close()


def test_it_is_given_what_says_how_clouds_are_reached_and_nothing_else(tmp_path):
    settings = played_settings(tmp_path)
    ours = {
        "HOME": "/srv/me",
        "AWS_PROFILE": "ops",
        "HTTPS_PROXY": "http://proxy",
        "ORCHESTRATOR_SECRET": "s",
        "PYTHONPATH": "/ours",
        "POSTGRES_PASSWORD": "p",
    }
    found = environment(settings, ours)
    assert not {"ORCHESTRATOR_SECRET", "PYTHONPATH", "POSTGRES_PASSWORD"} & found.keys()
    assert (found["AWS_PROFILE"], found["HTTPS_PROXY"], found["HOME"]) == (
        "ops",
        "http://proxy",
        str(tmp_path),
    )
    assert found["AWS_SHARED_CREDENTIALS_FILE"] == "/srv/me/.aws/credentials"
    given = environment(settings, {**ours, "AWS_SHARED_CREDENTIALS_FILE": "/run/credentials/aws"})
    assert given["AWS_SHARED_CREDENTIALS_FILE"] == "/run/credentials/aws"
    assert (found["AWS_DEFAULT_REGION"], given["AWS_DEFAULT_REGION"]) == ("us-east-1", "us-east-1")
    own = environment(settings, {**ours, "AWS_DEFAULT_REGION": "eu-west-1"})
    assert own["AWS_DEFAULT_REGION"] == "eu-west-1"
    assert (found["SKYPILOT_USER_ID"], found["SKYPILOT_DISABLE_USAGE_COLLECTION"]) == ("deadbeef", "1")


@pytest.mark.parametrize("user_id", ["", "abc", "Dead", "a" * 17, "dead-beef"])
def test_a_user_id_that_names_cannot_hold_is_refused(tmp_path, user_id):
    with pytest.raises(ValueError, match="user id"):
        HelperSettings(python=tmp_path, home=tmp_path, regions=(), user_id=user_id, config={})
