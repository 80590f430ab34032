"""Whether heads, layers, experts and ranks come out whole."""

from __future__ import annotations

from plimsoll.facts.incompatible import architectures
from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Fault, rule
from plimsoll.plan.rules.shapes import advise_tensor, common_divisor, cuts, smaller_tensor


@rule(
    "vllm.heads_not_divisible",
    cause="query heads are dealt out over the tensor-parallel ranks, each rank whole heads",
    source="vllm 0.33.0: vllm/config/model.py:1561",
    fires={"heads": 9, "kv_heads": 3, "tp": 2},
    passes={"heads": 32, "kv_heads": 8, "tp": 4},
)
@rule(
    "sglang.heads_not_divisible",
    cause="query heads are dealt out over the tensor-parallel ranks; SGLang stops with a bare AssertionError",
    source="sglang 0.5.23: sglang/srt/models/llama.py:183",
    fires={"engine": "sglang", "heads": 14, "kv_heads": 2, "tp": 4},
    passes={"engine": "sglang", "heads": 14, "kv_heads": 2, "tp": 2},
)
def heads_not_divisible(case: Case) -> Fault | None:
    """Query heads do not divide by the tensor-parallel size."""
    attention_ranks = case.tp // _attention_dp(case)
    if not attention_ranks or case.model.heads % attention_ranks == 0:
        return None
    return Fault(
        what=f"{case.model.heads} attention heads do not divide by tensor-parallel size {attention_ranks}",
        fix=f"use {advise_tensor(case)}",
        mend=smaller_tensor(case),
    )


@rule(
    "vllm.kv_heads_not_divisible",
    cause="KV heads are split evenly, or copied in whole multiples when there are fewer heads than ranks",
    source="vllm 0.33.0: vllm/model_executor/models/llama.py:151",
    fires={"heads": 48, "kv_heads": 8, "tp": 3},
    passes={"heads": 48, "kv_heads": 8, "tp": 16},
)
@rule(
    "sglang.kv_heads_not_divisible",
    cause="KV heads are split evenly, or copied in whole multiples when there are fewer heads than ranks",
    source="sglang 0.5.23: sglang/srt/models/llama.py:189",
    fires={"engine": "sglang", "heads": 24, "kv_heads": 4, "tp": 6},
    passes={"engine": "sglang", "heads": 24, "kv_heads": 4, "tp": 8},
)
def kv_heads_not_divisible(case: Case) -> Fault | None:
    """KV heads neither divide by the tensor-parallel size nor into it."""
    ranks, kv_heads = case.tp // _attention_dp(case), case.model.kv_heads
    if case.mla or case.encoder or not kv_heads or not ranks or case.model.heads % ranks:
        return None
    if kv_heads % ranks == 0 or ranks % kv_heads == 0:
        return None
    return Fault(
        what=f"{kv_heads} KV heads can neither be split nor copied evenly over {ranks} tensor-parallel ranks",
        fix=f"use {advise_tensor(case)}",
        mend=smaller_tensor(case),
    )


def _attention_dp(case: Case) -> int:
    """SGLang's attention data parallelism, which is carved out of the tensor-parallel size; 1 elsewhere."""
    if case.engine != "sglang":
        return 1
    asked = case.number("attn_dp_size") or (case.number("dp_size") if case.on("enable_dp_attention") else None)
    return max(1, int(asked or 1))


@rule(
    "vllm.kv_heads_copied",
    severity="info",
    cause="each rank keeps at least one whole KV head, so beyond that number the cache per device stops shrinking",
    source="vllm 0.33.0: vllm/config/model.py:1680",
    fires={"heads": 32, "kv_heads": 4, "tp": 8},
    passes={"heads": 32, "kv_heads": 8, "tp": 8},
)
def kv_heads_copied(case: Case) -> Fault | None:
    """Fewer KV heads than tensor-parallel ranks: the cache is copied."""
    kv_heads = case.model.kv_heads
    if case.mla or case.encoder or not kv_heads or kv_heads >= case.tp or case.number("decode_context_parallel_size"):
        return None
    return Fault(
        what=f"{kv_heads} KV heads on {case.tp} ranks: each head's cache lies on {case.tp // kv_heads} devices",
        fix="tensor parallelism up to the number of KV heads and data or pipeline parallelism for the rest, or "
        "--decode-context-parallel-size",
    )


