"""The catalogue: complete, consistent, found by every way of writing a name, and cheap to load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from plimsoll.errors import FactError
from plimsoll.facts.cpus import cpus, find_cpu
from plimsoll.facts.device_table import render_table
from plimsoll.facts.devices import Entry, catalogue, find_device, match_driver, metal_limit, with_memory
from plimsoll.units import GIB, MIB

ENTRIES = list(catalogue().values())


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.word)
def test_every_number_is_sane_and_sourced(entry: Entry) -> None:
    device = entry.device
    assert device.source
    assert (0.45 if entry.unified else 0.85) * device.box_bytes < device.memory_bytes <= device.box_bytes
    assert device.free_bytes == device.memory_bytes
    assert 50e9 < device.bandwidth < 10e12
    assert device.tdp_watts > 0
    assert device.link == "none" or device.link_bandwidth > 0
    flops = device.flops
    # A sparse figure in the place of a dense one would break one of these ratios.
    assert flops.get("fp16", 0) <= (32 if device.arch.startswith("10.") else 17) * flops.get("fp32", 1e18)
    if "bf16" in flops:
        assert flops["bf16"] <= flops["fp16"]
    if "fp8" in flops:
        assert flops["fp8"] <= 2.05 * flops["fp16"]
    if device.vendor == "nvidia":
        major = int(device.arch.split(".")[0])
        assert ("bf16" in flops) == (major >= 8)
        assert ("fp8" in flops) == (device.arch == "8.9" or major >= 9)
        assert ("fp4" in flops) == (major >= 10)


def test_no_two_devices_answer_to_one_name() -> None:
    for entry in ENTRIES:
        for name in (entry.word, *entry.aliases):
            assert find_device(name) is entry, name


@pytest.mark.parametrize(
    ("written", "word"),
    [
        ("RTX 3090", "rtx-3090"), ("NVIDIA GeForce RTX 3090", "rtx-3090"), ("4090D", "rtx-4090-d"),
        ("A100 80GB", "a100-80g"), ("NVIDIA A100-SXM4-40GB", "a100-40g"), ("a100_80gb_pcie", "a100-pcie-80g"),
        ("Tesla T4", "t4"), ("NVIDIA H100 80GB HBM3", "h100"), ("RTX 6000 Ada", "rtx-6000-ada"),
        ("Quadro RTX 6000", "quadro-rtx-6000"), ("MI300X", "mi300x"), ("AMD Radeon RX 7900 XTX", "rx-7900-xtx"),
        ("Ascend 910B4", "910b4"), ("910b", "910b3"), ("Apple M2 Ultra", "m2-ultra"), ("5060 Ti 16GB", "rtx-5060-ti"),
    ],
)  # fmt: skip
def test_ways_to_write_a_device(written: str, word: str) -> None:
    assert find_device(written).word == word


@pytest.mark.parametrize(("written", "near"), [("rtx9090", "rtx-3090"), ("h10", "h100"), ("mi3000", "mi300x")])
def test_an_unknown_device_names_its_neighbours(written: str, near: str) -> None:
    with pytest.raises(FactError) as caught:
        find_device(written)
    assert near in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "mib", "word"),
    [
        ("NVIDIA GeForce RTX 3080", 10240, "rtx-3080"),
        ("NVIDIA GeForce RTX 3080", 20480, "rtx-3080-20g"),
        ("NVIDIA GeForce RTX 4060 Ti", 16380, "rtx-4060-ti-16g"),
        ("NVIDIA GeForce RTX 2080 Ti", 22528, "rtx-2080-ti-22g"),
        ("NVIDIA H200", 143771, "h200"),
        ("NVIDIA B300 SXM6 AC", 275040, "b300"),
        ("NVIDIA Something New", 10240, None),
        ("NVIDIA GeForce RTX 3060", 40960, None),
    ],
)
def test_memory_tells_cards_of_one_name_apart(name: str, mib: int, word: str | None) -> None:
    entry = match_driver(name, mib * MIB)
    assert (entry.word if entry else None) == word


@pytest.mark.parametrize(("ram", "megabytes"), [(16, 11453), (32, 22906), (36, 28991), (192, 154619)])
def test_what_metal_lends(ram: int, megabytes: int) -> None:
    assert metal_limit(ram * GIB) == pytest.approx(megabytes * 1e6, rel=1e-3)
    if ram == 192:
        assert with_memory(find_device("m2-ultra"), ram * GIB).memory_bytes == metal_limit(ram * GIB)


@pytest.mark.parametrize(
    ("written", "word"),
    [
        ("Intel(R) Xeon(R) Gold 5218R CPU @ 2.10GHz", "xeon-5218r"), ("Intel(R) Xeon(R) Gold 6430", "xeon-6430"),
        ("AMD EPYC 9654 96-Core Processor", "epyc-9654"), ("i9-14900k", "i9-14900k"), ("EPYC 7C13", "epyc-7c13"),
        ("12th Gen Intel(R) Core(TM) i7-12700K", "i7-12700k"), ("Xeon Gold 6454S", "xeon-6454s"),
    ],
)  # fmt: skip
def test_ways_to_write_a_cpu(written: str, word: str) -> None:
    assert find_cpu(written).word == word


def test_cpu_peaks_follow_from_cores_and_channels() -> None:
    device = cpus()["xeon-6430"].device
    assert device.bandwidth == pytest.approx(281.6e9)
    assert device.flops["bf16"] == pytest.approx(32 * 2.1e9 * 1024)


def test_the_page_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "devices.md"
    assert page.read_text(encoding="utf-8") == render_table(), "python -m plimsoll.facts.device_table > docs/devices.md"


def test_the_catalogue_is_read_on_first_use_only() -> None:
    code = "import sys, plimsoll.facts.words as words; from plimsoll.facts.devices import catalogue; " \
           "assert catalogue.cache_info().currsize == 0; words.parse_hosts('3090'); " \
           "assert catalogue.cache_info().currsize == 1"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)
