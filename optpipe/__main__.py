"""``python -m optpipe`` is ``optpipe``."""

from .cli.main import main

main()
