"""Memory: weights, caches, activations, graphs and verdicts against what engines reported.

    python -m benchmarks.accuracy memory FILE.csv [--json] [--rows]

FILE.csv has the columns of the table of measured cases: id, engine, engine_version, model_id, weight_format, gpu,
gpus_count, tp, pp, max_model_len, gpu_memory_utilization, kv_cache_dtype, block_size, max_num_seqs, enforce_eager,
other_flags (all inputs), then what was measured. No constant is fitted to a row: every law states its own evidence.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.accuracy_score import Pair, confusion, percentile, summarise
from benchmarks.memory_models import find, format_known
from benchmarks.memory_rows import Case, Row, host_of, read_case

from plimsoll.errors import PlimsollError
from plimsoll.facts.model import ModelFacts
from plimsoll.plan.ledger import DeviceLedger, Ledger
from plimsoll.plan.memory import account
from plimsoll.plan.memory.vllm_profile import SORTING_SAMPLER, default_sequences
from plimsoll.plan.types import Candidate, Parallel
from plimsoll.spec.deployment import Deployment
from plimsoll.units import GIB

_COLUMNS = {
    "weights": "weights_gib_per_gpu", "kv_gib": "kv_cache_gib_per_gpu", "kv_tokens": "kv_tokens",
    "kv_blocks": "kv_blocks", "concurrency": "max_concurrency_x", "activation": "activation_peak_gib",
    "graphs": "cudagraph_gib",
}  # fmt: skip
_NEED_DEVICE = ("kv_gib", "kv_tokens", "kv_blocks", "concurrency")
_USUAL_CONTEXT = 4096
# Rows that state all of these are summarised once more under the quantity with a star: nothing had to be assumed.
_STATED = ("engine_version", "weight_format", "gpus_count", "tp", "max_model_len", "gpu_memory_utilization")
# Words in an error that have nothing to do with memory: such rows say nothing about the ledger.
_NOT_MEMORY = (
    "divisible", "same device", "not defined", "Error executing method", "Capture cuda graph failed", "title); see",
    "during cuda graph capture (bs", "CUDA graph private",
)  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """One row's result."""

    id: str
    engine: str
    pairs: list[Pair] = field(default_factory=list)
    refused: str = ""
    partly: list[str] = field(default_factory=list)
    verdict: tuple[str, str] | None = None
    flagged: bool = False
    source: str = ""
    sampler_cells: int = 0
    """Sequences x vocabulary, where the sampler decides the activation peak: what its constant multiplies."""


