"""How an engine is put together: memory first, then everything that a thread of its own will run."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from optpipe.errors import EngineError
from optpipe.targets.protocol import Executor

from ..core import Scheduler, SchedulerConfig
from ..sampling import Sampler
from ..sampling.grammar import QUEUE
from ..tokenizer import Tokenizer
from .batch import Batch
from .config import EngineConfig
from .drafting import make_speculator, open_draft_model
from .gate import Gate
from .intake import Intake
from .loop import Loop
from .memory import MemoryPlan, plan_memory
from .runner import Runner
from .whole_sequences import WholeSequences

log = logging.getLogger("optpipe.engine")
CLOSED = "The engine is closed."
STOP_SECONDS = 10.0  # that a step has to come back when the engine stops
_LOGITS_BYTES = 256 << 20  # of a step's rows of logits, about; prompts with log-probabilities go by it


@dataclass(frozen=True)
class Model:
    """What is served.

    Attributes:
        executor: of the artifact.
        tokenizer: or None; then prompts are token ids, and there is no text.
        eos: token ids that end a text.
        context: positions that the model takes, or None where it does not say.
        name: for people.
        target: that the executor is of; a draft model gets the same.
    """

    executor: Executor
    tokenizer: Tokenizer | None
    eos: frozenset[int]
    context: int | None
    name: str
    target: str = "auto"


@dataclass(frozen=True)
class Parts:
    """An engine's insides, running.

    Attributes:
        executor: with its cache.
        memory: how memory was divided.
        context_length: positions that a sequence may have.
        sampler, intake, gate, loop: see their files.
        threads: for what should keep no event loop waiting.
        grammar_threads: for those that wait for a grammar, so that they hold up no others.
    """

    executor: Executor
    memory: MemoryPlan
    context_length: int
    sampler: Sampler
    intake: Intake
    gate: Gate
    loop: Loop
    threads: ThreadPoolExecutor
    grammar_threads: ThreadPoolExecutor

    def shut(self) -> None:
        """Stop everything, whether the engine was closed or forgotten."""
        self.gate.shut(CLOSED)
        self.grammar_threads.shutdown(wait=False)
        self.threads.shutdown(wait=False)  # what waits for them is refused, not forgotten
        self.intake.close()
        if self.loop.stop(timeout=STOP_SECONDS):
            self.sampler.close()
        else:
            log.error("a step does not come back; its thread is left behind")
            self.loop.abandon(EngineError(CLOSED))


def put_together(model: Model, config: EngineConfig) -> Parts:
    """Plan the memory, allocate the cache, start the thread.

    Raises:
        CapacityError: weights, cache and workspace do not fit the machine.
        RequestError: the config names no proposer, or one that cannot work.
    """
    executor = model.executor
    if executor.cache_spec is None:
        log.warning("the artifact has no `paged` pass: every token computes its whole sequence again")
        executor = WholeSequences(executor)
    rows = max(config.max_num_seqs, min(2048, _LOGITS_BYTES // (4 * executor.vocab_size)))
    draft = open_draft_model(config, model.tokenizer, model.target)
    beside = None if draft is None else draft.executor
    memory = plan_memory(executor, config, rows=rows, context=model.context, draft=beside)
    log.info("%s", memory)
    executor.allocate(memory.num_blocks, kv_dtype=memory.kv_dtype)
    spec = executor.cache_spec
    assert spec is not None, "whole sequences have one too"
    most = spec.sequence_blocks
    blocks = memory.num_blocks if most is None else min(most, memory.num_blocks)
    limits = [blocks * memory.block_size, model.context, config.max_context]
    context_length = min(it for it in limits if it is not None)
    sampler = Sampler(executor.vocab_size, threads=config.sampler_threads)
    gate = Gate(config.max_num_seqs, config.max_waiting)
    scheduler = Scheduler(_scheduler_config(config, memory, rows))
    batch = Batch(memory.block_size, config.max_num_seqs, memory.num_blocks)
    speculator = make_speculator(
        config, model.eos, executor=executor, lender=scheduler, draft=draft, memory=memory
    )
    return Parts(
        executor=executor,
        memory=memory,
        context_length=context_length,
        sampler=sampler,
        intake=Intake(sampler, model.tokenizer, model.eos, context_length, config.seed),
        gate=gate,
        loop=Loop(scheduler, Runner(executor, sampler, batch), batch, speculator, gate, config),
        threads=ThreadPoolExecutor(config.intake_threads, thread_name_prefix="optpipe-intake"),
        grammar_threads=ThreadPoolExecutor(2 * QUEUE, thread_name_prefix="optpipe-grammar"),
    )


def _scheduler_config(config: EngineConfig, memory: MemoryPlan, rows: int) -> SchedulerConfig:
    return SchedulerConfig(
        num_blocks=memory.num_blocks,
        block_size=memory.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=max(config.max_num_batched_tokens, config.max_num_seqs),
        long_prefill_token_threshold=config.long_prefill_token_threshold,
        max_logit_rows=rows,
        watermark=config.watermark,
        policy=config.policy,
        prefix_caching=config.prefix_caching,
    )
