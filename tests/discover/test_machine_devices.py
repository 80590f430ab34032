"""Devices of recorded machines: parsers over tool outputs, a fake NVML, and what garbled output does to neither."""

# ruff: noqa: N802, N815  # the fake has NVML's own names

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.discover.amd import parse_amd_smi, parse_rocm_smi
from plimsoll.discover.apple import parse_sysctl, parse_system_profiler, parse_vm_stat
from plimsoll.discover.ascend import parse_npu_smi
from plimsoll.discover.devices import read_devices
from plimsoll.discover.nvidia import parse_nvidia_smi, parse_topology, read_nvml
from plimsoll.discover.seen import device_of
from plimsoll.facts.hardware import Device
from plimsoll.units import GIB, MIB

MACHINES = Path(__file__).parents[1] / "fixtures" / "machines"


def text(name: str) -> str:
    return (MACHINES / name).read_text(encoding="utf-8")


class FakeNvmlError(Exception):
    pass


class FakeNvml:
    """Answers of pynvml for given GPUs; a question that is not answered raises, as a driver that is too old does."""

    NVMLError = FakeNvmlError
    nvmlMemory_v2 = 2
    NVML_CLOCK_MEM = 2

    def __init__(self, gpus: Sequence[dict[str, Any]], *, loads: bool = True) -> None:
        self.gpus, self.loads = gpus, loads

    def nvmlInit(self) -> None:
        if not self.loads:
            raise FakeNvmlError("Driver Not Loaded")

    def nvmlShutdown(self) -> None: ...

    def nvmlSystemGetDriverVersion(self) -> str:
        return "560.35.05"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 12060

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        return self.gpus[index]

    def nvmlDeviceGetNvLinkState(self, handle: dict[str, Any], link: int) -> int:
        return int(link < handle.get("links", 0))

    def nvmlDeviceGetMemoryInfo(self, handle: dict[str, Any], version: int | None = None) -> Any:
        memory = handle.get("memory")
        if memory is None:
            raise FakeNvmlError("Not Supported")
        total, used, reserved = (value * MIB for value in memory)
        return SimpleNamespace(total=total, used=used, free=total - used - reserved, reserved=reserved)

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: dict[str, Any]) -> int:
        return len(handle["mig"])

    def nvmlDeviceGetMigMode(self, handle: dict[str, Any]) -> tuple[int, int]:
        return (1, 1) if handle.get("mig") else (0, 0)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: dict[str, Any], index: int) -> Any:
        return handle["mig"][index]

    def __getattr__(self, name: str) -> Any:
        key = {
            "nvmlDeviceGetName": "name", "nvmlDeviceGetCudaComputeCapability": "capability",
            "nvmlDeviceGetNvLinkVersion": "nvlink", "nvmlDeviceGetMemoryBusWidth": "bus",
            "nvmlDeviceGetMaxClockInfo": "clock", "nvmlDeviceGetMaxPcieLinkGeneration": "generation",
            "nvmlDeviceGetMaxPcieLinkWidth": "width",
        }[name]  # fmt: skip

        def answer(handle: dict[str, Any], *_: Any) -> Any:
            if key not in handle:
                raise FakeNvmlError("Not Supported")
            return handle[key]

        return answer


def no_tool(argv: Sequence[str]) -> str:
    return ""


def read(nvml: Any = None, run: Any = no_tool, **environment: str) -> tuple[Device, ...]:
    return read_devices(
        run,
        nvml=nvml or FakeNvml([], loads=False),
        ram_bytes=128 * GIB,
        ram_free_bytes=100 * GIB,
        environment=environment,
    )


A6000 = {
    "name": b"NVIDIA RTX A6000", "capability": (8, 6), "memory": (49140, 258, 455), "links": 4, "nvlink": 3, "bus": 384,
    "clock": 8001, "generation": 4, "width": 16,
}  # fmt: skip
H100 = {"name": "NVIDIA H100 80GB HBM3", "capability": (9, 0), "memory": (81559, 0, 470), "links": 18, "nvlink": 4}


