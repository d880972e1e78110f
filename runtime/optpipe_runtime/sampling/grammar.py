"""Grammars of structured output, by llguidance: which tokens may come next.

A grammar is compiled twice: first by a child process that may be killed (``grammar_check.py``), because a
schema or expression may be hostile; then here, within what the child has shown to be enough. The compiled
grammar is kept, and each sequence gets a copy of it.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optpipe.errors import CapacityError, RequestError

from .grammar_check import Checker
from .llguidance_adapter import load, matcher, tokenizer
from .structured import StructuredOutput

KEPT = 64  # compiled grammars, or reasons why they cannot be
KEPT_BYTES = 256 << 20
QUEUE = 8  # different grammars that are compiled or wait for it; one more is refused
SECONDS = 3.0  # that compiling may take


class Grammar:
    """Where one sequence stands in its grammar. Not for several threads at once."""

    __slots__ = ("_bits", "_matcher")

    def __init__(self, matcher: Any, words: int) -> None:
        self._matcher = matcher
        self._bits = np.empty(words, dtype=np.uint32)

    @property
    def stopped(self) -> bool:
        """Whether the text is whole and nothing may follow it."""
        return bool(self._matcher.is_stopped())

    @property
    def accepting(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting())

    def advance(self, token: int) -> None:
        """Take an output token into account.

        Raises:
            RequestError: the token does not fit, or the grammar became too complex.
        """
        if not self._matcher.consume_token(token):
            raise self._failed()

    def bits(self) -> NDArray[np.uint32]:
        """Which tokens may come: [ceil(V / 32)], token t has bit t % 32 of word t // 32.

        The array is written again by the next call.

        Raises:
            RequestError: the grammar became too complex, or the text has left it.
        """
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            raise self._failed()
        return self._bits

    def valid_prefix(self, tokens: Sequence[int]) -> int:
        """How many of these tokens may come next, from the first on. Drafts behind them are in vain."""
        return int(self._matcher.validate_tokens(list(tokens)))

    def fork(self) -> Grammar:
        """Another sequence that stands where this one does."""
        return Grammar(self._matcher.deep_copy(), len(self._bits))

    def _failed(self) -> RequestError:
        return RequestError(f"The text cannot go on by its grammar: {reason(self._matcher.get_error())}.")


class GrammarCompiler:
    """Compiles what requests ask for, for one tokenizer. Compiling waits; call it beside the engine's loop.

    Args:
        tokenizer_json: the content of ``tokenizer.json``.
        vocab_size: V, the width of the logits.
        eos: the tokens that end a text.
        seconds: that compiling may take.

    Raises:
        RequestError: llguidance is not installed, or cannot use this tokenizer.
    """

    def __init__(
        self, tokenizer_json: str, vocab_size: int, eos: Collection[int], *, seconds: float = SECONDS
    ) -> None:
        load()
        setup = {"tokenizer": tokenizer_json, "vocab_size": vocab_size, "eos": sorted(eos)}
        self._checker = Checker(json.dumps(setup), seconds)
        starter = threading.Thread(target=self._checker.start)  # both read the tokenizer, which takes long
        starter.start()
        try:
            self._tokenizer = tokenizer(tokenizer_json, vocab_size, sorted(eos))
        except RequestError:
            starter.join()
            self._checker.close()
            raise
        starter.join()
        self._words = -(-self._tokenizer.vocab_size // 32)
        self._kept: OrderedDict[tuple[str, str], _Compiled] = OrderedDict()
        self._pending: dict[tuple[str, str], Future[_Compiled]] = {}
        self._lock = threading.Lock()  # of both; nobody waits or works under it

    def knows(self, wanted: StructuredOutput) -> bool:
        """Whether ``compile`` answers at once."""
        return (wanted.kind, wanted.source) in self._kept

    def compile(self, wanted: StructuredOutput) -> Grammar:
        """A grammar at its beginning, for one sequence.

        Raises:
            RequestError: it is invalid, too large, or takes too long.
            CapacityError: too many others wait to be compiled.
            EngineError: the process that tries grammars cannot start.
        """
        key = (wanted.kind, wanted.source)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            pending = self._pending.get(key)
            mine = found is None and pending is None
            if mine:
                if len(self._pending) >= QUEUE:
                    raise CapacityError(
                        f"{len(self._pending)} other grammars are being compiled.", hint="try again later"
                    )
                pending = self._pending[key] = Future()
        if found is None:
            assert pending is not None, f"{key = } is neither kept nor pending"
            if mine:
                self._work(key, wanted, pending)
            found = pending.result()
        if found.grammar is None:
            raise RequestError(f"The {wanted.kind} cannot be compiled: {reason(found.error)}.")
        return found.grammar.fork()

    def close(self) -> None:
        """Let the child process go."""
        self._checker.close()

    def _work(self, key: tuple[str, str], wanted: StructuredOutput, pending: Future[_Compiled]) -> None:
        """Compile for everyone who waits; an error of ours is not kept."""
        try:
            found = self._compiled(wanted)
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            pending.set_exception(error)
            return
        with self._lock:
            del self._pending[key]
            self._kept[key] = found
            while len(self._kept) > KEPT or sum(it.bytes for it in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        pending.set_result(found)

    def _compiled(self, wanted: StructuredOutput) -> _Compiled:
        error, size = self._checker.check(wanted.kind, wanted.source)
        if error is not None:
            return _Compiled(None, error, 0)
        grammar = Grammar(matcher(self._tokenizer, wanted.kind, wanted.source), self._words)
        grammar.bits()  # the first is the slowest; copies start from what it has worked out
        return _Compiled(grammar, "", size)


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A grammar at its beginning, or why there is none; ``bytes`` that it takes, about."""

    grammar: Grammar | None
    error: str
    bytes: int


def reason(message: str) -> str:
    """The part of llguidance's message that says what is wrong, in one line.

    >>> reason('at 1(8): invalid regex: parse error:\\n  (\\nerror: unclosed group')
    'unclosed group'
    """
    lines = [line.strip() for line in message.splitlines() if line.strip() and "<non-verbose/>" not in line]
    said = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), None)
    if said is None and lines and lines[0].startswith("NoExtension"):
        return "no text fits it"
    return (said or (lines[0] if lines else "no reason is given"))[:200].rstrip(".")
