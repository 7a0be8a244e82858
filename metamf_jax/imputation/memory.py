"""What is costly of the completion of one matrix, kept for completions of it by other parts."""

from collections.abc import Callable, Hashable
from typing import Any


class Memory:
    """Fits and draws of one matrix under one seed, each made once.

    `pipeline.complete` with some of its parts left out fits and draws much of what it does with
    all; given the same memory, it takes that from there. The answers are the same without.
    """

    def __init__(self):
        self._kept: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What was made under this key, or is now."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]
