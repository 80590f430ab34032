"""The field notes replayed: verdicts for the engine of that time agree with what people saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from plimsoll.app.field_notes import Replayed, as_markdown, replay
from plimsoll.spec.load import parse_spec

DOCS = Path(__file__).parents[2] / "docs"
FAILED = {
    "r1-fp8-sglang-tp32": "18432 / 32 = 576",
    "r1-fp8-sglang-tp16": "GiB are needed",
    "r1-bf16-sglang-tp32": "GiB are needed",
    "r1-ollama-multinode": "ollama runs on one",
    "r1-q4km-llama-cpp-rpc-24": "backends; 16 is the most",
    "r1-q4km-gguf-vllm": "deepseek2 is not supported",
    "cuda-11-8-env": "XFormers, which cannot",
    "atlas-bin-weights": "the weights are pytorch",
}
"""What did not run then, and a word of the reason that must be given beforehand."""


@pytest.fixture(scope="module")
def replayed() -> dict[str, Replayed]:
    return {one.id: one for one in replay()}


def test_all_of_them_are_there(replayed: dict[str, Replayed]) -> None:
    assert len(replayed) == 31


def test_what_failed_is_refused_for_its_reason_and_the_rest_runs(replayed: dict[str, Replayed]) -> None:
    refused = {name: one.then.why for name, one in replayed.items() if one.then.says == "refused"}
    assert set(refused) == set(FAILED)
    assert {one.then.says for one in replayed.values()} == {"runs", "refused"}
    for name, words in FAILED.items():
        assert words in refused[name], name


def test_every_spec_of_today_reads_back(replayed: dict[str, Replayed]) -> None:
    assert all(parse_spec(one.spec, name=one.id).models for one in replayed.values() if one.spec)
    # 640 GiB of FP8 and 1.3 TB of bf16 weights fit no cut of 32 cards of 24 GB: the AWQ case is what does.
    assert {name for name, one in replayed.items() if not one.spec} == {
        "r1-fp8-sglang-tp32", "r1-fp8-sglang-tp16", "r1-bf16-sglang-tp32",
    }  # fmt: skip


def test_the_document_is_current(replayed: dict[str, Replayed]) -> None:
    written = (DOCS / "field-notes.md").read_text()
    assert written == as_markdown(list(replayed.values())), "python -m plimsoll.app.field_notes > docs/field-notes.md"
