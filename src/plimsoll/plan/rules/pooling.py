"""Embedding, reranking and classification: what engines can do of it, and with which switches."""

from __future__ import annotations

from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Fault, rule


@rule(
    "vllm.prefix_caching_for_encoder",
    versions=">=0.11.1",
    severity="warning",
    cause="a model that attends in both directions cannot reuse a prefix",
    source="vllm 0.33.0: vllm/engine/arg_utils.py:3088",
    fires={"task": "embed", "encoder": True, "options": {"enable_prefix_caching": True}},
    passes={"task": "embed", "encoder": True},
)
def prefix_caching_for_encoder(case: Case) -> Fault | None:
    """Prefix caching for an encoder."""
    if not case.encoder or not case.on("enable_prefix_caching"):
        return None
    return Fault(
        what="prefix caching for a model that attends in both directions",
        fix="drop --enable-prefix-caching",
        mend=(("extra_args.enable_prefix_caching", None),),
    )


@rule(
    "vllm.chunked_prefill_for_encoder",
    versions=">=0.11.1",
    severity="warning",
    cause="a model that attends in both directions needs the whole text at once",
    source="vllm 0.33.0: vllm/engine/arg_utils.py:3070",
    fires={"task": "embed", "encoder": True, "options": {"enable_chunked_prefill": True}},
    passes={"task": "embed", "encoder": True},
)
def chunked_prefill_for_encoder(case: Case) -> Fault | None:
    """Chunked prefill for an encoder."""
    if not case.encoder or not case.on("enable_chunked_prefill"):
        return None
    return Fault(
        what="chunked prefill for a model that attends in both directions",
        fix="drop --enable-chunked-prefill",
        mend=(("extra_args.enable_chunked_prefill", None),),
    )


@rule(
    "vllm.generate_with_encoder",
    versions=">=0.10.1",
    cause="an encoder has nothing to generate with",
    source="vllm 0.33.0: vllm/config/model.py:721",
    fires={"task": "embed", "encoder": True, "options": {"runner": "generate"}},
    passes={"task": "embed", "encoder": True, "options": {"runner": "pooling"}},
)
def generate_with_encoder(case: Case) -> Fault | None:
    """--runner generate for an embedding model."""
    if not case.encoder or case.text("runner") not in ("generate", "draft"):
        return None
    return Fault(
        what=f"--runner {case.text('runner')} for an embedding model",
        fix="leave --runner out",
        mend=(("extra_args.runner", None),),
    )


@rule(
    "vllm.chat_with_encoder",
    cause="an encoder has nothing to generate with",
    source="vllm 0.33.0: vllm/config/model.py:721",
    fires={"encoder": True, "task": "chat", "architecture": "BertModel"},
    passes={"encoder": True, "task": "embed", "architecture": "BertModel"},
)
@rule(
    "llamacpp.chat_with_encoder",
    cause="an encoder has nothing to generate with",
    source="llama.cpp b11434: tools/server/server-context.cpp",
    fires={"engine": "llamacpp", "encoder": True, "task": "chat", "architecture": "bert"},
    passes={"engine": "llamacpp", "encoder": True, "task": "embed", "architecture": "bert"},
)
@rule(
    "ollama.chat_with_encoder",
    cause="/api/chat refuses models without the capability",
    source="ollama fb30760: server/routes.go:2636",
    fires={"engine": "ollama", "encoder": True, "task": "chat", "architecture": "bert", "format": "gguf"},
    passes={"engine": "ollama", "encoder": True, "task": "embed", "architecture": "bert", "format": "gguf"},
)
def chat_with_encoder(case: Case) -> Fault | None:
    """Chat or completion is asked of an embedding model."""
    if not case.encoder or case.pooling or case.model.architecture.startswith(("T5", "t5", "Whisper")):
        return None
    return Fault(what=f"task {case.task} of an embedding model", fix="task embed", mend=(("task", "embed"),))


@rule(
    "vllm.pooling_needs_convert",
    versions=">=0.10.1",
    cause="a model made to generate answers with vectors only when converted; left out, vLLM converts to embed",
    source="vllm 0.33.0: vllm/config/model.py:734",
    fires={"options": {"runner": "pooling", "convert": "none"}},
    passes={"options": {"runner": "pooling"}},
)
def pooling_needs_convert(case: Case) -> Fault | None:
    """--runner pooling with --convert none for a generative model."""
    if case.text("runner") != "pooling" or case.text("convert") != "none" or case.encoder:
        return None
    if not case.model.architecture.endswith("ForCausalLM"):
        return None
    return Fault(
        what="--runner pooling with --convert none for a generative model",
        fix="leave --convert out, or --convert classify for a reranker",
        mend=(("extra_args.convert", None),),
    )


@rule(
    "llamacpp.input_exceeds_ubatch",
    severity="warning",
    cause="an encoder reads its whole input in one physical batch; longer inputs are refused",
    source="llama.cpp b11434: tools/server/server-context.cpp:3399",
    fires={"engine": "llamacpp", "task": "embed", "encoder": True, "context_tokens": 2048,
           "options": {"ubatch_size": 512}},
    passes={"engine": "llamacpp", "task": "embed", "encoder": True, "context_tokens": 512,
            "options": {"ubatch_size": 512}},
)  # fmt: skip
def input_exceeds_ubatch(case: Case) -> Fault | None:
    """An embedding model's input may exceed --ubatch-size."""
    size = case.number("ubatch_size")
    if not case.encoder or not case.pooling or size is None or size >= case.candidate.context_tokens:
        return None
    return Fault(
        what=f"inputs of up to {case.candidate.context_tokens} tokens, and a physical batch of {size:.0f}",
        fix=f"--ubatch-size {case.candidate.context_tokens} --batch-size {case.candidate.context_tokens}",
        mend=(
            ("extra_args.ubatch_size", case.candidate.context_tokens),
            ("extra_args.batch_size", case.candidate.context_tokens),
        ),
    )


