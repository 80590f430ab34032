"""Laws that hold for every model of the catalogue."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.facts import catalogue
from plimsoll.facts.sharding import bytes_by_layer, pipeline_layers, weights_per_rank

IDS = sorted(entry["id"] for entry in catalogue._entries())


@settings(max_examples=150, deadline=None)
@given(id=st.sampled_from(IDS), tensor=st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_more_ranks_never_hold_more_each_and_never_less_in_all(id: str, tensor: int) -> None:
    model = catalogue.model(id)
    few, many = weights_per_rank(model, tensor=tensor)[0], weights_per_rank(model, tensor=2 * tensor)[0]
    assert many <= few * 1.01  # the vocabulary may be padded further
    assert 2 * many >= few


@settings(max_examples=150, deadline=None)
@given(id=st.sampled_from(IDS), stages=st.integers(1, 8), tensor=st.sampled_from([1, 2, 8]))
def test_stages_hold_the_model_once_but_for_what_both_ends_share(id: str, stages: int, tensor: int) -> None:
    model = catalogue.model(id)
    stages = min(stages, model.layers)
    ranks = weights_per_rank(model, tensor=tensor, pipeline=stages)
    assert len(ranks) == stages * tensor
    whole = weights_per_rank(model, tensor=tensor)[0]
    twice = sum(
        part.bytes * (stages - 1 if part.role == "vision" else 1)
        for part in model.tensors
        if part.role == "vision" or (part.role == "embedding" and model.tied_embeddings)
    )
    assert whole * 0.999 <= sum(ranks[::tensor]) <= whole * 1.001 + twice * 1.01


@given(layers=st.integers(1, 200), stages=st.integers(1, 16))
def test_layers_are_dealt_out_whole(layers: int, stages: int) -> None:
    counts = pipeline_layers(layers, stages)
    assert sum(counts) == layers
    if layers >= stages:
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    "id", ["Qwen/Qwen3-8B", "deepseek-ai/DeepSeek-R1", "Qwen/Qwen3.5-27B", "Qwen/Qwen2.5-0.5B-Instruct"]
)
def test_layers_and_ends_are_the_whole(id: str) -> None:
    model = catalogue.model(id)
    parts = bytes_by_layer(model)
    assert len(parts.layers) == model.layers
    assert parts.input + sum(parts.layers) + parts.output + parts.other == pytest.approx(model.weight_bytes, rel=1e-9)


def test_experts_on_ranks_of_their_own() -> None:
    model = catalogue.model("deepseek-ai/DeepSeek-R1")
    cut = weights_per_rank(model, tensor=8)[0]
    apart = weights_per_rank(model, tensor=8, expert=8)[0]
    wide = weights_per_rank(model, tensor=8, expert=32)[0]
    copied = weights_per_rank(model, tensor=8, expert=8, attention_tensor=1)[0]
    assert cut == apart > wide
    assert copied > apart
