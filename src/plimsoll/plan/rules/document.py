"""docs/rules.md, made from the rules: `python -m plimsoll.plan.rules.document > docs/rules.md`."""

from __future__ import annotations

import sys
from itertools import groupby

from plimsoll.plan.rules import rules
from plimsoll.plan.rules.coresidency import GROUP_RULES
from plimsoll.plan.rules.examples import VERSIONS
from plimsoll.plan.rules.registry import Rule

_THEMES = {
    "parallelism": "Heads, layers and ranks",
    "experts": "Mixtures of experts",
    "blocks": "Scale blocks, groups and tiles",
    "quantization": "Quantization methods",
    "dtype": "Dtypes",
    "attention": "Attention backends",
    "kv_cache": "KV cache and memory share",
    "context": "Context and batch",
    "bounds": "Bounds of options",
    "choices": "Values of options",
    "features": "Features that need or exclude something",
    "speculation": "Speculative decoding",
    "pooling": "Embedding, reranking, classification",
    "gguf": "GGUF and other formats",
    "multinode": "Several machines",
    "driver": "Drivers and builds",
    "mindie": "MindIE",
    "vllm_ascend": "vllm-ascend",
    "ollama": "Ollama",
    "fastchat": "FastChat and transformers serve",
    "security": "Security",
    "removed": "Removed and deprecated",
}
_HEAD = """\
# Rules

Generated from the code by `python -m plimsoll.plan.rules.document`; a test compares.

`plimsoll check` and every plan run all rules that concern the engine and its version, and show everything they find.
An **error** means that the engine would refuse to start, break, or not do what is asked; a **warning** that it would
do it badly; a **note** is worth knowing. Each rule has one example on which it fires and one that it passes.
"""


def rules_markdown() -> str:
    """The whole document."""
    found = sorted(rules(), key=lambda rule: (list(_THEMES).index(rule.theme), rule.engine, rule.id))
    read = ", ".join(f"{engine.replace('_', '-')} {version}" for engine, version in VERSIONS.items())
    lines = [_HEAD, f"{len(found) + len(GROUP_RULES)} rules. Versions read: {read}.", ""]
    for theme, members in groupby(found, key=lambda rule: rule.theme):
        lines += [f"## {_THEMES[theme]}", "", "| rule | versions | severity | what | why | source |", "|---" * 6 + "|"]
        lines += [_row(rule) for rule in members]
        lines.append("")
    lines += ["## Replicas that run together", "", "| rule | severity | what | why | source |", "|---|---|---|---|---|"]
    for group in GROUP_RULES:
        lines.append(f"| `{group.id}` | {_severity(group.severity)} | {group.title} | {group.cause} | {group.source} |")
    return "\n".join(lines) + "\n"


def _row(rule: Rule) -> str:
    cells = (f"`{rule.id}`", rule.versions or "all", _severity(rule.severity), rule.title, rule.cause, rule.source)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _severity(severity: str) -> str:
    return "note" if severity == "info" else severity


if __name__ == "__main__":
    sys.stdout.write(rules_markdown())
