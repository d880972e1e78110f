"""One step of the executor: the plan's arrays in, sampled tokens out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import KernelError, OptpipeError
from optpipe.targets.protocol import Executor, StepResult

from ..core import StepPlan
from ..sampling import Group, Sampled, Sampler
from .batch import Batch
from .request import Choice


class Runner:
    """Runs plans.

    Args:
        executor: of a paged artifact, its cache allocated.
        sampler: of the same vocabulary.
        batch: of the executor's block size.
    """

    def __init__(self, executor: Executor, sampler: Sampler, batch: Batch) -> None:
        self._executor = executor
        self._sampler = sampler
        self._batch = batch

    def run(self, plan: StepPlan, choices: Mapping[int, Choice]) -> list[Sampled]:
        """Compute a step and sample from it; prompt log-probabilities go to their requests.

        A choice whose prompt cannot be scored has its ``failure`` set; the step goes on.

        Args:
            plan: with choices for all its sequences.
            choices: by sequence id.

        Returns:
            one for each step of the plan that ``samples``, in order.

        Raises:
            Exception: whatever the executor raises; no state has changed then.
        """
        groups: list[Group] = []
        sampled_rows = 0
        greedy = True
        for step in plan.steps:
            if step.samples:
                state = choices[step.sequence.id].state
                greedy = greedy and not state.needs_logits
                groups.append(Group(state, step.tokens[-step.drafts :] if step.drafts else ()))
                sampled_rows += 1 + step.drafts
        scores = plan.num_rows > sampled_rows
        result = self._executor.submit(self._batch.build(plan), logits=scores or not greedy).result()
        if scores:
            return self._sample_some(plan, choices, groups, _logits(result, plan.num_rows))
        if greedy:
            return self._sampler.sample_greedy(_ids(result, plan.num_rows), groups)
        return self._sampler.sample(_logits(result, plan.num_rows), groups)

    def _sample_some(
        self,
        plan: StepPlan,
        choices: Mapping[int, Choice],
        groups: list[Group],
        logits: NDArray[np.float32],
    ) -> list[Sampled]:
        """Split rows of prompt tokens, which are scored, from those to be sampled from."""
        taken = np.ones(plan.num_rows, dtype=np.bool_)
        row = 0
        for step in plan.steps:
            count = step.rows - (1 + step.drafts if step.samples else 0)
            if count:
                self._score(choices[step.sequence.id], step, logits[row : row + count])
                taken[row : row + count] = False
            row += step.rows
        return self._sampler.sample(logits[taken], groups)

    def _score(self, choice: Choice, step: Any, logits: NDArray[np.float32]) -> None:
        """Enter the log-probabilities of the tokens behind some prompt tokens."""
        request, first = choice.request, step.begin + len(step.tokens) - step.rows
        if request.prompt_logprobs is None or choice.index:
            return
        following = request.prompt[first + 1 : first + 1 + len(logits)]
        assert len(request.prompt_logprobs) == first + 1, f"{len(request.prompt_logprobs) = }, {first = }"
        top = request.params.prompt_logprobs or 0
        try:
            request.prompt_logprobs += self._sampler.prompt_logprobs(logits, following, top)
        except OptpipeError as error:  # its rows are not numbers: no matter of its neighbours
            choice.failure = error


def _logits(result: StepResult, rows: int) -> NDArray[np.float32]:
    if result.logits is None or len(result.logits) != rows:
        raise KernelError(f"The executor was asked for {rows} rows of logits and gave another number.")
    return result.logits


def _ids(result: StepResult, rows: int) -> NDArray[np.int64]:
    if len(result.token_ids) != rows:
        raise KernelError(f"The executor was asked for {rows} tokens and gave {len(result.token_ids)}.")
    return result.token_ids
