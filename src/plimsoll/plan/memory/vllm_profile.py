"""What vLLM's profile run finds before it sizes the cache: activation peak, memory outside torch, CUDA graphs.

The defaults and the order of deductions are read from the sources of 0.5.4 to 0.33.0 (`worker.py`, `gpu_worker.py`,
`arg_utils.py`); the sizes of what a profile run allocates are laws with the evidence stated beside each.
"""

from __future__ import annotations

import re

from plimsoll.facts.hardware import Device
from plimsoll.facts.model import ModelFacts
from plimsoll.facts.versions import in_range
from plimsoll.plan.ledger import Entry
from plimsoll.plan.memory.common import flag_option, int_option, option
from plimsoll.plan.types import Candidate
from plimsoll.units import GIB, MIB

SORTING_SAMPLER = 38.9
"""Bytes per sequence and vocabulary entry of a sampler that sorts: logits twice, sorted values and indices, the sort's
own buffer, probabilities. 25 logged peaks, 0.6.4 to 0.11, V0 and V1, TP 1 to 4: median 38.9, 38.4 to 41.2."""
FILTERING_SAMPLER = 14.0
"""The same where a Triton kernel filters in place (0.18 and later): bf16 and f32 logits, probabilities, noise."""
CONTEXT_BYTES = round(0.35 * GIB)
"""CUDA context and loaded kernels of one process; what "non-torch" comes to where it is counted whole (0.33, 0.35)."""
CONTEXT_BYTES_NOW = round(0.5 * GIB)
"""The same with today's CUDA: a card of 23.6 GiB ran out of memory at a share of 0.98 and did not at 0.97; 0.6 GiB
are gone of an H100 before SGLang loads."""
ENCODER_BYTES = round(2.45 * GIB)
"""Profiling of images by V0, on all tensor ranks together: what 2.71, 4.92, 4.93 and about 5.2 GiB logged for
Qwen2.5-VL-7B leave beside the image's tokens in the language model."""
IMAGE_TOKENS = 16384
"""Of the largest image of the Qwen2-VL family; V0 profiles with one such image for each sequence."""
ENCODER_BYTES_V1 = round(1.5 * GIB)
"""The same by V1, which profiles the encoder apart: two logged caches of Qwen3.6 leave about 1.5 GiB."""
_POOLED = ("embed", "rerank", "classify")


def context_bytes(version: str) -> int:
    """CUDA context of one process."""
    return CONTEXT_BYTES_NOW if in_range(version, ">=0.9") else CONTEXT_BYTES


def default_share(version: str) -> float:
    """`gpu_memory_utilization` when it is not given."""
    return 0.92 if in_range(version, ">=0.20") else 0.9


def accounting_version(candidate: Candidate) -> str:
    """The version whose law holds: 0.8 to 0.10.1 fell back to V0's, which 0.7.3 stands for, where V1 could not run.

    `_is_v1_supported_oracle` in `arg_utils.py` of 0.8.5 and 0.9.2: compute capability below 8, float32, GGUF, pooling
    models, quantised caches without FlashAttention 3, draft models.
    """
    version, device = candidate.engine.version, candidate.devices[0]
    if not in_range(version, ">=0.8,<0.10.2"):
        return version
    model, quantization = candidate.model, candidate.model.quantization
    capability = float(device.arch) if device.vendor == "nvidia" and re.fullmatch(r"\d+\.\d+", device.arch) else 9.0
    old = (
        capability < 8
        or candidate.dtype == "float32"
        or (quantization is not None and quantization.method == "gguf")
        or model.task in _POOLED
        or (candidate.kv_dtype not in ("auto", "bfloat16", "float16") and capability < 9)
        or option(candidate, "speculative_model") is not None
        or str(option(candidate, "use_v1")) in ("0", "False")
    )
    return "0.7.3" if old else version


def is_v1(version: str) -> bool:
    """Whether the V1 engine runs by default."""
    return in_range(version, ">=0.8")


