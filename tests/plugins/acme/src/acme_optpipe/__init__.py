"""A plugin for tests."""

import sys

print("acme_optpipe was imported", file=sys.stderr)
