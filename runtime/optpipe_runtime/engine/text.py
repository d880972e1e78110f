"""From tokens to the text that a reader sees, one token at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..sampling import SamplingParams, StopChecker
from ..tokenizer import TextStream, Tokenizer


class TextState:
    """The text of one choice.

    Attributes:
        matched: the stop string that ended it, or None.

    Args:
        tokenizer: without one there is no text.
        prompt: token ids before the first; its end decides how the first is spelt.
        params: stop strings, and which tokens are shown.
        eos: the model's end tokens; those that end a text are not part of it.
    """

    __slots__ = ("_checker", "_hidden", "_min_tokens", "_seen", "_stream", "matched")

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        prompt: Sequence[int],
        params: SamplingParams,
        eos: Collection[int] = (),
    ) -> None:
        self.matched: str | None = None
        self._seen = 0
        self._min_tokens = params.min_tokens
        self._stream: TextStream | None = None
        if tokenizer is not None:
            self._stream = tokenizer.stream(prompt, skip_special_tokens=params.skip_special_tokens)
        hidden = () if params.include_stop_str_in_output else params.stop_token_ids
        self._hidden = frozenset(hidden) | (frozenset() if params.ignore_eos else frozenset(eos))
        self._checker: StopChecker | None = None
        if params.stop:
            self._checker = StopChecker(params.stop, include=params.include_stop_str_in_output)

    def push(self, token: int) -> str:
        """The text that a token completes; what may become a stop string is held back."""
        if self._stream is None or token in self._hidden:
            return ""
        text = self._stream.push(token)
        if self._checker is None:
            return text
        self._seen += 1
        shown = self._checker.push(text, armed=self._seen > self._min_tokens)
        self.matched = self._checker.matched
        return shown

    def flush(self) -> str:
        """What was held back, at the end of a text without a stop string."""
        return "" if self._checker is None or self.matched is not None else self._checker.flush()
