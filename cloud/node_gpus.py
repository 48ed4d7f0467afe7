"""Asks a node's GPUs how they are: NVML where its library is, else nvidia-smi.

Standard library only, Python 3.9 or newer: it comes to the node as a part of the agent's program, see
`cloud.agent_keys`. A driver may hang where no signal reaches: a call of NVML is made in a thread of its own
and left alone there, so is a process that cannot be killed. Neither is asked again before it has come back.

Source: NVIDIA's NVML API reference; `nvidia-smi --help-query-gpu` and `--help-query-remapped-rows`. Not run
on a GPU: the tests have a library and outputs that are made from these.
"""

# Like node_agent.py this runs where nothing of the project is installed and on older Pythons.
from __future__ import annotations

import csv
import ctypes
import re
import subprocess
import threading
from typing import Any

NVML = "libnvidia-ml.so.1"
MOST_GPUS = 32
MOST_EVENTS = 32
MOST_XIDS = 64
ROWS_EVERY = 20  # looks by nvidia-smi between two at the rows of memory that were replaced
SMI_FIELDS = {
    "index": "index",
    "uuid": "uuid",
    "name": "name",
    "utilization.gpu": "utilisation_percent",
    "memory.used": "memory_used_mib",
    "memory.total": "memory_total_mib",
    "temperature.gpu": "temperature_c",
    "power.draw": "power_w",
    "enforced.power.limit": "power_limit_w",
    "clocks.sm": "sm_clock_mhz",
    "clocks.max.sm": "sm_clock_most_mhz",
    "clocks_event_reasons.active": "throttle_reasons",
    "ecc.errors.corrected.volatile.total": "ecc_corrected",
    "ecc.errors.uncorrected.volatile.total": "ecc_uncorrected",
    "retired_pages.double_bit.count": "retired_pages",
    "retired_pages.pending": "retired_pending",
}
ROW_FIELDS = {
    "gpu_uuid": "uuid",
    "remapped_rows.uncorrectable": "remapped_rows",
    "remapped_rows.pending": "remap_pending",
    "remapped_rows.failure": "remap_failed",
}
OLDER_NAMES = {"clocks_event_reasons.active": "clocks_throttle_reasons.active"}
REFUSED_FIELD = re.compile(r'Field "([^"]+)" is not a valid field')
WORDS = {"yes": 1.0, "no": 0.0, "active": 1.0, "not active": 0.0}
LOST = {15: "lost", 16: "reset required"}  # NVML_ERROR_GPU_IS_LOST, NVML_ERROR_RESET_REQUIRED
UNREACHED = {**LOST, 999: "lost"}  # NVML_ERROR_UNKNOWN, for the handle of a GPU that fell off the bus
SAID_LOST = {
    "lost": re.compile(r"GPU is lost|device handle for GPU.*Unknown Error"),
    "reset required": re.compile(r"GPU requires reset"),
}
XID_EVENT = 0x8  # nvmlEventTypeXidCriticalError
MIB = 1024.0 * 1024.0


class NvmlFailed(Exception):
    """A call of NVML that failed; the message is for people."""


