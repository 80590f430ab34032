"""What holds for the rules as a whole: all faults at once, mends that mend, time, and the document."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.plan.rules import Rule, check, check_all, mend_spec, options_from_args, rules
from plimsoll.plan.rules.document import rules_markdown
from plimsoll.plan.rules.examples import candidate, ledger
from plimsoll.plan.rules.mend import with_flag
from plimsoll.plan.rules.stated import as_stated
from plimsoll.plan.types import Candidate, Finding
from plimsoll.spec.deployment import Deployment, Spec


def errors(**overrides: Any) -> set[str]:
    return {finding.rule for finding in check(candidate(**overrides)) if finding.severity == "error"}


def test_five_independent_faults_are_all_reported() -> None:
    found = errors(
        heads=9,
        kv_heads=3,
        tp=2,
        dtype="bfloat16",
        arch="7.5",
        context_tokens=65536,
        max_context_tokens=8192,
        batched_tokens=64,
        sequences=256,
        options={"swap_space": 4, "max_lora_rank": 24},
    )
    assert found >= {
        "vllm.heads_not_divisible",
        "vllm.bfloat16_device",
        "vllm.context_beyond_model",
        "vllm.batch_below_sequences",
        "vllm.gone.swap_space",
        "vllm.choice.max_lora_rank",
    }


def test_errors_come_first_and_name_the_deployment() -> None:
    found = check(candidate(name="chat", heads=9, kv_heads=3, tp=2, memory_share=1.0))
    assert [finding.severity for finding in found] == sorted(finding.severity for finding in found)
    assert {finding.deployment for finding in found} == {"chat"}


def test_an_unknown_version_makes_ranged_errors_warnings() -> None:
    [finding] = [f for f in check(candidate(version="", options={"swap_space": 4})) if f.rule == "vllm.gone.swap_space"]
    assert finding.severity == "warning"


def test_document_is_current() -> None:
    assert (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8") == rules_markdown()


def test_check_takes_less_than_5_ms() -> None:
    cases = [candidate(engine=name) for name in ("vllm", "sglang", "llamacpp", "ollama", "mindie")]
    for case in cases:
        check(case)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for case in cases:
            check(case)
        times.append((time.perf_counter() - start) / len(cases))
    assert min(times) < 0.005


def as_written(made: Candidate) -> Deployment:
    """The deployment that states all that an example does."""
    by_key = made.engine.name in ("mindie", "ollama")
    pairs = [
        (f"{name}={value}",) if by_key else (f"--{name}",) if value is True else (f"--{name}", str(value))
        for name, value in made.options.items()
    ]
    cut = made.parallel
    content = made.deployment.model_dump() | {
        "parallel": {"tensor": cut.tensor, "pipeline": cut.pipeline, "data": cut.data, "expert": cut.expert},
        "extra_args": tuple(word for pair in pairs for word in pair) or made.deployment.extra_args,
        "context": made.context_tokens,
        "concurrency": made.sequences,
        "dtype": made.dtype if made.dtype in ("float16", "bfloat16", "float32") else "auto",
        "kv_cache_dtype": made.kv_dtype,
        "memory_share": made.memory_share,
    }
    return Deployment.model_validate(content)


@pytest.mark.parametrize(
    "rule", [rule for rule in rules() if rule.id != "vllm.eager_is_slow"], ids=lambda rule: rule.id
)
def test_a_mend_mends(rule: Rule) -> None:
    fires = candidate(**rule.fires)
    [finding] = [found for found in check(fires, ledger=ledger(**rule.fires)) if found.rule == rule.id]
    if not finding.mend:
        return
    [mended] = mend_spec(Spec(models=(as_written(fires),)), [replace(finding, severity="error")]).models
    if mended.engine != fires.deployment.engine:
        return
    stated = as_stated(mended, fires.model, (fires.host,), fires.engine)
    batched = None if ("extra_args.max_num_batched_tokens", None) in finding.mend else fires.batched_tokens
    again = replace(
        stated,
        devices=fires.devices[: max(1, stated.parallel.world)],
        nodes=fires.nodes,
        batched_tokens=stated.batched_tokens or batched,
    )
    assert rule.id not in {found.rule for found in check(again, ledger=ledger(**rule.fires))}


MENDS = [
    ("parallel.tensor", {"heads": 9, "kv_heads": 3, "tp": 2}, "tensor", 1),
    ("parallel.expert", {"experts": 64, "tp": 4, "ep": 2}, "expert", 4),
]


@pytest.mark.parametrize(("path", "overrides", "key", "value"), MENDS)
def test_parallel_sizes_are_mended(path: str, overrides: dict[str, Any], key: str, value: int) -> None:
    found = check(candidate(**overrides))
    [mended] = mend_spec(Spec(models=(Deployment(name="served", model="m"),)), found).models
    assert getattr(mended.parallel, key) == value


def test_weights_of_deepseek_r1_on_32_ranks_are_mended_to_16_and_two_stages() -> None:
    facts = {
        "engine": "sglang", "mla": True, "heads": 128, "kv_heads": 128, "layers": 61, "intermediate_size": 18432,
        "stored": "fp8", "block": (128, 128), "experts": 256, "moe_layers": 58,
    }  # fmt: skip
    found = check(candidate(tp=32, ep=32, **facts))
    [mended] = mend_spec(Spec(models=(Deployment(name="served", model="m"),)), found).models
    assert (mended.parallel.tensor, mended.parallel.pipeline) == (16, 2)
    assert not errors(tp=16, pp=2, ep=16, **facts)


def test_removed_flags_are_mended_into_their_successors() -> None:
    deployment = Deployment(
        name="a", model="m", extra_args=("--speculative-model", "d", "--swap-space=4", "--guided-decoding-backend", "x")
    )
    options = options_from_args("vllm", deployment.extra_args)
    found = check(candidate(name="a", options=options))
    [mended] = mend_spec(Spec(models=(deployment,)), found).models
    assert options_from_args("vllm", mended.extra_args) == {
        "speculative_config.model": "d",
        "structured_outputs_config.backend": "x",
    }


def test_only_the_named_deployment_is_mended() -> None:
    spec = Spec(models=(Deployment(name="a", model="m"), Deployment(name="b", model="m")))
    words = dict.fromkeys(("rule", "what", "cause", "fix", "source"), "")
    finding = Finding(severity="error", mend=(("context", 7),), deployment="b", **words)
    assert [model.context for model in mend_spec(spec, [finding]).models] == [None, 7]


def test_shares_of_three_services_on_two_cards() -> None:
    shares = {"chat": 0.7, "embed": 0.1, "rerank": 0.1}
    together = [candidate(name=name, memory_share=share, tp=2) for name, share in shares.items()]
    assert not [finding for finding in check_all(together) if finding.severity == "error"]
    assert check_all([*together, candidate(name="more", memory_share=0.2, tp=2)])[0].rule == "any.shares_exceed_device"


ARGS = [
    ("vllm", ["-tp", "2", "--max-model-len=8192", "--enforce-eager", "-q", "awq"],
     {"tensor_parallel_size": 2, "max_model_len": 8192, "enforce_eager": True, "quantization": "awq"}),
    ("vllm", ["--max_num_seqs", "10", "--speculative-config.method", "ngram", "-O3"],
     {"max_num_seqs": 10, "speculative_config.method": "ngram", "optimization_level": 3}),
    ("sglang", ["--tp", "32", "--trust-remote-code", "--mem-fraction-static", "0.8"],
     {"tp_size": 32, "trust_remote_code": True, "mem_fraction_static": 0.8}),
    ("llamacpp", ["-ngl", "99", "-c", "8192", "-fa", "on", "-np", "-1", "-ctk", "q8_0"],
     {"gpu_layers": 99, "ctx_size": 8192, "flash_attn": "on", "parallel": -1, "cache_type_k": "q8_0"}),
    ("mindie", ["maxSeqLen=8192", "templateType=Mix"], {"maxSeqLen": 8192, "templateType": "Mix"}),
    ("vllm", ["--lora-modules", "a=/a", "b=/b"], {"lora_modules": "a=/a,b=/b"}),
]  # fmt: skip


@pytest.mark.parametrize(("engine", "args", "options"), ARGS)
def test_arguments_are_read(engine: str, args: list[str], options: dict[str, object]) -> None:
    assert options_from_args(engine, args) == options


WORDS = ["--max-model-len", "8192", "-tp", "2", "--enforce-eager", "x", "--a.b=c"]


@given(st.lists(st.sampled_from(WORDS), max_size=8))
def test_a_flag_that_was_set_is_read_back_and_one_taken_out_is_gone(args: list[str]) -> None:
    args = ["--first", *args]
    put = with_flag(args, "max_num_seqs", 7, engine="vllm")
    assert options_from_args("vllm", put)["max_num_seqs"] == 7
    assert "max_model_len" not in options_from_args("vllm", with_flag(args, "max_model_len", None, engine="vllm"))


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llamacpp", "ollama", "transformers", "vllm_ascend", "fastchat"])
@pytest.mark.parametrize("task", ["chat", "embed"])
def test_a_plain_setup_has_no_error(engine: str, task: str) -> None:
    plain = {"engine": engine, "task": task, "vendor": "ascend" if engine == "vllm_ascend" else "nvidia"}
    if engine == "ollama":
        plain |= {"format": "gguf", "architecture": "llama"}
    unable = {"transformers.no_pooling"} if task == "embed" else set()
    assert errors(**plain) - unable == set()


def test_a_key_inside_a_json_flag_is_mended_in_place() -> None:
    args = ("--speculative-config", '{"model": "d", "tensor_parallel_size": 2}', "--seed", "1")
    deployment = Deployment(name="a", model="m", extra_args=args)
    found = check(candidate(name="a", tp=2, options=options_from_args("vllm", args)))
    [mended] = mend_spec(Spec(models=(deployment,)), found).models
    assert mended.extra_args[2:] == ("--seed", "1")
    assert json.loads(mended.extra_args[1]) == {
        "model": "d",
        "draft_tensor_parallel_size": 2,
        "num_speculative_tokens": 4,
    }


def test_a_replica_over_several_machines_does_not_share_with_itself() -> None:
    wide = candidate(name="wide", tp=4, nodes=2, memory_share=0.9)
    twice = replace(wide, devices=wide.devices[:2] * 2)
    assert check_all([twice]) == ()
