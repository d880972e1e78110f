"""How many drafts pay."""


class Controller:
    """Chooses draft lengths from measured acceptance and measured step times.

    Args:
        max_drafts: the most drafts a sequence and step.
    """

    def __init__(self, *, max_drafts: int = 8) -> None:
        self.max_drafts = max_drafts
