"""What /metrics shows, in Prometheus' text form. ``METRICS`` is the reference; docs/metrics.md repeats it.

Two sources: the engine's own counters and gauges, read when the page is asked for, and histograms of
requests, filled as requests end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ..engine import Engine, Timing, Usage
from ..engine.stats import EngineStats

Kind = Literal["counter", "gauge", "histogram"]

# Seconds. Up to a minute in steps that double or so; what a person notices is finer.
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


@dataclass(frozen=True)
class MetricInfo:
    """One line of the reference.

    Attributes:
        name: without the prefix ``optpipe:``; counters are shown with ``_total`` behind it.
        kind: as Prometheus knows kinds.
        meaning: with its unit.
        labels: beside ``model_name``, which every metric has.
    """

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()


METRICS = (
    MetricInfo("num_requests_running", "gauge", "Sequences that are running."),
    MetricInfo("num_requests_waiting", "gauge", "Sequences that wait for their turn."),
    MetricInfo("kv_cache_usage_perc", "gauge", "Share of the KV blocks that running sequences hold, 0 to 1."),
    MetricInfo("kv_cache_blocks", "gauge", "KV blocks in all."),
    MetricInfo("kv_cache_blocks_cached", "gauge", "Free KV blocks that the prefix cache can still use."),
    MetricInfo("prefix_cache_queries", "counter", "Prompt tokens looked up in the prefix cache."),
    MetricInfo("prefix_cache_hits", "counter", "Prompt tokens found there."),
    MetricInfo("num_preemptions", "counter", "Sequences that lost their blocks and were computed again."),
    MetricInfo("engine_steps", "counter", "Steps of the executor."),
    MetricInfo("engine_steps_failed", "counter", "Steps that raised."),
    MetricInfo("engine_step_seconds", "counter", "Seconds spent in steps."),
    MetricInfo("prompt_tokens", "counter", "Prompt tokens computed."),
    MetricInfo("generation_tokens", "counter", "Tokens generated."),
    MetricInfo("spec_decode_num_draft_tokens", "counter", "Draft tokens checked by the model."),
    MetricInfo("spec_decode_num_accepted_tokens", "counter", "Draft tokens kept."),
    MetricInfo(
        "spec_decode_num_draft_tokens_per_pos",
        "counter",
        "Draft tokens checked, by place in the draft.",
        ("position",),
    ),
    MetricInfo(
        "spec_decode_num_accepted_tokens_per_pos",
        "counter",
        "Draft tokens kept, by place in the draft.",
        ("position",),
    ),
    MetricInfo("spec_decode_num_failures", "counter", "Times that the proposer of drafts raised."),
    MetricInfo("request_success", "counter", "Answers that ended well, by how.", ("finished_reason",)),
    MetricInfo(
        "request_failure",
        "counter",
        "Requests that did not, by HTTP status; 499: the client left.",
        ("status",),
    ),
    MetricInfo("http_requests", "counter", "Requests by route and status.", ("path", "status")),
    MetricInfo("http_requests_active", "gauge", "Requests in the server now."),
    MetricInfo(
        "time_to_first_token_seconds", "histogram", "Seconds from a request's arrival to its first token."
    ),
    MetricInfo("inter_token_latency_seconds", "histogram", "Seconds between the pieces of a stream."),
    MetricInfo(
        "request_time_per_output_token_seconds",
        "histogram",
        "Seconds a token behind the first, one value an answer.",
    ),
    MetricInfo("e2e_request_latency_seconds", "histogram", "Seconds from arrival to the last token."),
    MetricInfo("request_queue_time_seconds", "histogram", "Seconds from arrival to the first step."),
    MetricInfo("request_prompt_tokens", "histogram", "Tokens of a prompt."),
    MetricInfo("request_generation_tokens", "histogram", "Tokens of an answer."),
)
_BUCKETS = {
    "inter_token_latency_seconds": _SHORT,
    "request_time_per_output_token_seconds": _SHORT,
    "request_prompt_tokens": _TOKENS,
    "request_generation_tokens": _TOKENS,
}

# Engine metric → its value, or its values by label.
_OF_ENGINE: dict[str, Callable[[EngineStats], float | dict[str, float]]] = {
    "num_requests_running": lambda it: it.running,
    "num_requests_waiting": lambda it: it.waiting,
    "kv_cache_usage_perc": lambda it: it.blocks_used / it.blocks_total if it.blocks_total else 0.0,
    "kv_cache_blocks": lambda it: it.blocks_total,
    "kv_cache_blocks_cached": lambda it: it.blocks_cached,
    "prefix_cache_queries": lambda it: it.prefix_queries,
    "prefix_cache_hits": lambda it: it.prefix_hits,
    "num_preemptions": lambda it: it.preemptions,
    "engine_steps": lambda it: it.steps,
    "engine_steps_failed": lambda it: it.failed_steps,
    "engine_step_seconds": lambda it: it.step_seconds,
    "prompt_tokens": lambda it: it.prompt_tokens,
    "generation_tokens": lambda it: it.generated_tokens,
    "spec_decode_num_draft_tokens": lambda it: sum(it.draft_tokens),
    "spec_decode_num_accepted_tokens": lambda it: sum(it.accepted_tokens),
    "spec_decode_num_draft_tokens_per_pos": lambda it: _by_place(it.draft_tokens),
    "spec_decode_num_accepted_tokens_per_pos": lambda it: _by_place(it.accepted_tokens),
    "spec_decode_num_failures": lambda it: it.draft_failures,
}


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, engine: Engine, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine, model_name))
        ProcessCollector(registry=self._registry)
        self._model = model_name
        own = [it for it in METRICS if it.name not in _OF_ENGINE]
        self._counters = {it.name: self._counter(it) for it in own if it.kind == "counter"}
        self._histograms = {it.name: self._histogram(it) for it in own if it.kind == "histogram"}
        active = Gauge(
            "optpipe:http_requests_active",
            _meaning("http_requests_active"),
            ["model_name"],
            registry=self._registry,
        )
        self.active = active.labels(model_name)

    def count(self, name: str, *labels: str) -> None:
        """Add 1 to a counter."""
        self._counters[name].labels(self._model, *labels).inc()

    def gap(self, seconds: float) -> None:
        """A piece of a stream came this long after the one before."""
        self._histograms["inter_token_latency_seconds"].observe(seconds)

    def finished(self, usage: Usage, timing: Timing, reason: str, waited: float) -> None:
        """An answer ended.

        Args:
            waited: seconds from the request's arrival to its submission to the engine.
        """
        self.count("request_success", reason)
        observe = {
            "request_prompt_tokens": usage.prompt_tokens,
            "request_generation_tokens": usage.completion_tokens,
            "e2e_request_latency_seconds": timing.finished - timing.arrived + waited,
        }
        if timing.scheduled is not None:
            observe["request_queue_time_seconds"] = timing.scheduled - timing.arrived + waited
        if timing.first_token is not None:
            observe["time_to_first_token_seconds"] = timing.first_token - timing.arrived + waited
            if usage.completion_tokens > 1:
                rest = timing.finished - timing.first_token
                observe["request_time_per_output_token_seconds"] = rest / (usage.completion_tokens - 1)
        for name, value in observe.items():
            self._histograms[name].observe(value)

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self._registry)

    def _counter(self, info: MetricInfo) -> Counter:
        labels = ["model_name", *info.labels]
        return Counter(f"optpipe:{info.name}", info.meaning, labels, registry=self._registry)

    def _histogram(self, info: MetricInfo) -> Histogram:
        whole = Histogram(
            f"optpipe:{info.name}",
            info.meaning,
            ["model_name"],
            buckets=_BUCKETS.get(info.name, _SECONDS),
            registry=self._registry,
        )
        return whole.labels(self._model)


class _EngineCollector:
    """Reads the engine's numbers when they are asked for."""

    def __init__(self, engine: Engine, model_name: str) -> None:
        self._engine, self._model = engine, model_name

    def describe(self) -> Iterable[Metric]:
        """Names only; asking the engine can wait."""
        return []

    def collect(self) -> Iterable[Metric]:
        """One family a metric."""
        stats = self._engine.stats()
        for info in METRICS:
            if info.name not in _OF_ENGINE:
                continue
            kind = CounterMetricFamily if info.kind == "counter" else GaugeMetricFamily
            family = kind(f"optpipe:{info.name}", info.meaning, labels=["model_name", *info.labels])
            value = _OF_ENGINE[info.name](stats)
            for label, one in value.items() if isinstance(value, dict) else [(None, value)]:
                family.add_metric([self._model] if label is None else [self._model, label], one)
            yield family


def _by_place(counts: tuple[int, ...]) -> dict[str, float]:
    return {str(i): float(it) for i, it in enumerate(counts)}


def _meaning(name: str) -> str:
    return next(it.meaning for it in METRICS if it.name == name)
