"""Samples what the machine does while a load runs: processors, memory, GPUs, power. Only of this machine."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pynvml

from plimsoll.bench.client import clock

_RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One moment; `at_s` is on the rows' clock. None: this machine does not tell."""

    at_s: float
    cpu_share: float
    """Of all cores together, 0 to 1, since the last sample."""
    ram_used_bytes: int
    processes_bytes: int | None = None
    """Resident memory of the watched processes and their children."""
    gpu_share: tuple[float, ...] = ()
    """Each GPU's own utilisation counter, 0 to 1."""
    gpu_used_bytes: tuple[int, ...] = ()
    power_w: float | None = None
    """GPUs and processor packages together, as far as they are readable."""


class Sampler:
    """Takes a sample every `every_s` in a thread of its own; `samples` grows while it runs."""

    def __init__(self, pids: Sequence[int] = (), *, every_s: float = 0.5) -> None:
        self.samples: list[Sample] = []
        self._pids = tuple(pids)
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sampler", daemon=True)
        self._gpus: list[object] = []
        self._energy = _energy_files()
        self._last: tuple[float, int] | None = None

    def __enter__(self) -> Sampler:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            self._gpus = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        psutil.cpu_percent()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stop.wait(self._every_s):
            self.samples.append(self._sample())

    def _sample(self) -> Sample:
        shares, used, watts = [], [], self._package_watts()
        for gpu in self._gpus:
            with contextlib.suppress(pynvml.NVMLError):
                shares.append(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100)
                used.append(int(pynvml.nvmlDeviceGetMemoryInfo(gpu).used))
                watts = (watts or 0.0) + pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3
        return Sample(
            at_s=clock(),
            cpu_share=psutil.cpu_percent() / 100,
            ram_used_bytes=psutil.virtual_memory().used,
            processes_bytes=sum(_resident(self._pids)) if self._pids else None,
            gpu_share=tuple(shares),
            gpu_used_bytes=tuple(used),
            power_w=watts,
        )

    def _package_watts(self) -> float | None:
        try:
            now, joule = clock(), sum(int(file.read_text()) for file in self._energy)
        except (OSError, ValueError):
            return None
        last, self._last = self._last, (now, joule)
        # The counters wrap round: a step back tells nothing.
        if not self._energy or last is None or joule < last[1]:
            return None
        return (joule - last[1]) / 1e6 / (now - last[0])


def _energy_files() -> list[Path]:
    """The energy counters (microjoule) of the processor packages; without the parts that a package includes."""
    with contextlib.suppress(OSError):
        return [file for file in _RAPL.glob("intel-rapl:*/energy_uj") if file.parent.name.count(":") == 1]
    return []


def _resident(pids: Sequence[int]) -> Iterator[int]:
    for pid in pids:
        try:
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                yield int(one.memory_info().rss)
        except psutil.Error:
            continue
