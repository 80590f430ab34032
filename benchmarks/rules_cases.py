"""Random setups for `rules_differential`: models as config.json, and command lines with a few options each."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from plimsoll.facts.incompatible import gone_flags


def draw(engine: str, count: int, seed: int, directory: Path) -> None:
    """Write `count` setups: cases.jsonl, and one directory with a config.json for each model."""
    rng = random.Random(seed)
    directory.mkdir(parents=True, exist_ok=True)
    choose = {"vllm": _vllm_args, "sglang": _sglang_args}[engine]
    models = [_draw_model(rng, number, directory) for number in range(max(40, count // 40))]
    with (directory / "cases.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(count):
            name, config = rng.choice(models)
            args = choose(rng, config)
            file.write(json.dumps({"model": name, "args": args}) + "\n")


def _draw_model(rng: random.Random, number: int, directory: Path) -> tuple[str, dict[str, Any]]:
    family = rng.choice(["llama", "qwen2", "qwen3", "qwen3_moe", "mixtral", "gemma2", "bert", "deepseek_v3", "phi3"])
    heads = rng.choice([8, 12, 14, 16, 24, 32, 40, 48, 64])
    kv_heads = rng.choice([divisor for divisor in (1, 2, 4, 7, 8, 12, 16, heads) if heads % divisor == 0])
    head_dim = rng.choice([64, 128])
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        "hidden_size": heads * head_dim,
        "intermediate_size": rng.choice([1024, 1408, 2816, 4096, 11008, 13696, 18432]),
        "num_hidden_layers": rng.choice([2, 6, 24, 61]),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": rng.choice([32000, 50257, 151936]),
        "max_position_embeddings": rng.choice([512, 2048, 8192, 32768]),
        "torch_dtype": rng.choice(["bfloat16", "float16", "float32"]),
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
    }
    if family in ("qwen3_moe", "mixtral", "deepseek_v3"):
        experts = rng.choice([8, 60, 64])
        config |= {"num_experts": experts, "num_local_experts": experts, "n_routed_experts": experts,
                   "num_experts_per_tok": 2, "moe_intermediate_size": rng.choice([768, 1408, 1536, 2048]),
                   "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}  # fmt: skip
    if family == "deepseek_v3":
        config |= {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
                   "v_head_dim": 128, "n_shared_experts": 1, "first_k_dense_replace": 1, "moe_layer_freq": 1,
                   "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 1, "scoring_func": "sigmoid",
                   "topk_method": "noaux_tc", "routed_scaling_factor": 1.0, "num_key_value_heads": heads}  # fmt: skip
    if family == "gemma2":
        config |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096,
                   "query_pre_attn_scalar": 256, "hidden_activation": "gelu_pytorch_tanh"}  # fmt: skip
    if family == "bert":
        config |= {"hidden_act": "gelu", "type_vocab_size": 2, "position_embedding_type": "absolute"}
        config.pop("num_key_value_heads")
    if family == "phi3":
        config |= {"pad_token_id": 0, "original_max_position_embeddings": config["max_position_embeddings"]}
    stored = rng.choice([None, None, None, "awq", "gptq", "fp8", "block", "compressed-tensors"])
    if stored and family != "bert":
        config["quantization_config"] = _STORED[stored]
    name = f"m{number:04d}"
    (directory / name).mkdir(exist_ok=True)
    (directory / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return name, config


_ARCHITECTURES = {
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM", "mixtral": "MixtralForCausalLM", "gemma2": "Gemma2ForCausalLM",
    "bert": "BertModel", "deepseek_v3": "DeepseekV3ForCausalLM", "phi3": "Phi3ForCausalLM",
}  # fmt: skip
_STORED = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "block": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "compressed-tensors": {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
            "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}}},
    },
}  # fmt: skip


def _vllm_args(rng: random.Random, config: dict[str, Any]) -> list[str]:
    """One to three options; each as often fine as not."""
    longest = config["max_position_embeddings"]
    choices: list[list[str]] = [
        ["--tensor-parallel-size", str(rng.choice([1, 2, 3, 4, 5, 7, 8, 16]))],
        ["--pipeline-parallel-size", str(rng.choice([1, 2, 4]))],
        ["--max-model-len", str(rng.choice([longest // 2, longest, longest + 1, longest * 4]))],
        ["--max-num-batched-tokens", rng.choice(["64", "512", "4096"]), "--max-num-seqs", rng.choice(["32", "600"])],
        ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(rng.choice([256, longest, 40000]))],
        ["--dtype", rng.choice(["half", "bfloat16", "float32", "float16", "auto", "int8", "fp16"])],
        ["--quantization", rng.choice(["awq", "gptq", "fp8", "awq_marlin", "gptq_marlin", "marlin", "squeezellm",
                                       "compressed-tensors", "bitsandbytes", "aqlm", "fbgemm_fp8", "nonsense"])],
        ["--kv-cache-dtype", rng.choice(["auto", "fp8", "fp8_e5m2", "q8_0", "int8", "bfloat16"])],
        ["--enable-expert-parallel"],
        ["--enable-expert-parallel", "--tensor-parallel-size", "2", "--enable-eplb"],
        ["--enable-eplb"],
        ["-dcp", rng.choice(["2", "3", "4"]), "--tensor-parallel-size", rng.choice(["4", "8"])],
        ["--enable-lora", "--max-loras", str(rng.choice([1, 4])), "--max-cpu-loras", str(rng.choice([1, 2, 8]))],
        ["--enable-lora", "--max-lora-rank", str(rng.choice([1, 8, 24, 64, 100, 320]))],
        ["--nnodes", "2", "--tensor-parallel-size", "2", "--master-addr", "10.0.0.1",
         "--distributed-executor-backend", rng.choice(["mp", "ray", "uni"])],
        ["--nnodes", rng.choice(["2", "3"]), "--tensor-parallel-size", "4", "--master-addr", "10.0.0.1",
         "--node-rank", rng.choice(["0", "1", "5"])],
        ["--speculative-config", rng.choice([
            '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}',
            '{"method": "ngram", "prompt_lookup_max": 3}',
            '{"method": "mtp", "num_speculative_tokens": 1}',
            '{"method": "ngram", "num_speculative_tokens": 4, "tensor_parallel_size": 1}'])],
        ["--long-prefill-token-threshold", str(rng.choice([128, longest, longest * 2]))],
        ["--device-ids", rng.choice(["0,1", "0,0"]), "--tensor-parallel-size", "2"],
        ["--runner", rng.choice(["generate", "pooling", "auto"])],
        ["--convert", rng.choice(["embed", "classify", "reward", "none"])],
        ["--compilation-config", rng.choice(["3", "0", '{"mode": 0}'])],
        ["--gpu-memory-utilization", rng.choice(["0.5", "1.0", "1.2", "0"])],
        ["--distributed-executor-backend", rng.choice(["mp", "uni", "torchrun"])],
        [rng.choice(["--swap-space=4", "--task=generate", "--speculative-model=x", "--num-scheduler-steps=8",
                     "--device=cuda", "--guided-decoding-backend=xgrammar", "--enable-reasoning", "--rope-theta=1e6",
                     "--use-v2-block-manager", "--max-seq-len-to-capture=8192", "--worker-use-ray",
                     "--disable-log-requests", "--cuda-graph-sizes=8", "--num-lookahead-slots=1"])],
        [rng.choice(sorted(row["flag"] for row in gone_flags("vllm").values())), "1"],
        ["--data-parallel-size", "2", "--data-parallel-rank", rng.choice(["0", "1", "2"])],
        ["--hf-overrides", '{"max_position_embeddings": 65536}', "--max-model-len", "65536"],
        ["--runner", "pooling", "--convert", rng.choice(["embed", "classify", "none"])],

        ["--attention-backend", rng.choice(["FLASH_ATTN", "XFORMERS", "nonsense"])],
        ["--enable-prefix-caching"],
        ["--block-size", rng.choice(["16", "32", "48"])],
        ["--enforce-eager"],
        ["--disable-prefix-caching"],
    ]  # fmt: skip
    return _some(rng, choices)


def _sglang_args(rng: random.Random, config: dict[str, Any]) -> list[str]:
    """One to three options; each as often fine as not."""
    longest = config["max_position_embeddings"]
    algorithm = rng.choice(["EAGLE", "NGRAM", "STANDALONE", "EAGLE3", "DFLASH", "NEXTN"])
    choices: list[list[str]] = [
        ["--tp", rng.choice(["1", "2", "3", "4", "8"])],
        ["--tp", rng.choice(["2", "3", "8"]), "--attn-dp-size", rng.choice(["2", "3"])],
        ["--tp", "2", "--nnodes", rng.choice(["2", "3"]), "--dist-init-addr", "10.0.0.1:20000", "--node-rank", "0"],
        ["--dp-size", "2", "--nnodes", rng.choice(["1", "2"]), "--dist-init-addr", "10.0.0.1:20000"],
        ["--dp-size", "2", "--attn-dp-size", "2", "--tp", "2"],
        ["--pp", "2"],
        ["--pp-size", "2"],
        ["--pp-size", "2", "--speculative-algorithm", algorithm],
        ["--context-length", str(rng.choice([longest, longest + 1, longest // 2]))],
        ["--dtype", rng.choice(["half", "bfloat16", "fp16", "int8"])],
        ["--kv-cache-dtype", rng.choice(["auto", "fp8", "fp8_e4m3", "q8_0", "bfloat16"])],
        ["--quantization", rng.choice(["awq", "fp8", "gptq", "marlin", "gptq_marlin", "nonsense", "w8a8_int8"])],
        ["--attention-backend", rng.choice(["triton", "FLASH_ATTN", "xformers", "torch_native"])],
        ["--grammar-backend", rng.choice(["xgrammar", "outlines", "lm-format-enforcer", "guidance", "none"])],
        ["--served-model-name", rng.choice(["a:b", "ab"])],
        ["--enable-lora"],
        ["--enable-lora", "--max-lora-rank", "16", "--lora-target-modules", "q_proj"],
        ["--enable-lora", "--max-lora-rank", "16", "--lora-target-modules", "q_proj",
         "--max-loaded-loras", rng.choice(["4", "8"]), "--max-loras-per-batch", rng.choice(["4", "8"])],
        ["--chunked-prefill-size", rng.choice(["2000", "2048", "-1"]), "--page-size", rng.choice(["1", "64"])],
        ["--enable-hierarchical-cache", *rng.choice([[], ["--disable-radix-cache"]])],
        ["--enable-mixed-chunk", "--speculative-algorithm", algorithm],
        ["--speculative-algorithm", algorithm],
        ["--schedule-policy", rng.choice(["lpm", "fcfs", "lof"]), "--enable-priority-scheduling"],
        ["--disable-cuda-graph-padding", *rng.choice([[], ["--enable-torch-compile"]])],
        ["--moe-dense-tp-size", rng.choice(["1", "2", "4"]), "--tp", "4"],
        ["--port", rng.choice(["70000", "30010"])],
        ["--port", "30010", "--grpc-port", rng.choice(["30010", "30011"])],
        ["--tool-call-parser", rng.choice(["llama3_json", "llama3", "deepseek_v3", "qwen25", "hermes"])],
        ["--reasoning-parser", rng.choice(["deepseek_r1", "deepseek-r1"])],
        ["--ssl-keyfile", "k.pem"],
        ["--enable-quant-communications"],
        ["--load-format", rng.choice(["instanttensor", "auto", "dummy"])],
        ["--mem-fraction-static", rng.choice(["0.5", "0.9"])],
        ["--tp", rng.choice(["4", "8"]), "--attn-cp-size", rng.choice(["2", "3"])],
        ["--tp", "4", "--ep", rng.choice(["2", "3", "4"])],
        [rng.choice(sorted(row["flag"] for row in gone_flags("sglang").values())), "1"],
    ]  # fmt: skip
    return _some(rng, choices)


def _some(rng: random.Random, choices: list[list[str]]) -> list[str]:
    picked = rng.sample(choices, rng.choice([1, 1, 1, 2, 2, 3]))
    return [word for words in picked for word in words]