def counts_whole_device(version: str) -> bool:
    """Whether everything on the device, other processes and context included, comes off the engine's own share."""
    return in_range(version, "<0.6.5") or in_range(version, ">=0.8,<0.9")


def large_device(device: Device) -> bool:
    """vLLM's own line between its two tiers of defaults."""
    return device.memory_bytes >= 70 * GIB and "a100" not in device.name.lower() and device.vendor == "nvidia"


def default_sequences(version: str, device: Device) -> int:
    """`max_num_seqs` when it is not given."""
    return 1024 if in_range(version, ">=0.8.3") and large_device(device) else 256


def default_batched_tokens(
    version: str, device: Device, *, model: ModelFacts, context: int, sequences: int = 1, chunked: bool | None = None
) -> int:
    """`max_num_batched_tokens` when it is not given: the tokens that the profile run pushes through at once."""
    if model.task in _POOLED:
        return max(context, 2048) if is_v1(version) else 32768
    if is_v1(version):
        tokens = 8192 if large_device(device) else 2048
        return max(tokens, sequences) if chunked is not False else max(tokens, context)
    if chunked is None:
        # On by itself for long contexts of text models, from 0.5.1 on.
        chunked = context > 32768 and not model.multimodal
    if chunked:
        return 2048 if in_range(version, ">=0.6.5") else 512
    return max(context, 5120 if model.multimodal else 2048)


