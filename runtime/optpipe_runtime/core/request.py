"""One growing sequence of tokens: what the scheduler schedules.

A request with n > 1 is n sequences. The engine makes them and reads them; only the scheduler writes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class Status(Enum):
    """Where a sequence is in its life.

    WAITING → RUNNING → FINISHED; preemption leads from RUNNING back to WAITING, and an abort from anywhere to
    FINISHED (in the middle of a step: when the step is committed or rolled back).
    """

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """A prompt and what was generated after it.

    Two sequences are equal only when they are the same object.

    Attributes:
        id: names it to the scheduler; never used twice.
        tokens: the prompt and every committed token. Grows at the end, never changes otherwise.
        prompt_len: how many of ``tokens`` are the prompt.
        max_len: ``tokens`` never gets longer; at this length the sequence is finished. Prompt + max_tokens,
            within the context; ``Scheduler.add`` lowers it to what the whole cache can hold.
        arrival: who came first; a counter of the engine's. Sequences of one request may share it; then a
            late one of them goes before requests that came after it, at the cost of their blocks if need be.
        priority: lower numbers go first where the policy looks at it, as vLLM has it.
        salt: sequences find each other's cached blocks only when their salts are equal.
        prompt_rows: whether the logits of every prompt token are wanted (prompt_logprobs).
        status: see :class:`Status`.
        computed: how many tokens, from the first, have their keys and values in the cache.
        blocks: the cache blocks of those tokens, in order; while a step is out also of the step's tokens.
            Between steps there are just enough for ``computed``. While it runs the list only grows and
            shrinks at its end; a preemption empties it, and so does the end (which sets ``computed`` to 0).
        cached: prompt tokens that were found in the prefix cache when it was first admitted.
        preemptions: how often it lost its blocks and had to start over.
        scored: prompt tokens whose logits were handed out already (with ``prompt_rows``).
        order: its place in the line, from the policy: smaller goes first.
        digests: of its leading full blocks, as far as they were needed.
        registered: how many leading blocks the prefix cache was told of, or gave.
    """

    __slots__ = (
        "arrival",
        "blocks",
        "cached",
        "computed",
        "digests",
        "id",
        "max_len",
        "order",
        "preemptions",
        "priority",
        "prompt_len",
        "prompt_rows",
        "registered",
        "salt",
        "scored",
        "status",
        "tokens",
    )

    def __init__(
        self,
        id: int,  # noqa: A002 - what it is called in every file of this room
        prompt: Iterable[int],
        *,
        max_len: int,
        arrival: int = 0,
        priority: int = 0,
        salt: bytes = b"",
        prompt_rows: bool = False,
    ) -> None:
        self.id = id
        self.tokens = list(prompt)
        self.prompt_len = len(self.tokens)
        self.max_len = max_len
        self.arrival = arrival
        self.priority = priority
        self.salt = salt
        self.prompt_rows = prompt_rows
        self.status = Status.WAITING
        self.computed = 0
        self.blocks: list[int] = []
        self.cached = 0
        self.preemptions = 0
        self.scored = 0
        self.order: tuple[int, ...] = ()
        self.digests: list[bytes] = []
        self.registered = 0

    def __repr__(self) -> str:
        return (
            f"Sequence({self.id}, {self.status.value}, {self.computed} of {len(self.tokens)} tokens computed,"
            f" {len(self.blocks)} blocks)"
        )