def main(arguments: list[str]) -> int:
    """Print the accuracy over a file; 0 always, for the numbers are the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy memory")
    parser.add_argument("file", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", action="store_true", help="every pair, not only the worst")
    options = parser.parse_args(arguments)
    with options.file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    outcomes = judge(rows)
    if options.json:
        json.dump(as_json(outcomes), sys.stdout, indent=1)
        print()
    else:
        show(outcomes, every_row=options.rows)
    return 0


def judge(rows: list[Row]) -> list[Outcome]:
    """Every row predicted and compared."""
    return [_judge_row(row) for row in rows]


# --- prediction --------------------------------------------------------------------------------------------------


def predict(case: Case, model: ModelFacts) -> tuple[Candidate, Ledger]:
    """The ledger of the case; the engine's own defaults fill what the row leaves open."""
    devices, version = case.devices, case.engine.version
    context = case.context or _default_context(case, model)
    sequences = case.sequences
    if sequences is None:
        sequences = default_sequences(version, devices[0]) if case.engine.memory == "vllm" else 1
    if case.engine.memory == "llamacpp":
        # The row's length is the total over slots.
        context = max(1, context // sequences)
    candidate = Candidate(
        deployment=Deployment(name="row", model=model.id),
        model=replace(model, task="embed") if case.pooling and model.task == "chat" else model,
        engine=case.engine,
        host=host_of(devices),
        devices=devices,
        parallel=Parallel(tensor=case.tensor, pipeline=case.pipeline, expert=case.expert),
        nodes=case.nodes,
        context_tokens=context,
        sequences=sequences,
        kv_dtype=case.kv_dtype,
        dtype=case.dtype,
        memory_share=case.share,
        batched_tokens=case.batched_tokens,
        eager=case.eager,
        options=case.options,
    )
    return candidate, account(candidate)


def _default_context(case: Case, model: ModelFacts) -> int:
    if case.engine.memory == "ollama":
        return 2048
    if case.pooling or model.task != "chat":
        return min(8192, model.max_context_tokens or 8192)
    window = max((group.window_tokens or 0 for group in model.attention), default=0)
    if case.engine.memory == "vllm" and window and case.engine.version.startswith(("0.5", "0.6")):
        # Backends of the time did not mix windows and full attention: the context was cut to the window.
        return min(window, model.max_context_tokens)
    return model.max_context_tokens or 4096


def _placed_by_hand(case: Case, model: ModelFacts) -> bool:
    """llama.cpp with all layers on devices that cannot hold them: `--override-tensor` did it, and where is not said."""
    offloaded = case.options.get("n_gpu_layers")
    whole = offloaded is not None and int(offloaded) > model.layers
    return case.engine.memory == "llamacpp" and whole and model.weight_bytes > sum(d.memory_bytes for d in case.devices)


def _predicted(case: Case, ledger: Ledger) -> dict[str, float]:
    first = ledger.devices[0]
    values: dict[str, float] = {
        "weights": first.of("weights") / GIB,
        "activation": (first.of("compute") if case.engine.memory in ("llamacpp", "ollama") else first.of("activations"))
        / GIB,
        "graphs": first.of("graphs") / GIB,
        "kv_gib": (first.of("kv_cache") + _shortfall(case, first)) / GIB,
        "kv_tokens": ledger.kv_tokens,
        "kv_blocks": ledger.kv_blocks or 0,
        "concurrency": ledger.max_concurrency,
    }
    if case.engine.memory == "ollama":
        # Its own estimate is stated for the whole model.
        values["weights"] = sum(device.of("weights") for device in ledger.devices) / GIB
        values["kv_gib"] = sum(device.of("kv_cache") for device in ledger.devices) / GIB
    return values


def _sampler_cells(candidate: Candidate, ledger: Ledger) -> int:
    cells = candidate.sequences * candidate.model.vocab_size
    peak = ledger.devices[0].of("activations")
    return cells if abs(peak - SORTING_SAMPLER * cells) < 0.001 * peak else 0


def _shortfall(case: Case, device: DeviceLedger) -> int:
    """Where not even one request fits, the entry is what that would need: what there is, is less by this (negative)."""
    if case.engine.memory not in ("vllm", "sglang"):
        return 0
    return min(0, device.limit_bytes - sum(entry.bytes for entry in device.entries if entry.inside))


def _verdict(ledger: Ledger) -> str:
    if ledger.fits:
        return "ok"
    loaded = all(
        sum(entry.bytes for entry in device.entries if entry.name != "kv_cache") <= device.total_bytes
        for device in ledger.devices
    )
    return "error" if loaded and ledger.notes else "oom"


def _judge_row(row: Row) -> Outcome:
    case = read_case(row)
    if isinstance(case, str):
        return Outcome(row.get("id", ""), row.get("engine", ""), refused=case)
    outcome = Outcome(case.id, case.engine.name, source=row.get("source", ""))
    try:
        model = find(
            case.model, case.weight_format, case.layers_hint, file_bytes=case.file_bytes,
            gguf=case.engine.memory in ("llamacpp", "ollama"),
        )  # fmt: skip
        if isinstance(model, str):
            outcome.refused = model
            return outcome
        if _placed_by_hand(case, model):
            case = replace(case, moved_tensors=True, options={**case.options, "override_tensor": "?"})
        candidate, ledger = predict(case, model)
    except PlimsollError as error:
        outcome.refused = str(error)
        return outcome
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # One row that nobody thought of must not hide the others; it is told by its name.
        outcome.refused = f"not understood: {type(error).__name__}: {error}"
        return outcome
    if case.engine.memory == "vllm":
        outcome.sampler_cells = _sampler_cells(candidate, ledger)
    values = _predicted(case, ledger)
    for quantity, column in _COLUMNS.items():
        measured = _number(row.get(column, ""))
        if measured is None:
            continue
        reason = _unpredictable(case, model, quantity, measured)
        if reason:
            outcome.partly.append(f"{quantity}: {reason}")
            continue
        pair = Pair(
            row=case.id, engine=case.engine.name, quantity=quantity, measured=measured, predicted=values[quantity],
            source=row.get("source", ""),
        )  # fmt: skip
        outcome.pairs.append(pair)
        if quantity in _NEED_DEVICE and all(row.get(column) for column in _STATED):
            outcome.pairs.append(replace(pair, quantity=f"{quantity}*"))
    if case.context is None and not ledger.fits:
        # The row does not say for how long a context: it would do if a usual one fits.
        ledger = account(replace(candidate, context_tokens=min(candidate.context_tokens, _USUAL_CONTEXT)))
    _compare_verdicts(row, case, model, ledger, outcome)
    return outcome


def _unpredictable(case: Case, model: ModelFacts, quantity: str, measured: float) -> str:
    """Why one quantity cannot be predicted from the row's inputs; "" if it can."""
    fork = case.engine.name.startswith("ik")
    if quantity == "activation" and case.options.get("n_gpu_layers") == 0:
        return "no layer lies on the device; its buffer is for copies only"
    latent = any(group.kind == "mla" for group in model.attention)
    if quantity == "activation" and fork and latent and not (case.options.get("mla") == 3 and case.flash):
        return "no law is known for ik_llama.cpp's latent attention but -mla 3 with flash attention"
    if quantity == "activation" and case.moved_tensors and not fork:
        return "experts in RAM are copied through the buffer, and which ones is not said"
    split = quantity in ("weights", "kv_gib") and case.engine.memory == "llamacpp" and len(case.devices) > 1
    if split and "tensor_split" not in case.options:
        return "how the layers were split over the devices is not stated"
    gguf = case.engine.memory in ("llamacpp", "ollama")
    if quantity == "weights" and not case.file_bytes and not format_known(case.model, case.weight_format, gguf=gguf):
        return "the type of the GGUF is not stated"
    if quantity == "weights" and case.moved_tensors:
        return "tensors were placed by hand and the row does not say which"
    if measured <= 0:
        return "nothing was left"
    books_all = case.engine.memory in ("vllm", "sglang")
    if quantity in _NEED_DEVICE and books_all and case.unified:
        return "what else lives in the machine's shared memory is not stated"
    if quantity in _NEED_DEVICE and books_all and not case.device_known:
        return "the device is not stated"
    if quantity in _NEED_DEVICE and books_all and case.moved_tensors:
        return "tensors were placed by hand and the row does not say which"
    return ""


def _compare_verdicts(row: Row, case: Case, model: ModelFacts, ledger: Ledger, outcome: Outcome) -> None:
    measured, text = row.get("outcome", ""), row.get("error_text", "")
    if not measured or not case.device_known or case.moved_tensors or case.unified:
        return
    if case.engine.name.startswith("ik") and any(group.kind == "mla" for group in model.attention):
        outcome.partly.append("verdict: no law is known for ik_llama.cpp's latent attention")
        return
    if measured != "ok" and any(words in text for words in _NOT_MEMORY):
        outcome.partly.append("verdict: it failed for another reason than memory")
        return
    outcome.verdict = (measured, _verdict(ledger))
    outcome.flagged = ledger.tight


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# --- results -----------------------------------------------------------------------------------------------------


def as_json(outcomes: list[Outcome]) -> dict[str, object]:
    """All results as plain values."""
    pairs = [pair for outcome in outcomes for pair in outcome.pairs]
    return {
        "rows": len(outcomes),
        "predicted": sum(not outcome.refused for outcome in outcomes),
        "refused": [{"row": o.id, "engine": o.engine, "reason": o.refused} for o in outcomes if o.refused],
        "partly": [{"row": o.id, "reasons": o.partly} for o in outcomes if o.partly],
        "summaries": [summary.as_json() for summary in summarise(pairs)],
        "verdicts": verdicts(outcomes),
        "cross_validated_sampler": cross_validated(outcomes),
    }


def verdicts(outcomes: list[Outcome]) -> Mapping[str, object]:
    """Confusion table, and what counts: whether it fits."""
    judged = [outcome for outcome in outcomes if outcome.verdict]
    right = sum(1 for o in judged if o.verdict and (o.verdict[0] == "ok") == (o.verdict[1] == "ok"))
    unflagged = [o.id for o in judged if o.verdict and o.verdict[0] != "ok" and o.verdict[1] == "ok" and not o.flagged]
    wrong = [
        {"row": o.id, "measured": o.verdict[0], "predicted": o.verdict[1], "flagged": o.flagged}
        for o in judged
        if o.verdict and (o.verdict[0] == "ok") != (o.verdict[1] == "ok")
    ]
    return {
        "rows": len(judged),
        "fits_right": right / len(judged) if judged else None,
        "confusion": confusion(o.verdict for o in judged if o.verdict),
        "fits_said_wrongly_without_a_flag": unflagged,
        "wrong": wrong,
    }


def cross_validated(outcomes: list[Outcome]) -> Mapping[str, object]:
    """The one constant that was read off such rows, the sampler's bytes, fitted again without each row's own source."""
    peaks = [
        (outcome.source, pair.measured * GIB, outcome.sampler_cells)
        for outcome in outcomes
        for pair in outcome.pairs
        if pair.quantity == "activation" and outcome.sampler_cells
    ]
    errors, fitted = [], []
    for source, measured, cells in peaks:
        others = [peak / size for other, peak, size in peaks if other != source]
        if others:
            fitted.append(statistics.median(others))
            errors.append(abs(fitted[-1] * cells - measured) / measured)
    if not errors:
        return {"rows": 0}
    return {
        "rows": len(errors), "bytes_low": min(fitted), "bytes_high": max(fitted), "used": SORTING_SAMPLER,
        "median_ape": statistics.median(errors), "p90_ape": percentile(errors, 0.9),
    }  # fmt: skip


def show(outcomes: list[Outcome], *, every_row: bool) -> None:
    """The same as text."""
    result = as_json(outcomes)
    print(f"rows {result['rows']}, predicted {result['predicted']}")
    reasons = Counter(outcome.refused for outcome in outcomes if outcome.refused)
    for reason, count in reasons.most_common():
        print(f"  refused {count:3d}: {reason}")
    pairs = [pair for outcome in outcomes for pair in outcome.pairs]
    print(f"\n{'engine':14} {'quantity':12} {'rows':>4} {'median':>8} {'p90':>8} {'bias':>8}  worst")
    for summary in summarise(pairs, worst=4):
        worst = ", ".join(f"{pair.row} {pair.error:+.0%}" for pair in summary.worst)
        print(
            f"{summary.engine:14} {summary.quantity:12} {summary.rows:4d} {summary.median:8.1%} {summary.p90:8.1%} "
            f"{summary.bias:+8.1%}  {worst}"
        )
    print(f"* only rows that state {', '.join(_STATED)}")
    table = verdicts(outcomes)
    print(f"\nverdicts: {table['rows']} rows, fits / does not fit right {table['fits_right']}")
    print(f"  measured -> predicted: {table['confusion']}")
    print(f"  said to fit, did not, not flagged: {table['fits_said_wrongly_without_a_flag']}")
    for item in table["wrong"]:  # type: ignore[attr-defined]
        print(f"  wrong: {item}")
    print(f"\nsampler's constant, fitted without each row's source: {dict(cross_validated(outcomes))}")
    if every_row:
        for pair in sorted(pairs, key=lambda pair: (pair.engine, pair.quantity, pair.row)):
            print(
                f"{pair.engine:12} {pair.quantity:12} {pair.row:6} measured {pair.measured:12.4f} "
                f"predicted {pair.predicted:12.4f} {pair.error:+8.1%}"
            )
