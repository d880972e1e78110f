"""Everything about a GPU in one command: see ``__main__``."""
