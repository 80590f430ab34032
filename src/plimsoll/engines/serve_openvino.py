"""OpenVINO GenAI behind HTTP: `python -m plimsoll.engines.serve_openvino --model F --port P ...`.

The library batches continuously; one thread steps it and alone touches it, the event loop talks to clients. A prompt
that does not fit the context is refused before it is queued; a client that leaves frees its place at the next step.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from plimsoll.engines.openai_http import STREAM_END, STREAM_HEAD, ApiError, Connection, read_body
from plimsoll.engines.openvino_requests import Ask, Text, parse_ask

TAG = "serve_openvino:"
ROUTES = ("/v1/chat/completions", "/v1/completions")
_IDLE_S = 0.5
_FAILED = "failed"
Event = tuple[str, str | None]
"""New text, and at the end why it ended; after _FAILED, what was wrong."""


def parser() -> argparse.ArgumentParser:
    """Arguments; those of SchedulerConfig under its own names."""
    parse = argparse.ArgumentParser(prog="serve_openvino", allow_abbrev=False, description=__doc__)
    parse.add_argument("--model", required=True, help="a GGUF file, or a directory that optimum-cli exported")
    parse.add_argument("--alias", required=True, help="the name that requests carry")
    parse.add_argument("--host", default="127.0.0.1")
    parse.add_argument("--port", type=int, required=True)
    parse.add_argument("--device", default="CPU")
    parse.add_argument("--max-context", type=int, required=True, help="tokens of a prompt and its answer")
    parse.add_argument("--max-num-seqs", type=int, default=256)
    parse.add_argument("--max-num-batched-tokens", type=int, default=256)
    parse.add_argument("--num-kv-blocks", type=int, default=0)
    parse.add_argument("--cache-size", type=int, default=0, help="GiB, where no blocks are given")
    parse.add_argument("--enable-prefix-caching", action="store_true")
    parse.add_argument("--kv-cache-precision", choices=("u8", "f16", "bf16", "f32"))
    parse.add_argument("--num-threads", type=int, default=0)
    return parse


@dataclass(slots=True, eq=False)
class Generation:
    """One request between the two threads: the library's handle on one side, a queue of events on the other."""

    ask: Ask
    tokens: Any
    prompt_tokens: int
    limit: int
    tell: Callable[[Event], object]
    """Called in the library's thread with new text and, at the end, why it ended."""
    ids: list[int] = field(default_factory=list)
    text: Text = field(default_factory=lambda: Text(()))
    handle: Any = None
    left: bool = False

    @property
    def usage(self) -> dict[str, int]:
        """As OpenAI counts."""
        done = len(self.ids)
        total = self.prompt_tokens + done
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": done, "total_tokens": total}


