"""Facts for tests of the plan: models, devices and engines of stated shape, made without files."""

from __future__ import annotations

from plimsoll.facts.engine import EngineFacts
from plimsoll.facts.hardware import Device, Host
from plimsoll.facts.model import AttentionGroup, ModelFacts, Moe, TensorClass
from plimsoll.plan.types import Candidate, Parallel
from plimsoll.spec.deployment import Deployment
from plimsoll.units import GIB

A6000_BYTES = round(47.54 * GIB)


def model(
    *, layers=2, hidden=4096, wide=14336, heads=32, kv_heads=8, head_dim=128, vocab=128256, moe=None, window=None,
    sliding=0, mla=None, encoder=False, tied=False, format="gguf", value=2, id="test/model", task="chat",
    context=131072, **more,
):  # fmt: skip
    """A model of that shape; weights at `value` bytes a parameter."""
    if mla:
        group = AttentionGroup(kind="mla", layers=layers, heads=heads, kv_heads=1, head_dim=mla, v_head_dim=0)
        groups = (group,)
        attention = heads * 3 * 128 * hidden
    elif encoder:
        group = AttentionGroup(
            kind="encoder", layers=layers, heads=heads, kv_heads=heads, head_dim=head_dim, v_head_dim=head_dim
        )
        groups = (group,)
        attention = 4 * heads * head_dim * hidden
    else:

        def group_of(count, **kind):
            return AttentionGroup(
                layers=count, heads=heads, kv_heads=kv_heads, head_dim=head_dim, v_head_dim=head_dim, **kind
            )

        groups = tuple(
            g for g in (group_of(layers - sliding, kind="full"),
                        group_of(sliding, kind="sliding", window_tokens=window)) if g.layers
        )  # fmt: skip
        attention = (2 * heads + 2 * kv_heads) * head_dim * hidden
    feed = 3 * hidden * wide if moe is None else 3 * hidden * moe.intermediate_size * moe.experts

    def tensors(role, params, sharding, count=0):
        return TensorClass(
            role=role,
            params=params,
            bytes=round(params * value),
            dtype="F16",
            sharding=sharding,
            layers=count,
            at=tuple(range(count)),
        )

    return ModelFacts(
        id=id, architecture="llama", task=task, layers=layers, hidden_size=hidden, intermediate_size=wide, heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, vocab_size=vocab, max_context_tokens=context, tied_embeddings=tied,
        dtype="bfloat16", format=format, attention=groups, source="test", moe=moe,
        tensors=(
            tensors("embedding", vocab * hidden, "vocab"),
            *(() if tied else (tensors("lm_head", vocab * hidden, "vocab"),)),
            tensors("attention", layers * attention, "tensor", layers),
            tensors("mlp" if moe is None else "experts", layers * feed, "tensor" if moe is None else "expert", layers),
        ),
        **more,
    )  # fmt: skip


def moe_of(experts, used, width, layers=2):
    """A mixture of experts in every layer."""
    return Moe(experts=experts, per_token=used, intermediate_size=width, layers=layers)


def cpu(memory=24 * GIB, free=None):
    """A CPU as a device."""
    return Device(
        name="cpu", vendor="cpu", arch="x86-64-v3", memory_bytes=memory, free_bytes=memory if free is None else free,
        bandwidth=20e9,
    )  # fmt: skip


def host(*, name="host", ram=24 * GIB, free=None, cores=2, devices=()):
    """A machine."""
    free = ram if free is None else free
    return Host(name=name, cpu=cpu(ram, free), cores=cores, ram_bytes=ram, ram_free_bytes=free, devices=tuple(devices))


def gpu(name="RTX A6000", *, memory=A6000_BYTES, held=0, index=0, arch="8.6", vendor="nvidia"):
    """An accelerator, `held` bytes of which others have."""
    return Device(
        name=name, vendor=vendor, arch=arch, memory_bytes=memory, free_bytes=memory - held, bandwidth=768e9, index=index
    )


def engine(name="llamacpp", *, version="b11549", memory=None, **more):
    """An engine that follows the memory policy of its own name."""
    layered = name in ("llamacpp", "ollama")
    values = {
        "formats": ("gguf",) if layered else ("safetensors",), "quantizations": (), "vendors": ("cpu", "nvidia", "amd"),
        "tasks": ("chat", "completion", "embed", "rerank"), "routes": (), "health_path": "/health",
        "parallel": ("layer",) if layered else ("tensor", "pipeline", "data", "expert"),
    } | more  # fmt: skip
    return EngineFacts(name=name, version=version, memory=memory or name, **values)


def candidate(facts, *, on=None, engine_facts=None, tp=1, pp=1, **settings):
    """`facts` on `on` (a tuple of GPUs; the CPU if left out)."""
    devices = tuple(on or ())
    machine = settings.pop("host", None) or host(devices=devices)
    return Candidate(
        deployment=Deployment(name="m", model=facts.id), model=facts, engine=engine_facts or engine(), host=machine,
        devices=devices or (machine.cpu,), parallel=Parallel(tensor=tp, pipeline=pp), **settings,
    )  # fmt: skip
