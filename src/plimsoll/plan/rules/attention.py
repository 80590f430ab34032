"""Attention backends against devices, models and cache dtypes."""

from __future__ import annotations

from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Fault, rule

_MLA_BACKENDS = {
    "FLASHMLA": (90, 100, 103), "FLASHMLA_SPARSE": (90, 100, 103), "CUTLASS_MLA": (100, 103), "FLASH_ATTN_MLA": (90,),
    "FLASHINFER_MLA": (100, 103), "TOKENSPEED_MLA": (100, 103), "TRITON_MLA": (), "FLASH_ATTN_MLA_SPARSE": (90,),
    "FLASHINFER_MLA_SPARSE": (100, 103), "FLASHINFER_MLA_SPARSE_SM120": (120,), "FLASHINFER_MLA_SPARSE_SM90": (90,),
}  # fmt: skip
"""vLLM's backends for multi-head latent attention, and the compute capabilities each runs on; (): all."""
_TO_AUTO = (("extra_args.attention_backend", None),)


@rule(
    "vllm.mla_backend_device",
    versions=">=0.11.1",
    cause="each of these kernels is written for one or two generations of devices",
    source="vllm 0.32.0: vllm/v1/attention/backends/mla/*.py (supports_compute_capability)",
    fires={"mla": True, "heads": 128, "arch": "8.6", "options": {"attention_backend": "FLASHMLA"}},
    passes={"mla": True, "heads": 128, "arch": "9.0", "options": {"attention_backend": "FLASHMLA"}},
)
def mla_backend_device(case: Case) -> Fault | None:
    """A backend for latent attention on devices it is not written for."""
    backend = case.text("attention_backend").upper()
    known = _MLA_BACKENDS.get(backend)
    if not known or case.capability is None or case.capability in known:
        return None
    return Fault(
        what=f"--attention-backend {backend} on compute capability {case.capability / 10:g}",
        fix="leave --attention-backend out: vLLM chooses one that runs",
        mend=_TO_AUTO,
    )


@rule(
    "vllm.mla_backend_model",
    versions=">=0.11.1",
    cause="latent attention and ordinary attention have kernels of their own",
    source="vllm 0.33.0: vllm/platforms/cuda.py:439",
    fires={"mla": True, "heads": 128, "options": {"attention_backend": "FLASH_ATTN"}},
    passes={"options": {"attention_backend": "FLASH_ATTN"}},
)
def mla_backend_model(case: Case) -> Fault | None:
    """A backend for latent attention on another model, or the other way round."""
    backend = case.text("attention_backend").upper()
    if backend in ("", "AUTO", "CUSTOM", "CPU_MLA", "AMX_MLA", "B12X", "XFORMERS") or case.vendor != "nvidia":
        return None
    if ("MLA" in backend) == case.mla:
        return None
    kind = "multi-head latent attention" if case.mla else "ordinary attention"
    return Fault(
        what=f"--attention-backend {backend} for a model with {kind}",
        fix="leave --attention-backend out: vLLM chooses one that runs",
        mend=_TO_AUTO,
    )


@rule(
    "vllm.flash_attention_device",
    versions=">=0.11.1",
    cause="FlashAttention needs compute capability 8.0",
    source="vllm 0.33.0: vllm/platforms/cuda.py:439, vllm/v1/attention/backends/flash_attn.py",
    fires={"arch": "7.5", "stored_dtype": "float16", "options": {"attention_backend": "FLASH_ATTN"}},
    passes={"arch": "7.5", "stored_dtype": "float16", "options": {"attention_backend": "TRITON_ATTN"}},
)
def flash_attention_device(case: Case) -> Fault | None:
    """FlashAttention is forced below compute capability 8.0."""
    if case.text("attention_backend").upper() != "FLASH_ATTN" or case.capability is None or case.capability >= 80:
        return None
    return Fault(
        what=f"--attention-backend FLASH_ATTN on compute capability {case.capability / 10:g}",
        fix="leave --attention-backend out: vLLM chooses one that runs",
        mend=_TO_AUTO,
    )


@rule(
    "vllm.flashinfer_device",
    versions=">=0.33.0",
    cause="FlashInfer's floor was raised to compute capability 8.0 in 0.33",
    source="vllm 0.33.0: vllm/v1/attention/backends/flashinfer.py:702",
    fires={"arch": "7.5", "stored_dtype": "float16", "options": {"attention_backend": "FLASHINFER"}},
    passes={"arch": "8.0", "options": {"attention_backend": "FLASHINFER"}},
)
def flashinfer_device(case: Case) -> Fault | None:
    """FlashInfer is forced below compute capability 8.0."""
    if case.text("attention_backend").upper() != "FLASHINFER" or case.capability is None or case.capability >= 80:
        return None
    return Fault(
        what=f"--attention-backend FLASHINFER on compute capability {case.capability / 10:g}",
        fix="leave --attention-backend out: vLLM chooses one that runs",
        mend=_TO_AUTO,
    )


