"""A training that nobody told the tuner of: seen from the tuner's own parameters."""

from __future__ import annotations

STEPS = 3  # optimiser steps after which it is said


class Undriven:
    """Counts optimiser steps by the versions of a parameter, which cost the device nothing."""

    def __init__(self) -> None:
        self.versions: list[int] = []
        self._said = False

    def to_say(self, version: int, saving: bool) -> bool:
        """See a training pass or a saving begin; True once, when steps have gone by."""
        if self._said or (saving and not self.versions):
            return False
        if version not in self.versions:
            self.versions.append(version)
        self._said = len(self.versions) > (1 if saving else STEPS)
        return self._said
