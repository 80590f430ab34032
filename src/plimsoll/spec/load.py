"""Reads a spec: YAML in, a `Spec` out, or one `SpecError` that lists every fault with file, line, column and key."""

from __future__ import annotations

import errno
from pathlib import Path

from pydantic import ValidationError

from plimsoll.errors import SpecError
from plimsoll.spec.compose import MAX_BYTES, compose
from plimsoll.spec.deployment import Spec
from plimsoll.spec.faults import spec_error


def load_spec(path: Path) -> Spec:
    """The spec in the file at `path`; SpecError if it cannot be read or is not one."""
    return parse_spec(_read(path), name=str(path))


def parse_spec(text: str, *, name: str) -> Spec:
    """The spec that `text` holds; SpecError names every fault as `name:line:column: key: what is wrong`."""
    document = compose(text, name)
    try:
        return Spec.model_validate(document.value)
    except ValidationError as error:
        details = error.errors()
    # `revision: 123` or `env: {N: 2}`: where text is wanted, what was written is that text.
    quoted = [document.quote(tuple(detail["loc"])) for detail in details if detail["type"] == "string_type"]
    if any(quoted):
        try:
            return Spec.model_validate(document.value)
        except ValidationError as error:
            details = error.errors()
    raise spec_error(document, name, details)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise SpecError(
            f"{path} is a directory, not a spec", hint="name the YAML file in it, or give the directory as a model"
        ) from None
    except FileNotFoundError:
        raise SpecError(f"there is no spec at {path}", hint="check the path") from None
    except OSError as error:
        reason = errno.errorcode.get(error.errno or 0, "")
        raise SpecError(f"cannot read {path}: {error.strerror} ({reason})") from None
    if raw[:4] == b"GGUF":
        raise SpecError(f"{path} is a GGUF model, not a spec", hint=f"give it as a model: plimsoll up {path}")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise SpecError(f"{path} is UTF-16", hint="save it as UTF-8")
    if b"\0" in raw:
        raise SpecError(f"{path} is a binary file, not a spec", hint="a spec is YAML text")
    if len(raw) > MAX_BYTES:
        raise SpecError(f"{path} is larger than {MAX_BYTES >> 10} KiB: not a spec", hint="a spec is a few kilobytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpecError(
            f"{path}:{line}: not UTF-8 text (byte 0x{raw[error.start]:02x})",
            hint="save it as UTF-8",
            source=f"{path}:{line}",
        ) from None
