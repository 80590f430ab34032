"""The ledger: what will lie in each device's memory, entry by entry, each with its basis and its source."""

from __future__ import annotations

from dataclasses import dataclass

from plimsoll.facts.basis import Basis


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the ledger. `source` is the formula or document that the bytes follow from."""

    name: str
    """weights, kv_cache, activations, compute, graphs, overhead, other_processes, reserve ..."""
    bytes: int
    basis: Basis
    source: str
    inside: bool = True
    """Whether it counts against the share that the engine books; if not, against the device alone (CUDA graphs
    before vLLM 0.21, other processes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLedger:
    """One device's account: `total_bytes` there are, `limit_bytes` the engine may take, `entries` lie there."""

    device: str
    total_bytes: int
    limit_bytes: int
    entries: tuple[Entry, ...]

    @property
    def used_bytes(self) -> int:
        """Sum of all entries."""
        return sum(entry.bytes for entry in self.entries)

    @property
    def free_bytes(self) -> int:
        """What is left of the limit or, where that is less, of the device; negative when it does not fit."""
        inside = sum(entry.bytes for entry in self.entries if entry.inside)
        return min(self.limit_bytes - inside, self.total_bytes - self.used_bytes)

    def hangs_on_assumptions(self, spare_bytes: int = 0) -> bool:
        """Whether the limit (with `spare_bytes` of cache to give) or the device has less left than is assumed there."""
        inside = sum(entry.bytes for entry in self.entries if entry.inside)
        left = self.free_bytes if self.limit_bytes >= self.total_bytes else self.limit_bytes - inside
        assumed = [entry for entry in self.entries if entry.basis == "assumed"]
        return (
            left + spare_bytes < sum(entry.bytes for entry in assumed if entry.inside)
            or self.total_bytes - self.used_bytes < sum(entry.bytes for entry in assumed if not entry.inside)
        )  # fmt: skip

    def of(self, name: str) -> int:
        """Bytes of all entries of that name."""
        return sum(entry.bytes for entry in self.entries if entry.name == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All devices of one replica, and what the KV cache comes to over all of them."""

    devices: tuple[DeviceLedger, ...]
    kv_tokens: int
    """Tokens the cache holds in all sequences together."""
    kv_blocks: int | None = None
    max_concurrency: float = 0.0
    """Requests of full context at once, as the engine would print it."""
    longest_context_tokens: int = 0
    """For one request alone."""
    notes: tuple[str, ...] = ()
    """Why it does not fit, or what the verdict hangs on."""
    spare_bytes: int = 0
    """Of the KV cache on the tightest device, beyond what one request of full context needs: engines that book all
    of their share as cache leave nothing free, yet have this to give."""

    @property
    def fits(self) -> bool:
        """Whether every device has room for all of its entries."""
        return all(device.free_bytes >= 0 for device in self.devices)

    @property
    def margin_bytes(self) -> int:
        """What is left on the tightest device."""
        return min((device.free_bytes for device in self.devices), default=0)

    @property
    def tight(self) -> bool:
        """Whether the verdict hangs on an assumption: a margin is less than the assumed entries that it has to bear."""
        if not self.fits:
            return -self.margin_bytes < self.assumed_bytes
        return any(device.hangs_on_assumptions(self.spare_bytes) for device in self.devices)

    @property
    def assumed_bytes(self) -> int:
        """The most that any device's account owes to assumed entries."""
        return max((sum(e.bytes for e in device.entries if e.basis == "assumed") for device in self.devices), default=0)
