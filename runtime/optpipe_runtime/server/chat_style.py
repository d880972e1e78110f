"""The answers of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..engine import Completion, Delta, RequestOutput, Usage
from .logprobs import chat_logprobs
from .style import Json, usage_json
from .token_text import TokenTexts
from .tool_calls import Call, CallFinder, calls_of, new_call


@dataclass(frozen=True)
class ChatOptions:
    """What of an answer was asked for.

    Attributes:
        name, model, created: of the answer.
        n: choices.
        logprobs: whether log-probabilities are shown.
        top_logprobs: alternatives a token.
        calls: how tools are called: not at all; "auto", wherever the text does; "required", by the whole
            text; "named", with the text as the arguments of ``function``.
        function: the one that must be called.
        parallel: whether one answer may make several calls.
    """

    name: str
    model: str
    created: int
    n: int
    logprobs: bool = False
    top_logprobs: int = 0
    calls: Literal["none", "auto", "required", "named"] = "none"
    function: str = ""
    parallel: bool = True


class _Turn:
    """One choice as it grows: text on one side, calls on the other."""

    def __init__(self, options: ChatOptions) -> None:
        self._options = options
        self._finder = CallFinder()
        self._whole = ""
        self.calls: list[Call] = []

    def push(self, text: str, *, last: bool) -> tuple[str, list[Call]]:
        """What can be shown of the text so far, and the calls that are complete. Not for "named"."""
        if self._options.calls == "none":
            return text, []
        if self._options.calls == "required":
            self._whole += text
            shown, calls = ("", calls_of(self._whole)) if last else ("", [])
            if last and not calls:  # cut short: the client sees what there is
                shown = self._whole
        else:
            shown, calls = self._finder.push(text)
            if last:
                more, late = self._finder.finish()
                shown, calls = shown + more, calls + late
        room = len(calls) if self._options.parallel else max(0, 1 - len(self.calls))
        self.calls += calls[:room]
        return shown, calls[:room]


class ChatStyle:
    """Writes turns of an assistant."""

    def __init__(self, options: ChatOptions, texts: TokenTexts) -> None:
        self._options, self._texts = options, texts
        self._turns = {i: _Turn(options) for i in range(options.n)}
        self._named: dict[int, Call] = {}

    def opening(self) -> list[Json]:
        """Who speaks, a choice each."""
        return [self._chunk(i, {"role": "assistant", "content": ""}) for i in range(self._options.n)]

    def chunks(self, delta: Delta) -> list[Json]:
        """Text, then calls, then the end."""
        named = self._options.calls == "named"
        change = self._arguments(delta) if named else self._text_and_calls(delta)
        ended = delta.finish_reason is not None
        if not change and not ended and not delta.logprobs:
            return []
        return [self._chunk(delta.index, change, delta)]

    def usage_chunk(self, usage: Usage) -> Json:
        """No choice, and the usage."""
        return self._answer("chat.completion.chunk", []) | {"usage": usage_json(usage)}

    def whole(self, outputs: Sequence[RequestOutput], usage: Usage) -> Json:
        """All choices."""
        (output,) = outputs
        choices = [self._choice(it) for it in output.completions]
        return self._answer("chat.completion", choices) | {"usage": usage_json(usage)}

    def _text_and_calls(self, delta: Delta) -> Json:
        turn = self._turns[delta.index]
        text, calls = turn.push(delta.text, last=delta.finish_reason is not None)
        change: Json = {"content": text} if text else {}
        if calls:
            first = len(turn.calls) - len(calls)
            change["tool_calls"] = [{"index": first + i} | it.json() for i, it in enumerate(calls)]
        return change

    def _arguments(self, delta: Delta) -> Json:
        """The text is the arguments: they stream."""
        begun = self._named.get(delta.index)
        if begun is None:
            call = self._named[delta.index] = new_call(self._options.function, delta.text)
            return {"tool_calls": [{"index": 0} | call.json()]}
        if not delta.text:
            return {}
        return {"tool_calls": [{"index": 0, "function": {"arguments": delta.text}}]}

    def _choice(self, completion: Completion) -> Json:
        turn = self._turns[completion.index]
        if self._options.calls == "named":
            text, calls = "", [new_call(self._options.function, completion.text)]
        else:
            text, calls = turn.push(completion.text, last=True)
        message: Json = {"role": "assistant", "content": text}
        if calls:
            message["content"] = text.strip() or None
            message["tool_calls"] = [it.json() for it in calls]
        return {
            "index": completion.index,
            "message": message,
            "logprobs": self._logprobs(completion),
            "finish_reason": self._reason(completion, turn),
            "stop_reason": completion.stop_reason,
        }

    def _chunk(self, index: int, change: Json, delta: Delta | None = None) -> Json:
        choice: Json = {"index": index, "delta": change, "logprobs": None, "finish_reason": None}
        if delta is not None:
            choice["logprobs"] = self._logprobs(delta)
            choice["finish_reason"] = self._reason(delta, self._turns[index])
            if delta.finish_reason is not None:
                choice["stop_reason"] = delta.stop_reason
        return self._answer("chat.completion.chunk", [choice])

    def _reason(self, end: Delta | Completion, turn: _Turn) -> str | None:
        """A model that ended in order, having called, waits for its tools."""
        return "tool_calls" if turn.calls and end.finish_reason == "stop" else end.finish_reason

    def _logprobs(self, delta: Delta | Completion) -> Json | None:
        if not self._options.logprobs:
            return None
        return chat_logprobs(self._texts, delta.logprobs or (), self._options.top_logprobs)

    def _answer(self, kind: str, choices: list[Json]) -> Json:
        options = self._options
        return {
            "id": options.name,
            "object": kind,
            "created": options.created,
            "model": options.model,
            "choices": choices,
        }
