"""Who writes and who reads each buffer of a lowering."""

from __future__ import annotations

from collections import defaultdict

from .instruction import Instruction, Lowered, Step
from .view import Buffer, View


class Flow:
    """Def and use of buffers, as they are now; make another after a change.

    Attributes:
        place: of a step by ``id``, its number.
        attention: of a cache of keys, the attention that reads it.
    """

    def __init__(self, lowered: Lowered) -> None:
        self.place = {id(step): at for at, step in enumerate(lowered.steps)}
        self._writers: dict[Buffer, list[Step]] = defaultdict(list)
        self._readers: dict[Buffer, list[Step]] = defaultdict(list)
        for step in lowered.steps:
            for view in step.writes:
                if view is not None and isinstance(view.place, Buffer):
                    self._writers[view.place].append(step)
            for view in step.reads:
                if view is not None and isinstance(view.place, Buffer):
                    self._readers[view.place].append(step)
        self._output = lowered.output.place
        self.attention = {
            step.reads[1]: step
            for step in lowered.steps
            if isinstance(step, Instruction) and step.kernel == "paged_attention"
        }

    def writer(self, view: View | None) -> Instruction | None:
        """The one instruction that writes all of what ``view`` shows, or None."""
        if view is None or not isinstance(view.place, Buffer):
            return None
        writers = self._writers[view.place]
        return writers[0] if len(writers) == 1 and isinstance(writers[0], Instruction) else None

    def readers(self, view: View) -> list[Step]:
        """Who reads the buffer; a step that reads it twice stands here twice."""
        return self._readers[view.place] if isinstance(view.place, Buffer) else []

    def private(self, view: View) -> bool:
        """Whether exactly one operand of one step reads the buffer, and it is not the output."""
        return len(self.readers(view)) == 1 and view.place is not self._output

    def known_before(self, view: View, step: Step) -> bool:
        """Whether what ``view`` shows is written before ``step`` runs."""
        if not isinstance(view.place, Buffer):
            return True
        return all(self.place[id(writer)] < self.place[id(step)] for writer in self._writers[view.place])