@rule(
    "vllm.layer_not_divisible",
    cause="every sharded linear layer is cut into equal parts, one per rank",
    source="vllm 0.33.0: vllm/distributed/utils.py:54",
    fires={"heads": 30, "kv_heads": 30, "intermediate_size": 13696, "tp": 5},
    passes={"heads": 30, "kv_heads": 30, "intermediate_size": 13695, "tp": 5},
)
@rule(
    "sglang.layer_not_divisible",
    versions=">=0.4.0",
    cause="every sharded linear layer is cut into equal parts, one per rank",
    source="sglang 0.5.23: sglang/srt/distributed/utils.py:70",
    fires={"engine": "sglang", "heads": 24, "kv_heads": 24, "intermediate_size": 10240, "tp": 3},
    passes={"engine": "sglang", "heads": 24, "kv_heads": 24, "intermediate_size": 10242, "tp": 3},
)
def layer_not_divisible(case: Case) -> Fault | None:
    """A linear layer does not divide by the tensor-parallel size."""
    if case.model.heads % case.tp:
        return None
    bad = next((cut for cut in cuts(case) if cut.size % case.tp), None)
    if bad is None:
        return None
    return Fault(
        what=f"{bad.layer} is {bad.size} wide, which does not divide by tensor-parallel size {case.tp}",
        fix=f"use {advise_tensor(case)}",
        mend=smaller_tensor(case),
    )


@rule(
    "vllm.more_ranks_than_devices",
    versions=">=0.13.0",
    cause="vLLM no longer starts Ray by itself when one machine has too few devices",
    source="vllm 0.33.0: vllm/config/parallel.py:1072",
    fires={"tp": 4, "gpus": 2},
    passes={"tp": 2, "pp": 2, "gpus": 4},
)
@rule(
    "sglang.more_ranks_than_devices",
    cause="each rank needs a device of its own",
    source="sglang 0.5.23: sglang/srt/server_args.py:825",
    fires={"engine": "sglang", "tp": 8, "gpus": 4},
    passes={"engine": "sglang", "tp": 4, "gpus": 4},
)
@rule(
    "mindie.more_ranks_than_devices",
    cause="worldSize counts NPUs, and npuDeviceIds must name one per rank",
    source="MindIE-LLM 8b4871a: src/config_manager/backend_config.cpp:163",
    fires={"engine": "mindie", "vendor": "ascend", "tp": 8, "gpus": 4},
    passes={"engine": "mindie", "vendor": "ascend", "tp": 4, "gpus": 4},
)
def more_ranks_than_devices(case: Case) -> Fault | None:
    """More ranks than devices."""
    world = case.candidate.parallel.world
    if case.vendor == "cpu" or world <= len(case.devices):
        return None
    return Fault(
        what=f"{world} ranks are asked for and {len(case.devices)} devices are there",
        fix="lower the parallel sizes, or add hosts to the spec",
    )


@rule(
    "vllm.pipeline_partition",
    cause="VLLM_PP_LAYER_PARTITION deals out the layers by hand",
    source="vllm 0.33.0: vllm/distributed/utils.py:223",
    fires={"pp": 2, "layers": 32, "env": {"VLLM_PP_LAYER_PARTITION": "20,14"}},
    passes={"pp": 2, "layers": 32, "env": {"VLLM_PP_LAYER_PARTITION": "18,14"}},
)
def pipeline_partition(case: Case) -> Fault | None:
    """VLLM_PP_LAYER_PARTITION does not add up."""
    text = case.env.get("VLLM_PP_LAYER_PARTITION")
    if not text or case.pp == 1:
        return None
    parts = [int(part) for part in text.split(",") if part.strip().isdigit()]
    if len(parts) == case.pp and sum(parts) == case.model.layers:
        return None
    return Fault(
        what=f"VLLM_PP_LAYER_PARTITION={text} is not {case.pp} numbers that add up to {case.model.layers} layers",
        fix="correct it, or leave it out and let vLLM deal the layers out",
        mend=(("env.VLLM_PP_LAYER_PARTITION", None),),
    )


