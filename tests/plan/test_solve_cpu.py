"""Solving for one machine without accelerators."""

from __future__ import annotations

import pytest
from plan_facts import engine, host, model

from plimsoll.errors import PlanError
from plimsoll.plan.solve import solve
from plimsoll.spec.deployment import Deployment, Spec
from plimsoll.units import GIB

SMALL = model(layers=30, hidden=576, wide=1536, heads=9, kv_heads=3, head_dim=64, vocab=49152, tied=True, context=8192)
LARGE = model(layers=32, context=131072)


def spec(*names, **settings):
    return Spec(models=tuple(Deployment(name=name, model=name, **settings) for name in names))


def test_a_small_model_gets_many_slots_of_a_usual_context():
    plan = solve(spec("small"), {"small": SMALL}, [host()], [engine()])
    chosen = plan.replicas[0].candidate
    assert plan.fits and chosen.sequences >= 8 and chosen.context_tokens >= 4096
    assert plan.replicas[0].ledger.devices[-1].of("kv_cache") <= host().ram_bytes / 24


def test_what_is_stated_is_kept():
    chosen = solve(spec("small", context=1000, concurrency=3), {"small": SMALL}, [host()], [engine()]).replicas[0]
    assert (chosen.candidate.sequences, chosen.candidate.context_tokens) == (3, 1000)


def test_little_ram_shrinks_slots_before_the_usual_context():
    plan = solve(spec("large"), {"large": LARGE}, [host(ram=20 * GIB)], [engine()])
    chosen = plan.replicas[0].candidate
    assert plan.fits and chosen.sequences < 16 and chosen.context_tokens >= 4096


def test_a_model_larger_than_ram_is_said_not_to_fit():
    plan = solve(spec("large"), {"large": LARGE}, [host(ram=8 * GIB)], [engine()])
    assert not plan.fits and "too little memory" in plan.rejected[0].why


def test_two_models_share_one_host():
    plan = solve(spec("small", "large"), {"small": SMALL, "large": LARGE}, [host()], [engine()])
    assert plan.fits and [replica.name for replica in plan.replicas] == ["small-1", "large-1"]
    inside = [e.bytes for replica in plan.replicas for e in replica.ledger.devices[0].entries if e.inside]
    assert sum(inside) <= 24 * GIB


def test_a_format_that_no_engine_loads():
    with pytest.raises(PlanError, match="no engine here can load"):
        solve(spec("m"), {"m": model(format="safetensors")}, [host()], [engine()])
