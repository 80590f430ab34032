"""The rules that are rows: `facts/data/incompatible.toml`, read into the same `Rule` as the written ones.

Each row has its engine and version range. Kinds: `gone_flag` and `gone_env` (removed, renamed, void), `choice` (an
option takes one of these), `bounds` (an option lies between two numbers), `pair` (settings that exclude each other, or
one that is void or deprecated), `floor` (a quantization needs a compute capability). There is no logic in the file
beyond that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from plimsoll.facts.incompatible import Row, flag_name, rows
from plimsoll.plan.rules.case import Case, as_number
from plimsoll.plan.rules.registry import Check, Fault, Rule


def table_rules() -> tuple[Rule, ...]:
    """One rule for each row, in the order of the file."""
    made = []
    for engine, flags in rows()["gone_flag"].items():
        made += [_gone_flag({"engine": engine, "flag": flag, **row}) for flag, row in flags.items()]
    for engine, names in rows()["gone_env"].items():
        made += [_gone_env({"engine": engine, "env": name, **row}) for name, row in names.items()]
    for kind, make in _KINDS.items():
        made += [make(row) for row in rows()[kind]]
    return tuple(made)


def _rule(row: Row, name: str, theme: str, title: str, check: Check, fires: Row, passes: Row) -> Rule:
    return Rule(
        id=f"{row['engine']}.{name}",
        title=title,
        theme=row.get("theme", theme),
        severity=row.get("severity", "error"),
        versions=row.get("versions", ""),
        cause=row["cause"],
        source=row["source"],
        check=check,
        fires={"engine": row["engine"], **row.get("fires", fires)},
        passes={"engine": row["engine"], **row.get("passes", passes)},
    )


_OPTION_LISTS = {
    "vllm": "option lists of 53 vLLM releases, 0.5.0 to 0.33.0, and the parser of 0.33.0",
    "sglang": "option lists of 37 SGLang releases, 0.2.15 to 0.5.23, and the parser of 0.5.23",
}


def _gone_flag(row: Row) -> Rule:
    name = flag_name(row["flag"])
    says = "it is ambiguous now" if row.get("ambiguous") else "it is not recognised any more"

    def check(case: Case) -> Fault | None:
        if name not in case.options:
            return None
        return Fault(
            what=f"{row['flag']} is gone since {row['gone']}: {says}",
            fix=instead(row),
            mend=((f"extra_args.{name}", None), *successors(row, case.options[name])),
        )

    return _rule(
        {
            "versions": f">={row['gone']}",
            "cause": "the option was removed",
            "source": _OPTION_LISTS[row["engine"]],
            "severity": "error",
            **row,
        },
        f"gone.{name}",
        "removed",
        f"{row['flag']} was removed in {row['gone']}",
        check,
        {"options": {name: "1"}},
        {"options": {name: "1"}, "version": row["last"]},
    )


def instead(row: Row) -> str:
    """What to write in place of a removed flag, in words."""
    if "rename" in row:
        return f"write --{row['rename'].replace('_', '-')}"
    if "set" in row:
        return "write " + " ".join(f"--{key.replace('_', '-')} {value}" for key, value in row["set"].items())
    if "instead" in row:
        return f"instead: {row['instead']}"
    return f"leave it out ({row['note']})" if "note" in row else "leave it out"


def successors(row: Row, value: object) -> tuple[tuple[str, object], ...]:
    """The options that take a removed flag's place, as mends."""
    if "rename" in row:
        return ((f"extra_args.{row['rename']}", value),)
    return tuple((f"extra_args.{key}", new) for key, new in row.get("set", {}).items())


def _gone_env(row: Row) -> Rule:
    name = row["env"]

    def check(case: Case) -> Fault | None:
        if name not in case.env:
            return None
        return Fault(what=f"{name} has no effect since {row['gone']}", fix=row["fix"], mend=((f"env.{name}", None),))

    return _rule(
        {
            "versions": f">={row['gone']}",
            "severity": "warning",
            "cause": "the variable was removed; the engine warns and goes on without it",
            "source": "vllm/envs.py of 53 releases; vllm 0.33.0: vllm/platforms/interface.py:1470",
            **row,
        },
        f"gone.{name.lower()}",
        "removed",
        f"{name} is read no more",
        check,
        {"env": {name: "1"}},
        {},
    )


def _choice(row: Row) -> Rule:
    option, allowed = row["option"], frozenset(map(str, row["allowed"]))

    def check(case: Case) -> Fault | None:
        given = setting(case, option)
        if "unless" in row and row["unless"] in case.options:
            return None
        if given in (None, "", "auto") or (str(given).upper() if row.get("upper") else str(given)) in allowed:
            return None
        known = row.get("renamed", {}).get(str(given))
        mend: tuple[tuple[str, object], ...] = ()
        if "mend" in row:
            # A key of the spec stands for the flag, which goes.
            path = row["mend"]
            mend = ((path, known or row["instead"] or None),)
            mend += () if path.startswith("extra_args.") else ((f"extra_args.{option}", None),)
        return Fault(
            what=f"{row.get('flag', option)} {given} is not known to this engine", fix=known or row["fix"], mend=mend
        )

    return _rule(
        row,
        row.get("name", f"choice.{option}"),
        "choices",
        f"{row.get('flag', option)} takes one of a fixed list",
        check,
        {"options": {option: row.get("bad", "nonsense")}},
        {"options": {option: next(iter(row["allowed"]))}},
    )


