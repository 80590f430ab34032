"""The values a plan is made of: Candidate (what might run), Finding, Speed, Replica (what will), Plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from plimsoll.facts.basis import Basis
from plimsoll.facts.engine import EngineFacts
from plimsoll.facts.hardware import Device, Host
from plimsoll.facts.model import ModelFacts
from plimsoll.plan.ledger import Ledger
from plimsoll.spec.deployment import Deployment

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """How a replica is cut: tensor x pipeline x data ranks; `expert` ranks share the experts."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: int = 1

    @property
    def world(self) -> int:
        """Devices needed."""
        return self.tensor * self.pipeline * self.data


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run one model: everything that rules, ledger and speed need, nothing chosen later."""

    deployment: Deployment
    model: ModelFacts
    engine: EngineFacts
    host: Host
    devices: tuple[Device, ...]
    """One per rank, in rank order; the host's CPU alone when there is no accelerator."""
    parallel: Parallel = field(default_factory=Parallel)
    nodes: int = 1
    context_tokens: int = 4096
    """Longest sequence, prompt and answer together."""
    sequences: int = 1
    """Served at once: max_num_seqs, slots, maxBatchSize."""
    kv_dtype: str = "auto"
    dtype: str = "auto"
    memory_share: float | None = None
    """gpu_memory_utilization, mem_fraction_static; None: the engine has no such thing."""
    batched_tokens: int | None = None
    """max_num_batched_tokens, chunked_prefill_size, n_batch."""
    eager: bool = False
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """Further settings under the engine's own long flag name with underscores (`ubatch_size`, `n_gpu_layers`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a rule found: what happens, why, what to change, and where that is written."""

    rule: str
    severity: Severity
    what: str
    cause: str
    fix: str
    source: str
    mend: tuple[tuple[str, object], ...] = ()
    """The fix as changes to the deployment: (key, value), keys as in the spec (`parallel.tensor`, `dtype`); in
    `extra_args.FLAG` and `env.NAME` the value None takes it out. Empty: nobody but the user can decide."""
    deployment: str = ""
    """Name of the deployment it is about; "" where it is about several or none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A number that is not known exactly: an 80 % interval around what is expected."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Predicted speed at one concurrency: seconds and tokens per second."""

    concurrency: int
    ttft_s: Range
    tpot_s: Range
    tokens_per_s: Range
    """Of all requests together."""
    basis: Basis
    source: str
    prefill_tokens_per_s: Range | None = None
    """Of one prompt on an idle engine."""
    requests_per_s: Range | None = None
    running: float = 0.0
    """Sequences at once, where memory or the engine allow fewer than `concurrency`; 0: not known."""
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A chosen candidate with its place: what `engines` renders and `launch` starts."""

    name: str
    """Unique in the plan: `<deployment>-<n>`."""
    candidate: Candidate
    ledger: Ledger
    speeds: tuple[Speed, ...] = ()
    model_path: str = ""
    """Where the weights will lie when it starts; "" until they are fetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """An alternative that was looked at, and why it was not taken."""

    what: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was decided, why, and what else there was. The only thing that `launch` reads."""

    replicas: tuple[Replica, ...]
    findings: tuple[Finding, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every replica fits and no finding is an error."""
        return all(replica.ledger.fits for replica in self.replicas) and not any(
            finding.severity == "error" for finding in self.findings
        )
