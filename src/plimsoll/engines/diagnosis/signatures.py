"""The known failures: patterns over a log, with what they mean. The data is in `engines/data/signatures/*.toml`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

_WITHIN: Mapping[str, tuple[str, ...]] = {
    "vllm": (),
    "vllm_ascend": ("vllm",),
    "sglang": (),
    "llamacpp": (),
    "ollama": ("llamacpp",),
    "mindie": (),
    "transformers": (),
    "fastchat": ("transformers", "vllm"),
}
"""The engines, each with those that it runs on."""
_SPELLINGS = {"llama_server": "llamacpp", "mindie_service": "mindie", "llamacpp_server": "llamacpp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One known failure. `what`, `cause` and `fix` may use the named groups of the patterns as {name}."""

    id: str
    patterns: tuple[re.Pattern[str], ...]
    rank: int
    """3 the engine's own message for exactly this; 2 the reason; 1 the kind of failure; 0 an echo of another one."""
    what: str
    cause: str
    fix: str
    engines: tuple[str, ...] = ()
    """Whose logs it may stand in; (): anyone's."""
    rules: tuple[str, ...] = ()
    """The checks that find it before launch, one per engine."""
    source: str = ""

    def concerns(self, family: Sequence[str]) -> bool:
        """Whether it may stand in a log of an engine of `family`; of (), an engine not known, any may."""
        return not family or not self.engines or any(engine in self.engines for engine in family)

    def rule(self, family: Sequence[str]) -> str | None:
        """The check that finds it before launch: the engine's own, else of what it runs on, else of any engine."""
        if not family:
            return self.rules[0] if self.rules else None
        found = {rule.partition(".")[0]: rule for rule in reversed(self.rules)}
        return next((found[engine] for engine in (*family, "any") if engine in found), None)


def family_of(engine: str | None) -> tuple[str, ...]:
    """`engine` as the specs spell it and those whose messages its log may hold; () where it is not known to us."""
    name = (engine or "").lower().replace("-", "_").replace("llama.cpp", "llamacpp").replace("llama_cpp", "llamacpp")
    name = _SPELLINGS.get(name, name)
    return (name, *_WITHIN[name]) if name in _WITHIN else ()


@cache
def signatures() -> Mapping[str, Signature]:
    """Every signature by its id, in the order of the files."""
    known: dict[str, Signature] = {}
    folder = resources.files("plimsoll.engines") / "data" / "signatures"
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.endswith(".toml"):
            for name, row in tomllib.loads(path.read_text(encoding="utf-8")).items():
                known[name] = Signature(
                    id=name,
                    patterns=tuple(re.compile(pattern, re.MULTILINE) for pattern in row["match"]),
                    rank=row["rank"],
                    what=row["what"],
                    cause=row["cause"],
                    fix=row["fix"],
                    engines=tuple(row.get("engines", ())),
                    rules=tuple(row.get("rules", ())),
                    source=row["source"],
                )
    return known


def fill(template: str, groups: Mapping[str, str | None]) -> str:
    """`template` with its {names} replaced; a name that the log did not tell is left out with its colon or brackets."""
    for name in re.findall(r"\{(\w+)\}", template):
        value = (groups.get(name) or "").strip()
        if value:
            template = template.replace(f"{{{name}}}", value[:160])
        else:
            template = re.sub(rf"\s*(?::\s*|\(\s*)?\{{{name}\}}\)?", "", template)
    return template.strip() or "the message itself says it"