def activation_peak(candidate: Candidate, *, tokens: int) -> Entry:
    """The most that one profile run holds besides weights: the sampler's vocabulary or the widest layer.

    `tokens`: in the batch. Layer: 6 I/tp + 6 H bytes a token (gate, up and their product in 2 bytes; three hidden
    vectors): 2.07 and 2.99 GiB logged for Llama-3.1-8B at 20,000 and 29,000 tokens, 2.06 and 2.99 by the formula.
    """
    model, tensor = candidate.model, candidate.parallel.tensor
    sequences = candidate.sequences
    if model.multimodal and not is_v1(candidate.engine.version):
        # V0 makes as many sequences as whole images fit into the batch.
        tokens = candidate.batched_tokens or (max(tokens, IMAGE_TOKENS) if _is_qwen_vl(model) else tokens)
        sequences = max(1, tokens // IMAGE_TOKENS)
    width = 2 if candidate.dtype != "float32" else 4
    layer = tokens * width * (3 * model.intermediate_size / tensor + 3 * model.hidden_size)
    latent = max((group.heads for group in model.attention if group.kind == "mla"), default=0)
    # Latent attention unfolds for prefill: query, key and padded value of 192, and 256 of both from the latent.
    unfolded = tokens * width * latent / tensor * (3 * 192 + 256 + 64)
    if model.moe is not None:
        # Fused experts: both intermediate buffers for every routed copy of a token, in chunks of 64 Ki tokens.
        cut = 1 if candidate.parallel.expert > 1 else tensor
        narrow = model.moe.intermediate_size / cut
        routed = min(tokens, 65536) * model.moe.per_token * (max(2 * narrow, model.hidden_size) + narrow)
        layer = max(layer, width * (routed + 3 * tokens * model.hidden_size))
    layer += unfolded
    sampler = 0.0
    if model.task not in _POOLED:
        sorting = sequences < 8 or in_range(candidate.engine.version, "<0.18")
        per_logit = SORTING_SAMPLER if sorting else FILTERING_SAMPLER
        sampler = per_logit * min(sequences, tokens) * model.vocab_size
    return Entry(
        name="activations", bytes=round(max(layer, sampler)), basis="derived",
        source=(
            f"sampler: {sequences} sequences x {model.vocab_size} x 38.9 B (14 B from 0.18)"
            if sampler >= layer
            else f"widest layer: {tokens} tokens x (6 I/tp + 6 H)"
        ),
    )  # fmt: skip


def _is_qwen_vl(model: ModelFacts) -> bool:
    name = model.architecture.lower()
    return "qwen" in name and "vl" in name


def encoder_peak(candidate: Candidate) -> Entry | None:
    """What profiling the largest images takes; None for text models."""
    if not candidate.model.multimodal or flag_option(candidate, "language_model_only", default=False):
        return None
    return Entry(
        name="activations", basis="assumed",
        bytes=ENCODER_BYTES_V1
        if is_v1(candidate.engine.version)
        else ENCODER_BYTES // candidate.parallel.tensor,
        source="profile run of the vision encoder; limit_mm_per_prompt and smaller images lower it",
    )  # fmt: skip


def non_torch(candidate: Candidate) -> Entry:
    """Memory inside the share that torch does not know: NCCL, custom all-reduce, library workspaces."""
    parallel, vendor = candidate.parallel, candidate.devices[0].vendor
    large = "h200" in candidate.devices[0].name.lower()
    if candidate.nodes > 1:
        size, why = 1.0, "NCCL over several nodes: about 1 GiB"
    elif vendor == "amd" and parallel.tensor > 1:
        size, why = 1.8, "RCCL: 1.8 GiB at TP 8"
    elif parallel.tensor * parallel.pipeline == 1:
        size, why = 0.05, "one device: 0.03 to 0.14 GiB"
    elif large:
        size, why = 1.4, "NCCL on H200 (NVLink SHARP buffers): 1.38 GiB at TP 2"
    else:
        size, why = 0.25, "NCCL and custom all-reduce: 0.13 to 0.55 GiB"
    if counts_whole_device(candidate.engine.version) and vendor != "cpu":
        return Entry(
            name="overhead", bytes=round(size * GIB) + CONTEXT_BYTES - round(0.05 * GIB), basis="assumed",
            source=f"{why}; this version counts the CUDA context too (0.33 to 0.35 GiB)",
        )  # fmt: skip
    return Entry(name="overhead", bytes=round(size * GIB), basis="assumed", source=why)


def capture_sizes(version: str, sequences: int) -> int:
    """How many batch sizes CUDA graphs are captured for."""
    if is_v1(version):
        most = min(512, max(8, 2 * sequences) if in_range(version, ">=0.12") else 512)
        return 3 + most // 8 if most <= 256 or in_range(version, "<0.12") else 35 + (most - 256) // 16
    return 3 + min(256, max(8, sequences)) // 8


def graphs(candidate: Candidate, *, activations: int = 0) -> Entry | None:
    """CUDA graphs: outside the share before 0.21, estimated and deducted since; None when run eagerly.

    16 MiB a captured size for dense models, three times that for experts: 0.5 to 1.5 GiB logged for the first
    (35 to 67 sizes), 2.4 to 3.5 for the second. A factor of two either way is seen, so the entry is an assumption.
    `activations`: the profiled peak.
    """
    if candidate.eager or candidate.devices[0].vendor == "cpu":
        return None
    version = candidate.engine.version
    given = int_option(candidate, "capture_sizes", default=0)
    sizes = given or capture_sizes(candidate.engine.version, candidate.sequences)
    each = 16 * MIB * (3 if candidate.model.moe else 1)
    shared = 100 * MIB
    if candidate.parallel.tensor > 1 and not is_v1(candidate.engine.version):
        # Buffers of the all-reduce, registered for each graph: 1.46 GiB logged at TP 2, 2.41 at TP 4.
        shared += min(candidate.parallel.tensor, 4) * sizes * 12 * MIB
    size, why = sizes * each + shared, f"{sizes} captured batch sizes x {each // MIB} MiB + {shared // MIB} MiB"
    if in_range(version, "<0.6"):
        # The peak was read off the driver, blocks that torch only held in reserve included: graphs go there first.
        size, why = max(0, size - activations), f"{why}, less the reserve of the profile run"
    return Entry(
        name="graphs", bytes=size, basis="assumed", source=why, inside=in_range(version, ">=0.21"),
    )  # fmt: skip
