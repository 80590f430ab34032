"""What an architecture is made of before any quantization: weights with their shapes, and what layers cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from plimsoll.facts.model import AttentionGroup, Moe, Sharding, TensorRole

Cut = Literal["out", "in"]
"""Which side of a matrix tensor parallelism cuts: its outputs (column parallel) or its inputs (row parallel)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One matrix (`out` x `inp`), or a vector of `out` values when `inp` is 0, in each of the layers `at`.

    `name` is the module as checkpoints call it, `{}` standing for the layer, without what comes before `layers.`.
    """

    name: str
    role: TensorRole
    out: int
    inp: int = 0
    sharding: Sharding = "replicated"
    at: tuple[int, ...] = ()
    count: int = 1
    """Alike in each layer: the experts."""
    units: int = 0
    cut: Cut = "out"
    linear: bool = False
    """A linear layer, which quantization applies to; not an embedding, norm, bias or convolution."""
    dtype: str | None = None
    """Where the checkpoint keeps another type than its own: float32 for some routers and states."""

    @property
    def params(self) -> int:
        """Parameters in all layers together."""
        return self.out * max(1, self.inp) * self.count * max(1, len(self.at))


@dataclass(slots=True)
class Shapes:
    """Collects the weights of a model; the methods add what architectures have in common."""

    weights: list[Weight] = field(default_factory=list)
    groups: list[AttentionGroup] = field(default_factory=list)
    moe: Moe | None = None
    role: TensorRole | None = None
    """Overrides every role while it is set (vision tower, multi-token prediction)."""

    def linear(
        self,
        name: str,
        role: TensorRole,
        out: int,
        inp: int,
        *,
        at: Sequence[int] | None = None,
        sharding: Sharding = "tensor",
        cut: Cut = "out",
        bias: bool = False,
        units: int = 0,
        count: int = 1,
        dtype: str | None = None,
        quantized: bool = True,
    ) -> None:
        """A linear layer in each of the layers `at` (None: one, outside the layers).

        A bias is cut with the outputs, and copied where the inputs are cut.
        `quantized`: whether quantization applies to it (not to routers and the like).
        """
        if out <= 0 or inp <= 0 or count <= 0 or (at is not None and not at):
            return
        role = self.role or role
        layers = tuple(at or ())
        self.weights.append(
            Weight(
                name=name, role=role, out=out, inp=inp, sharding=sharding, at=layers, count=count, units=units, cut=cut,
                linear=quantized, dtype=dtype,
            )
        )  # fmt: skip
        if bias:
            alike: Sharding = "replicated" if sharding == "tensor" and cut == "in" else sharding
            self.weights.append(
                Weight(name=f"{name}.bias", role=role, out=out, sharding=alike, at=layers, count=count, units=units)
            )

    def vector(
        self,
        name: str,
        size: int,
        *,
        role: TensorRole = "norm",
        at: Sequence[int] | None = None,
        bias: bool = False,
        sharding: Sharding = "replicated",
        count: int = 1,
        dtype: str | None = None,
    ) -> None:
        """A vector such as a norm's scale, with as many biases when it has them."""
        if size <= 0 or (at is not None and not at):
            return
        self.weights.append(
            Weight(
                name=name, role=self.role or role, out=size * (2 if bias else 1), at=tuple(at or ()), sharding=sharding,
                count=count, dtype=dtype,
            )
        )  # fmt: skip

    def table(self, name: str, rows: int, width: int, *, role: TensorRole = "embedding", sharding: Sharding) -> None:
        """An embedding table."""
        if rows > 0 and width > 0:
            self.weights.append(Weight(name=name, role=self.role or role, out=rows, inp=width, sharding=sharding))

    def cache(self, groups: Iterable[AttentionGroup]) -> None:
        """What layers cache, in the order of the layers."""
        self.groups.extend(groups)

    @property
    def params(self) -> int:
        """Parameters of everything added so far."""
        return sum(weight.params for weight in self.weights)
