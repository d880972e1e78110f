"""The pass ``balance-channels`` for optpipe."""
