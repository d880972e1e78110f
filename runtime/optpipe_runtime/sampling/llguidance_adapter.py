"""The few calls of llguidance that are used, behind names of our own. Imported when they are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optpipe.errors import RequestError

# Work that a grammar may cause, about 10 ms a token. A request that needs more ends with an error.
LIMITS = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,  # errors would show the schema to whoever reads the log
}
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,64}"  # between JSON tokens; without a bound, small models never leave it


def load() -> Any:
    """The library.

    Raises:
        RequestError: it is not installed.
    """
    try:
        import llguidance
    except ImportError:
        raise RequestError(
            "Structured output needs llguidance, which is not installed.",
            hint="pip install 'optpipe[structured]'",
        ) from None
    return llguidance


def tokenizer(tokenizer: str, vocab_size: int, eos: Sequence[int]) -> Any:
    """The library's view of a tokenizer.

    Args:
        tokenizer: the content of ``tokenizer.json``.
        vocab_size: of the logits; tokens past the tokenizer's own never come.
        eos: the tokens that end a text; the tokenizer's own when there is none.

    Raises:
        RequestError: the library cannot use it.
    """
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_str(tokenizer)
        known = max(backend.get_vocab().values()) + 1
        if backend.padding or backend.truncation:
            backend.no_padding()
            backend.no_truncation()
            tokenizer = backend.to_str()  # takes seconds where the vocabulary is large
        return load().LLTokenizer(tokenizer, n_vocab=max(vocab_size, known), eos_token=list(eos) or None)
    except RequestError:
        raise
    except Exception as error:  # the libraries raise bare exceptions
        raise RequestError(
            f"Structured output cannot use this model's tokenizer: {str(error).splitlines()[0]}."
        ) from None


def matcher(tokenizer: Any, kind: str, source: str) -> Any:
    """A grammar at its beginning; what is wrong with it is in its ``get_error()``."""
    library = load()
    options = {"whitespace_pattern": WHITESPACE}
    if kind == "regex":
        grammar = library.LLMatcher.grammar_from_regex(source)
    elif kind == "grammar":
        grammar = library.LLMatcher.grammar_from_lark(source)
    else:
        schema = source if kind == "json_schema" else '{"type": "object"}'
        grammar = library.LLMatcher.grammar_from_json_schema(schema, overrides=options)
    limits = library.LLParserLimits(**LIMITS)
    return library.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
