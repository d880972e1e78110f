"""Hold a traced graph against the model it came from, and set up what passes are measured with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import TraceError
from ..graph.nodes import is_call, value
from ..pipeline import checks
from ..pipeline.checks import Finding
from ..pipeline.manager import Measured, stored_bytes
from ..pipeline.probes import Logits, Probe, Probes, Stored, measure_noise
from ..weights.cache import WeightCache
from .eager import EagerModel, forward_parameters, position_offset
from .trace import Traced

if TYPE_CHECKING:
    from ..sources.source import ModelSource

CACHE_BYTES = 150_000_000  # of weights kept between runs, and a share of the checkpoint on top
CACHE_SHARE = 0.6
TOGETHER_SHARE = 0.2  # of the checkpoint, for logits of probes that run side by side
CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx")


def probes_for(
    model: nn.Module, source: ModelSource, traced: Traced, calibration: str | None = None
) -> Probes:
    """Text to measure a model on: longer than its windows, in its own tokens when it brings a tokenizer."""
    output = next(node for node in traced.gm.graph.nodes if node.op == "output").args[0]
    spans = [
        int(node.kwargs.get(name) or 0)
        for node in traced.gm.graph.nodes
        if is_call(node, torch.ops.optpipe.attention)
        for name in ("window", "chunk")
    ]
    text = source.config.get("text_config", source.config)
    context = next((text[name] for name in CONTEXT if isinstance(text.get(name), int)), None)
    return Probes(
        int(value(output).shape[-1]),
        _encoder(source),
        span=max(spans, default=0),
        context=context,
        positions=0 if traced.counts else _positions(model, context),
        calibration=calibration,
        together=int(TOGETHER_SHARE * source.bytes),
    )


def _positions(model: nn.Module, context: int | None) -> int:
    """How many positions a model with a known context can be told; 0 when it counts tokens itself."""
    if context is None or "position_ids" not in forward_parameters(model):
        return 0
    return max(context - position_offset(model), 0)


def _encoder(source: ModelSource) -> Callable[[str], list[int]] | None:
    content = source.read("tokenizer.json")
    if content is None:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(content.decode("utf-8"))
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def check_trace(
    model: nn.Module, source: ModelSource, traced: Traced, probes: Probes
) -> tuple[Measured, tuple[Finding, ...]]:
    """Run the model itself on the probes and hold the traced graph against it.

    Raises:
        TraceError: they differ by more than the model differs from itself.
    """

    cache = WeightCache(CACHE_BYTES + int(CACHE_SHARE * source.bytes))
    eager = EagerModel(model, source.weights, "eager", cache).logits
    exact = _logits(eager, probes, probes.exact)
    far = [probes.keep(eager(probe.ids[None], probe.rows, probe.begin)[0]) for probe in probes.far]
    small = stored_bytes(traced.gm, traced.weights) <= checks.EXACT_BYTES
    noise = measure_noise(probes.exact, exact, eager, _second(model, source, cache, small)).value
    shorter = [
        replace(p, ids=p.ids[: len(p.ids) * 2 // 3], rows=p.rows[p.rows < len(p.ids) * 2 // 3])
        for p in probes.exact
    ]
    subject = checks.Subject(traced.gm, traced.weights, probes, cache)
    shortened = checks.check_rows(
        "|Δ logit, shorter|", subject, shorter, _logits(eager, probes, shorter), noise
    )
    findings = (*checks.check_lossless(subject, probes.lossless, exact + far, noise), shortened)
    if small:
        _require_one_meaning(model, split := checks.check_exact(traced.gm, traced.weights, probes))
        findings = (*findings, split, _check_exact(model, source, traced, probes))
    for found in findings:
        if not found.holds:
            raise TraceError(
                f"The graph of {type(model).__name__} differs from the model by {found.value:.3g} in a "
                f"logit ({found.check}), and at most {found.bound:.3g} is allowed."
            )
    text = _logits(eager, probes, probes.text)
    return Measured(probes, (exact + far, text), noise, cache), findings


def _require_one_meaning(model: nn.Module, split: Finding) -> None:
    """Refuse a graph in which a row depends on the rows after it."""
    if not split.holds:
        raise TraceError(
            f"The graph of {type(model).__name__} gives other logits to a sequence that is cut shorter: "
            f"{split.check} is {split.value:.3g}, and at most {split.bound:.3g} is allowed."
        )


def _second(model: nn.Module, source: ModelSource, cache: WeightCache, small: bool) -> Logits | None:
    """Other code for what the model computes, to see its rounding: fused attention, else float64 if small.

    The same rows at another length often have the same bits, and then show no rounding at all.
    """
    if _has_fused(model):
        return EagerModel(model, source.weights, "sdpa", cache).logits
    return EagerModel(model, source.weights, "eager", None, torch.float64).logits if small else None


def _check_exact(model: nn.Module, source: ModelSource, traced: Traced, probes: Probes) -> Finding:
    """The graph against the model, both in float64, where nothing but a real difference is left."""
    cache = WeightCache(2 * checks.EXACT_BYTES)
    wide = EagerModel(model, source.weights, "eager", cache, torch.float64).logits
    subject = checks.Subject(traced.gm, traced.weights, probes, cache, torch.float64)
    worst = largest = 0.0
    for probe, logits in zip(probes.lossless, subject.logits(probes.lossless), strict=True):
        truth = wide(probe.ids[None], probe.rows, probe.begin)[0]
        difference = (logits - truth).abs().max().item()
        worst = max(worst, difference if difference == difference else float("inf"))
        largest = max(largest, truth.abs().max().item())
    return Finding("|Δ logit, float64|", worst, checks.EXACT_TOLERANCE * max(1.0, largest))


def _logits(model: Logits, probes: Probes, of: list[Probe]) -> list[Stored]:
    """The model's logits on probes of one length, in files."""
    stored = []
    for group in probes.groups(of):
        logits = model(torch.stack([probe.ids for probe in group]), group[0].rows)
        stored += [probes.keep(rows) for rows in logits]
    return stored


def _has_fused(model: nn.Module) -> bool:
    """Whether transformers says that torch's fused attention means the same to a model."""
    return bool(getattr(model, "_supports_sdpa", False))
