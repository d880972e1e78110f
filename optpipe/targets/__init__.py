"""Targets turn a Program and its weights into an executor. ``reference`` is here; others are plugins."""
