"""Shell text as commands: comments, continued lines, variables, environment, and what only a shell needs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|(\w+))")
_ASSIGNMENT = re.compile(r"(\w+)=(.*)", re.DOTALL)
_BEFORE = {"nohup", "sudo", "exec", "time", "env", "setsid", "nice", "stdbuf"}
_REDIRECTION = re.compile(r"\d?>>?(&\d)?|<|2>&1|&>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command: its words, and the environment that was set for it."""

    words: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)

    def has(self, *parts: str) -> bool:
        """Whether any word holds one of the parts."""
        return any(part in word for part in parts for word in self.words)


def commands(text: str) -> Iterator[Command]:
    """The commands of a script or of one line, in order, with the variables that were set before them put in.

    Control flow is not followed: each command is taken once. Pipes, redirections, `nohup` and `&` are dropped.
    """
    variables: dict[str, str] = {}
    exported: dict[str, str] = {}
    for line in _lines(text):
        for words in _split(line):
            filled = [_fill(word, {**exported, **variables}) for word in words]
            command = _strip(filled)
            if command.words[:1] == ("export",):
                exported |= _assignments(command.words[1:])
            elif not command.words:
                variables |= command.env
            else:
                yield replace(command, env={**exported, **command.env})


def _lines(text: str) -> Iterator[str]:
    joined = re.sub(r"\\[ \t]*\r?\n", " ", text)
    for line in joined.splitlines():
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield stripped.removeprefix("$ ")


def _split(line: str) -> list[list[str]]:
    """Words by command: `;`, `&&`, `||` and `|` divide commands."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    try:
        words = list(lexer)
    except ValueError:  # an open quote
        words = line.split()
    found: list[list[str]] = [[]]
    for word in words:
        if word and set(word) <= set(";&|"):
            found.append([])
        else:
            found[-1].append(word)
    return [part for part in found if part]


def split_words(text: str, *, comments: bool = False) -> list[str]:
    """Words as a shell would split them; at spaces where a quote is left open."""
    try:
        return shlex.split(text, comments=comments)
    except ValueError:
        return text.split()


def _fill(word: str, variables: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[3]
        return variables.get(name, match[2] if match[2] is not None else match[0])

    return _VARIABLE.sub(value, word)


def _strip(words: list[str]) -> Command:
    """Without what stands before the program (variables, nohup, sudo) and without redirections."""
    env: dict[str, str] = {}
    rest = list(words)
    prefixed = False
    while rest:
        assignment = _ASSIGNMENT.fullmatch(rest[0])
        if assignment and not rest[0].startswith("-"):
            env[assignment[1]] = assignment[2]
        elif rest[0] in _BEFORE:
            prefixed = True
        elif not (prefixed and (rest[0].startswith("-") or rest[0].isdigit())):
            break
        rest.pop(0)
    kept: list[str] = []
    skip = False
    for word in rest:
        if skip:
            skip = False
        elif _REDIRECTION.fullmatch(word):
            skip = not word.endswith("1")
        elif not re.match(r"\d?>", word):
            kept.append(word)
    return Command(words=tuple(kept), env=env)


def _assignments(words: tuple[str, ...]) -> dict[str, str]:
    return {match[1]: match[2] for word in words if (match := _ASSIGNMENT.fullmatch(word))}
