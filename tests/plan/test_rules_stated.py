"""A spec taken at its word: keys first, engine flags for what they leave out, the least for the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from plimsoll.plan.rules import check
from plimsoll.plan.rules.examples import candidate
from plimsoll.plan.rules.stated import as_stated, check_spec
from plimsoll.plan.types import Candidate
from plimsoll.spec.deployment import Deployment, Spec


def stated(*, hosts: int = 1, gpus: int = 8, **spec: Any) -> Candidate:
    made = candidate(engine=spec.get("engine", "vllm"), gpus=gpus)
    machines = [replace(made.host, name=f"h{number}") for number in range(hosts)]
    return as_stated(Deployment(name="a", model="m", **spec), made.model, machines, made.engine)


def test_what_is_left_open_is_the_least() -> None:
    case = stated()
    assert (case.parallel.world, len(case.devices), case.nodes, case.sequences, case.context_tokens) == (
        1,
        1,
        1,
        1,
        8192,
    )


@pytest.mark.parametrize(
    "spec",
    [
        {"parallel": {"tensor": 4}, "context": 1024, "concurrency": 9, "memory_share": 0.5},
        {"extra_args": ("-tp", "4", "--max-model-len=1024", "--max_num_seqs", "9", "--gpu-memory-utilization", "0.5")},
        {
            "engine": "sglang",
            "extra_args": ("--tp", "4", "--context-length", "1024", "--max-running-requests", "9",
                           "--mem-fraction-static", "0.5"),
        },
    ],
)  # fmt: skip
def test_keys_and_flags_say_the_same(spec: dict[str, Any]) -> None:
    case = stated(**spec)
    assert (case.parallel.tensor, len(case.devices), case.context_tokens, case.sequences, case.memory_share) == (
        4, 4, 1024, 9, 0.5,
    )  # fmt: skip


def test_a_key_of_the_spec_goes_before_a_flag() -> None:
    assert stated(parallel={"tensor": 2}, extra_args=("-tp", "8")).parallel.tensor == 2


def test_ranks_spread_over_as_many_machines_as_they_need() -> None:
    case = stated(hosts=4, parallel={"tensor": 8, "pipeline": 2})
    assert (case.nodes, len(case.devices)) == (2, 16)


def test_ranks_that_find_no_device_stay_without() -> None:
    assert len(stated(gpus=2, parallel={"tensor": 4}).devices) == 2


def test_expert_parallelism_of_vllm_spans_all_ranks() -> None:
    assert stated(extra_args=("-tp", "2", "-dp", "4", "--enable-expert-parallel")).parallel.expert == 8


def test_experts_that_cannot_be_cut_are_dealt_out_as_the_planner_would() -> None:
    made = candidate(gpus=8, heads=48, experts=256, moe_intermediate=1536, stored="fp8", block=(128, 128))
    for tensor, expert in ((4, 1), (8, 8)):
        deployment = Deployment(name="a", model="m", parallel={"tensor": tensor})
        case = as_stated(deployment, made.model, [made.host], made.engine)
        assert case.parallel.expert == expert
        assert [finding.rule for finding in check(case) if finding.severity == "error"] == []


FAULTY = Spec.model_validate(
    {
        "models": [
            {
                "name": "chat",
                "model": "m",
                "engine": "vllm",
                "parallel": {"tensor": 3},
                "context": 1 << 20,
                "kv_cache_dtype": "q8_0",
                "memory_share": 0.7,
                "devices": [0, 1],
                "extra_args": ["--swap-space", "4", "--max-num-batched-tokens", "64", "--max-num-seqs", "256"],
            },
            {"name": "embed", "model": "m", "engine": "vllm", "memory_share": 0.5, "devices": [1]},
            {"name": "free", "model": "m"},
        ]
    }
)


def test_all_faults_of_a_spec_are_found_though_no_plan_can_be_made() -> None:
    made = candidate(gpus=2)
    models = {deployment.name: made.model for deployment in FAULTY.models}
    found = check_spec(FAULTY, models=models, hosts=[made.host], engines={"vllm": made.engine})
    assert {(finding.deployment, finding.rule) for finding in found if finding.severity == "error"} == {
        ("chat", "vllm.heads_not_divisible"),
        ("chat", "vllm.more_ranks_than_devices"),
        ("chat", "vllm.context_beyond_model"),
        ("chat", "vllm.choice.kv_cache_dtype"),
        ("chat", "vllm.batch_below_sequences"),
        ("chat", "vllm.gone.swap_space"),
        ("embed", "any.shares_exceed_device"),
    }
