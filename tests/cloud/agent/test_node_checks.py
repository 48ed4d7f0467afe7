"""What a node looks at before its engine starts: what stops a start, what is only doubted, and the words."""

import os
import shutil
import stat
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cloud import node_checks, node_program
from cloud.node_checks import (
    ask,
    check_clock,
    check_disk,
    check_driver,
    check_fabric,
    count_gpus,
    disk_of,
    environment_for,
    look,
)
from cloud.node_metadata import Refused
from cloud.node_program import check_program, check_tools, check_vllm, interpreter_of


def script(path, text="#!/bin/sh\n", mode=0o755):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def answers(status=0, output=""):
    """Something to ask that always says the same."""
    return lambda _words: (status, output)


def raises(error):
    def asked(_words):
        raise error

    return asked


# -- the environment ---------------------------------------------------------------------------------------


def test_path_begins_with_the_virtual_environment(tmp_path):
    vllm = script(tmp_path / "venv/bin/vllm")
    found = environment_for(vllm, {}, {"PATH": "/usr/bin:/bin", "HOME": "/var/lib/x", "PYTHONPATH": "/opt"})
    assert found["PATH"].split(":")[:3] == [str(tmp_path / "venv/bin"), "/usr/bin", "/bin"]
    assert "PYTHONPATH" not in found
    assert found["VLLM_CACHE_ROOT"] == "/var/lib/x/.cache/vllm"
    assert found["HF_HOME"] == "/var/lib/x/.cache/huggingface"


def test_what_the_user_gives_wins(tmp_path):
    vllm = script(tmp_path / "venv/bin/vllm")
    given = {"PATH": "/sbin", "CUDA_HOME": "/cuda", "HF_HOME": "/hf", "PYTHONPATH": "/mine"}
    found = environment_for(vllm, given, {"PATH": "/usr/bin", "HOME": "/var/lib/x", "PYTHONPATH": "/ours"})
    assert found["PATH"] == f"{tmp_path}/venv/bin:/sbin:/cuda/bin"
    assert (found["CUDA_HOME"], found["HF_HOME"], found["PYTHONPATH"]) == ("/cuda", "/hf", "/mine")


def test_a_program_without_a_directory_is_looked_for_on_path(tmp_path):
    script(tmp_path / "venv/bin/vllm")
    found = environment_for("vllm", {"PATH": f"/bin:{tmp_path}/venv/bin"}, {})
    assert found["PATH"].startswith(f"{tmp_path}/venv/bin:/bin")


def test_cuda_is_found_beside_its_compiler(tmp_path):
    script(tmp_path / "cuda-12.8/bin/nvcc")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/nvcc").symlink_to(tmp_path / "cuda-12.8/bin/nvcc")
    found = environment_for("vllm", {}, {"PATH": str(tmp_path / "links")})
    assert found["CUDA_HOME"] == str(tmp_path / "cuda-12.8")
    assert found["PATH"].endswith("/cuda-12.8/bin")


def test_downloads_go_to_the_local_disk_and_compiled_kernels_stay(tmp_path, monkeypatch):
    home = str(tmp_path)
    monkeypatch.setattr(os.path, "ismount", lambda path: path == "/mnt/orchestrator")
    found = environment_for("vllm", {}, {"HOME": home})
    assert found["HF_HOME"] == "/mnt/orchestrator/huggingface"
    compiled = ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH")
    assert all(found[name].startswith(f"{home}/.cache/") for name in compiled)
    assert found["FLASHINFER_WORKSPACE_BASE"] == home
    assert disk_of(home) == "/mnt/orchestrator"
    (tmp_path / ".cache/huggingface/hub").mkdir(parents=True)  # it came with the image
    assert environment_for("vllm", {}, {"HOME": home})["HF_HOME"] == f"{home}/.cache/huggingface"


# -- the program -------------------------------------------------------------------------------------------


def test_a_program_that_runs_is_right(tmp_path):
    check = check_program(script(tmp_path / "vllm"), "/bin")
    assert check == ("engine", True, str(tmp_path / "vllm"), False)


@pytest.mark.parametrize("name", ["/nowhere/vllm", "vllm-that-nobody-has"])
def test_a_program_that_is_not_there_stops_the_start(name):
    check = check_program(name, "/bin")
    assert (check.ok, check.fatal) == (False, True)
    assert "correct engine.executable" in check.text


def test_a_program_that_may_not_be_executed_stops_the_start(tmp_path):
    check = check_program(script(tmp_path / "vllm", mode=stat.S_IRUSR), "/bin")
    assert (check.ok, check.fatal) == (False, True)
    assert "cannot be executed by the engine's user" in check.text


