"""Which engine a command starts, and its flags."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from plimsoll.engines.translate.draft import Draft
from plimsoll.engines.translate.others import (
    translate_fastchat,
    translate_llama_cpp_python,
    translate_llamacpp,
    translate_ollama,
    translate_sglang,
    translate_transformers,
)
from plimsoll.engines.translate.vllm import translate_vllm
from plimsoll.engines.translate.words import Command
from plimsoll.plan.rules.options import is_flag, options_from_args, words_of_flags

Translate = Callable[[Draft], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A server that can be recognised: by its module, or by its command and subcommand."""

    engine: str
    translate: Translate
    module: str = ""
    command: str = ""
    subcommand: str = ""
    positional: str = ""
    """The flag that a word without a flag stands for."""


PROGRAMS = (
    Program(engine="vllm", translate=translate_vllm, command="vllm", subcommand="serve", positional="model"),
    Program(engine="vllm", translate=translate_vllm, module="vllm.entrypoints.openai.api_server", positional="model"),
    Program(engine="vllm", translate=translate_vllm, module="vllm.entrypoints.api_server", positional="model"),
    Program(engine="sglang", translate=translate_sglang, module="sglang.launch_server"),
    Program(engine="sglang", translate=translate_sglang, command="sglang", subcommand="serve", positional="model_path"),
    Program(engine="llamacpp", translate=translate_llama_cpp_python, module="llama_cpp.server"),
    Program(engine="llamacpp", translate=translate_llamacpp, command="llama-server"),
    Program(engine="llamacpp", translate=translate_llamacpp, command="llama-cli"),
    Program(engine="llamacpp", translate=translate_llamacpp, command="llama-simple-chat"),
    Program(engine="ollama", translate=translate_ollama, command="ollama", subcommand="serve"),
    Program(engine="ollama", translate=translate_ollama, command="ollama", subcommand="run", positional="model"),
    Program(engine="vllm", translate=translate_fastchat, module="fastchat.serve.vllm_worker"),
    Program(engine="sglang", translate=translate_fastchat, module="fastchat.serve.sglang_worker"),
    Program(engine="transformers", translate=translate_fastchat, module="fastchat.serve.model_worker"),
    Program(
        engine="transformers", translate=translate_transformers, command="transformers", subcommand="serve",
        positional="model",
    ),
)  # fmt: skip

HELPERS: Mapping[str, str] = {
    "fastchat.serve.controller": "plimsoll's gateway knows its engines; there is no controller",
    "fastchat.serve.openai_api_server": "plimsoll's gateway is the OpenAI server",
    "fastchat.serve.gradio_web_server": "plimsoll's own page, or any client of the OpenAI API",
    "rpc-server": "plimsoll starts ggml-rpc-server on the machines under `hosts`",
    "ggml-rpc-server": "plimsoll starts it on the machines under `hosts`",
    "ray": "plimsoll starts Ray where an engine needs it",
}
"""Programs around an engine that plimsoll takes the place of."""


def recognise(command: Command) -> tuple[Program, tuple[str, ...]] | None:
    """The program a command starts and the words after it; None if it is no engine."""
    words = command.words
    for index, word in enumerate(words):
        name = word.rpartition("/")[2]
        after = words[index + 1 :]
        for program in PROGRAMS:
            if program.module and word == program.module and "-m" in words[:index]:
                return program, after
            if program.command and name == program.command and index <= 1:
                if not program.subcommand:
                    return program, after
                if after[:1] == (program.subcommand,):
                    return program, after[1:]
    return None


def helper_of(command: Command) -> str | None:
    """What takes the place of a program around an engine; None if it is none."""
    names = [word.rpartition("/")[2] for word in command.words[:4]]
    return next((HELPERS[name] for name in names if name in HELPERS), None)


def draft_of(program: Program, words: tuple[str, ...], env: Mapping[str, str]) -> Draft:
    """The draft of one command, its flags read and translated."""
    positional = list(words)
    first = None
    if program.positional and positional and not is_flag(positional[0]):
        first = positional.pop(0)
    draft = Draft(
        engine=program.engine,
        flags=dict(options_from_args(program.engine, positional)),
        words=words_of_flags(program.engine, positional),
        env={key: value for key, value in env.items() if key not in ("PATH", "HOME", "CUDA_VISIBLE_DEVICES")},
    )
    if first is not None:
        draft.spec["model"] = first
    chosen = env.get("CUDA_VISIBLE_DEVICES", "")
    if chosen:
        draft.spec["devices"] = tuple(int(part) if part.isdigit() else part for part in chosen.split(","))
        draft.note("CUDA_VISIBLE_DEVICES", "renamed", "devices in the spec")
    program.translate(draft)
    return draft
