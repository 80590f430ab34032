"""Carrying out what findings advise: a spec and findings give the mended spec."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from plimsoll.plan.rules.options import ALIASES, is_flag, long_name
from plimsoll.plan.types import Finding
from plimsoll.spec.deployment import Deployment, Spec


def mend_spec(spec: Spec, findings: Iterable[Finding]) -> Spec:
    """`spec` with the mends of `findings` carried out, errors before warnings; notes are left alone.

    A finding that names a deployment changes that one only. Where two findings change one key, the first counts:
    check the result again.
    """
    ordered = sorted(findings, key=lambda finding: finding.severity != "error")
    models = []
    for deployment in spec.models:
        mine = [f for f in ordered if f.deployment in ("", deployment.name) and f.severity != "info" and f.mend]
        models.append(mend_deployment(deployment, mine))
    return spec.model_copy(update={"models": tuple(models)})


def mend_deployment(deployment: Deployment, findings: Sequence[Finding]) -> Deployment:
    """One deployment with the mends carried out; SpecError-free: a value that the spec refuses is a bug of the rule."""
    content = deployment.model_dump()
    done: set[str] = set()
    for finding in findings:
        if any(path in done for path, value in finding.mend if value is not None):
            continue
        for path, value in finding.mend:
            done.add(path)
            _set(content, path, value)
    return Deployment.model_validate(content)


def _set(content: dict[str, Any], path: str, value: object) -> None:
    head, _, rest = path.partition(".")
    if head == "extra_args":
        content["extra_args"] = with_flag(content["extra_args"], rest, value, engine=content["engine"])
    elif head == "env":
        content["env"] = {key: text for key, text in content["env"].items() if key != rest}
        if value is not None:
            content["env"][rest] = str(value)
    elif rest:
        content[head] = {**content[head], rest: value}
    else:
        field = Deployment.model_fields[head]
        content[head] = field.get_default(call_default_factory=True) if value is None else value


def with_flag(args: Sequence[str], name: str, value: object, *, engine: str) -> tuple[str, ...]:
    """Engine arguments with the flag of that long name set; None takes it out, True makes it a bare switch.

    Aliases and both spellings are found; a part of a JSON flag (`a.b` where `--a {...}` is given) is changed inside
    the JSON; MindIE's keys are written `key=value`.
    """
    family = engine.partition("=")[0].replace("-", "_")
    aliases = ALIASES.get("vllm" if family == "vllm_ascend" else family, {})
    head, dot, key = name.partition(".")
    inside = _inside_json(args, head, key, value, aliases) if dot else None
    if inside is not None:
        return inside
    kept = _without(args, name, aliases)
    if value is None:
        return kept
    if family == "mindie":
        return (*kept, f"{name}={value}")
    flag = f"--{name.replace('_', '-')}"
    return (*kept, flag) if value is True else (*kept, flag, str(value))


def _without(args: Sequence[str], name: str, aliases: Mapping[str, str]) -> tuple[str, ...]:
    kept: list[str] = []
    dropping = False
    for word in args:
        if is_flag(word):
            found = long_name(word.partition("=")[0], aliases)
            dropping = found == name or found.startswith(f"{name}.")
            if dropping:
                dropping = word.partition("=")[2] == ""
                continue
        elif not dropping and "=" in word and word.partition("=")[0] == name:
            continue
        if not dropping:
            kept.append(word)
    return tuple(kept)


def _inside_json(
    args: Sequence[str], head: str, key: str, value: object, aliases: Mapping[str, str]
) -> tuple[str, ...] | None:
    """The arguments with `key` changed inside the JSON of the flag `head`; None where it holds none."""
    for index, word in enumerate(args[:-1]):
        if not is_flag(word) or "=" in word or long_name(word, aliases) != head:
            continue
        try:
            content = json.loads(args[index + 1])
        except ValueError:
            return None
        if not isinstance(content, dict):
            return None
        changed = {name: part for name, part in content.items() if name != key}
        if value is not None:
            changed[key] = value
        return (*args[: index + 1], json.dumps(changed), *args[index + 2 :])
    return None
