"""Putting weights on small grids: packing, round to nearest, and error compensation.

Torch only: nothing here knows graphs, models or files.
"""
