"""The sums as text."""

from __future__ import annotations

import re

from plan_facts import engine, gpu, host, model

from plimsoll.plan.explain import explain
from plimsoll.plan.solve import solve
from plimsoll.spec.deployment import Deployment, Spec
from plimsoll.units import GIB


def test_every_entry_is_told_with_its_formula_and_basis():
    facts = model(layers=32, format="safetensors")
    machine = host(ram=128 * GIB, devices=(gpu(), gpu(index=1)))
    plan = solve(
        Spec(models=(Deployment(name="m", model="m"),)), {"m": facts}, [machine],
        [engine("vllm", version="0.20.0", vendors=("nvidia",))],
    )  # fmt: skip
    text = "\n".join(explain(plan))
    for entry in plan.replicas[0].ledger.devices[0].entries:
        assert f"{entry.name} ({entry.basis}" in text and entry.source in text
    assert "8 heads x (128 K + 128 V) = 2048 values a token and layer" in text
    assert re.search(r"cache: \d+ tokens in \d+ blocks; [\d.]+ requests of 32768", text)
    assert "graphs (assumed, outside the limit)" in text


def test_what_does_not_fit_says_by_how_much():
    plan = solve(
        Spec(models=(Deployment(name="m", model="m", context=8192),)), {"m": model(layers=32)}, [host(ram=8 * GIB)],
        [engine()],
    )  # fmt: skip
    text = "\n".join(explain(plan))
    assert "does not fit" in text and "of RAM would do" in text
