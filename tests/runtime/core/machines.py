"""How the state machines are run: the same steps every time, and at least as many as asked for."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

STEPS_A_RUN = 100


def run_machine(machine: type[RuleBasedStateMachine], *, steps: int) -> None:
    """Run rules of a machine with an invariant named ``agrees``, which is checked after each.

    Raises:
        AssertionError: it failed, or fewer than ``steps`` rules were run.
    """
    checked = 0

    class Counting(machine):  # type: ignore[misc, valid-type]
        def check_invariants(self, *args: object, **kwargs: object) -> None:
            nonlocal checked
            checked += 1
            super().check_invariants(*args, **kwargs)

    Counting.__name__ = Counting.__qualname__ = machine.__name__
    run_state_machine_as_test(
        Counting,
        settings=settings(
            max_examples=steps * 7 // (STEPS_A_RUN * 4),  # some runs are short
            stateful_step_count=STEPS_A_RUN,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert checked >= steps, f"only {checked} steps were run"
