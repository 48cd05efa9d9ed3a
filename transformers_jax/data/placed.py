"""Sources that know where each of their examples stands."""

from collections.abc import Sequence


class Placed(Sequence[dict]):
    """Examples by number, of files: whatever is wrong with one can be told with its place. Looking at all of them is cheap.

    A source has a length and gives examples by number, and need be no more than that; a subclass of this one has `where` too.
    """

    def where(self, i: int) -> str:
        """File and line of example i, for messages."""
        raise NotImplementedError
