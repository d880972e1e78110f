"""The runtime: text generated from an artifact, for many at once.

    engine/       requests in, text out, over any target's executor
    core/         the scheduler, cache blocks and the prefix cache, in plain integers
    sampling/     the choice of tokens: parameters, penalties, grammars, stop strings
    speculation/  several tokens a step, the same text
    server/       the OpenAI API

Nothing here imports transformers, and nothing imports torch: an artifact and a target are all it takes.
"""
