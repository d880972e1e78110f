"""The public test kit, for passes and whatever else rewrites or runs graphs.

    check_ir(pass, before, checks)      run a pass over a few lines of text, check the text of what it made
    check_text(graph, checks)           check any graph's text with filecheck
    assert_contract(model, pass)        optimize a whole model with the pass; its contract must hold
    tiny_model(name), save_tiny(name, folder), tiny_names(), mapping_names(), tiny_config(name),
    model_of(config), probe_tokens(config), weights_of(model)
                                        tiny random models of every architecture transformers knows
    TOLERANCES, tolerance(name)         how near is near enough, and why

Needs the extra ``optpipe[testing]`` for ``check_ir`` and ``check_text``. Importing it imports no torch.
"""

from __future__ import annotations

from .contract import assert_contract
from .ir import check_ir, check_text
from .tiny import (
    mapping_names,
    model_of,
    probe_tokens,
    save_tiny,
    tiny_config,
    tiny_model,
    tiny_names,
    weights_of,
)
from .tolerances import TOLERANCES, Tolerance, tolerance

__all__ = [
    "TOLERANCES",
    "Tolerance",
    "assert_contract",
    "check_ir",
    "check_text",
    "mapping_names",
    "model_of",
    "probe_tokens",
    "save_tiny",
    "tiny_config",
    "tiny_model",
    "tiny_names",
    "tolerance",
    "weights_of",
]
