"""The engine builder: two prompts batched by hand, over the executor of an artifact.

    python examples/serve_yourself.py build/smollm2 "The capital of France is" "Once upon a time"

Every step packs some tokens of every sequence; blocks of the cache are handed out here, so that a
scheduler of your own can do as it likes. Nothing but optpipe, numpy and tokenizers is needed.
"""

from __future__ import annotations

import sys

import numpy as np
from tokenizers import Tokenizer

import optpipe
from optpipe.targets.protocol import StepInputs

NEW_TOKENS = 24


def step_of(chunks: list[list[int]], lengths: list[int], tables: list[list[int]], block: int) -> StepInputs:
    """One step that adds ``chunks[b]`` to sequence b, of which ``lengths[b]`` tokens are in the cache."""
    ends = np.cumsum([len(chunk) for chunk in chunks])
    context = np.asarray(lengths) + [len(chunk) for chunk in chunks]
    positions = [np.arange(begin, end) for begin, end in zip(lengths, context, strict=True)]
    blocks = [np.asarray(table)[at // block] for table, at in zip(tables, positions, strict=True)]
    return StepInputs(
        token_ids=np.concatenate(chunks).astype(np.int64),
        positions=np.concatenate(positions),
        slot_mapping=np.concatenate(blocks) * block + np.concatenate(positions) % block,
        query_start=np.asarray([0, *ends], dtype=np.int32),
        context_lens=context.astype(np.int32),
        block_tables=np.asarray(tables, dtype=np.int32),
        logit_rows=(ends - 1).astype(np.int64),
    )


def main(folder: str, prompts: list[str]) -> None:
    executor = optpipe.load(folder, target="reference")
    if executor.cache_spec is None:
        sys.exit("the artifact is not paged: optimize it with --passes paged")
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    sequences = [list(tokenizer.encode(prompt).ids) for prompt in prompts]

    # Every sequence gets blocks for all it may become; they need not be neighbours.
    block = executor.cache_spec.block_size
    width = -(-(max(map(len, sequences)) + NEW_TOKENS) // block)
    executor.allocate(width * len(sequences))
    tables = [list(range(b, width * len(sequences), len(sequences))) for b in range(len(sequences))]

    chunks, lengths = sequences, [0] * len(sequences)
    for _ in range(NEW_TOKENS):
        result = executor.submit(step_of(chunks, lengths, tables, block), logits=False).result()
        lengths = [had + len(chunk) for had, chunk in zip(lengths, chunks, strict=True)]
        chunks = [[int(token)] for token in result.token_ids]
        sequences = [[*ids, *chunk] for ids, chunk in zip(sequences, chunks, strict=True)]
    for ids in sequences:
        print(tokenizer.decode(ids))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
