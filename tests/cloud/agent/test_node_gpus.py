"""How the agent reads GPUs: by NVML, by nvidia-smi, and what it says when neither answers.

The library and the outputs are made from NVIDIA's documentation, see tests/support/gpus/README.
"""

import json
import signal
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from node_bench import BARE_PYTHON, RECORDED, fake_nvml

from cloud import node_agent, node_gpus
from cloud.agent_keys import agent_program
from cloud.node_gpus import MOST_EVENTS, ROW_FIELDS, SMI_FIELDS, Gpus, Nvml, NvmlFailed, parse_smi
from cloud.node_metadata import MOST_READ

PATIENCE = 60.0


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    made = fake_nvml(tmp_path_factory.mktemp("nvml"))
    if made is None:
        pytest.skip("there is no C compiler to make a library with")
    return str(made)


@pytest.fixture
def says(tmp_path, monkeypatch):
    """Have the library say what was recorded, with more lines."""
    file = tmp_path / "nvml"
    monkeypatch.setenv("FAKE_NVML", str(file))

    def say(name, *more):
        text = (RECORDED / f"{name}.nvml").read_text() if name else ""
        new = file.with_suffix(".new")
        new.write_text(text + "".join(f"{line}\n" for line in more))
        new.replace(file)

    return say


def smi(tmp_path, name, rows="healthy"):
    """An nvidia-smi that prints a recorded output, and notes what it was asked."""
    script, asked = tmp_path / "nvidia-smi", tmp_path / "asked"
    script.write_text(
        f"""#!/bin/sh
echo "$1" >> {asked}
case "$1" in
  --query-remapped-rows=*) cat {RECORDED}/{rows}.rows;;
  *) cat {RECORDED}/{name}.csv;;
esac
"""
    )
    script.chmod(0o755)
    return str(script)


# -- NVML ---------------------------------------------------------------------------------------------------


def test_nvml_tells_all_of_a_gpu(library, says):
    says("healthy")
    (gpu,), error = Gpus("/nonexistent", library).read()
    assert error == ""
    assert gpu == {
        "index": 0.0,
        "state": "",
        "name": "NVIDIA H100 80GB HBM3",
        "uuid": "GPU-5f2c9a10-77aa-4c1e-9f7d-0d3b6c1e8a01",
        "utilisation_percent": 97.0,
        "memory_total_mib": 81559.0,
        "memory_used_mib": pytest.approx(75415, abs=1),
        "temperature_c": 61.0,
        "power_w": pytest.approx(512.34),
        "power_limit_w": 700.0,
        "sm_clock_mhz": 1935.0,
        "sm_clock_most_mhz": 1980.0,
        "throttle_reasons": 4.0,
        "ecc_corrected": 0.0,
        "ecc_uncorrected": 0.0,
        "remapped_rows": 0.0,
        "remap_pending": 0.0,
        "remap_failed": 0.0,
        "retired_pending": None,
    }


def test_the_newer_name_of_the_reasons_comes_first(library, says):
    """The library of the test has only the older name; one that it lacks is asked for by no harm."""
    says("throttled")
    (gpu,), _ = Gpus("/nonexistent", library).read()
    assert (gpu["throttle_reasons"], gpu["temperature_c"], gpu["sm_clock_mhz"]) == (0x6C, 91.0, 825.0)


def test_a_gpu_that_is_lost_is_said_and_the_others_are_read(library, says):
    says("lost")
    gpus, error = Gpus("/nonexistent", library).read()
    assert error == ""
    assert [gpu["state"] for gpu in gpus] == ["lost", ""]
    says("healthy", "0 state 16")
    (gpu,), _ = Gpus("/nonexistent", library).read()
    assert (gpu["state"], gpu["temperature_c"]) == ("reset required", None)


def test_a_gpu_that_cannot_be_reached_among_others_is_lost(library, says):
    """As one looks that fell off the bus, to some drivers."""
    says("lost", "1 handle 0", "0 handle 999")
    gpus, error = Gpus("/nonexistent", library).read()
    assert (error, [gpu["state"] for gpu in gpus]) == ("", ["lost", ""])


