"""GGUF of the llama family back to a safetensors model: tensors dequantized, config.json and tokenizer rebuilt.

Tensors are dequantized by the gguf package, a few rows at a time. What quantization lost stays lost: the result is the
model that llama.cpp runs, in a form that other engines load.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from plimsoll.errors import WeightError
from plimsoll.facts.ggml_types import BY_NUMBER
from plimsoll.facts.gguf import GgufHeader, GgufTensor
from plimsoll.units import MIB
from plimsoll.weights.convert.gguf_file import open_gguf
from plimsoll.weights.convert.gguf_tokenizer import write_tokenizer
from plimsoll.weights.convert.numbers import numpy
from plimsoll.weights.convert.output import Step, new_directory
from plimsoll.weights.convert.progress import Tally
from plimsoll.weights.convert.safetensors_file import Planned, header_bytes, read_header
from plimsoll.weights.disk import check_disk
from plimsoll.weights.types import Progress

_PIECE_BYTES = 4 * MIB
_NUMBERS = {kind: number for number, kind in BY_NUMBER.items()}
_CLASSES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}
_NAMES = {
    "token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm",
}  # fmt: skip
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def gguf_to_safetensors(source: Path, target: Path, *, progress: Progress | None = None) -> Step:
    """Write the GGUF file `source` (llama, qwen2, qwen3) as a float16 model directory `target`.

    WeightError for other architectures, for tensors that the family does not have, and for rope scaling, which a GGUF
    does not keep in a form that config.json could say.
    """
    numpy()
    with ExitStack() as stack:
        file, header = open_gguf(source, stack)
        if header.metadata.get("split.count", 0):
            raise WeightError(f"{source.name} is a part of a split model", hint="merge its parts first")
        config = _config(header)
        planned = [
            Planned(name=_name(tensor, header), dtype="F16", shape=tensor.shape[::-1]) for tensor in header.tensors
        ]
        total = sum(one.size_bytes for one in planned)
        check_disk(target.parent, total)
        with new_directory(target, source=source) as draft:
            (draft.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            notes = write_tokenizer(source, header, draft.folder)
            head = header_bytes(planned, {"format": "pt"})
            tally = Tally(source.name, total, progress)
            path = draft.folder / "model.safetensors"
            with path.open("xb") as out:
                out.write(head)
                for tensor in header.tensors:
                    for data in _dequantized(file, tensor, header):
                        out.write(data)
                        tally.add(len(data))
            if [(one.name, one.shape) for one in read_header(path).tensors] != [(o.name, o.shape) for o in planned]:
                raise WeightError(f"{source.name} did not come out as planned", hint="please report this")
            step = Step(what="GGUF to safetensors", tensors=len(planned), bytes=total, notes=notes)
            draft.steps.append(step)
    return step


def _name(tensor: GgufTensor, header: GgufHeader) -> str:
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", tensor.name)
    table = _BLOCK_NAMES if match and match[1] else _NAMES
    if match is None or match[2] not in table:
        scaled = tensor.name == "rope_freqs.weight"
        raise WeightError(
            f"{header.name} holds {tensor.name}, which {'means scaled rope' if scaled else 'its family does not have'}",
            hint="fetch the original model as safetensors instead",
        )
    prefix = f"model.layers.{match[1]}." if match[1] else ""
    return f"{prefix}{table[match[2]]}.{match[3]}"


def _dequantized(file: int, tensor: GgufTensor, header: GgufHeader) -> Iterator[bytes]:
    """float16 bytes of some rows at a time, rows of Q and K of llama in the order that transformers has them."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    xp = numpy()
    kind = GGMLQuantizationType(_NUMBERS[tensor.type])
    width = tensor.shape[0]
    rows = tensor.params // width
    row_bytes = tensor.bytes // rows
    heads = _permuted_heads(tensor, header)
    group = rows // heads if heads else 1
    if heads and rows % (2 * heads):
        raise WeightError(f"{tensor.name} has {rows} rows, which {heads} heads do not divide")
    step = max(1, _PIECE_BYTES // row_bytes // group) * group
    for row in range(0, rows, step):
        count = min(step, rows - row)
        raw = os.pread(file, count * row_bytes, header.data_offset + tensor.offset + row * row_bytes)
        if tensor.type.name in ("F32", "F16"):
            values = xp.frombuffer(raw, dtype="<f4" if tensor.type.name == "F32" else "<f2").reshape(count, width)
        else:
            values = dequantize(xp.frombuffer(raw, dtype=xp.uint8).reshape(count, row_bytes), kind)
        if heads:
            values = values.reshape(-1, group // 2, 2, width).swapaxes(1, 2).reshape(count, width)
        with xp.errstate(over="raise"):
            try:
                yield values.astype("<f2").tobytes()
            except FloatingPointError:
                raise WeightError(f"{tensor.name} has values too large for float16") from None


def _permuted_heads(tensor: GgufTensor, header: GgufHeader) -> int:
    """Heads whose rows llama.cpp's converter reordered (llama only, Q and K), else 0."""
    if header.metadata.get("general.architecture") != "llama" or len(tensor.shape) != 2:
        return 0
    if re.fullmatch(r"blk\.\d+\.attn_q\.weight", tensor.name):
        return _number(header, "attention.head_count")
    if re.fullmatch(r"blk\.\d+\.attn_k\.weight", tensor.name):
        return _number(header, "attention.head_count_kv")
    return 0


def _number(header: GgufHeader, key: str) -> int:
    value = header.metadata.get(f"{header.metadata.get('general.architecture')}.{key}")
    if not isinstance(value, int) or not 0 < value < 1 << 31:
        raise WeightError(f"{header.name} does not say its {key}", hint="is it a whole model?")
    return value


def _config(header: GgufHeader) -> dict[str, Any]:
    """config.json as transformers wants it, from the GGUF's metadata."""
    metadata = header.metadata
    family = metadata.get("general.architecture")
    if family not in _CLASSES:
        raise WeightError(
            f"{header.name} is a {family} model; only {', '.join(_CLASSES)} are converted",
            hint="fetch the original model as safetensors instead",
        )
    if any(key.startswith(f"{family}.rope.scaling") for key in metadata):
        raise WeightError(f"{header.name} scales its rope", hint="fetch the original model as safetensors instead")
    model_type, architecture = _CLASSES[str(family)]
    names = {tensor.name: tensor for tensor in header.tensors}
    if "token_embd.weight" not in names or not all(all(tensor.shape) for tensor in header.tensors):
        raise WeightError(f"{header.name} lacks tensors", hint="is it a whole model?")
    hidden, heads = _number(header, "embedding_length"), _number(header, "attention.head_count")
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": _number(header, "feed_forward_length"),
        "num_hidden_layers": _number(header, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _number(header, "attention.head_count_kv"),
        "head_dim": metadata.get(f"{family}.attention.key_length", hidden // heads),
        "max_position_embeddings": _number(header, "context_length"),
        "vocab_size": names["token_embd.weight"].shape[-1],
        "rms_norm_eps": metadata.get(f"{family}.attention.layer_norm_rms_epsilon", 1e-5),
        "rope_theta": metadata.get(f"{family}.rope.freq_base", 10000.0),
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": "output.weight" not in names,
        "torch_dtype": "float16",
    }
    for key in ("bos", "eos"):
        if f"tokenizer.ggml.{key}_token_id" in metadata:
            config[f"{key}_token_id"] = metadata[f"tokenizer.ggml.{key}_token_id"]
    return config