@rule(
    "vllm.no_pipeline_for_model",
    versions=">=0.6.3.post1",
    cause="the model's class is not written to be run in stages",
    source="vllm 0.33.0: vllm/config/model.py:1574; classes of 0.32.0, tried",
    fires={"pp": 2, "architecture": "BertModel"},
    passes={"pp": 2, "architecture": "LlamaForCausalLM"},
)
def no_pipeline_for_model(case: Case) -> Fault | None:
    """Pipeline parallelism for a model whose class has none."""
    if case.pp == 1 or case.model.architecture not in architectures("vllm_without_pipeline"):
        return None
    return Fault(
        what=f"{case.model.architecture} cannot be run in pipeline stages",
        fix="tensor parallelism only",
        mend=(("parallel.pipeline", 1),),
    )


@rule(
    "vllm.more_stages_than_layers",
    cause="every pipeline stage holds at least one layer",
    source="vllm 0.33.0: vllm/distributed/utils.py:223",
    fires={"pp": 8, "layers": 6},
    passes={"pp": 4, "layers": 6},
)
@rule(
    "sglang.more_stages_than_layers",
    cause="every pipeline stage holds at least one layer",
    source="sglang 0.5.23: sglang/srt/distributed/utils.py",
    fires={"engine": "sglang", "pp": 8, "layers": 6},
    passes={"engine": "sglang", "pp": 4, "layers": 6},
)
def more_stages_than_layers(case: Case) -> Fault | None:
    """More pipeline stages than layers."""
    if case.pp <= case.model.layers:
        return None
    return Fault(
        what=f"{case.pp} pipeline stages for {case.model.layers} layers",
        fix=f"use at most {case.model.layers} stages",
        mend=(("parallel.pipeline", case.model.layers),),
    )


@rule(
    "vllm.context_parallel_not_in_tensor",
    versions=">=0.26.0",
    cause="decode-context-parallel groups are carved out of the tensor-parallel ranks",
    source="vllm 0.33.0: vllm/config/parallel.py:600",
    fires={"mla": True, "heads": 128, "tp": 8, "options": {"decode_context_parallel_size": 3}},
    passes={"mla": True, "heads": 128, "tp": 8, "options": {"decode_context_parallel_size": 4}},
)
def context_parallel_not_in_tensor(case: Case) -> Fault | None:
    """The tensor-parallel size does not divide by the decode-context-parallel size."""
    size = int(case.number("decode_context_parallel_size") or 1)
    if size <= 1 or case.tp % size == 0:
        return None
    return Fault(
        what=f"tensor-parallel size {case.tp} does not divide by decode-context-parallel size {size}",
        fix=f"set --decode-context-parallel-size to {common_divisor(case.tp, size)}",
        mend=(("extra_args.decode_context_parallel_size", common_divisor(case.tp, size)),),
    )


