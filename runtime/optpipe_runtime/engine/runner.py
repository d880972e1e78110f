"""One step of the executor: the plan's arrays in, sampled tokens out; the next one meanwhile, if it can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import KernelError, OptpipeError
from optpipe.targets.protocol import Executor, StepHandle, StepResult, draws_tokens, feeds_tokens

from ..core import StepPlan
from ..sampling import Group, Sampled, Sampler, draws_of
from .batch import Batch
from .request import Choice


@dataclass(frozen=True)
class Flight:
    """A step under way.

    Attributes:
        plan: what of it is still wanted.
        handle: the executor's.
        rows: of the step as it was submitted.
        decided: the tokens that the executor gives are those that are sampled.
        taken: the rows of ``plan``; None for all.
    """

    plan: StepPlan
    handle: StepHandle
    rows: int
    decided: bool
    taken: tuple[int, ...] | None = None

    def narrowed(self, plan: StepPlan) -> Flight:
        """Without the sequences that are not in ``plan``; a step with a row a sequence."""
        wanted = {step.sequence.id for step in plan.steps}
        rows = [row for row, step in enumerate(self.plan.steps) if step.sequence.id in wanted]
        return Flight(plan, self.handle, self.rows, self.decided, tuple(rows))


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
        self._draws = draws_tokens(executor)

    def may_follow(self, flight: Flight, choices: Mapping[int, Choice]) -> bool:
        """Whether the next step can be submitted before this one's tokens are known, and is better for it.

        It is not where those tokens change the rules of the next ones, as penalties do: the executor draws
        from rows by such rules when they are known, and without them the host would have to.
        """
        if not flight.decided or not feeds_tokens(self._executor):
            return False
        states = (choices[step.sequence.id].state for step in flight.plan.steps if step.samples)
        return not self._draws or all(it.drawable(ahead=True) or not it.drawable() for it in states)

    def start(self, plan: StepPlan, choices: Mapping[int, Choice], *, after: Flight | None = None) -> Flight:
        """Submit a step.

        Args:
            plan: with choices for all its sequences.
            choices: by sequence id.
            after: the step whose tokens this one takes, where it was planned ahead.

        Raises:
            Exception: whatever the executor raises; no state has changed then.
        """
        sampled = [step for step in plan.steps if step.samples]
        states = [choices[step.sequence.id].state for step in sampled]
        alone = plan.num_rows == sum(1 + step.drafts for step in sampled)
        greedy = alone and not any(state.needs_logits for state in states)
        draws = None
        if self._draws and not greedy and alone and not any(step.drafts for step in sampled):
            draws = draws_of(states, ahead=after is not None)
        inputs = self._batch.build(plan)
        if after is not None and after.taken is not None:  # rows of the plan, and those of the executor
            rows = np.asarray(after.taken)[-1 - inputs.token_ids]
            inputs = replace(inputs, token_ids=-1 - rows)
        if draws is not None:
            handle = self._executor.submit(inputs, logits=False, draws=draws)  # type: ignore[call-arg]
        else:
            handle = self._executor.submit(inputs, logits=not greedy)
        return Flight(plan, handle, plan.num_rows, greedy or draws is not None)

    def finish(self, flight: Flight, choices: Mapping[int, Choice]) -> list[Sampled]:
        """Wait for a step and sample from it; prompt log-probabilities go to their requests.

        A choice whose prompt cannot be scored has its ``failure`` set; the step goes on.

        Args:
            choices: by sequence id, for all sequences of the flight's plan.

        Returns:
            one for each step of the plan that ``samples``, in order.

        Raises:
            Exception: whatever the executor raises; no state has changed then.
        """
        plan = flight.plan
        groups = [
            Group(choices[step.sequence.id].state, step.tokens[-step.drafts :] if step.drafts else ())
            for step in plan.steps
            if step.samples
        ]
        result = flight.handle.result()
        if flight.decided:
            ids, logprobs = _ids(result, flight.rows), result.logprobs
            if flight.taken is not None:
                taken = list(flight.taken)
                ids, logprobs = ids[taken], None if logprobs is None else logprobs.rows(taken)
            return self._sampler.sample_greedy(ids, groups, logprobs)
        logits = _logits(result, flight.rows)
        if plan.num_rows > sum(1 + len(group.drafts) for group in groups):
            return self._sample_some(plan, choices, groups, logits)
        return self._sampler.sample(logits, groups)

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
