"""The machine as this process may use it: recorded /proc and /sys trees, and the machine the tests run on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plimsoll.discover.cpu import read_cpu
from plimsoll.discover.machine import this_machine
from plimsoll.discover.memory import measure_bandwidth
from plimsoll.units import GIB, MIB

V2 = "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def tree(root: Path, files: dict[str, str]) -> Path:
    base = {
        "proc/cpuinfo": "".join(f"processor : {i}\nmodel name : Synthetic CPU\nflags : sse2\n" for i in range(8)),
        "proc/self/status": "Name:\tx\nCpus_allowed_list:\t0-7\n",
        "proc/meminfo": f"MemTotal: {64 * MIB} kB\nMemFree: 1 kB\nMemAvailable: {48 * MIB} kB\n",
    }
    for name, text in {**base, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cores", "ram", "free"),
    [
        pytest.param({}, 8, 64 * GIB, 48 * GIB, id="no-cgroup"),
        pytest.param({"proc/self/status": "Cpus_allowed_list:\t0,2-3\n"}, 3, 64 * GIB, 48 * GIB, id="affinity"),
        pytest.param(
            {
                "proc/self/mountinfo": V2,
                "proc/self/cgroup": "0::/pod/box\n",
                "sys/fs/cgroup/pod/cpu.max": "250000 100000\n",
                "sys/fs/cgroup/pod/memory.max": f"{16 * GIB}\n",
                "sys/fs/cgroup/pod/memory.current": f"{10 * GIB}\n",
                "sys/fs/cgroup/pod/memory.stat": f"anon 1\ninactive_file {2 * GIB}\nactive_file {GIB}\n",
                "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
                "sys/fs/cgroup/pod/box/memory.max": "max\n",
            },
            2, 16 * GIB, 9 * GIB, id="v2-outer-limit",
        ),
        pytest.param(
            {
                "proc/self/mountinfo": V2.replace("0:26 / ", "0:26 /docker/abc "),
                "proc/self/cgroup": "0::/docker/abc\n",
                "sys/fs/cgroup/memory.max": f"{8 * GIB}\n",
                "sys/fs/cgroup/memory.current": f"{9 * GIB}\n",
                "sys/fs/cgroup/cpu.max": "50000 100000\n",
            },
            1, 8 * GIB, 0, id="v2-container-root-overdrawn-half-a-core",
        ),
        pytest.param(
            {
                "proc/self/mountinfo": V1,
                "proc/self/cgroup": "4:memory:/a/b\n1:cpu,cpuacct:/a\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": f"{4 * GIB}\n",
                "sys/fs/cgroup/memory/a/b/memory.usage_in_bytes": f"{3 * GIB}\n",
                "sys/fs/cgroup/memory/a/b/memory.stat": f"total_inactive_file {GIB}\ntotal_active_file 0\n",
            },
            4, 4 * GIB, 2 * GIB, id="v1-nested",
        ),
        pytest.param(
            {
                "proc/self/mountinfo": "garbage\n- - -\n" + V2,
                "proc/self/cgroup": "0::/../../etc\nxx\n",
                "sys/fs/cgroup/cpu.max": "0 0\n",
                "sys/fs/cgroup/memory.max": "\x00lots\n",
            },
            8, 64 * GIB, 48 * GIB, id="garbled",
        ),
    ],
)  # fmt: skip
def test_limits(tmp_path: Path, files: dict[str, str], cores: int, ram: int, free: int) -> None:
    host = this_machine(root=tree(tmp_path, files))
    assert (host.cores, host.ram_bytes, host.ram_free_bytes) == (cores, ram, free)
    assert host.cpu.memory_bytes == ram
    assert host.cpu.free_bytes == free


@pytest.mark.parametrize(
    ("cpuinfo", "name", "arch", "dtypes"),
    [
        ("model name : X\nflags : sse2 cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3\n", "X", "x86-64-v2", {"fp32"}),
        (
            "model name : Y\nflags : sse2 cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3 abm avx avx2 bmi1 bmi2 f16c fma "
            "movbe avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni amx_bf16 amx_int8 amx_tile\n",
            "Y", "x86-64-v4", {"fp32", "bf16", "int8"},
        ),
        (
            "Features : fp asimd asimdhp asimddp\nCPU implementer : 0x41\nCPU part : 0xd0b\n",
            "Cortex-A76", "aarch64", {"fp32", "fp16", "int8"},
        ),
    ],
)  # fmt: skip
def test_instruction_sets(tmp_path: Path, cpuinfo: str, name: str, arch: str, dtypes: set[str]) -> None:
    cpu = read_cpu(tree(tmp_path, {"proc/cpuinfo": cpuinfo}))
    assert (cpu.name, cpu.arch, set(cpu.flops)) == (name, arch, dtypes)


def test_this_very_machine() -> None:
    host = this_machine(measure_bandwidth=True)
    assert 1 <= host.cores <= len(os.sched_getaffinity(0))
    assert 0 < host.ram_free_bytes <= host.ram_bytes
    assert host.cpu.bandwidth_basis == "measured"
    assert 1e9 < host.cpu.bandwidth < 2e12
    assert host.disk_free_bytes > 0
    assert host.cpu.flops["fp32"] > 1e9


def test_bandwidth_needs_memory_to_measure_with() -> None:
    assert measure_bandwidth(threads=4, free_bytes=MIB) is None