def test_a_script_without_its_interpreter_stops_the_start(tmp_path):
    check = check_program(script(tmp_path / "vllm", "#!/secret/venv/bin/python3.12\n"), "/bin")
    assert (check.ok, check.fatal) == (False, True)
    assert "needs /secret/venv/bin/python3.12" in check.text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("#!/usr/bin/env python3\n", "/usr/bin/env"),
        ("\x7fELF", ""),
        ("#!\n", ""),
        ("", ""),
        ("#! /a b\n", "/a"),
    ],
)
def test_interpreters_are_read(tmp_path, text, named):
    assert interpreter_of(script(tmp_path / "x", text)) == named


# -- vLLM --------------------------------------------------------------------------------------------------


@pytest.fixture
def vllm(tmp_path):
    return script(tmp_path / "vllm", "#!/opt/vllm/bin/python3\n")


@pytest.mark.parametrize(
    ("version", "ok", "fatal"),
    [
        ("0.18.0", True, False),
        ("0.32.1+cu129", True, False),
        ("1.0", True, False),
        ("0.17.9", False, True),
        ("0.6.3.post1", False, True),
        ("0.1.dev1+g123abc", True, False),  # built from source
        ("unknown", True, False),
    ],
)
def test_an_old_vllm_stops_the_start(vllm, version, ok, fatal):
    check = check_vllm(vllm, answers(0, f"a warning\n{version}\n"))
    assert (check.ok, check.fatal) == (ok, fatal)
    assert version in check.text


def test_a_python_without_vllm_stops_the_start(vllm):
    check = check_vllm(vllm, answers(1, "Traceback\nPackageNotFoundError: vllm\n"))
    assert (check.ok, check.fatal) == (False, True)
    assert "PackageNotFoundError: vllm; correct engine.executable" in check.text


def test_a_python_that_does_not_answer_is_only_doubted(vllm):
    check = check_vllm(vllm, raises(TimeoutError("no answer within 60 s")))
    assert (check.ok, check.fatal) == (False, False)


def test_a_wrapper_in_another_language_is_not_judged(tmp_path):
    assert check_vllm(script(tmp_path / "vllm"), raises(AssertionError)).ok


def test_versions_are_read_from_the_real_python(tmp_path):
    """The interpreter of a script is asked, not the one that checks."""
    python = script(
        tmp_path / "python3", '#!/bin/sh\ncase "$2" in *importlib.metadata*) echo 0.31.0;; esac\n'
    )
    check = check_vllm(script(tmp_path / "vllm", f"#!{python}\n"), ask)
    assert check == ("vllm", True, "0.31.0", False)


# -- GPUs --------------------------------------------------------------------------------------------------

FOUR = "NVIDIA L40S, 580.159.04\n" * 4


def test_gpus_and_driver_are_told():
    check = check_driver(4, answers(0, FOUR))
    assert check == ("driver", True, "4 x NVIDIA L40S, driver 580.159.04", False)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (answers(0, FOUR), "shows 4 GPUs and the engine wants 8; choose a larger instance type"),
        (answers(0, "No devices were found\n"), "shows 0 GPUs"),
        (answers(0, "WARNING: slow, see the log\n" * 4 + FOUR), "shows 4 GPUs and the engine wants 8"),
        (answers(9, "NVIDIA-SMI has failed because it couldn't communicate\n"), "status 9: NVIDIA-SMI has"),
        (answers(127, ""), "status 127: no output"),
        (raises(FileNotFoundError(2, "No such file")), "use an image with the NVIDIA driver"),
        (raises(TimeoutError("no answer within 60 s")), "no answer within 60 s; the driver hangs"),
    ],
)
def test_gpus_that_are_missing_stop_the_start(asked, words):
    check = check_driver(8, asked)
    assert (check.ok, check.fatal) == (False, True)
    assert words in check.text


@pytest.mark.parametrize("program", ["{bin}/vllm", "vllm"])
def test_a_link_to_the_program_leads_to_its_virtual_environment(tmp_path, program):
    """As `uv tool install`, pipx and people make it; ninja lies in the environment."""
    real = script(tmp_path / "tools/vllm/bin/vllm")
    ninja = script(tmp_path / "tools/vllm/bin/ninja")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/vllm").symlink_to(real)
    base = {"PATH": f"{tmp_path}/bin:/usr/bin", "HOME": str(tmp_path)}
    environment = environment_for(program.format(bin=tmp_path / "bin"), {}, base)
    assert shutil.which("ninja", path=environment["PATH"]) == ninja
    assert shutil.which("vllm", path=environment["PATH"]) == f"{tmp_path}/bin/vllm"


def test_what_nvidia_smi_says_besides_is_no_gpu():
    check = check_driver(4, answers(0, f"Warning: persistence mode is off, and slow\n{FOUR}"))
    assert check == ("driver", True, "4 x NVIDIA L40S, driver 580.159.04", False)


