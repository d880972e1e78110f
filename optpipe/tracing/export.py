"""Run ``torch.export``: one sequence of any length, or as many tokens as the model has positions."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from ..errors import OptpipeError, TraceError
from .explain import explain

MAX_TOKENS = 1 << 20
POSITION_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
TRIED_LENGTHS = (*range(1, 300), 511, 512, 513, 1023, 4096, 65537)  # at which a kept condition must hold


def exported(wrapped: nn.Module, tokens: int) -> torch.export.ExportedProgram:
    """The program of a model over input_ids [1, T] and position_ids [1, T], without in-place operations.

    A model with a table of positions has a largest T. A condition on T that torch cannot settle by algebra
    is kept in the program and settled by trying it.

    Args:
        wrapped: takes the two inputs; its ``model_`` is the model.
        tokens: T of the example.

    Raises:
        TraceError: says why the model cannot be exported.
    """
    model = wrapped.model_
    assert isinstance(model, nn.Module), f"{type(model) = } must be a module"
    ways = [(MAX_TOKENS, False)]
    limit = _most_tokens(model, tokens)
    if limit is not None:
        ways.append((limit, False))
    ways.append((MAX_TOKENS, True))
    first: Exception | None = None
    for most, keep in ways:
        try:
            with quiet():
                program = functional(_export(wrapped, tokens, most, keep))
            if not keep or _holds_everywhere(program):
                return program
        except OptpipeError:
            raise
        except Exception as error:  # torch raises many kinds
            first = first or error
            if "Constraints violated" not in str(error):
                break
    assert first is not None, "an export fails with an error"
    raise TraceError(f"{type(model).__name__} cannot be traced: {explain(model, first)}.") from first


def _export(wrapped: nn.Module, tokens: int, most: int, keep: bool) -> torch.export.ExportedProgram:
    count = torch.export.Dim("T", min=2, max=most)
    example = (torch.zeros(1, tokens, dtype=torch.long), torch.arange(tokens)[None])
    return torch.export.export(
        wrapped,
        example,
        dynamic_shapes=({1: count}, {1: count}),
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=keep,
    )


def _most_tokens(model: nn.Module, tokens: int) -> int | None:
    """One less than the number of positions in the model's config: below it no table is too short."""
    config = getattr(model, "config", None)
    found = (getattr(config, name, None) for name in POSITION_LIMITS)
    return next((limit - 1 for limit in found if isinstance(limit, int) and limit > tokens), None)


def _holds_everywhere(program: torch.export.ExportedProgram) -> bool:
    """Whether every condition that the program asserts is true of one token and of many."""
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target is torch.ops.aten._assert_scalar.default:
            condition = node.args[0].meta["val"] if isinstance(node.args[0], fx.Node) else node.args[0]
            if not _holds(condition):
                return False
    return True


def _holds(condition: Any) -> bool:
    if not isinstance(condition, torch.SymBool):
        return bool(condition)
    expression: Any = condition.node.expr
    symbols = list(expression.free_symbols)
    if len(symbols) != 1:
        return not symbols and bool(expression)
    return all(bool(expression.xreplace({symbols[0]: tokens})) for tokens in TRIED_LENGTHS)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No deprecations from within torch, and not the graph so far, which it prints when an export fails."""
    import torch.export._trace as exporter

    exporter.print = lambda *args, **kwargs: None  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        del exporter.print  # type: ignore[attr-defined]


def functional(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program without in-place operations on intermediate values."""
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            decomposed: torch.export.ExportedProgram = program.run_decompositions({})
            return decomposed
    return program
