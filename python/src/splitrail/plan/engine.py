"""One engine under vLLM's v1 scheduler: queues, chunked prefill, KV blocks, preemption, KV caches on their
way.

Between two events a batch that only decodes changes in nothing but its contexts, so any number of its steps
is one arithmetic series. That is what makes a simulated request cost microseconds.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from math import ceil, sqrt

from splitrail.plan.step import Kind

FOREVER = 1 << 60
# Decode steps that leave out a KV cache that has arrived, without and with asynchronous scheduling: a worker
# looks for arrivals when it launches a step, its output tells the scheduler, which plans the next step; with
# asynchronous scheduling both look and plan are a step ahead of the GPU (vLLM 0.26.0, EngineCore's
# step_with_batch_queue, GPUModelRunner.execute_model). An engine that decodes nothing sees it at once. A new
# prompt would by this wait a step more, too; measurements do not show it (docs/results.md), so it does not.
UNSEEN_STEPS = {False: 1, True: 3}


class Request:
    """A request and its state; times in seconds, -1 until they are known.

    ``stored`` tokens lay in the KV cache when the engine had done ``since`` decode steps.
    """

    __slots__ = (
        "admitted",
        "arrival",
        "blocks",
        "cached",
        "computed",
        "done",
        "first",
        "held",
        "index",
        "isl",
        "last",
        "osl",
        "preemptions",
        "prefilled",
        "queued",
        "remote_cached",
        "since",
        "source",
        "stored",
        "target",
    )

    def __init__(
        self, index: int, arrival: float, isl: int, osl: int, *, cached: int = 0, remote_cached: int = 0
    ) -> None:
        self.index, self.arrival, self.isl, self.osl = index, arrival, isl, osl
        self.cached, self.remote_cached = cached, remote_cached
        self.first = self.last = self.prefilled = self.queued = self.admitted = -1.0
        self.stored = self.since = self.blocks = self.held = self.computed = self.done = self.preemptions = 0
        self.target = isl
        self.source: Engine | None = None


class Engine:
    """The state of one engine. ``submit`` and ``advance`` return when its current stretch ends (None: idle).

    A stretch is one step, or several that only decode. The caller holds the clock: it calls ``advance`` at
    that time and afterwards empties ``finished`` and ``fetched``. ``version`` changes with the end of the
    stretch, so that an end that has been announced and no longer holds can be told.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind, self.step, self.settings = kind, kind.step, kind.settings
        self.block = kind.settings.block_size
        self.free = kind.blocks
        self.waiting: deque[Request] = deque()
        self.loading: list[tuple[float, int, Request]] = []  # KV caches on their way, by the time of arrival
        self.arrived: deque[tuple[int, Request]] = deque()  # and here, by the step that will use them
        self.running: dict[Request, None] = {}  # in the order of admission
        self.partial: Request | None = None  # its prompt is not yet all computed
        self.finishes: list[
            tuple[int, int, int, Request]
        ] = []  # by the decode step that makes the last token
        self.finished: list[Request] = []
        self.fetched: list[Request] = []  # their copies on the prefill engines can go
        self.decoding = 0
        self.context = 0  # tokens in the cache of all that decode
        self.steps = 0  # decode steps done
        self.outstanding = 0
        self.version = 0
        self.until: float | None = None
        self.wire_free = 0.0
        # What the current stretch does.
        self._start = 0.0
        self._stall = 0.0
        self._count = 0
        self._chunks: list[tuple[Request, int]] = []
        self._joined: list[Request] = []  # make their first token in the stretch's first step
        # Sums over the run, for utilisation: seconds and seconds times amount.
        self.busy_s = self.prefill_s = self.stall_s = self.batch_s = self.used_s = 0.0
        self.preempted = 0

    def submit(self, request: Request, now: float) -> float | None:
        """A request joins the queue."""
        request.queued = now
        self.waiting.append(request)
        self.outstanding += 1
        if self.until is None:
            return self._plan(now)
        return self._cut(now)

    def release(self, request: Request, now: float) -> float | None:
        """The KV cache of a request that this engine prefilled has been fetched."""
        self.free += request.held
        request.held = 0
        if self.until is None and (self.waiting or self.partial):
            return self._plan(now)
        return self.until

    def advance(self, now: float) -> float | None:
        """The stretch has ended."""
        self._account(now)
        if self._count:
            self._decoded(self._count, now)
        for request, tokens in self._chunks:
            self._computed(request, tokens, now)
        return self._plan(now)

    # What a stretch did.

    def _account(self, now: float) -> None:
        seconds = now - self._start
        if self._count or self._chunks or self._stall:
            self.busy_s += seconds
            self.stall_s += min(self._stall, seconds)
            self.batch_s += seconds * self.decoding
            if self._chunks:
                self.prefill_s += seconds
            self.used_s += seconds * (1.0 - (self.free - self._decode_blocks()) / self.kind.blocks)

    def _decode_blocks(self) -> float:
        """Blocks that decoding requests hold: their contexts, and half a block each on average."""
        return (self.context + self.decoding * (self.block - 1) / 2) / self.block

    def _decoded(self, count: int, now: float) -> None:
        self.steps += count
        self.context += count * self.decoding
        finishes = self.finishes
        while finishes and finishes[0][0] <= self.steps:
            request = heappop(finishes)[3]
            if request in self.running and request.done + self.steps - request.since >= request.osl:
                self._leave(request)
                request.last = now
                self._finish(request)

    def _computed(self, request: Request, tokens: int, now: float) -> None:
        request.computed += tokens
        if request.computed < request.target:
            self.partial = request
            return
        if self.kind.prefill_only:
            # The KV cache stays until it has been fetched.
            del self.running[request]
            request.prefilled = now
            request.held, request.blocks = request.blocks, 0
            self._finish(request)
            return
        self._to_decode(request, now)

    def _to_decode(self, request: Request, now: float) -> None:
        """The step at whose end we are made the request's first token, or after a preemption its next."""
        self.free += request.blocks
        request.blocks = 0
        request.stored = request.target
        request.done += 1
        if request.first < 0:
            request.first = now
        if request.done >= request.osl:
            del self.running[request]
            request.last = now
            self._finish(request)
            return
        self._enter(request)

    def _enter(self, request: Request) -> None:
        """The request decodes from the next step on. Blocks of decoding requests are not in ``free``."""
        request.since = self.steps
        self.decoding += 1
        self.context += request.stored
        due = self.steps + request.osl - request.done
        heappush(self.finishes, (due, request.index, request.preemptions, request))

    def _leave(self, request: Request) -> None:
        del self.running[request]
        self.decoding -= 1
        self.context -= request.stored + self.steps - request.since

    def _finish(self, request: Request) -> None:
        self.outstanding -= 1
        self.finished.append(request)

    # What the next stretch will do.

    def _plan(self, now: float) -> float | None:
        self.version += 1
        self._start = now
        self._stall = 0.0
        self._chunks = []
        self._joined = []
        self._count = 0
        self._arrived(now)
        count = self._room(now)
        while self.arrived and not self.decoding:  # all that decoded were preempted
            self._arrived(now)
            count = self._room(now)
        if self.partial is not None or self.waiting:
            self._admit(now)
        if self._chunks:
            work = tokens = 0
            for request, new in self._chunks:
                tokens += new
                work += new * (2 * request.computed + new)
            self._count = 1 if self.decoding else 0
            seconds = self.step.seconds(tokens, work / 2, self.decoding, self.context)
            self.until = now + self._stall + seconds
            for request in self._joined:
                request.first = self.until
        elif self.decoding:
            self._launch(now, count)
        elif self._stall:
            self.until = now + self._stall
        elif self.loading:
            self.until = max(now, self.loading[0][0])
        else:
            self.until = None
        return self.until

    def _launch(self, now: float, room: int) -> None:
        """Decode until a request ends, the cache has no room, or a KV cache arrives."""
        left = self.finishes[0][0] - self.steps
        while self.finishes[0][3] not in self.running or left <= 0:
            heappop(self.finishes)  # it was preempted, and stands elsewhere in the heap if it came back
            left = self.finishes[0][0] - self.steps
        if self.arrived:
            left = min(left, self.arrived[0][0] - self.steps)
        self._count = max(1, min(left, room))
        if self._stall and self.settings.async_scheduling:
            # The host posts while the GPU still runs the step that was launched before.
            self._stall = max(0.0, self._stall - self._stretch(1))
        self.until = now + self._stall + self._stretch(self._count)
        if self._joined:
            first = now + self._stall + self._stretch(1)
            for request in self._joined:
                request.first = first
        free_seat = len(self.running) < self.settings.max_num_seqs
        if self.loading and free_seat and self.loading[0][0] < self.until:
            self._cut(self.loading[0][0])

    def _stretch(self, count: int) -> float:
        """Seconds of so many pure decode steps."""
        context = self.context * count + self.decoding * (count * (count - 1) // 2)
        return self.step.decode_base(self.decoding) * count + self.step.context_s * context

    def _cut(self, now: float) -> float | None:
        """End a stretch of decode steps with the step that runs now, so that what is new can join."""
        if self.until is None or self._chunks:
            return self.until
        if not self._count:
            # Nothing computes: it waits for a KV cache, or posts.
            if not self._stall and now < self.until:
                self.until = now
                self.version += 1
            return self.until
        if self._count == 1:
            return self.until
        elapsed = now - self._start - self._stall
        first = self.step.decode_base(self.decoding) + self.step.context_s * self.context
        growth = self.step.context_s * self.decoding
        if elapsed <= first:
            count = 1
        elif growth <= 0:
            count = ceil(elapsed / first - 1e-9)
        else:
            # elapsed = count * first + growth * count * (count - 1) / 2
            linear = first - growth / 2
            count = ceil((sqrt(linear * linear + 2 * growth * elapsed) - linear) / growth - 1e-9)
        if count < self._count:
            self._count = max(1, count)
            self.until = self._start + self._stall + self._stretch(self._count)
            self.version += 1
        return self.until

    def _arrived(self, now: float) -> None:
        """KV caches that are here and known: their requests make their first token in the coming step."""
        unseen = UNSEEN_STEPS[self.settings.async_scheduling] if self.decoding else 0
        while self.loading and self.loading[0][0] <= now + 1e-12:
            request = heappop(self.loading)[2]
            self.fetched.append(request)
            self.arrived.append((self.steps + unseen, request))
        while self.arrived and (self.arrived[0][0] <= self.steps or not self.decoding):
            if len(self.running) >= self.settings.max_num_seqs:
                return
            request = self.arrived.popleft()[1]
            self._joined.append(request)
            self.running[request] = None
            self.free += request.blocks
            request.blocks = 0
            # The last prompt token is computed again for its output.
            request.stored = request.isl - 1
            self._enter(request)

    def _room(self, now: float) -> int:
        """Decode steps for which the cache has blocks; preempts, last come first, until there is one."""
        if not self.decoding:
            return FOREVER
        block = self.block
        # Nobody needs more than a block more than its tokens fill: mostly that settles it.
        spare = self.free * block - self.context - self.decoding * (block - 1)
        if spare >= self.decoding:
            sure = spare // self.decoding
            if sure >= self.finishes[0][0] - self.steps:
                return sure
        while True:
            count = self._exact_room()
            if count:
                return count
            self._preempt(now)
            if not self.decoding:
                return FOREVER

    def _exact_room(self) -> int:
        block = self.block
        used = 0
        due = [0] * block  # how many start a new block in each of the coming steps
        for request in self.running:
            if request.blocks or request is self.partial:
                continue
            stored = request.stored + self.steps - request.since
            used += -(-stored // block)
            due[-stored % block] += 1
        left = self.free - used
        rounds, left = divmod(left, self.decoding)
        count = rounds * block
        for crossing in due:
            left -= crossing
            if left < 0:
                break
            count += 1
        return int(count)

    def _preempt(self, now: float) -> None:
        """The request that came last loses its cache and goes to the head of the queue."""
        request = next(reversed(self.running))
        self.preempted += 1
        request.preemptions += 1
        if request is self.partial:
            del self.running[request]
            self.partial = None
            self.free += request.blocks
            request.blocks = 0
        else:
            made = self.steps - request.since
            self._leave(request)
            request.done += made
            # All tokens made so far are prompt now, the last of which has no place in the cache yet.
            request.target = request.isl + request.done
            request.since = FOREVER  # what the heap of finishes still holds of it is void
        request.computed = 0
        request.cached = 0
        request.queued = now
        self.waiting.appendleft(request)

    def _admit(self, now: float) -> None:
        settings, block = self.settings, self.block
        budget = settings.max_num_batched_tokens - self.decoding
        if self.partial is not None:
            request = self.partial
            new = min(request.target - request.computed, budget)
            if new <= 0:
                return
            self._chunks.append((request, new))
            self.partial = None
            budget -= new
        if not self.waiting:
            return
        # An upper bound of what decoding requests hold, this step's tokens included.
        free = (
            self.free - ceil((self.context + self.decoding * block) / block) if self.decoding else self.free
        )
        while self.waiting and budget > 0 and len(self.running) < settings.max_num_seqs:
            request = self.waiting[0]
            blocks = -(-request.target // block)
            if blocks > free:
                return
            self.waiting.popleft()
            free -= blocks
            self.free -= blocks
            request.blocks = blocks
            if request.admitted < 0:
                request.admitted = now
            transfer = self.kind.transfer
            if transfer is not None and not request.preemptions:
                self._load(request, now)
                continue
            request.computed = min(request.cached, request.target - 1)
            new = min(request.target - request.computed, budget)
            self.running[request] = None
            self._chunks.append((request, new))
            budget -= new

    def _load(self, request: Request, now: float) -> None:
        transfer = self.kind.transfer
        if transfer is None:
            raise AssertionError("only an engine that fetches caches loads them")
        tokens = request.isl - request.remote_cached
        begun = now + self._stall
        self._stall += transfer.post(-(-tokens // self.block))
        self.wire_free = max(self.wire_free, begun) + transfer.wire(tokens)
        heappush(self.loading, (max(self.wire_free, now + self._stall), request.index, request))
