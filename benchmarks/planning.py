"""How long planning takes, after imports: `python -m benchmarks.planning`. Goals: one plan < 20 ms, 32 GPUs < 1 s.

Models of stated shape, so that no catalogue or file is read; rules as shipped. The best of five runs each.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "plan"))

from plan_facts import engine, gpu, host, model, moe_of

from plimsoll.plan.rules import check
from plimsoll.plan.solve import solve
from plimsoll.spec.deployment import Deployment, Spec
from plimsoll.units import GIB

ENGINES = (
    engine(),
    engine("ollama", version="0.12.0"),
    engine("vllm", version="0.33.0", vendors=("nvidia", "cpu"), multi_node=True),
    engine("sglang", version="0.5.23", vendors=("nvidia",), multi_node=True),
    engine("transformers", version="5.23.0", vendors=("nvidia", "cpu"), parallel=("layer",)),
)


def best_of(times: int, work: Callable[[], object]) -> float:
    """Seconds of the fastest run."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Print one line a case."""
    small = model(layers=30, hidden=576, wide=1536, heads=9, kv_heads=3, head_dim=64, vocab=49152, tied=True)
    dense = model(layers=80, hidden=8192, wide=29568, heads=64, vocab=152064, format="safetensors", context=32768)
    experts = model(
        layers=61, hidden=7168, wide=18432, heads=128, mla=576, vocab=129280, moe=moe_of(256, 8, 2048, layers=61),
        format="safetensors", value=1, context=131072,
    )  # fmt: skip
    one = [host()]
    four = [host(name=f"h{i}", ram=512 * GIB, devices=tuple(gpu(index=k) for k in range(8))) for i in range(4)]
    cases = [
        ("one small GGUF on a CPU, llama.cpp", small, one, ENGINES[:1]),
        ("72B on one host of 8 GPUs, all engines", dense, four[:1], ENGINES),
        ("72B on 32 GPUs, all engines", dense, four, ENGINES),
        ("671B MoE on 32 GPUs, all engines", experts, four, ENGINES),
    ]
    print(f"{platform.machine()}, Python {platform.python_version()}")
    for title, facts, hosts, engines in cases:
        spec = Spec(models=(Deployment(name="m", model="m"),))
        bare = best_of(5, lambda f=facts, h=hosts, e=engines, s=spec: solve(s, {"m": f}, h, e))  # type: ignore[misc]
        ruled = best_of(
            5,
            lambda f=facts, h=hosts, e=engines, s=spec: solve(s, {"m": f}, h, e, rules=check),  # type: ignore[misc]
        )
        print(f"{title:42} {bare * 1e3:8.1f} ms without rules  {ruled * 1e3:8.1f} ms with rules")


if __name__ == "__main__":
    main()
