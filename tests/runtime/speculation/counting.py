"""A list that counts how many of its items are read."""

from typing import Any


class CountingList(list[int]):
    """Counts reads by index and by slice."""

    reads = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.reads += len(found) if isinstance(key, slice) else 1
        return found
