"""Seconds of decoding with speculation and without, in turns on one engine: ``speculation.py wall``.

Each round takes a fresh speculator of every kind and gives it every prompt of a workload once, so that none
has seen an answer before; the same prompt is decoded plainly before and after. A prompt's speed-up is the
median over the rounds of plain seconds (the mean of the two) over seconds with speculation, from the first
token to the last.

Not every model copies where it is asked to. So a prompt counts as copy-heavy by what was answered, whoever
drafts: when half of the answer's tokens stand in runs of four or more that its prompt has too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from speculation_prompts import copied

from optpipe_runtime.engine import Engine
from optpipe_runtime.speculation import Speculator

Make = Callable[[], Speculator]
Rows = list[dict[str, Any]]

HEAVY = 0.5  # of an answer, that is copied
COPY, LITTLE = "copy-heavy", "asked to copy, but the model does not"
GOALS = {COPY: 1.5, LITTLE: 0.97, "chat": 0.97, "chat, sampled": 0.97}


def measure(
    engine: Engine,
    prompts: Mapping[str, str],
    makes: Mapping[str, Make],
    *,
    rounds: int,
    tokens: int,
    **params: Any,
) -> Rows:
    """Every prompt's speeds.

    Args:
        engine: its speculator is exchanged between requests.
        prompts: of one workload.
        makes: of each kind, a new one.
        params: of sampling.
    """
    meter = _Meter(engine, tokens, params)
    plain: dict[str, list[float]] = {name: [] for name in prompts}
    ratios = {(name, kind): list[float]() for name in prompts for kind in makes}
    steps = {(name, kind): list[float]() for name in prompts for kind in makes}
    for number in range(rounds):
        turn = number % len(makes)
        order = [*makes][turn:] + [*makes][:turn]  # nobody is always the first
        speculators = {kind: makes[kind]() for kind in order}
        for name, prompt in prompts.items():
            before, _ = meter.decode(prompt)
            for kind, speculator in speculators.items():
                seconds, per_step = meter.decode(prompt, speculator)
                after, _ = meter.decode(prompt)
                ratios[name, kind].append((before + after) / 2 / seconds)
                steps[name, kind].append(per_step)
                plain[name].append(before)
                before = after
    return [
        {
            "prompt": name,
            "tokens": len(meter.texts[prompt]),
            "copied": round(copied(meter.ids[prompt], meter.texts[prompt]), 2),
            "plain_tokens_per_s": round((len(meter.texts[prompt]) - 1) / statistics.median(plain[name]), 1),
            **{kind: round(statistics.median(ratios[name, kind]), 3) for kind in makes},
            **{f"{kind}_per_step": round(statistics.median(steps[name, kind]), 2) for kind in makes},
        }
        for name, prompt in prompts.items()
    ]


class _Meter:
    """Runs one request after another, and holds the text of each prompt to what it was.

    Attributes:
        ids: of each prompt, as the chat template has it.
        texts: tokens of each answer.
    """

    def __init__(self, engine: Engine, tokens: int, params: Mapping[str, Any]) -> None:
        from optpipe_runtime.sampling import SamplingParams

        self._engine = engine
        self._params = SamplingParams(max_tokens=tokens, **params)
        self.ids: dict[str, list[int]] = {}
        self.texts: dict[str, tuple[int, ...]] = {}

    def decode(self, prompt: str, speculator: Speculator | None = None) -> tuple[float, float]:
        """Seconds from the first token to the last, and tokens a step between them."""
        from optpipe_runtime.chat import render_chat

        engine = self._engine
        if prompt not in self.ids:
            assert engine.tokenizer is not None, "the artifact has a tokenizer"
            text = render_chat(engine.tokenizer, [{"role": "user", "content": prompt}])
            self.ids[prompt] = engine.tokenizer.encode(text, add_special_tokens=False)
            engine.generate([self.ids[prompt]], self._params)  # from now on the cache holds the prompt
        engine._loop._speculator = speculator
        begun = engine.stats().steps
        one = engine.generate([self.ids[prompt]], self._params)[0].completions[0]
        same = self.texts.setdefault(prompt, one.token_ids)
        assert same == one.token_ids, f"speculation changed the answer to {prompt!r}"
        steps = engine.stats().steps - begun - 1  # the one that ends the prompt gives the first token
        assert one.timing.first_token is not None, "an answer has a token"
        return one.timing.finished - one.timing.first_token, (len(same) - 1) / max(1, steps)


def parted(rows: Rows) -> dict[str, Rows]:
    """Prompts that ask for a copy, by whether they got one."""
    parts = {COPY: [it for it in rows if it["copied"] >= HEAVY], LITTLE: []}
    parts[LITTLE] = [it for it in rows if it["copied"] < HEAVY]
    return {name: part for name, part in parts.items() if part}


def overall(rows: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> dict[str, float]:
    """The whole workload's speed-up of each kind: all plain seconds over all seconds."""
    plain = [(row["tokens"] - 1) / row["plain_tokens_per_s"] for row in rows]
    return {
        kind: round(sum(plain) / sum(it / row[kind] for it, row in zip(plain, rows, strict=True)), 3)
        for kind in kinds
    }


def page(result: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    kinds = result["kinds"]
    lines = [
        "# Speculation in wall clock",
        "",
        f"{result['artifact']}, target {result['target']}, one request at a time, {result['machine']}.",
        "Speed-ups: seconds of plain decoding over seconds with speculation, in",
        "turns on one engine, from a request's first token to its last; in brackets tokens a step. That of",
        "a workload is all plain seconds over all seconds. A prompt is copy-heavy when half of the answer's",
        "tokens stand in runs of four or more that the prompt has too. No constant was chosen on these",
        "prompts. Made by `python benchmarks/speculation.py wall ARTIFACT --write`.",
    ]
    if result["layers"]:
        lines.append(f"`layers` drafts by the model's first {result['layers']}.")
    for workload, rows in result["workloads"].items():
        lines += ["", f"## {workload[0].upper()}{workload[1:]}: the goal is {GOALS[workload]}", ""]
        lines += [f"{result['rounds'][workload]} rounds.", ""]
        lines += [f"| prompt | tokens | copied | plain, tokens/s | {' | '.join(kinds)} |"]
        lines += ["|---" * (4 + len(kinds)) + "|"]
        for row in rows:
            cells = [f"{row[kind]:.2f} ({row[f'{kind}_per_step']:.1f})" for kind in kinds]
            facts = [
                row["prompt"],
                str(row["tokens"]),
                f"{row['copied']:.0%}",
                str(row["plain_tokens_per_s"]),
            ]
            lines.append(f"| {' | '.join(facts + cells)} |")
        whole = [f"**{value:.2f}**" for value in overall(rows, kinds).values()]
        lines.append(f"| **all** | {sum(row['tokens'] for row in rows)} | | | {' | '.join(whole)} |")
    return "\n".join(lines) + "\n"
