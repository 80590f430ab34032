"""No rule may call an error what is known to have run: public memory logs, and setups measured in data centres.

`fixtures/known_to_run.csv` names for each what its source says; what it leaves open is left to stand-ins here.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plimsoll.facts.catalogue import model
from plimsoll.facts.devices import find_device
from plimsoll.facts.model import Quantization
from plimsoll.plan.rules import check
from plimsoll.plan.rules.examples import candidate
from plimsoll.plan.rules.options import options_from_args
from plimsoll.plan.types import Candidate, Parallel

FIXTURE = Path(__file__).parents[1] / "fixtures" / "known_to_run.csv"
ROWS = list(csv.DictReader(FIXTURE.read_text(encoding="utf-8").splitlines()))
FAMILY = {"vllm-ascend": "ascend", "mindie": "ascend"}


def as_launched(row: dict[str, str]) -> tuple[Parallel, int]:
    """Ranks in the engine's own terms, and the number of devices.

    Two spellings of the data-centre table are undone. For SGLang it multiplies tensor by expert ranks where both cut
    the experts (64 = 8 x 8, more ranks than Qwen3.5's 32 heads): `--tp 8 --ep 8`. For vLLM it cannot tell
    --enable-expert-parallel on one node: MiniMax-M2.5 in FP8 blocks cannot be cut by 8 (1536 / 8 = 192; vLLM 0.18.0
    refuses it in fp8.py), so it ran with it.
    """
    tensor, pipeline, data = (int(row[key] or 1) for key in ("tensor", "pipeline", "data"))
    cut, experts = (max(1, int(part)) for part in (row["experts"] or "1x1").split("x"))
    if row["engine"] == "sglang" and cut > 1 and experts > 1:
        tensor = cut
    if row["model"] == "MiniMaxAI/MiniMax-M2.5" and not row["stored"] and tensor == 8:
        experts = 8
    if "--enable-expert-parallel" in row["args"]:
        experts = tensor
    return Parallel(tensor=tensor, pipeline=pipeline, data=data, expert=experts), int(row["devices"] or 0)


def candidate_of(row: dict[str, str]) -> Candidate:
    parallel, devices = as_launched(row)
    engine = row["engine"]
    options = options_from_args(engine, row["args"].split())
    overrides: dict[str, Any] = {
        "engine": engine,
        "version": row["version"],
        "vendor": FAMILY.get(engine, "nvidia"),
        "gpus": max(devices, parallel.world),
        "context_tokens": int(row["context"] or 2048),
        "memory_share": float(row["memory_share"]) if row["memory_share"] else None,
        "kv_dtype": row["kv_dtype"] or "auto",
        "sequences": int(row["sequences"] or 1),
        "eager": bool(row["eager"]),
        "dtype": row["dtype"] or "auto",
        "options": options,
        "extra_args": tuple(row["args"].split()),
    }
    made = candidate(max_context_tokens=1 << 20, **overrides)
    facts = model(row["model"]) if row["model"] else made.model
    if row["stored"]:
        facts = replace(facts, quantization=Quantization(method=row["stored"], bits=4, group_size=16))
    if engine in ("llamacpp", "ollama", "ik_llama.cpp"):
        facts = replace(facts, format="gguf")
    if row["device"]:
        known = find_device(row["device"]).device
        named = tuple(replace(known, index=index) for index in range(len(made.devices)))
        made = replace(made, devices=named, host=replace(made.host, devices=named))
    return replace(made, model=facts, parallel=parallel)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_what_has_run_has_no_error(row: dict[str, str]) -> None:
    found = [finding for finding in check(candidate_of(row)) if finding.severity == "error"]
    assert [(finding.rule, finding.what) for finding in found] == []