def test_nvml_tells_memory_links_and_versions() -> None:
    first, second = read(FakeNvml([A6000, {**A6000, "memory": (49140, 15, 455)}]))
    assert (first.name, first.arch, first.driver, first.runtime) == ("NVIDIA RTX A6000", "8.6", "560.35.05", "12.6")
    assert (first.memory_bytes, first.free_bytes) == (48685 * MIB, 48427 * MIB)
    assert first.others_bytes == 258 * MIB
    assert second.index == 1
    assert (first.link, first.link_bandwidth) == ("nvlink", 56.25e9)
    assert first.bandwidth == pytest.approx(768e9, rel=1e-3)
    assert first.flops["bf16"] == pytest.approx(154.8e12)
    assert first.memory_basis == "measured"


def test_nvml_of_a_module_counts_its_links() -> None:
    (device,) = read(FakeNvml([H100]))
    assert (device.link, device.link_bandwidth) == ("nvlink", 450e9)


def test_a_gpu_in_mig_mode_is_its_slices() -> None:
    slices = [{"name": f"NVIDIA H100 80GB HBM3 MIG {profile}", "memory": (mib, 15, 0)}
              for profile, mib in (("3g.40gb", 40448), ("1g.10gb", 9984))]  # fmt: skip
    large, small = read(FakeNvml([{**H100, "mig": slices}]))
    assert (large.memory_bytes, small.memory_bytes) == (40448 * MIB, 9984 * MIB)
    assert large.flops["fp8"] == pytest.approx(1979e12 * 3 / 7)
    assert large.link == "none"
    assert "slice" in large.notes[-1]


def test_a_unified_device_has_no_more_free_than_the_machine() -> None:
    (device,) = read(FakeNvml([{"name": "NVIDIA GB10", "capability": (12, 1)}]))
    assert device.memory_bytes == 122502 * MIB
    assert device.free_bytes == 100 * GIB


def test_a_device_that_nobody_knows_is_still_there() -> None:
    (device,) = read(FakeNvml([{"name": "NVIDIA Z1000", "memory": (65536, 1024, 0), "bus": 4096, "clock": 2000}]))
    assert (device.memory_bytes, device.free_bytes, device.arch) == (65536 * MIB, 64512 * MIB, "unknown")
    assert device.bandwidth == 2.048e12
    assert "catalogue" in device.notes[0]


