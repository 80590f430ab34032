"""The known failures: patterns over a log, with what they mean. The data is in `engines/data/signatures/*.toml`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources


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

    def concerns(self, engine: str | None) -> bool:
        """Whether it may stand in a log of `engine`; of None, an engine not known, any may."""
        return engine is None or not self.engines or engine in self.engines

    def rule(self, engine: str | None) -> str | None:
        """The check of `engine` (or of any) that finds it before launch; of None, the first."""
        fitting = (rule for rule in self.rules if engine is None or rule.partition(".")[0] in (engine, "any"))
        return next(fitting, None)


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
