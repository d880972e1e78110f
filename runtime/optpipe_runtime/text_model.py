"""An artifact that is ready to talk: its executor, tokenizer and chat template together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optpipe
from optpipe.errors import RequestError
from optpipe.targets.protocol import Executor

from .chat import render_chat
from .generate import Generated, generate
from .sampling_simple import Sampling
from .tokenizer import Tokenizer, context_length, load_tokenizer, stop_ids


@dataclass(frozen=True)
class TextModel:
    """A loaded artifact with everything that turns text into text.

    Attributes:
        executor: computes logits.
        tokenizer: text to tokens and back.
        stop: token ids that end a text.
        context: the most positions, or None when the config does not say.
    """

    executor: Executor
    tokenizer: Tokenizer
    stop: frozenset[int]
    context: int | None

    @property
    def paged(self) -> bool:
        """Whether the artifact has a cache; without one each token computes the whole text again."""
        return self.executor.cache_spec is not None

    def prompt_ids(self, prompt: str, *, raw: bool = False, system: str | None = None) -> list[int]:
        """Token ids of a prompt: as one turn of a chat when the model has a template, unless ``raw``.

        Raises:
            RequestError: the prompt is not text, or the template refuses the messages.
        """
        try:
            f"{prompt}{system or ''}".encode()
        except UnicodeEncodeError:
            raise RequestError("The prompt is not valid UTF-8 text.") from None
        if raw or self.tokenizer.chat_template is None:
            return self.tokenizer.encode(prompt)
        messages: list[Mapping[str, Any]] = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return self.tokenizer.encode(render_chat(self.tokenizer, messages), add_special_tokens=False)

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        on_text: Callable[[str], None] = lambda text: None,
    ) -> tuple[str, Generated]:
        """Continue token ids. ``on_text`` gets each piece of text once its characters are whole.

        Returns:
            the new text, and what is known about it.

        Raises:
            RequestError: the prompt or a setting is out of range.
        """
        stream = self.tokenizer.stream(prompt)
        pieces: list[str] = []

        def on_token(token: int) -> None:
            if piece := stream.push(token):
                pieces.append(piece)
                on_text(piece)

        result = generate(
            self.executor,
            prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=self.stop,
            context=self.context,
            on_token=on_token,
        )
        return "".join(pieces), result


def open_text_model(
    folder: str | os.PathLike[str], *, target: str = "reference", device: str = "cpu"
) -> TextModel:
    """Load an artifact and its tokenizer.

    Args:
        folder: an artifact, as ``optpipe optimize`` writes it.
        target: the name of the target that runs it.
        device: where, as torch names devices.

    Raises:
        ArtifactError: the artifact is missing, damaged or too new, or has no tokenizer.
    """
    path = Path(folder)
    executor = optpipe.load(path, target=target, device=device)
    tokenizer = load_tokenizer(path)
    return TextModel(executor, tokenizer, stop_ids(path, tokenizer), context_length(path))
