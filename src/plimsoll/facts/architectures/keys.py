"""Reads config.json by the names that different families give to the same thing, with bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plimsoll.errors import FactError

MAX_LAYERS = 4096


class Keys:
    """One mapping of config.json; every getter takes all the names in use for a key, the first that is set wins."""

    def __init__(self, values: Mapping[str, Any], *, source: str) -> None:
        self.values = values
        self.source = source

    def get(self, *names: str) -> Any:
        """The first value that is there and not null, or None."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)

    def size(self, *names: str, default: int | None = None, least: int = 0) -> int:
        """A count or width, `least` to 2^31 (layers: to 4096); FactError where it is no such number, or absent."""
        value = self.get(*names)
        if value is None and default is not None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        most = MAX_LAYERS if any(name.endswith(("layers", "depth")) for name in names) else (1 << 31) - 1
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise FactError(
                f"config.json says {' or '.join(names)} = {value!r}, where a whole number is needed",
                hint="The model's files may be incomplete, or of an architecture that is not known yet.",
                source=self.source,
            )
        return value

    def ratio(self, *names: str, default: float) -> float:
        """A factor between a thousandth and a thousand; FactError where it is no such number."""
        value = self.get(*names)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not 1e-3 <= value <= 1e3:
            raise FactError(
                f"config.json says {' or '.join(names)} = {value!r}, where a factor is needed",
                hint="The model's files may be incomplete; fetch them again.",
                source=self.source,
            )
        return float(value)

    def flag(self, *names: str, default: bool = False) -> bool:
        """A truth value."""
        value = self.get(*names)
        return default if value is None else bool(value)

    def sizes(self, *names: str) -> tuple[int, ...]:
        """A list of whole numbers, empty when absent."""
        value = self.get(*names)
        if not isinstance(value, list | tuple):
            return ()
        return tuple(item for item in value if isinstance(item, int))

    def words(self, *names: str) -> tuple[str, ...]:
        """A list of strings, empty when absent."""
        value = self.get(*names)
        return tuple(str(item) for item in value) if isinstance(value, list | tuple) else ()

    def part(self, *names: str) -> Keys:
        """A mapping inside this one, empty when absent."""
        value = self.get(*names)
        return Keys(value if isinstance(value, Mapping) else {}, source=self.source)

    def has(self, *names: str) -> bool:
        """Whether any of the names is set."""
        return self.get(*names) is not None

    @property
    def layers(self) -> int:
        """Number of decoder (or encoder) layers."""
        listed = self.words("layers_block_type")
        return len(listed) or self.size("num_hidden_layers", "n_layer", "n_layers", "num_layers", least=1)

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.size("hidden_size", "n_embd", "d_model", "model_dim", "dim")

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.size("num_attention_heads", "n_head", "n_heads", "num_heads", default=0)

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        found = self.sizes("num_key_value_heads") or (
            self.size("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", default=self.heads),
        )
        return max(found)

    @property
    def head_dim(self) -> int:
        """Values per head."""
        return self.size("head_dim", "kv_channels", "attention_head_dim", default=self.hidden // max(1, self.heads))

    @property
    def inner(self) -> int:
        """Width of the feed-forward layers."""
        found = self.sizes("intermediate_size")
        if found:
            return max(found)
        return self.size(
            "intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "inner_hidden_size", "d_ff",
            default=4 * self.hidden,
        )  # fmt: skip

    @property
    def vocab(self) -> int:
        """Rows of the embedding table as stored."""
        return self.size("padded_vocab_size", "vocab_size", "n_vocab")

    @property
    def context(self) -> int:
        """Longest sequence that the model was made for, in tokens; 0 when the file does not say."""
        return self.size(
            "max_position_embeddings", "max_sequence_length", "n_positions", "seq_length", "max_seq_len",
            "model_max_length", "n_ctx", default=0,
        )  # fmt: skip


def every(layers: Sequence[int] | int) -> tuple[int, ...]:
    """Layer numbers as a tuple; a bare number means all below it."""
    return tuple(range(layers)) if isinstance(layers, int) else tuple(layers)
