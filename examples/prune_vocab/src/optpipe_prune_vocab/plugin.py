"""What this package provides to optpipe."""

from optpipe.plugins import hookimpl

from .prune_vocab import PruneVocab


@hookimpl
def optpipe_passes() -> list[type]:
    """Provide the pass."""
    return [PruneVocab]
