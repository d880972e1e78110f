"""The pass ``prune-vocab`` for optpipe."""
