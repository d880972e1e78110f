"""How many drafts pay: tokens they are expected to add against seconds they are expected to take.

For every sequence the gain of its first, second, … draft is known from measured acceptance, and the seconds
of a step from measured steps. A token is worth the seconds that it takes now; drafts are taken in the order
of their gains for as long as the worth of what they add exceeds the longer step. Since drafting makes tokens
cheaper, their worth is computed again from the answer until the two agree (Dinkelbach's method): that is the
highest number of tokens a second.

Estimates err, so there is an account as well. Whatever speculation costs beyond plain decoding is taken
from it, what it saves is paid in, and it earns ``ALLOWANCE`` of all time. While it is overdrawn nothing is
drafted, so the loss against plain decoding stays near the allowance, whatever the executor and the text do.

Where drafting does not pay by the estimates but the account is full, a single small draft is run now and
then: estimates that were spoilt, or never made, come right again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .step_cost import StepCost, size_class

ALLOWANCE = 0.01  # of the time, that trying may cost
CREDIT = 4.0  # plain steps: the account's start and most
DEBT = 2.0  # plain steps: the account's least
MARGIN = 0.01  # of a step: gains smaller than this are noise
TOLERANCE = 1.25  # of a step's usual seconds: what is more is noise, until it becomes usual
LOOK_SHARE = 0.0025  # of a plain step, that looking at proposals may take in debt
REFRESH = 256  # steps after which a plain step's cost is measured again
PROBE_EVERY = 32  # steps between drafts run only to learn; the first comes early
PROBE_GAIN = 0.2  # tokens: the least expectation with which one is run
MANY = 1 << 20  # asks: no limit
COUNTS = (
    *range(1, 9),
    *range(10, 17, 2),
    *range(20, 33, 4),
    *range(40, 65, 8),
    *range(80, 129, 16),
    192,
    256,
)


class Terms(NamedTuple):
    """What a proposal must bring, in tokens.

    Attributes:
        least: the gain of a draft that pays for its place in the step.
        fee: what asking costs, answered or not.
    """

    least: float
    fee: float


class Controller:
    """Chooses how many drafts each sequence has in the next step.

    Args:
        max_drafts: the most drafts a sequence and step.
    """

    def __init__(self, *, max_drafts: int = 8) -> None:
        assert max_drafts >= 1, f"{max_drafts = }"
        self.max_drafts = max_drafts
        self.cost = StepCost()
        self.balance: float | None = None  # seconds; None before the first plain step
        self._step = 0
        self._plain_at: dict[int, int] = {}  # size class → the last step without drafts

    def terms(self, decoding: int, load: int, ask_seconds: float) -> Terms | None:
        """On what terms proposals are worth asking for; None when nothing is to be drafted.

        Args:
            decoding: sequences that decode in the next step.
            load: other tokens of that step.
            ask_seconds: what asking for one sequence takes.
        """
        plain = self._plain(decoding, load)
        if plain is None or plain <= 0 or self._overdrawn():
            return None
        base, worth = decoding + load, self._worth(decoding)
        slope = min((self._seconds(base + n) - plain) / n for n in (1, 2, 4, 8, 16))
        least = max(slope, 0.0) / worth
        if self._may_probe():
            return Terms(min(least, PROBE_GAIN), 0.0)
        return Terms(least, ask_seconds / worth)

    def lengths(
        self, decoding: int, load: int, gains: Sequence[Sequence[float]], round_seconds: float = 0.0
    ) -> list[int]:
        """How many of the drafts on offer to run.

        Args:
            gains: for each sequence with an offer, what each of its drafts is expected to add, falling.
            round_seconds: what one more draft for all takes when it still has to be made; 0 when it is.
        """
        lengths = [0] * len(gains)
        plain = self._plain(decoding, load)
        if plain is None or self._overdrawn():
            return lengths
        order = sorted(
            ((gain, -place, i) for i, row in enumerate(gains) for place, gain in enumerate(row)), reverse=True
        )
        count = self._best_count(decoding, load, order, round_seconds)
        if not count and order and order[0][0] >= PROBE_GAIN and self._may_probe():
            count = self._probe_size(decoding + load, plain)
        for _, _, i in order[:count]:
            lengths[i] += 1
        return lengths

    def may_spend(self, seconds: float) -> bool:
        """Whether the account allows something that only teaches."""
        return self.balance is not None and self.balance > seconds

    def may_look(self, decoding: int, seconds: float) -> bool:
        """Whether to compare proposals, that take so long, with what comes: cheap ones even in debt."""
        return self.may_spend(seconds) or 0 <= seconds < LOOK_SHARE * decoding * self._worth(decoding)

    def most_asks(self, ask_seconds: float | None) -> int:
        """How many proposals the account can bear if none is of use; one while their cost is unknown."""
        if ask_seconds is None:
            return 1
        return MANY if ask_seconds <= 0 else max(1, min(MANY, int((self.balance or 0.0) / ask_seconds)))

    def observe(
        self, *, tokens: int, drafts: int, decoding: int, produced: int, seconds: float, overhead: float
    ) -> None:
        """Learn from a step.

        Args:
            tokens: that it ran, the drafts among them.
            decoding: sequences that were sampled.
            produced: tokens that they got.
            seconds: that the step took.
            overhead: seconds that proposing for it took.
        """
        self._step += 1
        self.cost.observe(tokens, seconds)
        if decoding and self.balance is not None:
            # Costs are medians, so a step that a pause made long must not be booked in full either.
            usual = self._seconds(tokens)
            seconds = min(max(seconds, usual / TOLERANCE), usual * TOLERANCE)
            self._book(tokens - drafts, drafts, decoding, produced - decoding, seconds, overhead)
        if not drafts:
            self._plain_at[size_class(tokens)] = self._step
            if decoding and self.balance is None:
                self.balance = CREDIT * seconds

    def _book(
        self, base: int, drafts: int, decoding: int, extra: int, seconds: float, overhead: float
    ) -> None:
        step = decoding * self._worth(decoding)
        loss = overhead
        if drafts:
            loss += seconds - self._seconds(base) - extra * self._worth(decoding)
        assert self.balance is not None, "an account without a start"
        self.balance += ALLOWANCE * seconds - min(loss, CREDIT * step)
        self.balance = max(-DEBT * step, min(CREDIT * step, self.balance))

    def _best_count(
        self, decoding: int, load: int, order: Sequence[tuple[float, int, int]], round_seconds: float
    ) -> int:
        """How many drafts, best first, give the most tokens a second."""
        sums, depths = [0.0], [0]
        for gain, place, _ in order:
            sums.append(sums[-1] + gain)
            depths.append(max(depths[-1], 1 - place))
        base = decoding + load
        plain = self._seconds(base)
        counts = [n for n in COUNTS if n < len(order)] + [len(order)]
        costs = [max(0.0, self._seconds(base + n) - plain) + depths[n] * round_seconds for n in counts]
        worth, best = self._worth(decoding), 0
        for _ in range(4):
            net, chosen = MARGIN * plain, 0
            for n, cost in zip(counts, costs, strict=True):
                if worth * sums[n] - cost > net:
                    net, chosen = worth * sums[n] - cost, n
            if chosen == best:
                break
            best = chosen
            spent = self._seconds(decoding + best) + depths[best] * round_seconds
            worth = min(worth, spent / (decoding + sums[best]))
        return best

    def _probe_size(self, base: int, plain: float) -> int:
        """A step that differs enough from the plain one to be measured, if the account can bear it."""
        size = max(1, base // 8)
        longer = self._seconds(base + size) - plain
        return size if self.may_spend(2 * longer) else 0

    def _may_probe(self) -> bool:
        return self._step % PROBE_EVERY == 2 and self.may_spend(0.0)

    def _plain(self, decoding: int, load: int) -> float | None:
        """Seconds of the next step without drafts; None where that is to be measured first."""
        seen = self._plain_at.get(size_class(decoding + load))
        if seen is None or self._step - seen > REFRESH:
            return None
        return self._seconds(decoding + load)

    def _worth(self, decoding: int) -> float:
        """Seconds that a token takes by plain decoding."""
        return self._seconds(decoding) / decoding

    def _seconds(self, tokens: int) -> float:
        return self.cost.seconds(tokens) or 0.0

    def _overdrawn(self) -> bool:
        return self.balance is None or self.balance < 0


class FixedController(Controller):
    """Always as many drafts as there are, up to ``max_drafts``: for tests and for measuring."""

    def may_look(self, decoding: int, seconds: float) -> bool:
        """Whether to compare proposals, that take so long, with what comes: cheap ones even in debt."""
        return self.may_spend(seconds) or 0 <= seconds < LOOK_SHARE * decoding * self._worth(decoding)

    def most_asks(self, ask_seconds: float | None) -> int:
        """See :class:`Controller`."""
        return MANY

    def terms(self, decoding: int, load: int, ask_seconds: float) -> Terms:
        """See :class:`Controller`."""
        return Terms(0.0, 0.0)

    def lengths(
        self, decoding: int, load: int, gains: Sequence[Sequence[float]], round_seconds: float = 0.0
    ) -> list[int]:
        """See :class:`Controller`."""
        return [len(row) for row in gains]