@rule(
    "vllm.only_triton_attention",
    versions=">=0.33.0",
    severity="warning",
    cause="FlashAttention and FlashInfer need compute capability 8.0; below, only the Triton backend is left",
    source="vllm 0.33.0: vllm/v1/attention/backends/flashinfer.py:702",
    fires={"arch": "7.5", "stored_dtype": "float16"},
    passes={"arch": "8.0", "stored_dtype": "float16"},
)
def only_triton_attention(case: Case) -> Fault | None:
    """Devices of compute capability 7.5 have the slowest attention backend only."""
    if case.capability is None or not 75 <= case.capability < 80:
        return None
    return Fault(
        what="compute capability 7.5 has the Triton attention backend only",
        fix="expect less than the device's nominal speed; llama.cpp is an alternative",
    )


@rule(
    "vllm.softcap_without_flash_attention",
    versions=">=0.5.4,<0.6.5",
    cause="XFormers cannot cap attention logits, and the CUDA 11.8 build has no FlashAttention",
    source="vLLM releases 0.5.4 to 0.6.4.post1; a field note (gemma-2-9b with 0.6.1.post1+cu118)",
    fires={"version": "0.6.1.post1+cu118", "config": {"attn_logit_softcapping": 50.0}},
    passes={"version": "0.6.1.post1", "config": {"attn_logit_softcapping": 50.0}},
)
def softcap_without_flash_attention(case: Case) -> Fault | None:
    """A model with soft-capped attention where only XFormers is left."""
    if not (case.model.config.get("attn_logit_softcapping") or case.model.architecture.startswith("Gemma2")):
        return None
    if "cu118" not in case.candidate.engine.version and case.env.get("VLLM_ATTENTION_BACKEND") != "XFORMERS":
        return None
    return Fault(
        what="the model caps its attention logits, and this build falls back to XFormers, which cannot",
        fix="the default (CUDA 12) build of vLLM, which carries FlashAttention",
        mend=(("env.VLLM_ATTENTION_BACKEND", None),) if "VLLM_ATTENTION_BACKEND" in case.env else (),
    )


@rule(
    "vllm.block_size_slow",
    versions=">=0.18.0",
    severity="warning",
    cause="backends know certain block sizes only, and a fixed one may exclude the fastest",
    source="vllm 0.33.0: vllm/platforms/cuda.py:499",
    fires={"options": {"block_size": 48}},
    passes={"options": {"block_size": 16}},
)
def block_size_slow(case: Case) -> Fault | None:
    """A block size that fast backends do not have."""
    size = case.number("block_size")
    if size is None or case.vendor != "nvidia" or size in (16, 32, 64, 128, 256):
        return None
    return Fault(
        what=f"--block-size {size:.0f} leaves out faster attention backends",
        fix="leave --block-size out",
        mend=(("extra_args.block_size", None),),
    )


@rule(
    "sglang.ngram_with_pages",
    versions=">=0.5.13",
    severity="warning",
    cause="n-gram drafts are a tree of 10, which needs pages of one token on every backend but flashinfer",
    source="sglang 0.5.23: sglang/srt/arg_groups/speculative_hook.py, tried",
    fires={"engine": "sglang", "options": {"speculative_algorithm": "NGRAM", "page_size": 64}},
    passes={"engine": "sglang", "options": {"speculative_algorithm": "NGRAM", "page_size": 64,
            "attention_backend": "flashinfer"}},
)  # fmt: skip
def ngram_with_pages(case: Case) -> Fault | None:
    """N-gram drafts with pages of more than one token."""
    backend = case.text("attention_backend")
    if case.text("speculative_algorithm") != "NGRAM" or (case.number("page_size") or 1) <= 1:
        return None
    if backend == "flashinfer":
        return None
    return Fault(
        what=f"n-gram drafts with pages of {case.text('page_size')} tokens",
        fix="--page-size 1, or --attention-backend flashinfer",
        mend=(("extra_args.page_size", 1),),
        # Which backend is chosen where none is named depends on the device.
        severity="error" if backend else None,
    )


@rule(
    "sglang.tree_with_pages",
    versions=">=0.5.13",
    cause="drafts as a tree need pages of one token on this backend",
    source="sglang 0.5.23: sglang/srt/arg_groups/speculative_hook.py:1279",
    fires={"engine": "sglang", "options": {"speculative_algorithm": "EAGLE", "speculative_eagle_topk": 4,
           "page_size": 64, "attention_backend": "flashmla"}},
    passes={"engine": "sglang", "options": {"speculative_algorithm": "EAGLE", "speculative_eagle_topk": 4,
            "page_size": 1}},
)  # fmt: skip
def tree_with_pages(case: Case) -> Fault | None:
    """--speculative-eagle-topk above 1 with pages of more than one token."""
    if (case.number("speculative_eagle_topk") or 1) <= 1 or (case.number("page_size") or 1) <= 1:
        return None
    if case.text("attention_backend") in ("flashinfer", "fa3", "triton", ""):
        return None
    return Fault(
        what=f"a draft tree of {case.text('speculative_eagle_topk')} with pages of {case.text('page_size')} tokens",
        fix="--page-size 1, or --speculative-eagle-topk 1",
        mend=(("extra_args.page_size", 1),),
    )
