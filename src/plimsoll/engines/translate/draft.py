"""A deployment while it is being put together out of flags; notes are taken as it goes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from plimsoll.engines.translate.notes import Fate, Note
from plimsoll.errors import SpecError
from plimsoll.plan.rules.case import as_number
from plimsoll.spec.deployment import Deployment

Value = str | int | float | bool
_SAFE = re.compile(r"[^A-Za-z0-9._/:-]+")
_DTYPES = {"half": "float16", "float": "float32", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@dataclass(slots=True, kw_only=True)
class Draft:
    """What is known so far. `flags` are those still to be looked at, by long name with underscores."""

    engine: str
    flags: dict[str, Value]
    env: dict[str, str]
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What stood after each flag, word by word."""
    notes: list[Note] = field(default_factory=list)
    spec: dict[str, Any] = field(default_factory=dict)
    parallel: dict[str, int] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    host: str | None = None
    port: int | None = None
    keys: tuple[str, ...] = ()
    nodes: int = 1

    def note(self, what: str, fate: Fate, why: str) -> None:
        """Take a note."""
        self.notes.append(Note(what=what, fate=fate, why=why))

    def take(self, *names: str) -> Value | None:
        """The first of these flags that is given, taken out; None if none is."""
        found = [self.flags.pop(name) for name in names if name in self.flags]
        return found[0] if found else None

    def number(self, *names: str) -> int | None:
        """The same as a whole number from 1; `8k` counts 1024s; None for `auto`, -1 and what is no number."""
        value = self.take(*names)
        if isinstance(value, str) and re.fullmatch(r"\d+[kK]", value):
            return int(value[:-1]) * 1024
        number = as_number(value)
        return int(number) if number is not None and number >= 1 else None

    def into(self, key: str, *names: str) -> None:
        """A flag that is a key of the spec."""
        value = self.take(*names)
        if value is not None:
            self.spec[key] = value

    def ranks(self, key: str, *names: str) -> None:
        """A flag that is a parallel size; 1 needs no saying."""
        value = self.number(*names)
        if value is not None and value > 1:
            self.parallel[key] = value

    def dtype(self, *names: str) -> None:
        """The dtype under the spec's name."""
        value = self.take(*names)
        if value is not None and value != "auto":
            self.spec["dtype"] = _DTYPES.get(str(value), str(value))

    def drop(self, fate: Fate, why: str, *names: str) -> None:
        """Flags that are left out, with a note each."""
        for name in names:
            if name in self.flags:
                del self.flags[name]
                self.note(spelled(name), fate, why)

    def serve_at(self, *, host: str = "host", port: str = "port", key: str = "api_key") -> None:
        """Address and key, which are the gateway's."""
        address, number, keys = self.take(host), self.number(port), self.take(key)
        self.host = str(address) if address is not None else None
        self.port = number
        self.keys = tuple(str(keys).split(",")) if keys is not None else ()

    def keep(self, name: str) -> None:
        """A flag that the engine takes as it stands."""
        value = self.flags.pop(name, None)
        if value is not None and len(self.words.get(name, ())) > 1:
            self.extra += [spelled(name), *self.words[name]]
        elif value is not None:
            self.add(name, value)

    def keep_rest(self) -> None:
        """All flags that are left go to the engine as they stand."""
        for name in list(self.flags):
            self.keep(name)

    def add(self, name: str, value: Value) -> None:
        """An engine flag."""
        flag = f"--{name.replace('_', '-')}"
        self.extra += [flag] if value is True else [flag, str(value)]

    def deployment(self) -> Deployment:
        """The deployment; its name is the served name, or the model's last part."""
        model = str(self.spec["model"])
        name = str(self.spec.pop("name", "") or model.rstrip("/").rpartition("/")[2].removesuffix(".gguf"))
        content: dict[str, Any] = {
            "name": _SAFE.sub("-", name).strip("-") or "model",
            "engine": self.engine,
            **{key: value for key, value in self.spec.items() if value is not None},
            "extra_args": tuple(self.extra),
            "env": self.env,
        }
        if self.parallel:
            content["parallel"] = self.parallel
        try:
            return Deployment.model_validate(content)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise SpecError(
                f"the command cannot be put into a spec: {wrong}", hint="Correct that flag and import it again."
            ) from error


def spelled(name: str) -> str:
    """A flag as it is written."""
    return f"--{name.replace('_', '-')}"


def as_json(value: Mapping[str, Any]) -> str:
    """JSON on one line, for a flag."""
    return json.dumps(value, ensure_ascii=False)
