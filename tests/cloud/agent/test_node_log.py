"""What an engine's log tells of its start: real lines of each engine, and lines that mean nothing."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.agent_keys import CARRIED, agent_program
from cloud.node_log import PARTS, StartLog

# vLLM 0.9 on a GPU, as a user published it (vllm-project/vllm#20264); the last line is uvicorn's.
VLLM = """\
INFO 06-19 23:05:01 [loader.py:447] Loading weights took 0.69 seconds
INFO 06-19 23:05:01 [gpu_model_runner.py:1273] Model loading took 3.4213 GiB and 0.902026 seconds
INFO 06-19 23:05:09 [backends.py:426] Dynamo bytecode transform time: 7.51 s
INFO 06-19 23:05:18 [monitor.py:33] torch.compile takes 7.51 s in total
INFO 06-19 23:05:35 [gpu_model_runner.py:1608] Graph capturing finished in 17 secs, took 0.48 GiB
INFO 06-19 23:05:35 [core.py:162] init engine (profile, create kv cache, warmup model) took 34.11 seconds
INFO:     Application startup complete.
"""
# vLLM 0.32: the words of its source (default_loader, weight_utils, gpu_model_runner, monitor, core).
VLLM_32 = """\
INFO 11-30 13:00:00 [weight_utils.py] Time spent downloading weights for org/m: 61.250000 seconds
INFO 11-30 13:00:10 [default_loader.py] Loading weights took 8.10 seconds
INFO 11-30 13:00:10 [gpu_model_runner.py] Model loading took 14.99 GiB memory and 71.500000 seconds
INFO 11-30 13:00:30 [monitor.py] [backbone] torch.compile took 19.50 s in total
INFO 11-30 13:00:40 [gpu_model_runner.py] Graph capturing finished in 4 secs, took 0.58 GiB
INFO [core.py] init engine (profile, create kv cache, warmup model) took 39.10 s (compilation: 20.00 s)
INFO:     Application startup complete.
"""
# vLLM 0.32 on a CPU, eager; ran.
VLLM_CPU = """\
INFO 11-30 13:22:10 [cpu_model_runner.py:68] Starting to load model tiny...
INFO 11-30 13:22:11 [default_loader.py:501] Loading weights took 0.01 seconds
INFO 11-30 13:22:13 [core.py:402] init engine (profile, create kv cache, warmup model) took 0.04 s
INFO:     Started server process [5486]
INFO:     Application startup complete.
"""
# llama.cpp of October 2026; ran.
LLAMA = """\
0.00.014.045 I srv          init: build_info: b0-unknown
0.00.029.908 I srv    load_model: loading model 'tiny-model.gguf'
0.00.193.169 I cmn          init: llama threadpool init, n_threads = 2
0.01.386.333 I srv          init: model loaded
0.01.386.339 I srv          init: listening on http://127.0.0.1:45829
"""
LLAMA_WARM = """\
0.59.900.000 I srv    load_model: loading model 'm.gguf'
1.09.900.000 W common_init_from_params: warming up the model with an empty run - please wait ...
1.11.400.000 I main: model loaded
1.11.400.000 I main: server is listening on http://0.0.0.0:8080 - starting the main loop
"""
# llama.cpp of 2024 and 2025, as users published it: no times. What listens first does not serve yet.
LLAMA_2025 = """\
main: HTTP server is listening, hostname: 127.0.0.1, port: 8080, http threads: 7
main: loading model
srv    load_model: loading model '/models/m.gguf'
load_tensors:        CUDA0 model buffer size =  4165.37 MiB
common_init_from_params: warming up the model with an empty run - please wait ... (--no-warmup to disable)
main: model loaded
main: server is listening on http://127.0.0.1:8080 - starting the main loop
"""
# SGLang 0.5 as users published it; the graphs' line in the words of two versions.
SGLANG = """\
[2026-02-26 05:24:09 TP4] Load weight end. elapsed=228.09 s, type=Glm, mem usage=89.58 GB.
[2026-02-26 05:24:09 TP5] Load weight end. elapsed=226.10 s, type=Glm, mem usage=89.58 GB.
[2026-02-26 05:24:40 TP0] Capture cuda graph end. Time elapsed: 7.23 s. mem usage=0.93 GB.
[2026-02-26 05:24:50 TP0] Capture target decode CUDA graph end. elapsed=16.40 s, mem usage=1.91 GB
[2026-02-26 05:25:00] The server is fired up and ready to roll!
"""


def read(text: str, *, at: float | None = None) -> dict:
    log = StartLog()
    for line in text.splitlines():
        log.take(line, at)
    return log.told()


@pytest.mark.parametrize(
    ("text", "took"),
    [
        (VLLM, {"load": 0.902026, "compile": 7.51, "graphs": 17.0, "warm_up": 9.6}),
        (VLLM_32, {"fetch": 61.25, "load": 10.25, "compile": 20.0, "graphs": 4.0, "warm_up": 15.1}),
        (VLLM_CPU, {"load": 0.01, "warm_up": 0.04}),
        (LLAMA, {"load": 1.356425}),
        (LLAMA_WARM, {"load": 10.0, "warm_up": 1.5}),
        (SGLANG, {"load": 228.09, "graphs": 16.4}),
    ],
)
def test_the_lines_of_each_engine(text, took):
    told = read(text, at=1000.5)
    assert told["took"] == pytest.approx(took), "what no line tells is missing, not 0"
    assert (told["serves"], told["serves_at"]) == (True, 1000.5)


def test_lines_without_times_count_when_they_were_written():
    log = StartLog()
    for second, line in enumerate(LLAMA_2025.splitlines()):
        assert not log.serves
        log.take(line, 1_800_000_000.0 + second)
    assert log.told()["took"] == {"load": 2.0, "warm_up": 1.0}
    assert read(LLAMA_2025)["took"] == {}, "nobody knows when"


def test_two_clocks_are_not_mixed():
    log = StartLog()
    for at, line in ((1_800_000_000.0, LLAMA.splitlines()[1]), (1_800_000_001.0, "main: model loaded")):
        log.take(line, at)
    assert log.told()["took"] == {}


@pytest.mark.parametrize("text", [VLLM, VLLM_32, VLLM_CPU, LLAMA, LLAMA_WARM, SGLANG])
def test_colours_prefixes_and_bars_make_no_difference(text):
    def dressed(line):
        line = line.replace("INFO", "\x1b[32mINFO\x1b[0m")
        return (
            f"host engine[71]: \x1b[1;36m(EngineCore_DP0 pid=7)\x1b[0;0m 100%|##| 4/4 [00:03<00:00]\r {line}"
        )

    assert read("".join(f"{dressed(line)}\n" for line in text.splitlines() for _ in "12")) == read(text)


@pytest.mark.parametrize("text", [VLLM, VLLM_32, VLLM_CPU, LLAMA, LLAMA_WARM, SGLANG])
def test_a_line_that_is_cut_in_half_tells_no_more_than_the_whole(text):
    for line in text.splitlines():
        most = sum(read(line)["took"].values())
        for at in range(len(line)):
            for half in (line[:at], line[at:]):
                told = read(half)
                assert sum(told["took"].values()) <= most + 1e-9
                assert not told["serves"] or read(line)["serves"]


def test_a_line_without_an_end_costs_little():
    told = read(f"Time spent downloading weights for {'a: ' * 300_000}" + "x" * 1_000_000)
    assert told["took"] == {}


def test_nothing_is_known_of_an_engine_whose_lines_are_not():
    assert read("Starting.\nReady on port 8000\n") == {"serves": False, "serves_at": None, "took": {}}


def test_another_start_begins_anew_also_after_one_that_served():
    died = VLLM_32.partition("(EngineCore pid=7) INFO 11-30 13:00:40")[0]
    begins = "node-start: start: /opt/vllm/bin/vllm starts\n"
    assert read(begins + died + begins + VLLM_CPU)["took"] == pytest.approx({"load": 0.01, "warm_up": 0.04})
    assert read(VLLM + begins) == {"serves": False, "serves_at": None, "took": {}}


def test_what_users_write_into_the_log_of_an_engine_that_serves_counts_for_nothing():
    forged = "INFO 'prompt': 'Graph capturing finished in 9999 secs, took 1 GiB'\n"
    assert read(VLLM + forged) == read(VLLM)


@pytest.mark.parametrize(
    "line",
    [
        "Graph capturing finished in nan secs, took 1 GiB",
        "Graph capturing finished in -3 secs, took 1 GiB",
        "Graph capturing finished in 99999999999 secs, took 1 GiB",
        "Loading weights took  seconds",
        "torch.compile took 1e9 s in total",
        "9.99.999.999 I srv load_model: loading model 'x'",
    ],
)
def test_a_number_that_is_none_is_not_known(line):
    assert read(line)["took"] == {}


def test_steps_whose_times_run_back_are_not_known():
    back = "0.09.000.000 I srv: loading model 'm'\n0.01.000.000 I srv: model loaded\n"
    assert read(back)["took"] == {}


@given(
    st.lists(st.sampled_from((VLLM + VLLM_32 + LLAMA_WARM + SGLANG).splitlines()) | st.text(), max_size=30)
)
def test_whatever_lines_in_whatever_order_give_parts_that_can_be(lines):
    told = read("\n".join(lines))
    assert set(told["took"]) <= set(PARTS)
    assert all(0.0 <= seconds < 1e6 for seconds in told["took"].values())


def test_the_agents_program_carries_it_without_two_things_of_one_name():
    package = Path(__file__).parents[3] / "cloud"
    names: list[str] = []
    for part in ("agent", *CARRIED):
        for node in ast.parse((package / f"node_{part}.py").read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.append(node.name)
            elif isinstance(node, ast.Assign):
                names += [t.id for t in node.targets if isinstance(t, ast.Name)]
    assert len(names) == len(set(names))
    assert "class StartLog" in agent_program()
    assert "import StartLog" not in agent_program()
