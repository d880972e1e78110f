"""What this package provides to optpipe."""

from optpipe.plugins import hookimpl

from .balance_channels import BalanceChannels


@hookimpl
def optpipe_passes() -> list[type]:
    """Provide the pass."""
    return [BalanceChannels]
