"""The runtime: text generated from an artifact.

Today that is one sequence at a time (:mod:`optpipe_runtime.generate`): a tokenizer, a chat template, a
sampler and a loop over an executor. The engine that batches, its scheduler and its server come later.
Nothing here imports transformers: an artifact is all that is needed to run.
"""