@rule(
    "llamacpp.batch_lowered_for_embeddings",
    severity="info",
    cause="for embeddings the logical batch is lowered to the physical one",
    source="llama.cpp b11434: tools/server/server.cpp:163",
    fires={"engine": "llamacpp", "task": "embed", "options": {"batch_size": 2048, "ubatch_size": 512}},
    passes={"engine": "llamacpp", "task": "embed", "options": {"batch_size": 512, "ubatch_size": 512}},
)
def batch_lowered_for_embeddings(case: Case) -> Fault | None:
    """--batch-size above --ubatch-size for embeddings."""
    batch, physical = case.number("batch_size"), case.number("ubatch_size")
    if not case.pooling or batch is None or physical is None or batch <= physical:
        return None
    return Fault(what=f"--batch-size {batch:.0f} becomes {physical:.0f}", fix=f"--ubatch-size {batch:.0f}")


@rule(
    "llamacpp.embeddings_switched_off",
    cause="llama-server answers /v1/embeddings and /rerank only when started for it",
    source="llama.cpp b11434: tools/server/server-context.cpp:5506,5835",
    fires={"engine": "llamacpp", "task": "embed", "options": {"embeddings": False}},
    passes={"engine": "llamacpp", "task": "embed", "options": {"embeddings": True}},
)
def embeddings_switched_off(case: Case) -> Fault | None:
    """Embedding or reranking is asked for and its switch is off."""
    switch = {"embed": "embeddings", "rerank": "reranking"}.get(case.task)
    if switch is None or not case.off(switch):
        return None
    return Fault(
        what=f"task {case.task} with --{switch} off",
        fix=f"leave --{switch} out",
        mend=((f"extra_args.{switch}", None),),
    )


@rule(
    "transformers.no_pooling",
    cause="transformers serve has no route for embeddings or reranking",
    source="transformers 5.23.0: transformers/cli/serving/server.py",
    fires={"engine": "transformers", "task": "embed"},
    passes={"engine": "transformers", "task": "chat"},
)
@rule(
    "mindie.no_pooling",
    cause="MindIE's server has no route for embeddings or reranking",
    source="MindIE-LLM 8b4871a: src/server/endpoint/http_wrapper/http_handler.cpp:1692",
    fires={"engine": "mindie", "vendor": "ascend", "task": "rerank"},
    passes={"engine": "mindie", "vendor": "ascend", "task": "chat"},
)
def no_pooling(case: Case) -> Fault | None:
    """Embedding, reranking or classification of an engine without a route for it."""
    if not case.pooling:
        return None
    return Fault(what=f"{case.engine} cannot serve the task {case.task}", fix="vllm", mend=(("engine", "vllm"),))


@rule(
    "ollama.no_reranking",
    cause="Ollama has routes for chat, completion and embeddings only",
    source="ollama fb30760: server/routes.go:1916",
    fires={"engine": "ollama", "task": "rerank", "format": "gguf"},
    passes={"engine": "ollama", "task": "embed", "format": "gguf"},
)
@rule(
    "fastchat.no_reranking",
    cause="FastChat has routes for chat, completion and embeddings only",
    source="fastchat 0.2.36: fastchat/serve/openai_api_server.py",
    fires={"engine": "fastchat", "task": "rerank"},
    passes={"engine": "fastchat", "task": "chat"},
)
def no_reranking(case: Case) -> Fault | None:
    """Reranking or classification of an engine without a route for it."""
    if case.task not in ("rerank", "classify"):
        return None
    return Fault(what=f"{case.engine} cannot serve the task {case.task}", fix="vllm", mend=(("engine", "vllm"),))


@rule(
    "llamacpp.no_classification",
    cause="llama-server pools to vectors or one score; it has no classes",
    source="llama.cpp b11434: common/arg.cpp:2316",
    fires={"engine": "llamacpp", "task": "classify"},
    passes={"engine": "llamacpp", "task": "rerank"},
)
def no_classification(case: Case) -> Fault | None:
    """Classification of llama.cpp."""
    if case.task != "classify":
        return None
    return Fault(what="llama.cpp cannot serve the task classify", fix="vllm", mend=(("engine", "vllm"),))


@rule(
    "ollama.one_embedding_at_once",
    severity="info",
    cause="embedding models always have one slot",
    source="ollama fb30760: server/sched.go:500",
    fires={"engine": "ollama", "task": "embed", "sequences": 8, "format": "gguf"},
    passes={"engine": "ollama", "task": "embed", "sequences": 1, "format": "gguf"},
)
def one_embedding_at_once(case: Case) -> Fault | None:
    """Several embedding requests at once of Ollama."""
    if case.task != "embed" or case.candidate.sequences <= 1:
        return None
    return Fault(what="one embedding request at a time", fix="several servers, or vllm")