class Library:
    """The pipeline and the one thread that steps it."""

    def __init__(self, args: argparse.Namespace) -> None:
        import openvino_genai

        self.genai = openvino_genai
        self.args = args
        config = openvino_genai.SchedulerConfig()
        config.max_num_seqs = args.max_num_seqs
        config.max_num_batched_tokens = args.max_num_batched_tokens
        config.num_kv_blocks = args.num_kv_blocks
        config.cache_size = 0 if args.num_kv_blocks else args.cache_size
        config.enable_prefix_caching = args.enable_prefix_caching
        properties: dict[str, object] = {}
        if args.kv_cache_precision:
            properties["KV_CACHE_PRECISION"] = args.kv_cache_precision
        if args.num_threads:
            properties["INFERENCE_NUM_THREADS"] = args.num_threads
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(args.model, config, args.device, properties, {})
        self.tokenizer = self.pipeline.get_tokenizer()
        self.inbox: queue.SimpleQueue[Generation] = queue.SimpleQueue()
        self.active: list[Generation] = []
        self.ids = count(1)
        self.prompt_tokens = self.output_tokens = 0
        self.failed: BaseException | None = None

    def warm_up(self) -> None:
        """Make one token: the cache is allocated with the first."""
        config = self.genai.GenerationConfig()
        config.max_new_tokens = 1
        handle = self.pipeline.add_request(0, self.tokenizer.encode("a").input_ids, config)
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        handle.read_all()

    def start(self, over: Callable[[], object]) -> None:
        """Step from now on in a thread; `over` is called there should it fail."""

        def run() -> None:
            try:
                while True:
                    self._turn()
            except (RuntimeError, ValueError, MemoryError) as problem:
                self.failed = problem
                print(f"{TAG} error: {problem}", file=sys.stderr, flush=True)
                over()

        threading.Thread(target=run, name="steps", daemon=True).start()

    def encode(self, ask: Ask) -> Any:
        """The prompt's token ids as a tensor of one row. ApiError where the chat template cannot be filled."""
        import openvino

        if ask.kind == "chat":
            try:
                filled = self.tokenizer.apply_chat_template(list(ask.messages), add_generation_prompt=True)
            except RuntimeError as problem:
                said = f"the model's chat template refuses this: {problem}"
                raise ApiError(400, said, param="messages") from problem
            return self.tokenizer.encode(filled, add_special_tokens=False).input_ids
        if isinstance(ask.prompt, str):
            return self.tokenizer.encode(ask.prompt).input_ids
        import numpy

        return openvino.Tensor(numpy.array([ask.prompt], dtype=numpy.int64))

    def _turn(self) -> None:
        """Take in what is new, let go what was left, one step, hand out its tokens."""
        while not self.inbox.empty() or not self.active:
            try:
                self._admit(self.inbox.get(timeout=_IDLE_S))
            except queue.Empty:
                return
        for one in self.active:
            if one.left:
                one.handle.stop()
        self.pipeline.step()
        fresh = [one for one in self.active if self._read(one)]
        if fresh:
            texts = self.tokenizer.decode([one.ids for one in fresh])
            for one, text in zip(fresh, texts, strict=True):
                self._hand_out(one, text)
        self.active = [one for one in self.active if one.handle is not None]

    def _admit(self, one: Generation) -> None:
        if one.left:
            return
        config = self.genai.GenerationConfig()
        ask = one.ask
        config.max_new_tokens = one.limit
        config.ignore_eos = ask.ignore_eos
        config.set_eos_token_id(self.tokenizer.get_eos_token_id())
        config.do_sample = ask.temperature > 0
        if config.do_sample:
            config.temperature, config.top_p = ask.temperature, ask.top_p
            if ask.top_k is not None:
                config.top_k = ask.top_k
            config.rng_seed = ask.seed if ask.seed is not None else int.from_bytes(os.urandom(4), "little")
        config.presence_penalty, config.frequency_penalty = ask.presence_penalty, ask.frequency_penalty
        config.repetition_penalty = ask.repetition_penalty
        try:
            one.handle = self.pipeline.add_request(next(self.ids), one.tokens, config)
        except (RuntimeError, ValueError) as problem:
            one.tell((str(problem), _FAILED))
            return
        self.prompt_tokens += one.prompt_tokens
        self.active.append(one)

    def _read(self, one: Generation) -> bool:
        """Take the new tokens; whether there is something to tell."""
        fresh = False
        while one.handle.can_read():
            for output in one.handle.read().values():
                one.ids += output.generated_ids
                self.output_tokens += len(output.generated_ids)
                fresh = True
        status = self.genai.GenerationStatus
        if one.left or one.handle.get_status() in (status.IGNORED, status.CANCEL):
            if not one.left:
                one.tell(("", "length"))
            one.handle = None
            return False
        return fresh

    def _hand_out(self, one: Generation, text: str) -> None:
        """Tell the new text; at the end, or at a stop text, why it ended."""
        last = one.handle.get_status() != self.genai.GenerationStatus.RUNNING
        new = one.text.grow(text, last=last)
        if one.text.stopped and not last:
            one.handle.stop()
            one.left = True
        finish = None
        if last or one.text.stopped:
            finish = "length" if len(one.ids) >= one.limit and not one.text.stopped else "stop"
        if new or finish:
            one.tell((new, finish))
        if last:
            one.handle = None


