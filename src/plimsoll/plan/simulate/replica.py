"""One replica's engine: continuous batching with chunked prefill, a prefix cache, and preemption when the cache fills.

Time passes in spans: one step that computes prompts, or as many decode steps as pass before the batch changes, whose
sum is known in closed form. What a span costs does not depend on how many tokens it makes.
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heappop, heappush

from plimsoll.plan.simulate.book import Book
from plimsoll.plan.simulate.costs import StepCosts

_SHIFT = 40
"""Bits of a request's number in an entry of the heap of endings."""


class Replica:
    """Its queue, its batch, and the span that it is in."""

    __slots__ = (
        "_book",
        "_cached",
        "_chunk",
        "_context",
        "_costs",
        "_decode",
        "_endings",
        "_filled",
        "_held",
        "_kv",
        "_prefilling",
        "_running",
        "_sequences",
        "_start_s",
        "_step",
        "_steps",
        "_waiting",
        "busy_s",
        "computed_tokens",
        "end_s",
        "hit_tokens",
        "made_tokens",
        "preempted",
    )

    def __init__(self, costs: StepCosts, book: Book) -> None:
        self._costs = costs
        self._book = book
        self._decode = costs.decode_s
        self._sequences = costs.sequences
        self._chunk = costs.chunk
        self._kv = costs.kv_tokens or 1 << 62
        self._waiting: deque[int] = deque()
        self._prefilling: list[list[int]] = []
        """[request, prompt tokens computed, prompt tokens in all], first come first."""
        self._running: dict[int, int] = {}
        """The step after which each running request ends; the last to begin is last."""
        self._endings: list[int] = []
        """Heap of (step, request) as one number; of a preempted request an entry may be stale."""
        self._step = 0
        """Decode steps done when the span began."""
        self._steps = 0
        """Decode steps in this span; in one that computes prompts, 1."""
        self._filled: list[list[int]] = []
        """Entries of `_prefilling` whose prompt is complete when the span ends."""
        self._context = 0
        """Tokens in the cache that running requests hold, when the span began."""
        self._held = 0
        """Tokens of the cache that prompts in work have taken."""
        self._start_s = 0.0
        self._cached: dict[int, None] = {}
        """Blocks that can be found again, the least recently used first."""
        self.end_s = math.inf
        """When the span ends; infinity: there is nothing to do."""
        self.busy_s = 0.0
        self.computed_tokens = 0
        """Of prompts, anew after each preemption; prefix hits are counted apart."""
        self.hit_tokens = 0
        self.made_tokens = 0
        self.preempted = 0

    @property
    def outstanding(self) -> int:
        """Requests that wait or are worked on."""
        return len(self._waiting) + len(self._prefilling) + len(self._running)

    @property
    def devices(self) -> int:
        """That it is paid by."""
        return self._costs.devices

    def holds(self, request: int) -> bool:
        """Whether the cache could hold it alone."""
        return self._book.prompt[request] + self._book.output[request] <= self._kv

    def add(self, request: int, now_s: float) -> bool:
        """Queue `request`; whether `end_s` has changed."""
        waiting = self._waiting
        waiting.append(request)
        if self.end_s == math.inf:
            self._plan(now_s)
            return True
        if len(waiting) > 1 or self._prefilling or self._steps < 2 or len(self._running) >= self._sequences:
            return False
        return self._cut(now_s)

    def _latency_s(self, request: int) -> float:
        """What a request loses outside of steps: all arrivals are late by it, so it may as well be added at the end."""
        return self._costs.start_s + self._costs.prompt_s * self._book.prompt[request]

    def _cut(self, now_s: float) -> bool:
        """End a span of decode steps with the step that is under way, so that a prompt can begin."""
        count = len(self._running)
        first_s = self._decode[count] + self._costs.context_s[count] * self._context
        growth_s = self._costs.context_s[count] * count
        passed_s = now_s - self._start_s
        linear = first_s - growth_s / 2.0
        if growth_s * passed_s > 1e-9 * linear * linear:
            steps = (math.sqrt(linear * linear + 2.0 * growth_s * passed_s) - linear) / growth_s
        else:
            steps = passed_s / first_s
        whole = max(1, math.ceil(steps - 1e-9))
        if whole >= self._steps:
            return False
        self._steps = whole
        self.end_s = self._start_s + whole * first_s + growth_s * (whole * (whole - 1) / 2)
        return True

    def pass_span(self, ended: list[int]) -> None:
        """Do what the span did and begin the next; requests that ended with it are appended to `ended`."""
        now_s, steps, running, book = self.end_s, self._steps, self._running, self._book
        self.busy_s += now_s - self._start_s
        step = self._step = self._step + steps
        if running:
            made = steps * len(running)
            self._context += made
            self.made_tokens += made
            endings = self._endings
            bound = (step + 1) << _SHIFT
            while endings and endings[0] < bound:
                entry = heappop(endings)
                request = entry & ((1 << _SHIFT) - 1)
                if running.get(request) == entry >> _SHIFT:
                    del running[request]
                    self._context -= book.prompt[request] + book.output[request] - 1
                    book.end_s[request] = now_s + self._latency_s(request)
                    ended.append(request)
        if self._filled:
            self._begin_answers(now_s, ended)
        self._plan(now_s)

    def _begin_answers(self, now_s: float, ended: list[int]) -> None:
        """The prompts that the span has completed have their first token."""
        book = self._book
        for entry in self._filled:
            request, _, whole = entry
            self._prefilling.remove(entry)
            self._held -= whole
            self.made_tokens += 1
            left = book.left[request]
            if left == book.output[request]:
                book.first_s[request] = now_s + self._latency_s(request)
            if book.blocks:
                self._remember(book.blocks[request])
            if left <= 1:
                book.end_s[request] = now_s + self._latency_s(request)
                ended.append(request)
                continue
            last = self._step + left - 1
            self._running[request] = last
            heappush(self._endings, last << _SHIFT | request)
            self._context += whole
        self._filled = []

    def _plan(self, now_s: float) -> None:
        """The next span, from `now_s`."""
        running = self._running
        self._start_s = now_s
        budget = max(1, self._chunk - len(running))
        if self._waiting:
            self._admit(budget, now_s)
        if self._prefilling:
            while running and self._context + self._held + len(running) > self._kv:
                self._preempt()
            self._steps = 1
            self.end_s = now_s + self._prefill(budget)
            return
        if not running:
            self.end_s = math.inf
            return
        while len(running) > 1 and self._context + len(running) > self._kv:
            self._preempt()
        endings, count = self._endings, len(running)
        while running.get(endings[0] & ((1 << _SHIFT) - 1)) != endings[0] >> _SHIFT:
            heappop(endings)
        steps = (endings[0] >> _SHIFT) - self._step
        if self._context + steps * count > self._kv:
            steps = max(1, (self._kv - self._context) // count)
        per_token_s = self._costs.context_s[count]
        first_s = self._decode[count] + per_token_s * self._context
        self._steps = steps
        self.end_s = now_s + steps * first_s + per_token_s * count * (steps * (steps - 1) / 2)

    def _admit(self, budget: int, now_s: float) -> None:
        """Take waiting requests in order, as long as sequences, cache and the step's tokens allow."""
        book, waiting = self._book, self._waiting
        ahead = sum(entry[2] - entry[1] for entry in self._prefilling)
        room = self._sequences - len(self._running) - len(self._prefilling)
        while waiting and room > 0 and ahead < budget:
            request = waiting[0]
            whole = book.prompt[request] + book.output[request] - book.left[request]
            if self._context + self._held + len(self._running) + whole > self._kv:
                return
            waiting.popleft()
            if whole == book.prompt[request]:
                book.begun_s[request] = now_s
            hit = min(self._hit(book.blocks[request]), whole - 1) if book.blocks else 0
            self.hit_tokens += hit
            self._held += whole
            self._prefilling.append([request, hit, whole])
            ahead += whole - hit
            room -= 1

    def _prefill(self, budget: int) -> float:
        """Seconds of a step that computes up to `budget` prompt tokens beside one token for each running request."""
        costs, count = self._costs, len(self._running)
        tokens, pairs = 0, 0.0
        for entry in self._prefilling:
            taken = min(entry[2] - entry[1], budget - tokens)
            if taken <= 0:
                break
            pairs += taken * (entry[1] + taken / 2.0)
            entry[1] += taken
            tokens += taken
            if entry[1] == entry[2]:
                self._filled.append(entry)
        self.computed_tokens += tokens
        alone_s = costs.prefill_s[tokens] + costs.attention_s * pairs
        if not count:
            return alone_s
        decode_s = self._decode[count] + costs.context_s[count] * self._context
        return max(alone_s, decode_s + costs.mixed * alone_s)

    def _preempt(self) -> None:
        """Take the cache of the request that began last; it waits first in line and is computed anew."""
        book = self._book
        request, last = self._running.popitem()
        left = last - self._step
        self._context -= book.prompt[request] + book.output[request] - left - 1
        book.left[request] = left
        self._waiting.appendleft(request)
        self.preempted += 1

    def _hit(self, blocks: tuple[int, ...]) -> int:
        """Tokens at the prompt's beginning that are in the cache."""
        cached, found = self._cached, 0
        if self._costs.shares_prefixes:
            for block in blocks:
                if block not in cached:
                    break
                del cached[block]
                cached[block] = None
                found += self._book.block_tokens
        return found

    def _remember(self, blocks: tuple[int, ...]) -> None:
        """Keep a prompt's blocks, in what running requests leave of the cache."""
        cached = self._cached
        if not self._costs.shares_prefixes:
            return
        for block in reversed(blocks):  # so that the end of a prompt is forgotten before its beginning
            cached.pop(block, None)
            cached[block] = None
        most = max(0, self._kv - self._context - self._held) // self._book.block_tokens
        while len(cached) > most:
            del cached[next(iter(cached))]

    def fail(self) -> tuple[list[int], list[int]]:
        """Lose everything: (requests without an answer yet, requests whose answer breaks off)."""
        begun = [entry[0] for entry in self._prefilling]
        begun.extend(self._waiting)
        output, left = self._book.output, self._book.left
        broken = [*self._running, *(request for request in begun if left[request] < output[request])]
        unanswered = [request for request in begun if left[request] == output[request]]
        self._waiting.clear()
        self._prefilling, self._filled, self._running, self._endings, self._cached = [], [], {}, [], {}
        self._context = self._held = 0
        self.end_s = math.inf
        return unanswered, broken
