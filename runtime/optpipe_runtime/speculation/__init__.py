"""Speculation: several tokens a step, the same text.

A step of a large model takes nearly as long for four tokens as for one, since it is the weights that must be
read. So a cheap *proposer* guesses the next tokens of a sequence, one step of the model checks them all, and
those that the model would have chosen itself are kept, with the model's own choice at the first difference:
1 to 1 + k tokens a step instead of 1.

    drafts = speculator.drafts(scheduler.decoding(), load=…)
    plan = scheduler.plan(drafts)
    …                                         # run it, sample it, commit it
    speculator.observe(plan, outcomes, seconds)

**The text stays the same.** Every proposer here is a deterministic function of what it has seen, so its
distribution q is 1 at its guess x. Exact rejection sampling accepts x with probability min(1, p(x) / q(x)) =
p(x), and otherwise samples from norm(max(0, p - q)), which is p without x. Drawing y from p and keeping the
guess when y = x is the same thing. p is what the sampler makes of the logits at that place: after penalties
(with the guesses before it counted), temperature, top-k, top-p, min-p and the grammar. The random number at
a place belongs to the request's seed and the place, so seeded text is the same with speculation and without,
token for token.

**Proposers** (:mod:`.proposer` is their protocol):

- ``ngram`` (:mod:`.ngram`) copies what followed the longest earlier match of the text's end. For edits,
  quotes, code. A few microseconds.
- ``suffix`` (:mod:`.suffix`) continues as the text and recent outputs of other requests most often did;
  longer where it is sure. For agents, templates, repeated questions. Requests with different salts never
  learn from each other. 10 to 20 microseconds.
- ``draft`` (:mod:`.draft`) runs a second model of the same vocabulary, such as the same model at 4 bits.
- ``layers`` (:mod:`.layers`) runs the first layers of the model itself, in the same cache.

**How many** guesses a sequence gets is decided before each step (:mod:`.controller`) from what is measured:
the acceptance of guesses, by place and sequence (:mod:`.acceptance`), and the seconds of a step by its number
of tokens (:mod:`.step_cost`). The number that gives the most tokens a second wins; it falls as load rises and
is 0 where guessing does not pay. A sequence at 0 is asleep: now and then a proposal for it is only compared
with what comes, which costs microseconds and no step, and a good one wakes it. An account of what was lost or
won bounds the loss against plain decoding.

**Limits.** A draft model's tokens are its likeliest, not samples: at high temperatures fewer are kept than
sampled drafts would be. Logits of a step with guesses may differ from those without in the last bits where
the target's arithmetic depends on the batch (``Executor.batch_invariant``); then so may a close choice.
"""

from .controller import Controller, FixedController
from .draft import DraftProposer, check_vocabularies
from .layers import LayersProposer, Lender
from .ngram import NgramProposer
from .proposer import Ask, Proposer
from .speculator import SpeculationStats, Speculator
from .suffix import SuffixProposer

__all__ = [
    "Ask",
    "Controller",
    "DraftProposer",
    "FixedController",
    "LayersProposer",
    "Lender",
    "NgramProposer",
    "Proposer",
    "SpeculationStats",
    "Speculator",
    "SuffixProposer",
    "check_vocabularies",
]