@rule(
    "vllm.context_parallel_without_copies",
    versions=">=0.27.0",
    cause="for grouped-query attention it only removes copies of KV heads, and there are none",
    source="vllm 0.33.0: vllm/config/model.py:1583",
    fires={"heads": 32, "kv_heads": 8, "tp": 8, "options": {"decode_context_parallel_size": 2}},
    passes={"heads": 32, "kv_heads": 2, "tp": 8, "options": {"decode_context_parallel_size": 4}},
)
def context_parallel_without_copies(case: Case) -> Fault | None:
    """Decode context parallelism where no KV head is copied, or beyond the number of copies."""
    size, kv_heads = int(case.number("decode_context_parallel_size") or 1), case.model.kv_heads
    if size <= 1 or case.mla or not kv_heads:
        return None
    copies = case.tp // kv_heads
    if copies > 1 and size <= copies and (case.model.heads // kv_heads) % size == 0:
        return None
    return Fault(
        what=f"decode-context-parallel size {size} with {kv_heads} KV heads on {case.tp} ranks",
        fix="raise the tensor-parallel size above the number of KV heads, or leave --decode-context-parallel-size out",
        mend=(("extra_args.decode_context_parallel_size", None),),
    )


@rule(
    "sglang.attention_dp_not_in_tensor",
    cause="attention data parallelism is carved out of the tensor-parallel size (--tp is the world size)",
    source="sglang 0.5.23: sglang/srt/arg_groups/parallel_hook.py:326",
    fires={"engine": "sglang", "tp": 8, "options": {"attn_dp_size": 3}},
    passes={"engine": "sglang", "tp": 8, "options": {"attn_dp_size": 4}},
)
def attention_dp_not_in_tensor(case: Case) -> Fault | None:
    """The tensor-parallel size does not divide by the attention data-parallel size."""
    size = _attention_dp(case)
    if case.tp % size == 0:
        return None
    return Fault(
        what=f"tensor-parallel size {case.tp} does not divide by --attn-dp-size {size}",
        fix=f"set --attn-dp-size to {common_divisor(case.tp, size)}",
        mend=(("extra_args.attn_dp_size", common_divisor(case.tp, size)),),
    )


@rule(
    "sglang.attention_dp_with_replicas",
    versions=">=0.5.22",
    cause="data-parallel replicas and attention data parallelism exclude each other",
    source="sglang 0.5.23: sglang/srt/arg_groups/parallel_hook.py:289",
    fires={"engine": "sglang", "tp": 2, "dp": 2, "options": {"attn_dp_size": 2}},
    passes={"engine": "sglang", "tp": 2, "options": {"attn_dp_size": 2}},
)
def attention_dp_with_replicas(case: Case) -> Fault | None:
    """Data-parallel replicas together with attention data parallelism."""
    if case.dp == 1 or (case.number("attn_dp_size") or 1) == 1:
        return None
    return Fault(
        what=f"data-parallel size {case.dp} together with --attn-dp-size {case.text('attn_dp_size')}",
        fix="use one of the two",
        mend=(("parallel.data", 1),),
    )


@rule(
    "sglang.attention_dp_splits_chunks",
    versions=">=0.3.6",
    severity="info",
    cause="the chunked-prefill budget is divided by the attention data-parallel size",
    source="sglang 0.5.23: sglang/srt/arg_groups/parallel_hook.py:334",
    fires={"engine": "sglang", "tp": 8, "options": {"attn_dp_size": 8, "chunked_prefill_size": 8192}},
    passes={"engine": "sglang", "tp": 8, "options": {"chunked_prefill_size": 8192}},
)
def attention_dp_splits_chunks(case: Case) -> Fault | None:
    """Attention data parallelism divides the chunked-prefill size."""
    size, chunk = _attention_dp(case), case.number("chunked_prefill_size")
    if size == 1 or chunk is None or chunk < 0:
        return None
    return Fault(
        what=f"chunked-prefill size {chunk:.0f} becomes {chunk // size:.0f} per attention data-parallel rank",
        fix=f"give --chunked-prefill-size {chunk * size:.0f} if {chunk:.0f} was meant per rank",
    )


@rule(
    "sglang.context_parallel_not_in_tensor",
    versions=">=0.5.9",
    cause="context-parallel groups are carved out of the tensor-parallel ranks",
    source="sglang 0.5.23: sglang/srt/arg_groups/parallel_hook.py:160",
    fires={"engine": "sglang", "tp": 8, "options": {"attn_cp_size": 3}},
    passes={"engine": "sglang", "tp": 8, "options": {"attn_cp_size": 2}},
)
def sglang_context_parallel_not_in_tensor(case: Case) -> Fault | None:
    """The tensor-parallel size does not divide by the context-parallel size."""
    size = max(1, int(case.number("attn_cp_size") or 1))
    ranks = case.tp // _attention_dp(case)
    if size == 1 or ranks % size == 0:
        return None
    return Fault(
        what=f"{ranks} attention ranks do not divide by --attn-cp-size {size}",
        fix=f"set it to {common_divisor(ranks, size)}",
        mend=(("extra_args.attn_cp_size", common_divisor(ranks, size)),),
    )


@rule(
    "vllm.data_parallel_rank",
    versions=">=0.9.2",
    cause="ranks count from 0",
    source="vllm 0.33.0: vllm/config/parallel.py:1020",
    fires={"dp": 2, "experts": 8, "options": {"data_parallel_rank": 2}},
    passes={"dp": 2, "experts": 8, "options": {"data_parallel_rank": 1}},
)
def data_parallel_rank(case: Case) -> Fault | None:
    """--data-parallel-rank is not below the data-parallel size."""
    rank = case.number("data_parallel_rank")
    size = case.number("data_parallel_size") or case.dp
    if rank is None or 0 <= rank < size:
        return None
    return Fault(what=f"--data-parallel-rank {rank:.0f} of {size:.0f}", fix=f"0 to {size - 1:.0f}")


@rule(
    "vllm.external_dp_needs_experts",
    versions=">=0.21.0",
    cause="ranks of a dense model have nothing to exchange",
    source="vllm 0.33.0: vllm/engine/arg_utils.py:2462",
    fires={"dp": 2, "options": {"data_parallel_rank": 0}},
    passes={"dp": 2, "experts": 8, "options": {"data_parallel_rank": 0}},
)
def external_dp_needs_experts(case: Case) -> Fault | None:
    """External data parallelism for a dense model."""
    size = case.number("data_parallel_size") or case.dp
    external = "data_parallel_rank" in case.options or case.on("data_parallel_external_lb")
    if case.moe or size <= 1 or not external:
        return None
    return Fault(
        what="external data parallelism of a dense model",
        fix="independent replicas without --data-parallel-* behind a router",
        mend=(("extra_args.data_parallel_rank", None), ("extra_args.data_parallel_external_lb", None)),
    )


@rule(
    "transformers.no_parallelism",
    cause="one process; the model is spread over devices by layers (device_map)",
    source="transformers 5.23.0: transformers/cli/serve.py:54",
    fires={"engine": "transformers", "tp": 2},
    passes={"engine": "transformers", "tp": 1},
)
@rule(
    "llamacpp.no_tensor_parallel_ranks",
    cause="one process; layers are split over devices (--split-mode), there are no ranks",
    source="llama.cpp b11434: common/arg.cpp:2810",
    fires={"engine": "llamacpp", "tp": 2},
    passes={"engine": "llamacpp", "tp": 1, "gpus": 2},
)
@rule(
    "ollama.no_parallelism",
    cause="Ollama gives all local devices to one llama-server, which splits by layers",
    source="ollama fb30760: llm/llama_server.go:368",
    fires={"engine": "ollama", "dp": 2},
    passes={"engine": "ollama", "gpus": 2},
)
def no_parallelism(case: Case) -> Fault | None:
    """Parallel ranks asked of an engine that has none."""
    if case.candidate.parallel.world == 1 and case.ep == 1:
        return None
    return Fault(
        what=f"{case.engine} has no parallel ranks (tensor {case.tp}, pipeline {case.pp}, data {case.dp})",
        fix="leave `parallel` out, or take vllm or sglang",
        mend=(
            ("parallel.tensor", None),
            ("parallel.pipeline", None),
            ("parallel.data", None),
            ("parallel.expert", None),
        ),
    )