def test_gpus_are_counted():
    listed = "".join(f"GPU {number}: NVIDIA A10G (UUID: GPU-{number})\n" for number in range(8))
    assert count_gpus(answers(0, listed)) == 8


@pytest.mark.parametrize(
    "asked",
    [answers(0, "No devices found.\n"), answers(9, "GPU 0: it failed"), raises(FileNotFoundError(2, "no"))],
)
def test_gpus_that_cannot_be_counted_are_no_number(asked):
    with pytest.raises(Refused, match="nvidia-smi -L"):
        count_gpus(asked)


def test_tools_that_are_missing_are_doubted(tmp_path):
    checks = check_tools({"PATH": str(tmp_path)})
    assert {(c.name, c.ok, c.fatal) for c in checks} == {
        ("compiler", False, False),
        ("ninja", False, False),
        ("cuda", False, False),
    }
    for name in ("ninja", "gcc"):
        script(tmp_path / name)
    checks = check_tools({"PATH": str(tmp_path), "CUDA_HOME": "/cuda"})
    assert [(c.ok, c.text) for c in checks] == [
        (True, str(tmp_path / "gcc")),
        (True, str(tmp_path / "ninja")),
        (True, "/cuda"),
    ]


def test_the_fabric_manager_matters_behind_switches_only(tmp_path):
    assert check_fabric(raises(AssertionError), str(tmp_path / "none")) is None
    (tmp_path / "switch").touch()
    switch = str(tmp_path / "switch")
    assert check_fabric(answers(0, "active\n"), switch).ok
    check = check_fabric(answers(3, "inactive\n"), switch)
    assert (check.ok, check.fatal) == (False, False)
    assert "nvidia-fabricmanager is inactive" in check.text
    assert not check_fabric(raises(TimeoutError("no answer")), switch).ok


# -- clock and disk ----------------------------------------------------------------------------------------


@pytest.fixture
def dated():
    """An HTTP server that states a time of its own, or something else."""
    stated = {}

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response_only(404)
            if stated.get("date") is not None:
                self.send_header("Date", stated["date"])
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        stated["url"] = f"http://127.0.0.1:{server.server_port}"
        yield stated
        server.shutdown()
        thread.join()


NOW = 1_800_000_000.0


@pytest.mark.parametrize(("off", "ok"), [(0, True), (29, True), (-29, True), (45, False), (-86400, False)])
def test_a_clock_that_is_off_is_told(dated, off, ok):
    dated["date"] = formatdate(NOW, usegmt=True)
    check = check_clock(dated["url"], lambda: NOW + off)
    assert (check.ok, check.fatal) == (ok, False)
    assert ok or f"off by {off:+.0f} s" in check.text


@pytest.mark.parametrize("date", [None, "", "yesterday", "x" * 999])
def test_a_time_that_cannot_be_read_says_nothing(dated, date):
    dated["date"] = date
    assert check_clock(dated["url"], lambda: NOW) is None


def test_without_metadata_nothing_is_said_of_the_clock():
    assert check_clock("http://127.0.0.1:9", lambda: NOW) is None


def test_a_disk_that_is_too_small_is_doubted(tmp_path):
    assert check_disk(str(tmp_path)).ok
    check = check_disk(str(tmp_path), 1e18)
    assert (check.ok, check.fatal) == (False, False)
    assert "give a larger disk.size" in check.text
    assert not check_disk(str(tmp_path / "missing")).ok


def test_a_machine_for_an_engine_without_gpus_is_asked_for_none(tmp_path):
    program = script(tmp_path / "engine")
    environment = {"PATH": "/bin", "HOME": str(tmp_path)}
    found = look({}, node_program.checks({"argv": [program]}, environment), environment, "http://127.0.0.1:9")
    assert [check.name for check in found] == ["engine", "disk"]


def test_all_is_looked_at_even_when_the_first_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(node_checks, "ask", raises(FileNotFoundError(2, "No such file")))
    needs = {"gpus": 4, "vllm": True, "weights": 0}
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    seen = node_program.checks({"argv": ["/nowhere/vllm"], "needs": needs}, environment)
    found = look(needs, seen, environment, "http://127.0.0.1:9")
    assert [check.name for check in found if check.fatal] == ["engine", "driver"]


def test_a_command_that_hangs_is_left():
    with pytest.raises(OSError, match="No such file"):
        ask(("/nowhere/x",))
    assert ask(("sh", "-c", "echo out; echo err >&2; exit 3")) == (3, "out\nerr\n")


def test_a_command_that_gives_no_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(node_checks, "_ASK_SECONDS", 0.05)
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        ask(("sleep", "600"))