@pytest.mark.parametrize(
    ("value", "indices"), [("1", [1]), ("1,0", [1, 0]), ("-1", []), ("", []), ("0,7", [0]), ("GPU-8932f937", [0, 1])]
)
def test_hidden_devices_stay_hidden(value: str, indices: list[int]) -> None:
    assert [device.index for device in read(FakeNvml([A6000, A6000]), CUDA_VISIBLE_DEVICES=value)] == indices


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("nvidia_smi_a6000x2.txt", [("rtx-a6000", 48681 - 258), ("rtx-a6000", 48681 - 15)]),
        ("nvidia_smi_h100_mig.txt", [("h100-pcie", 9969), ("h100-pcie", 9969)]),
        ("nvidia_smi_2022_truncated_name.txt", [("a100-pcie-40g", 40335)]),
        ("nvidia_smi_gb10_synthetic.txt", [("gb10", 122502)]),
    ],
)
def test_nvidia_smi(name: str, devices: list[tuple[str, int]]) -> None:
    found = [device_of(seen) for seen in parse_nvidia_smi(text(name))]
    assert [(device.source.split(": ")[-1], device.free_bytes // MIB) for device in found] == devices
    assert {device.driver for device in found} <= {"560.35.05", "570.169", "510.47.03", "580.95.05"}


def test_nvidia_smi_stands_in_for_nvml() -> None:
    def run(argv: Sequence[str]) -> str:
        return text("nvidia_smi_topo_pairs.txt" if "topo" in argv else "nvidia_smi_a6000x2.txt")

    first, _ = read(run=run)
    assert first.runtime == "12.6"
    assert "NVLink reaches only some" in first.notes[-1]


def test_topology() -> None:
    joined = parse_topology(text("nvidia_smi_topo_pairs.txt"))
    assert (joined[0, 1], joined[0, 2], joined[2, 3], len(joined)) == ("NV12", "SYS", "NV12", 12)


@pytest.mark.parametrize(
    ("name", "count", "word", "free_mib", "arch"),
    [
        ("npu_smi_910b4x8.txt", 8, "910b4", 32768 - 30209, "910B4"),
        ("npu_smi_910b3.txt", 2, "910b3", 65536 - 3318, "910B3"),
        ("npu_smi_300i_duo_synthetic.txt", 2, "310p-duo", 44280 - 1851, "310P"),
        ("npu_smi_a3_synthetic.txt", 2, "910c", 65536 - 3128, "910C"),
    ],
)
def test_npu_smi(name: str, count: int, word: str, free_mib: int, arch: str) -> None:
    devices = [device_of(seen) for seen in parse_npu_smi(text(name))]
    assert [device.index for device in devices] == list(range(count))
    assert (devices[0].free_bytes // MIB, devices[0].arch) == (free_mib, arch)
    assert devices[0].source.endswith(word)
    assert any("Warning" in note for device in devices for note in device.notes) == ("duo" in name)


def test_amd_tools() -> None:
    static, metric = text("amd_smi_static_mi300x_synthetic.json"), text("amd_smi_metric_mi300x.json")
    first, second = (device_of(seen) for seen in parse_amd_smi(static, metric))
    assert (first.name, first.arch, first.driver) == ("AMD Instinct MI300X", "gfx942", "6.12.12")
    assert (first.others_bytes, second.others_bytes) == (17153 * MIB, 284 * MIB)
    assert (first.memory_bytes, first.link) == (196592 * MIB, "xgmi")
    (card,) = (device_of(seen) for seen in parse_rocm_smi(text("rocm_smi_7900xtx.json")))
    assert (card.arch, card.memory_bytes, card.bandwidth) == ("gfx1100", 25753026560, 960e9)


def test_an_amd_card_without_a_name_is_known_by_its_architecture() -> None:
    row = '"Card Series": "AMD Radeon Graphics", "GFX Version": "gfx1201", "VRAM Total Memory (B)": "34208743424"'
    (card,) = (device_of(seen) for seen in parse_rocm_smi(f'{{"card0": {{{row}}}}}'))
    assert card.source.endswith("r9700")


def test_apple_tools() -> None:
    (seen,) = parse_system_profiler(text("system_profiler_m3_max.json"), 64 * GIB)
    device = device_of(seen)
    assert (device.vendor, device.memory_bytes, device.bandwidth) == ("apple", 48 * GIB, 409.6e9)
    assert parse_sysctl("hw.memsize: 68719476736\nhw.logicalcpu: 16\n")["hw.memsize"] == str(64 * GIB)
    stat = "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:  100.\nPages active: 9.\n"
    stat += "Pages inactive: 50.\n"
    assert parse_vm_stat(stat) == 150 * 16384


def test_a_machine_without_tools_has_no_devices() -> None:
    assert read() == ()


SOURCES = [path.read_text(encoding="utf-8") for path in sorted(MACHINES.glob("*.*"))]


@given(st.sampled_from(SOURCES), st.integers(0, 4000), st.integers(0, 80), st.text(max_size=20))
def test_garbled_output_is_never_a_traceback(source: str, at: int, cut: int, noise: str) -> None:
    garbled = source[:at] + noise + source[at + cut :]
    seen = [
        *parse_nvidia_smi(garbled), *parse_npu_smi(garbled), *parse_rocm_smi(garbled), *parse_amd_smi(garbled, garbled),
        *parse_system_profiler(garbled, 64 * GIB),
    ]  # fmt: skip
    parse_topology(garbled)
    parse_vm_stat(garbled)
    for device in map(device_of, seen):
        assert 0 <= device.free_bytes <= device.memory_bytes


def test_the_real_nvml_is_silent_where_there_is_no_driver() -> None:
    pynvml = pytest.importorskip("pynvml")
    assert isinstance(read_nvml(pynvml), tuple)