def test_errors_that_nvml_tells_of_are_kept(library, says):
    says("healthy", "- xids 48 63 " + " ".join(["31"] * 50))
    nvml = Nvml(library)
    nvml.read()
    # The library counts in its process, over all tests.
    assert {xid["code"] for xid in nvml.xids.listed()} <= {48, 63, 31}
    assert sum(xid["count"] for xid in nvml.xids.listed()) == MOST_EVENTS, (
        "what waits is heard at the next look"
    )
    nvml.read()
    assert sum(xid["count"] for xid in nvml.xids.listed()) > MOST_EVENTS


@pytest.mark.parametrize("call", ["nvmlInit_v2", "nvmlDeviceGetCount_v2"])
def test_nvml_that_fails_leaves_it_to_nvidia_smi_and_is_tried_again(library, says, tmp_path, call):
    gpus = Gpus(smi(tmp_path, "healthy"), library)
    says("throttled", f"* {call} 9")
    (gpu,), error = gpus.read()
    assert (gpu["temperature_c"], error) == (61.0, "")
    says("throttled")
    (gpu,), error = gpus.read()
    assert (gpu["temperature_c"], error) == (91.0, "")
    says("healthy", f"* {call} 9")
    found, error = Gpus("/nonexistent", library).read()
    assert found == []
    assert error == f"NVML: {call}: error 9; /nonexistent: No such file or directory"


def test_nvml_that_is_not_there_leaves_it_to_nvidia_smi(tmp_path):
    (gpu,), error = Gpus(smi(tmp_path, "healthy"), "/nonexistent/libnvidia-ml.so.1").read()
    assert (gpu["temperature_c"], error) == (61.0, "")


