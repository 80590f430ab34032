"""Commands that start nothing, or measure what runs: check, explain, bench, runs, models, schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from user_shell import FakeSpec, Shell

FAULTY = """
models:
  - name: a
    model: {model}
    engine: llamacpp
    context: 5000
    kv_cache_dtype: fp8
    extra_args: [--flash-attn, "off", --cache-type-v, q8_0, --split-mode, tensor]
"""


@pytest.fixture
def faulty(tmp_path: Path, small_gguf: Path) -> Path:
    path = tmp_path / "faulty.yaml"
    path.write_text(FAULTY.format(model=small_gguf))
    return path


def test_check_reports_every_fault_at_once(shell: Shell, faulty: Path) -> None:
    code, out, _ = shell.here("check", str(faulty), "--json")

    found = {finding["rule"]: finding for finding in json.loads(out)}
    assert code == 4
    assert {
        "llamacpp.choice.kv_cache_dtype",
        "llamacpp.quantised_v_without_flash_attention",
        "llamacpp.tensor_split_without_flash_attention",
        "llamacpp.context_beyond_model",
        "llamacpp.tensor_split_is_not_fitted",
    } <= set(found)
    assert all(finding["cause"] and finding["fix"] and finding["source"] for finding in found.values())


def test_check_fix_writes_a_spec_that_passes(shell: Shell, faulty: Path) -> None:
    _, shown, _ = shell.here("check", str(faulty), "--fix")

    assert "-" in shown
    assert "+" in shown
    code, out, said = shell.here("check", str(faulty), "--json")
    assert code == 0, said
    assert not [finding for finding in json.loads(out) if finding["severity"] == "error"]


def test_explain_names_the_root_error(shell: Shell, tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text(
        "INFO starting\n"
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"
        " 23.69 GiB of which 1.10 GiB is free.\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
    )

    code, out, _ = shell.here("explain", str(log), "--json")

    assert code == 0
    found = json.loads(out)
    assert found["known"]
    assert any("CUDA out of memory" in line["text"] for line in found["lines"])
    assert found["fix"]


def test_explain_claims_nothing_about_what_it_does_not_know(shell: Shell, tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("frobnication complete\nERROR: the quux was not grommeted\n")

    _, out, _ = shell.here("explain", str(log), "--json")

    found = json.loads(out)
    assert not found["known"]
    assert any("quux" in line["text"] for line in found["lines"])


def test_bench_keeps_compares_exports_and_draws(shell: Shell, fake_spec: FakeSpec, tmp_path: Path) -> None:
    shell.ok("up", fake_spec("--ttft", "0.01", "--tpot", "0.001"), "--detach", "--no-bench")
    made = shell.json("bench", "-c", "1,4", "--requests", "8", "--output-tokens", "8", "--seed", "1")
    again = shell.json("bench", "-c", "1,4", "--requests", "8", "--output-tokens", "8", "--seed", "1")

    assert [level["concurrency"] for level in made["levels"]] == [1, 4]
    assert made["levels"][0]["ttft_s"]["p50"] == pytest.approx(0.01, abs=0.03)
    listed = shell.here("runs", "list", "--json")[1]
    assert {run["id"] for run in json.loads(listed)} == {made["id"], again["id"]}
    assert "TTFT" in shell.here("runs", "compare", made["id"], again["id"])[1]
    exported = shell.here("runs", "export", made["id"], str(tmp_path / "vllm.json"))[1].split()
    code, imported, _ = shell.here("runs", "import", exported[0])
    assert code == 0
    assert shell.here("runs", "show", imported.strip())[0] == 0
    page = tmp_path / "page.html"
    assert shell.here("report", made["id"], "--out", str(page))[0] == 0
    assert "<svg" in page.read_text()


def test_bench_of_a_dead_address_is_one_line(shell: Shell) -> None:
    code, _, said = shell.here("bench", "http://127.0.0.1:9", "-c", "1")

    assert code == 8
    assert said.startswith("error: ")


def test_models_of_an_empty_store(shell: Shell) -> None:
    assert shell.here("models", "list", "--json") == (0, "[]\n", "")
    assert shell.here("models", "verify", "nothing/here")[0] == 5


def test_plan_in_words_for_hardware_elsewhere_needs_no_network(shell: Shell) -> None:
    code, out, said = shell.here("plan", "HuggingFaceTB/SmolLM2-135M-Instruct:Q8_0", "--on", "cpu:16c:64GiB", "--json")

    assert code == 0, said
    assert json.loads(out)["replicas"][0]["candidate"]["host"]["cores"] == 16
