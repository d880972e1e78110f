"""The answers of /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..engine import Completion, Delta, RequestOutput, Usage
from ..sampling.logprobs import TokenLogprobs
from .logprobs import completion_logprobs, prompt_logprobs
from .prompts import PromptInput
from .style import Json, usage_json
from .token_text import TokenTexts

Entries = Sequence[TokenLogprobs | None] | None


@dataclass(frozen=True)
class CompletionOptions:
    """What of an answer was asked for.

    Attributes:
        name, model, created: of the answer.
        n: choices a prompt.
        echo: whether the prompt is part of the text.
        logprobs: whether log-probabilities are.
        prompt_logprobs: whether they are shown for the prompt, in a field of their own.
        nothing_new: whether only the prompt is wanted (``max_tokens`` 0): the one token that the engine makes
            all the same is not shown.
    """

    name: str
    model: str
    created: int
    n: int
    echo: bool = False
    logprobs: bool = False
    prompt_logprobs: bool = False
    nothing_new: bool = False


class CompletionStyle:
    """Writes text completions."""

    def __init__(self, options: CompletionOptions, prompts: Sequence[PromptInput], texts: TokenTexts) -> None:
        self._options, self._prompts, self._texts = options, prompts, texts
        self._prompt_entries: dict[int, Entries] = {}
        self._offsets: dict[int, int] = {}

    def opening(self) -> list[Json]:
        """Nothing: the first chunk has text."""
        return []

    def chunks(self, delta: Delta) -> list[Json]:
        """One chunk a delta that shows anything."""
        options, choice = self._options, delta.index
        place = choice // options.n
        if delta.prompt_logprobs is not None:
            self._prompt_entries[place] = delta.prompt_logprobs
        first = choice not in self._offsets
        text, tokens, entries = self._new(delta)
        if first and options.echo:
            text, tokens, entries = self._echoed(place, text, tokens, entries)
        if not (text or tokens or delta.finish_reason):
            return []
        found = self._choice(choice, text, tokens, entries, delta)
        if first and options.prompt_logprobs:
            found["prompt_logprobs"] = prompt_logprobs(self._texts, self._prompt_entries.get(place) or ())
        return [self._answer([found])]

    def usage_chunk(self, usage: Usage) -> Json:
        """No choice, and the usage."""
        return self._answer([]) | {"usage": usage_json(self._counted(usage))}

    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> Json:
        """All choices of all prompts."""
        choices = [
            self._whole_choice(place, output, completion)
            for place, output in enumerate(outputs)
            for completion in output.completions
        ]
        return self._answer(choices) | {"usage": usage_json(self._counted(usage))}

    def _whole_choice(self, place: int, output: RequestOutput, completion: Completion) -> Json:
        self._prompt_entries[place] = output.prompt_logprobs
        text, tokens, entries = self._new(completion)
        if self._options.echo:
            text, tokens, entries = self._echoed(place, text, tokens, entries)
        choice = place * self._options.n + completion.index
        found = self._choice(choice, text, tokens, entries, completion)
        if self._options.prompt_logprobs:
            found["prompt_logprobs"] = prompt_logprobs(self._texts, output.prompt_logprobs or ())
        return found

    def _new(self, delta: Delta | Completion) -> tuple[str, tuple[int, ...], Entries]:
        if self._options.nothing_new:
            return "", (), ()
        return delta.text, delta.token_ids, delta.logprobs

    def _echoed(
        self, place: int, text: str, tokens: tuple[int, ...], entries: Entries
    ) -> tuple[str, tuple[int, ...], Entries]:
        """The same with the prompt before it."""
        prompt = self._prompts[place]
        whole = (*(self._prompt_entries.get(place) or ()), *(entries or ()))
        return self._prompt_text(place) + text, prompt.ids + tokens, whole

    def _prompt_text(self, place: int) -> str:
        prompt = self._prompts[place]
        return self._texts.decode(prompt.ids) if prompt.text is None else prompt.text

    def _choice(
        self, choice: int, text: str, tokens: tuple[int, ...], entries: Entries, end: Delta | Completion
    ) -> Json:
        logprobs = None
        # With echo, the prompt's entries come with its first token; offsets count from the prompt's begin.
        default = 0 if self._options.echo else len(self._prompt_text(choice // self._options.n))
        offset = self._offsets.get(choice, default)
        if self._options.logprobs:
            logprobs = completion_logprobs(self._texts, tokens, entries or (), offset)
        self._offsets[choice] = offset + len(text)
        reason = "length" if self._options.nothing_new and end.finish_reason else end.finish_reason
        return {
            "index": choice,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": reason,
            "stop_reason": end.stop_reason,
        }

    def _answer(self, choices: list[Json]) -> Json:
        options = self._options
        return {
            "id": options.name,
            "object": "text_completion",
            "created": options.created,
            "model": options.model,
            "choices": choices,
        }

    def _counted(self, usage: Usage) -> Usage:
        return Usage(usage.prompt_tokens, 0, usage.cached_tokens) if self._options.nothing_new else usage
