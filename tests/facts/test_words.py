"""Machines by words: what people write, what is assumed, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.errors import SpecError
from plimsoll.facts.assumed import DESKTOP_BYTES
from plimsoll.facts.words import known_words, parse_hosts
from plimsoll.units import GIB


@pytest.mark.parametrize(
    ("text", "hosts", "devices", "name", "link"),
    [
        ("4x8 3090 pcie", 4, 8, "NVIDIA GeForce RTX 3090", "pcie"),
        ("a6000:2", 1, 2, "NVIDIA RTX A6000", "pcie"),
        ("a6000:2:nvlink", 1, 2, "NVIDIA RTX A6000", "nvlink"),
        ("2x a100-80g", 1, 2, "NVIDIA A100-SXM4-80GB", "nvlink"),
        ("2x a100 pcie", 1, 2, "NVIDIA A100 80GB PCIe", "pcie"),
        ("h100", 1, 1, "NVIDIA H100 80GB HBM3", "nvlink"),
        ("8xh200 nvlink", 1, 8, "NVIDIA H200", "nvlink"),
        ("h200 x 8", 1, 8, "NVIDIA H200", "nvlink"),
        ("8xh100 pcie", 1, 8, "NVIDIA H100 PCIe", "pcie"),
        ("rtx3090:8,ram=377GiB", 1, 8, "NVIDIA GeForce RTX 3090", "pcie"),
        ("4x rtx3090:8", 4, 8, "NVIDIA GeForce RTX 3090", "pcie"),
        ("2 nodes of 8 h100, net=400Gbps", 2, 8, "NVIDIA H100 80GB HBM3", "nvlink"),
        ("atlas-800i-a2", 1, 8, "Ascend 910B4", "hccs"),
        ("Atlas 800I A2", 1, 8, "Ascend 910B4", "hccs"),
        ("300i-duo", 1, 2, "Ascend 310P3 (300I Duo)", "pcie"),
        ("2x dgx-h100", 2, 8, "NVIDIA H100 80GB HBM3", "nvlink"),
        ("9070 xt", 1, 1, "AMD Radeon RX 9070 XT", "pcie"),
        ("2x 7900 xtx", 1, 2, "AMD Radeon RX 7900 XTX", "pcie"),
        ("a100:8:40g", 1, 8, "NVIDIA A100-SXM4-40GB", "nvlink"),
        ("h100; 2x t4", 2, 1, "NVIDIA H100 80GB HBM3", "nvlink"),
        ("a6000:2 nvlink:48g", 1, 2, "NVIDIA RTX A6000", "nvlink"),
    ],
)
def test_words(text: str, hosts: int, devices: int, name: str, link: str) -> None:
    fleet = parse_hosts(text)
    assert (len(fleet), len(fleet[0].devices)) == (hosts, devices)
    assert {(device.name, device.link) for device in fleet[0].devices} == {(name, link)}
    assert [device.index for device in fleet[0].devices] == list(range(devices))
    assert len({host.name for host in fleet}) == hosts


def test_options_say_what_the_words_leave_open() -> None:
    (host,) = parse_hosts("rtx3090:8,ram=377GiB,cpu=2x xeon-5218r,disk=2TiB,net=25GbE,free=20GiB")
    assert (host.ram_bytes, host.cores, host.numa_nodes) == (377 * GIB, 80, 2)
    assert host.cpu.bandwidth == pytest.approx(2 * 127.968e9)
    assert host.cpu.memory_bytes == host.ram_bytes
    assert (host.disk_free_bytes, host.network_bandwidth) == (2048 * GIB, 25e9 / 8)
    assert {device.free_bytes for device in host.devices} == {20 * GIB}
    assert host.notes == ()


@pytest.mark.parametrize(("speed", "bytes_per_s"), [("100Gb/s", 12.5e9), ("12.5GB/s", 12.5e9), ("25g", 25e9 / 8)])
def test_a_capital_b_is_bytes(speed: str, bytes_per_s: float) -> None:
    (host,) = parse_hosts(f"a6000,net={speed}")
    assert host.network_bandwidth == bytes_per_s


def test_ram_may_stand_beside_the_cards() -> None:
    (host,) = parse_hosts("2x rtx5090 + a6000 + 128 GB of RAM")
    assert (host.ram_bytes, len(host.devices)) == (128 * GIB, 3)


def test_what_is_assumed_is_said() -> None:
    (host,) = parse_hosts("3060")
    assert host.devices[0].memory_bytes - host.devices[0].free_bytes == DESKTOP_BYTES == host.devices[0].others_bytes
    assert [word for word in ("desktop", "RAM", "CPU") if any(word in note for note in host.notes)] == [
        "desktop", "RAM", "CPU",
    ]  # fmt: skip
    (headless,) = parse_hosts("3060,headless,ram=64g,cpu=ryzen-5600x")
    assert headless.devices[0].free_bytes == headless.devices[0].memory_bytes
    assert headless.notes == ()


def test_different_cards_in_one_machine() -> None:
    (host,) = parse_hosts("rtx5090 + 2x rtx4090 + a6000")
    assert [device.name.split()[-1] for device in host.devices] == ["5090", "4090", "4090", "A6000"]
    assert [device.index for device in host.devices] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "ram", "usable"),
    [("mac-studio-m2-ultra-192g", 192, 144), ("macbook-pro m3-max 64gb", 64, 48), ("mac mini m4 16g", 16, 32 / 3)],
)
def test_apple_machines(text: str, ram: int, usable: float) -> None:
    (host,) = parse_hosts(text)
    assert (host.os, host.ram_bytes) == ("darwin", ram * GIB)
    assert host.devices[0].memory_bytes == int(usable * GIB)
    assert host.cpu.bandwidth == host.devices[0].bandwidth


@pytest.mark.parametrize(
    ("text", "cores", "ram", "bandwidth"),
    [
        ("cpu:32c:256GiB", 32, 256, 204.8e9),
        ("epyc-9654:768GiB", 192, 768, 460.8e9),
        ("2x xeon-6430:512g", 128, 512, 563.2e9),
        ("raspberry-pi-5:16g", 4, 16, 17.064e9),
    ],
)
def test_machines_without_accelerators(text: str, cores: int, ram: int, bandwidth: float) -> None:
    (host,) = parse_hosts(text)
    assert (host.devices, host.cores, host.ram_bytes) == ((), cores, ram * GIB)
    assert host.cpu.bandwidth == pytest.approx(bandwidth)


def test_a_bridge_joins_pairs_only() -> None:
    (host,) = parse_hosts("3090:4:nvlink")
    assert any("pairs" in note for note in host.notes)
    (t4,) = parse_hosts("t4:2:nvlink")
    assert t4.devices[0].link == "pcie"
    assert any("no nvlink" in note for note in t4.notes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rtx9090", "rtx-4090"), ("dgx-h10", "dgx-h100"), ("a100-60g", "40.0 GiB, 80.0 GiB"), ("3090:0", "count"),
        ("0x 3090", "count"), ("", "no machine"), (" ; ", "no machine"), ("3090,foo=1", "ram="),
        ("3090,ram=lots", "size"),
        ("3090,net=fast", "speed"), ("3090,cpu=epyc-9955", "epyc-9"), ("999x 3090", "128"), ("4x8", "no device"),
        ("3090 +", "no device"), ("3090:8,a6000:2", "+ joins"), ("5000 nodes of 8 h100", "count"),
    ],
)  # fmt: skip
def test_refusals_say_what_would_be_right(text: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_hosts(text)
    assert says in f"{caught.value.message} {caught.value.hint}"


def test_every_known_word_names_a_machine() -> None:
    for word in known_words():
        assert parse_hosts(word)[0].ram_bytes > 0, word


@given(st.text(alphabet=st.sampled_from("0123456789x:,+; -=.ghcrtamd×*é\n"), max_size=30))
def test_any_text_is_a_fleet_or_a_spec_error(text: str) -> None:
    try:
        assert parse_hosts(text)
    except SpecError as error:
        assert error.message