def _bounds(row: Row) -> Rule:
    option, low, high = row["option"], row.get("low", float("-inf")), row.get("high", float("inf"))
    shown = f"{row.get('low', 'anything')} to {row.get('high', 'anything')}"

    def check(case: Case) -> Fault | None:
        given = case.number(option)
        if given is None or low <= given <= high or given in row.get("also", ()):
            return None
        nearest = low if given < low else high
        return Fault(
            what=f"{option} is {given:g}, and may be {shown}",
            fix=f"set it to {row.get('instead', nearest)}",
            mend=((f"extra_args.{option}", row.get("instead", nearest)),),
        )

    bad = row["high"] + 1 if "high" in row else row["low"] - 1
    return _rule(
        row,
        f"bounds.{option}",
        "bounds",
        f"{option} lies between bounds",
        check,
        {"options": {option: row.get("bad", bad)}},
        {"options": {option: row.get("good", row.get("low", row.get("high")))}},
    )


def _pair(row: Row) -> Rule:
    first, second = row["first"], row.get("second", {})

    def check(case: Case) -> Fault | None:
        if not (holds(case, first) and holds(case, second)):
            return None
        mend = tuple((path, None if value == "" else value) for path, value in row.get("mend", {}).items())
        return Fault(what=row["what"], fix=row["fix"], mend=mend)

    return _rule(row, row["name"], "features", row["what"], check, row["fires"], row["passes"])


def _floor(row: Row) -> Rule:
    methods, floor = frozenset(row["quantization"]), row["capability"]

    def check(case: Case) -> Fault | None:
        if case.capability is None or case.capability >= floor or case.quantization not in methods:
            return None
        return Fault(
            what=f"{case.quantization} needs compute capability {floor / 10:g}, the devices have "
            f"{case.capability / 10:g}",
            fix=row.get("fix", "another quantization of the model, or other devices"),
        )

    method = row["quantization"][0]
    return _rule(
        {"cause": "the method's kernels are not built for older devices", **row},
        f"floor.{row.get('name', method)}",
        "quantization",
        f"{', '.join(row['quantization'])} below compute capability {floor / 10:g}",
        check,
        {"stored": method, "arch": f"{(floor - 5) / 10:g}"},
        {"stored": method, "arch": f"{floor / 10:g}"},
    )


def setting(case: Case, name: str) -> Any:
    """The value of an option, or of one of the neutral names a row may use; None when it is not given."""
    if name.startswith("env."):
        return case.env.get(name[4:])
    neutral = _NEUTRAL.get(name)
    if neutral is not None and name not in case.options:
        return neutral(case)
    return case.options.get(name)


def holds(case: Case, wanted: Mapping[str, Any]) -> bool:
    """Whether every setting is as `wanted`: a value, one of a list, true (given at all), {above = n}, {not = [...]}."""
    return all(_matches(setting(case, name), want) for name, want in wanted.items())


def _matches(given: Any, want: Any) -> bool:
    if isinstance(want, dict):
        if "above" in want:
            return bool((as_number(given) or 0.0) > want["above"])
        return given not in (None, "", "auto") and str(given) not in want["not"]
    if isinstance(want, bool):
        return (str(given).lower() not in ("none", "", "false", "off")) is want
    if isinstance(want, list):
        return given is not None and str(given) in [str(value) for value in want]
    return given is not None and str(given) == str(want)


_NEUTRAL: Mapping[str, Callable[[Case], Any]] = {
    "tp": lambda case: case.tp,
    "pp": lambda case: case.pp,
    "dp": lambda case: case.dp,
    "ep": lambda case: case.ep,
    "nodes": lambda case: case.nodes,
    "dtype": lambda case: None if case.dtype_asked == "auto" else case.dtype_asked,
    "model_dtype": lambda case: case.dtype,
    "kv_cache_dtype": lambda case: None if case.kv_dtype == "auto" else case.kv_dtype,
    "quantization": lambda case: case.quantization_asked,
    "stored": lambda case: case.stored,
    "vendor": lambda case: case.vendor,
    "soc": lambda case: case.devices[0].arch if case.devices else None,
    "capability": lambda case: case.capability,
    "mla": lambda case: case.mla,
    "moe": lambda case: case.moe,
    "hybrid": lambda case: case.hybrid,
    "multimodal": lambda case: case.model.multimodal,
    "pools": lambda case: case.pooling,
    "task": lambda case: case.task,
    "speculative": lambda case: case.speculative,
    "eager": lambda case: case.candidate.eager,
    "architecture": lambda case: case.model.architecture,
    "model_type": lambda case: case.model_type,
    "gguf": lambda case: case.gguf,
}

_KINDS: Mapping[str, Callable[[Row], Rule]] = {"choice": _choice, "bounds": _bounds, "pair": _pair, "floor": _floor}