class NvmlEvent(ctypes.Structure):
    """nvmlEventData_t."""

    _fields_ = [
        ("device", ctypes.c_void_p),
        ("kind", ctypes.c_ulonglong),
        ("data", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


class Xids:
    """Errors of a driver: each code of each GPU once, with its newest text and how often it came.

    One error is often followed by hundreds of others; so they must not push it out. The newest come last.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], dict[str, Any]] = {}

    def add(self, pci: str, code: int, text: str) -> None:
        """One more error of a GPU at this place of the bus; empty where that is not known."""
        before = self._known.pop((pci, code), {"count": 0})
        self._known[pci, code] = {"pci": pci, "code": code, "text": text, "count": before["count"] + 1}
        if len(self._known) > MOST_XIDS:
            del self._known[next(iter(self._known))]

    def listed(self) -> list[dict[str, Any]]:
        """Each as it is reported."""
        return list(self._known.values())


class Nvml:
    """NVML by its C library. `xids`: those that it reported since it was first asked."""

    def __init__(self, library: str) -> None:
        self._path = library
        self._library: ctypes.CDLL | None = None
        self._events: ctypes.c_void_p | None = None
        self.xids = Xids()

    def read(self) -> list[dict[str, Any]]:
        """Every GPU. Raises OSError where there is no such library, NvmlFailed where it cannot be asked."""
        if self._library is None:
            library = ctypes.CDLL(self._path)
            self._needed(library, "nvmlInit_v2")
            self._library = library
        try:
            if self._events is None:
                self._listen(self._library)
            return self._gpus(self._library)
        except NvmlFailed:
            self._close(self._library)  # the driver may have been loaded anew
            raise

    def _close(self, library: ctypes.CDLL) -> None:
        if self._events:
            nvml_code(library, "nvmlEventSetFree", self._events)
        nvml_code(library, "nvmlShutdown")
        self._library = self._events = None

    def _gpus(self, library: ctypes.CDLL) -> list[dict[str, Any]]:
        gpus = [self._gpu(library, index) for index in range(min(self._count(library), MOST_GPUS))]
        self._hear(library)
        return gpus

    def _count(self, library: ctypes.CDLL) -> int:
        count = ctypes.c_uint()
        self._needed(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
        return count.value

    def _gpu(self, library: ctypes.CDLL, index: int) -> dict[str, Any]:
        handle, gpu = ctypes.c_void_p(), dict[str, Any](index=float(index), state="")
        self._needed(library, "nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle), gpu=gpu)
        if gpu["state"]:
            return gpu

        def told(name: str, kind: type[Any], *before: int, scale: float = 1.0) -> float | None:
            value = kind()
            code = nvml_code(library, name, handle, *before, ctypes.byref(value))
            gpu["state"] = gpu["state"] or LOST.get(code, "")
            return value.value * scale if code == 0 else None

        uint, long = ctypes.c_uint, ctypes.c_ulonglong
        used = (uint * 2)()
        if nvml_code(library, "nvmlDeviceGetUtilizationRates", handle, used) == 0:
            gpu["utilisation_percent"] = float(used[0])
        memory = (long * 3)()  # total, free, used
        if nvml_code(library, "nvmlDeviceGetMemoryInfo", handle, memory) == 0:
            gpu["memory_total_mib"], gpu["memory_used_mib"] = memory[0] / MIB, memory[2] / MIB
        rows = [uint() for _ in range(4)]  # correctable, uncorrectable, pending, failed
        if nvml_code(library, "nvmlDeviceGetRemappedRows", handle, *map(ctypes.byref, rows)) == 0:
            names = ("remapped_rows", "remap_pending", "remap_failed")
            gpu.update(zip(names, (float(row.value) for row in rows[1:])))  # noqa: B905
        for key, name in (("uuid", "nvmlDeviceGetUUID"), ("name", "nvmlDeviceGetName")):
            text = ctypes.create_string_buffer(96)
            nvml_code(library, name, handle, text, 96)
            gpu[key] = text.value.decode("utf-8", "replace")[:80]
        gpu["temperature_c"] = told("nvmlDeviceGetTemperature", uint, 0)
        gpu["power_w"] = told("nvmlDeviceGetPowerUsage", uint, scale=0.001)
        gpu["power_limit_w"] = told("nvmlDeviceGetEnforcedPowerLimit", uint, scale=0.001)
        gpu["sm_clock_mhz"] = told("nvmlDeviceGetClockInfo", uint, 1)
        gpu["sm_clock_most_mhz"] = told("nvmlDeviceGetMaxClockInfo", uint, 1)
        reasons = told("nvmlDeviceGetCurrentClocksEventReasons", long)
        older = "nvmlDeviceGetCurrentClocksThrottleReasons"
        gpu["throttle_reasons"] = told(older, long) if reasons is None else reasons
        gpu["ecc_corrected"] = told("nvmlDeviceGetTotalEccErrors", long, 0, 0)
        gpu["ecc_uncorrected"] = told("nvmlDeviceGetTotalEccErrors", long, 1, 0)
        gpu["retired_pending"] = told("nvmlDeviceGetRetiredPagesPendingStatus", uint)
        return gpu

    def _listen(self, library: ctypes.CDLL) -> None:
        """Have Xid errors kept for the next look. Without that the kernel log alone has them."""
        events, handle = ctypes.c_void_p(), ctypes.c_void_p()
        self._events = events
        if nvml_code(library, "nvmlEventSetCreate", ctypes.byref(events)) != 0:
            return
        for index in range(min(self._count(library), MOST_GPUS)):
            if nvml_code(library, "nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle)) == 0:
                nvml_code(library, "nvmlDeviceRegisterEvents", handle, ctypes.c_ulonglong(XID_EVENT), events)

    def _hear(self, library: ctypes.CDLL) -> None:
        event, wait = NvmlEvent(), "nvmlEventSetWait_v2"
        for _ in range(MOST_EVENTS if self._events else 0):
            if nvml_code(library, wait, self._events, ctypes.byref(event), 1) != 0:
                break
            if event.kind == XID_EVENT and event.data < 100_000:
                self.xids.add("", int(event.data), "reported by NVML")

    def _needed(
        self, library: ctypes.CDLL, name: str, *arguments: Any, gpu: dict[str, Any] | None = None
    ) -> None:
        """A call that must succeed. A GPU that is lost is known to be: that is said in `gpu`."""
        code = nvml_code(library, name, *arguments)
        if gpu is not None and code in UNREACHED:
            gpu["state"] = UNREACHED[code]
        elif code != 0:
            raise NvmlFailed(f"NVML: {name}: error {code}")


def nvml_code(library: ctypes.CDLL, name: str, *arguments: Any) -> int:
    """What a function of NVML returns; 13 where this version of the library does not have it."""
    function = getattr(library, name, None)
    return 13 if function is None else int(function(*arguments))


class Smi:
    """Asks nvidia-smi. When a driver makes it hang where no signal reaches it, it is left alone."""

    def __init__(self, command: str, timeout: float) -> None:
        self._command, self._timeout = command, timeout
        self._fields = dict(SMI_FIELDS)
        self._rows: dict[str, dict[str, Any]] = {}
        self._looks = 0
        self._hung: subprocess.Popen[bytes] | None = None

    def read(self) -> tuple[list[dict[str, Any]], str]:
        """What it says of each GPU, and what is wrong with asking it (empty: nothing)."""
        for _ in SMI_FIELDS:
            status, output, error = self._ask("--query-gpu=" + ",".join(self._fields))
            refused = REFUSED_FIELD.search(output)
            if error or refused is None or refused[1] not in self._fields:
                break
            self._without(refused[1])
        if error:
            return [], error
        gpus, odd = parse_smi(output, self._fields)
        if gpus and self._looks % ROWS_EVERY == 0:
            _, rows, _ = self._ask("--query-remapped-rows=" + ",".join(ROW_FIELDS))
            self._rows = {row["uuid"]: row for row in parse_smi(rows, ROW_FIELDS)[0] if "uuid" in row}
        self._looks += 1
        gpus = [{**self._rows.get(str(gpu.get("uuid")), {}), **gpu} for gpu in gpus]
        if status != 0 or odd:
            said = " ".join((odd or output).split())[:200]
            return gpus, f"{self._command}: status {status}: {said}"
        return gpus, ""

    def _without(self, field: str) -> None:
        """Ask for a field no more that this version does not know, but for the name that it has there."""
        names = {field: OLDER_NAMES[field]} if field in OLDER_NAMES else {}
        self._fields = {names.get(f, f): k for f, k in self._fields.items() if f != field or names}

    def _ask(self, query: str) -> tuple[int, str, str]:
        """Status, output, and why there is none."""
        if self._hung is not None and self._hung.poll() is None:
            return 0, "", f"{self._command}: still hangs, and cannot be killed"
        try:
            process = subprocess.Popen(
                [self._command, query, "--format=csv,noheader,nounits"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            return 0, "", f"{self._command}: {error.strerror}"
        try:
            output = process.communicate(timeout=self._timeout)[0].decode("utf-8", "replace")
        except subprocess.TimeoutExpired:
            process.kill()
            self._hung = process
            return 0, "", f"{self._command}: no answer within {self._timeout:g} s"
        return process.returncode, output, ""


def parse_smi(output: str, fields: dict[str, str]) -> tuple[list[dict[str, Any]], str]:
    """The rows of nvidia-smi's CSV, and the first line that is none. A value that it lacks is None.

    A GPU that it says to be lost is one too, whether in a row or in words.
    """
    rows: list[dict[str, Any]] = []
    odd = ""
    for line in output.splitlines()[: 4 * MOST_GPUS]:
        row = next(csv.reader([line], skipinitialspace=True), []) if len(line) < 2000 else []
        if len(row) == len(fields) and (row[0].strip().isdigit() or row[0].startswith("GPU-")):
            cells = {key: smi_value(key, cell.strip()) for key, cell in zip(fields.values(), row)}  # noqa: B905
            rows.append({**cells, "state": said_lost(line)})
        elif line.strip():
            odd = odd or line.strip()
            if said_lost(line):
                named = re.search(r"GPU ?(\d{1,2}):", line)
                free = next(n for n in range(len(rows) + 1) if float(n) not in [r.get("index") for r in rows])
                rows.append({"index": float(named[1] if named else free), "state": said_lost(line)})
    return rows[:MOST_GPUS], odd


def said_lost(text: str) -> str:
    """The state of a GPU that nvidia-smi says to be lost; empty for one that answers."""
    return next((state for state, words in SAID_LOST.items() if words.search(text)), "")


def smi_value(key: str, cell: str) -> Any:
    """One cell: a text, a number, a bit mask, yes or no; None for what is none of these."""
    if key in ("uuid", "name"):
        return cell[:80]
    try:
        number = float(int(cell, 16)) if cell[:2] == "0x" else float(cell)
    except ValueError:  # [N/A], [Not Supported], [Unknown Error], ERR!
        return WORDS.get(cell.lower())
    return number if abs(number) < 1e12 else None


class Gpus:
    """The GPUs of this node. `library`: NVML's, empty to ask nvidia-smi (`command`) alone."""

    def __init__(self, command: str, library: str = "", timeout: float = 10.0) -> None:
        self._nvml = Nvml(library) if library else None
        self._smi = Smi(command, timeout)
        self._timeout = timeout
        self._asking: threading.Thread | None = None

    @property
    def xids(self) -> list[dict[str, Any]]:
        """Xid errors that NVML reported."""
        return [] if self._nvml is None else self._nvml.xids.listed()

    def read(self) -> tuple[list[dict[str, Any]], str]:
        """What is known of each GPU, and what is wrong with asking (empty: nothing)."""
        if self._nvml is None:
            return self._smi.read()
        if self._asking is not None and self._asking.is_alive():
            return [], "NVML: still hangs; its thread is left alone"
        answers: list[tuple[list[dict[str, Any]], str]] = []
        self._asking = threading.Thread(target=self._ask_nvml, args=(self._nvml, answers), daemon=True)
        self._asking.start()
        self._asking.join(self._timeout)
        if not answers:
            return [], f"NVML: no answer within {self._timeout:g} s; its thread is left alone"
        gpus, failed = answers[0]
        if not failed:
            return gpus, ""
        gpus, error = self._smi.read()
        return gpus, f"{failed}; {error}" if error else ""

    def _ask_nvml(self, nvml: Nvml, answers: list[tuple[list[dict[str, Any]], str]]) -> None:
        try:
            answers.append((nvml.read(), ""))
        except (OSError, NvmlFailed) as error:
            answers.append(([], str(error)))
        except Exception as error:
            answers.append(([], f"NVML: {type(error).__name__}: {error}"))
