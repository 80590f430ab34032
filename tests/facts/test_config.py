from __future__ import annotations

from typing import Any

import pytest

from plimsoll.errors import FactError
from plimsoll.facts import catalogue
from plimsoll.facts.config import facts_from_config
from plimsoll.facts.model import ModelFacts
from plimsoll.facts.sharding import bytes_by_layer, pipeline_layers, weights_per_rank

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 128256,
    "max_position_embeddings": 8192, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN_72B = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 8192, "intermediate_size": 29568,
    "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 80, "vocab_size": 152064,
    "max_position_embeddings": 32768, "tie_word_embeddings": False, "torch_dtype": "float16",
}  # fmt: skip
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}


def facts(config: dict[str, Any], id: str = "org/model", **more: Any) -> ModelFacts:
    return facts_from_config({**config, **more}, id=id, source="test")


def test_a_dense_model() -> None:
    model = facts(LLAMA)
    assert model.params == 8_030_261_248  # as its makers count it
    assert model.weight_bytes == 2 * model.params
    assert model.kv_bytes_per_token() == 32 * 8 * 2 * 128 * 2
    assert model.kv_bytes_per_token(tensor_parallel=16) == 32 * 2 * 128 * 2


@pytest.mark.parametrize(
    ("more", "kv_heads", "inner"),
    [
        ({"model_type": "qwen", "intermediate_size": 22016}, 8, 11008),
        ({"model_type": "falcon", "multi_query": True}, 1, 14336),
        ({"model_type": "dbrx", "attn_config": {"kv_n_heads": 4}, "ffn_config": {
            "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2}}, 4, 14336),
        ({"model_type": "gpt_bigcode", "multi_query": True}, 1, 14336),
    ],
)  # fmt: skip
def test_what_families_hide_behind_names_of_their_own(more: dict[str, Any], kv_heads: int, inner: int) -> None:
    model = facts(LLAMA, **more)
    assert (model.kv_heads, model.intermediate_size) == (kv_heads, inner)


def test_awq_keeps_embeddings_and_output_at_full_precision() -> None:
    model = facts(QWEN_72B, quantization_config=AWQ)
    ends = [part for part in model.tensors if part.role in ("embedding", "lm_head")]
    assert {part.dtype for part in ends} == {"float16"}
    layers = 72_706_203_648 - 2 * 152064 * 8192
    packed = sum(part.bytes for part in model.tensors if part.dtype == "int4")
    assert packed / layers == pytest.approx(0.5 + 0.5 / 128 + 2 / 128, rel=1e-4)


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4 + (4 + 16) / 128 + 32 / 4096 * 0.6),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8 + 32 / 128**2),
        ({"quant_method": "fp8", "activation_scheme": "static"}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}, 4 + 8 / 64),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4 + 32 / 64),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.5),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {
            "g": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 32, "type": "int"}}}}, 4.5),
        ({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {
            "g": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}}}, 8),
    ],
)  # fmt: skip
def test_bits_per_weight_of_a_quantized_layer(quantization: dict[str, Any], bits: float) -> None:
    model = facts(LLAMA, quantization_config=quantization)
    parts = [part for part in model.tensors if part.role in ("attention", "mlp")]
    assert 8 * sum(part.bytes for part in parts) / sum(part.params for part in parts) == pytest.approx(bits, rel=0.004)


def test_modules_left_out_of_quantization_are_found_by_name_glob_and_expression() -> None:
    for pattern in ("model.layers.3.self_attn.q_proj", "model.layers.3.self_attn*", r"re:.*layers\.3\.self_attn.*"):
        model = facts(LLAMA, quantization_config={"quant_method": "fp8", "modules_to_not_convert": [pattern]})
        kept = [
            part.at for part in model.tensors if part.name == "model.layers.{}.self_attn.q_proj" and part.dtype != "fp8"
        ]
        assert kept == [(3,)]


def test_what_is_missing_or_unknown_is_said() -> None:
    with pytest.raises(FactError, match="hidden_size"):
        facts({key: value for key, value in LLAMA.items() if key != "hidden_size"})
    with pytest.raises(FactError, match="FooForCausalLM"):
        facts({**LLAMA, "model_type": "foo", "architectures": ["FooForCausalLM"]})
    with pytest.raises(FactError, match="method mystery is not known"):
        facts(LLAMA, quantization_config={"quant_method": "mystery"})
    with pytest.raises(FactError, match="whole number"):
        facts(LLAMA, num_hidden_layers="many")


def test_tensor_parallel_ranks_copy_key_value_heads_when_there_are_too_few() -> None:
    model = facts(LLAMA)
    one, eight, sixteen = (weights_per_rank(model, tensor=ranks)[0] for ranks in (1, 8, 16))
    assert one == model.weight_bytes
    kv = sum(part.bytes for part in model.tensors if part.units)
    norms = sum(part.bytes for part in model.tensors if part.role == "norm")
    assert eight == pytest.approx((one - norms) / 8 + norms, rel=1e-6)
    assert sixteen == pytest.approx((one - norms - kv) / 16 + kv / 8 + norms, rel=1e-6)


def test_pipeline_stages_sum_to_the_whole_and_hold_the_ends() -> None:
    model = facts(LLAMA)
    ranks = weights_per_rank(model, tensor=2, pipeline=3)
    assert len(ranks) == 6
    whole = weights_per_rank(model, tensor=2)[0]
    assert sum(ranks[::2]) == pytest.approx(whole, rel=1e-6)
    assert pipeline_layers(61, 4) == (15, 15, 16, 15)
    by_layer = bytes_by_layer(model)
    assert by_layer.input + sum(by_layer.layers) + by_layer.output == model.weight_bytes


def test_a_cast_when_loading_changes_plain_floats_only() -> None:
    model = facts(QWEN_72B, quantization_config=AWQ)
    plain = sum(part.bytes for part in model.tensors if part.dtype == "float16")
    assert weights_per_rank(model, dtype="float32")[0] - weights_per_rank(model)[0] == plain


def test_experts_are_dealt_out_whole_or_cut() -> None:
    config = {**LLAMA, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000}
    model = facts(config)
    assert model.params == 46_702_792_704
    assert model.moe is not None
    assert (model.moe.experts, model.moe.per_token, model.moe.layers) == (8, 2, 32)
    cut = weights_per_rank(model, tensor=4)[0]
    assert weights_per_rank(model, tensor=4, expert=4)[0] == cut
    assert weights_per_rank(model, tensor=4, expert=16)[0] > cut / 2


@pytest.mark.parametrize("architecture", ["QWenLMHeadModel", "ChatGLMModel", "InternVLChatModel", "GPT2LMHeadModel"])
def test_a_class_that_ends_in_model_may_still_make_text(architecture: str) -> None:
    names = [name for name in catalogue.names() if catalogue.model(name).architecture == architecture]
    assert all(catalogue.model(name).task in ("chat", "completion") for name in names)