class OpenVinoConnection(Connection):
    """One client."""

    def __init__(self, library: Library) -> None:
        super().__init__()
        self.library = library

    def note(self, line: str) -> None:
        """To stderr."""
        print(f"{TAG} {line}", file=sys.stderr, flush=True)

    async def route(self, method: str, path: str, raw: bytes) -> int:
        """Answer one request; returns the status."""
        library, alias = self.library, self.library.args.alias
        if method == "GET" and path == "/health":
            if library.failed:
                raise ApiError(503, f"the engine has failed: {library.failed}")
            return self.send_json(200, {"status": "ok"})
        if method == "GET" and path == "/metrics":
            return self.send(200, exposition(library).encode(), "text/plain; version=0.0.4")
        if method == "GET" and path == "/v1/models":
            card: dict[str, object] = {"id": alias, "object": "model", "created": 0, "owned_by": "openvino-genai"}
            card["max_model_len"] = library.args.max_context
            return self.send_json(200, {"object": "list", "data": [card]})
        body = read_body(method, path, raw, routes=ROUTES, models=(alias,))
        kind: Literal["chat", "completion"] = "chat" if path == ROUTES[0] else "completion"
        ask = parse_ask(body, kind)
        tokens = await asyncio.to_thread(library.encode, ask)
        size, most = tokens.shape[1], library.args.max_context
        if size + (ask.max_tokens or 1) > most:
            raise ApiError(
                400,
                f"This model's maximum context length is {most} tokens; the request has {size} in the prompt and asks"
                f" for {ask.max_tokens or 1} more.",
                param="messages" if kind == "chat" else "prompt",
                code="context_length_exceeded",
            )
        frame = {"id": f"cmpl-{os.urandom(8).hex()}", "object": ask.object, "created": int(time.time()), "model": alias}
        told: asyncio.Queue[Event] = asyncio.Queue()
        loop = self.loop
        one = Generation(
            ask=ask,
            tokens=tokens,
            prompt_tokens=size,
            limit=ask.max_tokens or most - size,
            tell=lambda event: loop.call_soon_threadsafe(told.put_nowait, event),
            text=Text(ask.stop),
        )
        library.inbox.put(one)
        try:
            await (self._stream if ask.stream else self._whole)(one, frame, _events(told))
        finally:
            one.left = True
        return 200

    async def _whole(self, one: Generation, frame: dict[str, Any], events: AsyncIterator[Event]) -> None:
        told = [event async for event in events]
        text, finish = "".join(new for new, _ in told), told[-1][1]
        self.send_json(200, {**frame, "choices": [one.ask.choice(text, finish)], "usage": one.usage})

    async def _stream(self, one: Generation, frame: dict[str, Any], events: AsyncIterator[Event]) -> None:
        usage = {"usage": None} if one.ask.include_usage else {}
        first = True
        async for new, finish in events:
            if first:
                self.transport.write(STREAM_HEAD)
            if new or first:
                self.event({**frame, "choices": [one.ask.choice(new, None, first=first)], **usage})
            first = False
            if finish:
                self.event({**frame, "choices": [one.ask.choice("", finish)], **usage})
        if one.ask.include_usage:
            self.event({**frame, "choices": [], "usage": one.usage})
        self.transport.write(STREAM_END)


async def _events(told: asyncio.Queue[Event]) -> AsyncIterator[Event]:
    """Until the one that says why it ended."""
    finish = None
    while finish is None:
        new, finish = await told.get()
        if finish == _FAILED:
            raise ApiError(400, f"the engine refuses this: {new}")
        yield new, finish


def resident_bytes() -> int:
    """Of this process, as the kernel counts; 0 where it does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - starts without pathlib
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def exposition(library: Library) -> str:
    """Prometheus text."""
    metrics = library.pipeline.get_metrics()
    values = {
        "requests_running": metrics.scheduled_requests if library.active else 0,
        "requests_waiting": max(0, len(library.active) - metrics.scheduled_requests) + library.inbox.qsize(),
        "kv_cache_usage_ratio": metrics.cache_usage / 100 if library.active else 0,
        "prompt_tokens_total": library.prompt_tokens,
        "output_tokens_total": library.output_tokens,
    }
    return "".join(f"openvino_{name} {value:g}\n" for name, value in values.items())


async def serve(library: Library) -> int:
    """Listen until told to stop; 1 when the library failed."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    library.start(lambda: loop.call_soon_threadsafe(over.set))
    args = library.args
    await loop.create_server(lambda: OpenVinoConnection(library), args.host, args.port, backlog=1024)
    print(f"{TAG} listening on {args.host}:{args.port}", file=sys.stderr, flush=True)
    await over.wait()
    return 1 if library.failed else 0


def main() -> int:
    """Load, then serve until SIGTERM; 1 if the model could not be loaded or the library failed, 2 for no library."""
    args = parser().parse_args()
    began = time.monotonic()
    try:
        import openvino_genai
    except ImportError as problem:
        print(f"{TAG} error: {problem}", file=sys.stderr)
        return 2
    print(f"{TAG} openvino-genai {openvino_genai.__version__}", file=sys.stderr, flush=True)
    try:
        before = resident_bytes()
        library = Library(args)
        took = resident_bytes() - before
        library.warm_up()
        metrics = library.pipeline.get_metrics()
        # One block is in use at its fullest: the share that it is of the cache says how many there are.
        blocks = round(100 / metrics.max_cache_usage) if metrics.max_cache_usage else 0
        print(f"{TAG} loaded in {time.monotonic() - began:.2f} s", file=sys.stderr)
        print(f"{TAG} model {took / (1 << 30):.4f} GiB resident", file=sys.stderr)
        print(f"{TAG} cache {metrics.kv_cache_size_in_bytes / (1 << 30):.4f} GiB, {blocks} blocks", file=sys.stderr)
        print(f"{TAG} {args.max_num_seqs} sequences of {args.max_context} tokens", file=sys.stderr, flush=True)
        code = asyncio.run(serve(library))
    except (RuntimeError, ValueError, OSError) as problem:
        print(f"{TAG} error: {problem}", file=sys.stderr, flush=True)
        return 1
    # The stepping thread is inside the library: leave without tearing that down under it.
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
