"""What tensor parallelism cuts, and into what: the sizes that must come out whole."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from plimsoll.plan.rules.case import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One dimension of one linear layer. `outputs`: column-parallel, else the inputs of a row-parallel layer."""

    layer: str
    size: int
    outputs: bool

    def part(self, ranks: int) -> int:
        """Size on one rank, rounded down."""
        return self.size // ranks


def cuts(case: Case) -> tuple[Cut, ...]:
    """The cut dimensions of the dense linear layers that are quantised when the model is; experts are apart."""
    model, config = case.model, case.model.config
    found: list[Cut] = []
    if case.mla and "v_head_dim" in config:
        query = int(config.get("qk_nope_head_dim", 0)) + int(config.get("qk_rope_head_dim", 0))
        value = int(config["v_head_dim"])
        found += [
            Cut(layer="q_b_proj", size=model.heads * query, outputs=True),
            Cut(layer="kv_b_proj", size=model.heads * (query - int(config.get("qk_rope_head_dim", 0)) + value),
                outputs=True),
            Cut(layer="o_proj", size=model.heads * value, outputs=False),
        ]  # fmt: skip
    elif not case.mla:
        found += [
            Cut(layer="q_proj", size=model.heads * model.head_dim, outputs=True),
            Cut(layer="o_proj", size=model.heads * model.head_dim, outputs=False),
        ]
    if has_dense_mlp(case):
        found += [
            Cut(layer="gate_up_proj", size=model.intermediate_size, outputs=True),
            Cut(layer="down_proj", size=model.intermediate_size, outputs=False),
        ]
    if model.moe and model.moe.shared_intermediate_size:
        shared = model.moe.shared_intermediate_size
        found += [
            Cut(layer="shared_experts.gate_up_proj", size=shared, outputs=True),
            Cut(layer="shared_experts.down_proj", size=shared, outputs=False),
        ]
    skip = model.quantization.skip if model.quantization else ()
    return tuple(cut for cut in found if cut.size and not any(_skipped(cut.layer, name) for name in skip))


def _skipped(layer: str, name: str) -> bool:
    """Whether a name in the checkpoint's list of unquantised modules means `layer`."""
    attention = layer in ("q_proj", "o_proj", "q_b_proj", "kv_b_proj")
    return (
        layer.rpartition(".")[2] in name or (attention and "attn" in name) or ("shared" in layer and "shared" in name)
    )


def has_dense_mlp(case: Case) -> bool:
    """Whether some layers have a plain feed-forward block."""
    return case.model.moe is None or case.model.moe.layers < case.model.layers


def heads_fit(case: Case, tensor: int) -> bool:
    """Whether query heads divide by `tensor`, and KV heads divide by it or into it."""
    model = case.model
    if model.heads % tensor:
        return False
    if case.mla or case.hybrid or not model.kv_heads:
        return True
    return model.kv_heads % tensor == 0 or tensor % model.kv_heads == 0


def tensor_fits(case: Case, tensor: int, *, inputs: int = 1) -> bool:
    """Whether a tensor-parallel size leaves heads, layers, quantization groups and blocks whole.

    `inputs`: what the inputs of each layer must be a multiple of besides.
    """
    model = case.model
    if not heads_fit(case, tensor) or any(cut.size % tensor for cut in cuts(case)):
        return False
    if any(not cut.outputs and cut.part(tensor) % inputs for cut in cuts(case)):
        return False
    stored = model.quantization
    if stored and stored.block:
        rows, columns = stored.block
        return all(cut.part(tensor) % (rows if cut.outputs else columns) == 0 for cut in cuts(case))
    if stored and stored.group_size and stored.group_size > 0:
        return all(cut.part(tensor) % stored.group_size == 0 for cut in cuts(case) if not cut.outputs)
    return True


def fitting_tensor(case: Case, *, inputs: int = 1) -> int:
    """The largest tensor-parallel size below the candidate's that cuts everything whole; 1 if there is no other."""
    return next((size for size in range(case.tp - 1, 1, -1) if tensor_fits(case, size, inputs=inputs)), 1)


def smaller_tensor(case: Case, *, inputs: int = 1) -> tuple[tuple[str, object], ...]:
    """The mend: that size, and pipeline stages in place of the ranks it frees where they come out even."""
    tensor = fitting_tensor(case, inputs=inputs)
    if case.tp % tensor == 0 and case.pp * (case.tp // tensor) <= case.model.layers and tensor != case.tp:
        return (("parallel.tensor", tensor), ("parallel.pipeline", case.pp * (case.tp // tensor)))
    return (("parallel.tensor", tensor),)


def advise_tensor(case: Case, *, inputs: int = 1) -> str:
    """The same in words."""
    parts = dict(smaller_tensor(case, inputs=inputs))
    words = f"tensor-parallel size {parts['parallel.tensor']}"
    if "parallel.pipeline" in parts:
        words += f" with pipeline-parallel size {parts['parallel.pipeline']} (the same number of devices)"
    return words


def common_divisor(*sizes: int) -> int:
    """Greatest common divisor of the sizes that are not 0."""
    return gcd(*(size for size in sizes if size))