def test_a_driver_that_hangs_is_left_alone_and_said(library, says, tmp_path):
    """In a process of its own: the hanging thread stays for as long as that lives."""
    says("", "- hang")
    program = (
        "import sys; from cloud.node_gpus import Gpus\n"
        f"gpus = Gpus('/nonexistent', {library!r}, timeout=0.2)\n"
        "print(gpus.read(), gpus.read(), sep='\\n')\n"
    )
    done = subprocess.run([*BARE_PYTHON, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.splitlines() == [
        "([], 'NVML: no answer within 0.2 s; its thread is left alone')",
        "([], 'NVML: still hangs; its thread is left alone')",
    ], done.stderr


def test_a_driver_that_comes_back_is_asked_again(library, says):
    gate = threading.Event()
    gpus = Gpus("/nonexistent", library, timeout=0.05)
    says("healthy")
    read = gpus._nvml.read
    gpus._nvml.read = lambda: gate.wait(PATIENCE) and read()
    assert "no answer within" in gpus.read()[1]
    assert "still hangs" in gpus.read()[1]
    gate.set()
    gpus._asking.join(PATIENCE)
    gpus._timeout = PATIENCE
    assert gpus.read()[1] == ""


# -- nvidia-smi ---------------------------------------------------------------------------------------------


def test_nvidia_smi_tells_the_same(tmp_path):
    (gpu,), error = Gpus(smi(tmp_path, "throttled", "failed")).read()
    assert error == ""
    assert gpu == {
        "index": 0.0,
        "uuid": "GPU-5f2c9a10-77aa-4c1e-9f7d-0d3b6c1e8a01",
        "name": "NVIDIA H100 80GB HBM3",
        "utilisation_percent": 98.0,
        "memory_used_mib": 75415.0,
        "memory_total_mib": 81559.0,
        "temperature_c": 91.0,
        "power_w": 318.02,
        "power_limit_w": 700.0,
        "sm_clock_mhz": 825.0,
        "sm_clock_most_mhz": 1980.0,
        "throttle_reasons": 0x6C,
        "ecc_corrected": 0.0,
        "ecc_uncorrected": 0.0,
        "retired_pages": None,
        "retired_pending": None,
        "remapped_rows": 8.0,
        "remap_pending": 0.0,
        "remap_failed": 1.0,
        "state": "",
    }


def test_pages_of_older_gpus_are_read(tmp_path):
    (gpu,), _ = Gpus(smi(tmp_path, "v100_pages")).read()
    assert (gpu["retired_pages"], gpu["retired_pending"], gpu["throttle_reasons"]) == (2.0, 1.0, 0.0)
    assert "remap_failed" not in gpu, "the rows are those of another GPU"


def test_rows_are_asked_for_now_and_then(tmp_path):
    gpus = Gpus(smi(tmp_path, "healthy", "failed"))
    for _ in range(node_gpus.ROWS_EVERY + 1):
        assert gpus.read()[0][0]["remap_failed"] == 1.0
    asked = (tmp_path / "asked").read_text().splitlines()
    assert sum(line.startswith("--query-remapped-rows=") for line in asked) == 2


def test_a_field_that_a_version_does_not_know_is_asked_for_no_more(tmp_path):
    """One unknown field makes nvidia-smi refuse all of them; the reasons have an older name."""
    script = tmp_path / "nvidia-smi"
    script.write_text(
        """#!/bin/sh
case "$1" in
  *clocks_event_reasons.active*) field=clocks_event_reasons.active;;
  *retired_pages.pending*) field=retired_pages.pending;;
  *clocks_throttle_reasons.active*)
    echo '0, GPU-aa, NVIDIA L4, 1, 2, 3, 4, 5, 6, 7, 8, 0x0000000000000040, 0, 0, [N/A]'
    exit;;
esac
echo "Field \\"$field\\" is not a valid field to query."
exit 2
"""
    )
    script.chmod(0o755)
    gpus = Gpus(str(script))
    for _ in range(2):
        (gpu,), error = gpus.read()
        assert error == ""
        assert gpu["throttle_reasons"] == 0x40
        assert "retired_pending" not in gpu


def test_a_version_that_refuses_every_field_is_said_and_ends(tmp_path):
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 'Field \"index\" is not a valid field to query.'; exit 2\n")
    script.chmod(0o755)
    gpus, error = Gpus(str(script)).read()
    assert gpus == []
    assert "not a valid field" in error


def test_what_a_gpu_does_not_tell_is_none():
    line = '1, GPU-bb, "NVIDIA, odd name", [N/A], [Not Supported], 81559, ERR!' + ", [Unknown Error]" * 9
    gpus, odd = parse_smi(line, SMI_FIELDS)
    assert odd == ""
    assert (gpus[0]["name"], gpus[0]["memory_total_mib"]) == ("NVIDIA, odd name", 81559.0)
    assert [gpus[0][key] for key in ("utilisation_percent", "temperature_c", "ecc_uncorrected")] == [None] * 3


@pytest.mark.parametrize(
    "line",
    [
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
        'Field "x" is not a valid field to query.',
    ],
)
def test_a_line_that_is_no_gpu_is_what_is_wrong(line):
    gpus, odd = parse_smi((RECORDED / "healthy.csv").read_text() + line, SMI_FIELDS)
    assert len(gpus) == 1
    assert odd == line


@given(st.text(), st.sampled_from((SMI_FIELDS, ROW_FIELDS)))
def test_any_output_can_be_read(output, fields):
    gpus, _ = parse_smi(output, fields)
    json.dumps(gpus, allow_nan=False)


def test_nvidia_smi_that_is_missing_fails_or_hangs_is_said(tmp_path):
    assert Gpus("/nonexistent/nvidia-smi").read() == (
        [],
        "/nonexistent/nvidia-smi: No such file or directory",
    )
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho GPU is lost; exit 15\n")
    script.chmod(0o755)
    assert "status 15: GPU is lost" in Gpus(str(script)).read()[1]
    script.write_text("#!/bin/sh\nexec sleep 600\n")
    hanging = Gpus(str(script), timeout=0.2)
    assert "no answer within" in hanging.read()[1]


@pytest.mark.parametrize(
    ("line", "index", "state"),
    [
        ("Unable to determine the device handle for GPU0000:08:00.0: Unknown Error", 1, "lost"),
        (
            "Unable to determine the device handle for GPU 0000:08:00.0: GPU is lost.  Reboot the system",
            1,
            "lost",
        ),
        ("Unable to determine the device handle for GPU7: 0000:08:00.0: Unknown Error", 7, "lost"),
        ("Unable to determine the device handle for GPU0000:08:00.0: Insufficient Permissions", None, ""),
    ],
)
def test_a_gpu_that_nvidia_smi_cannot_reach_is_said_and_the_others_are_read(tmp_path, line, index, state):
    script = tmp_path / "smi"
    script.write_text(f"#!/bin/sh\ncat {RECORDED}/healthy.csv\necho '{line}'\nexit 15\n")
    script.chmod(0o755)
    (healthy, *lost), error = Gpus(str(script)).read()
    assert (healthy["state"], healthy["temperature_c"]) == ("", 61.0)
    assert [(gpu["index"], gpu["state"]) for gpu in lost] == ([] if index is None else [(index, state)])
    assert line[:40] in error


def test_a_gpu_that_asks_for_a_reset_says_so_in_its_row():
    row = (RECORDED / "healthy.csv").read_text().replace(" 61,", " [GPU requires reset],")
    ((gpu,), odd) = parse_smi(row, SMI_FIELDS)
    assert (gpu["state"], gpu["temperature_c"], odd) == ("reset required", None, "")


def test_nvml_is_closed_before_it_is_asked_anew():
    """A driver that refuses for days must not take a handle at each look."""
    calls = []

    class Library:
        def __getattr__(self, name):
            if name in ("nvmlDeviceGetUtilizationRates",):
                raise AttributeError(name)
            return lambda *arguments: calls.append(name) or (999 if name == "nvmlDeviceGetCount_v2" else 0)

    nvml = Nvml("any")
    for _ in range(2):
        nvml._library = nvml._library or Library()
        with pytest.raises(NvmlFailed):
            nvml.read()
        assert (nvml._library, nvml._events) == (None, None)
    assert calls.count("nvmlShutdown") == 2


# -- the agent's program ------------------------------------------------------------------------------------


def test_the_program_that_nodes_get_needs_no_other_file(tmp_path):
    """It has the part that reads GPUs in it; its other neighbours are on the node."""
    program = agent_program()
    assert "from cloud.node_gpus" not in program
    assert len(json.dumps({"agent": program})) < MOST_READ * 0.9
    (tmp_path / "agent.py").write_text(program)
    home = tmp_path / "home"
    (home / "cloud").mkdir(parents=True)
    (home / "cloud" / "__init__.py").write_text("")
    for name in ("node_boot.py", "node_metadata.py"):
        (home / "cloud" / name).write_text((RECORDED.parents[2] / "cloud" / name).read_text())
    done = subprocess.run(
        [
            *("env", f"PYTHONPATH={home}", sys.executable, "-S", str(tmp_path / "agent.py"), "--once"),
            *("--imds", "http://127.0.0.1:9", "--nvml", "off", "--kernel-log", str(tmp_path / "none")),
            *("--nvidia-smi", smi(tmp_path, "ecc")),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gpus"][0]["ecc_uncorrected"] == 2.0


def test_both_parts_of_the_program_have_names_of_their_own():
    ours, theirs = (
        {n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__}
        for module in (node_agent, node_gpus)
    )
    assert ours & theirs == set()


def test_an_agent_reads_nvml_and_goes_on_while_it_hangs(library, says, tmp_path):
    """The real program: what NVML tells, and then a driver that does not come back."""
    says("healthy")
    command = [
        *(
            *BARE_PYTHON,
            "-m",
            "cloud.node_agent",
            "--once",
            "--imds",
            "http://127.0.0.1:9",
            "--nvml",
            library,
        ),
        *("--kernel-log", str(tmp_path / "none")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["gpus"][0]["power_w"], report["gpu_error"]) == (pytest.approx(512.34), "")
    says("", "- hang")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        report = json.loads(process.communicate(timeout=PATIENCE)[0])
    except BaseException:
        process.send_signal(signal.SIGKILL)
        raise
    assert (report["gpus"], report["gpu_error"]) == (
        [],
        "NVML: no answer within 10 s; its thread is left alone",
    )
