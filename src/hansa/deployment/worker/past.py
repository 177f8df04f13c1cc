"""What a program's effects gave it before its process died, handed out again in order."""

from __future__ import annotations

from collections import deque
from typing import final

from hansa.deployment.worker.frames import Setup, Step


@final
class Past:
    """The recorded steps of one program and the number of its messages that went out.

    While steps are left, the program is being brought back. A step of another kind than the program now asks for means that it
    does not do again what it did: its plan, its data or its code have changed, or it is not deterministic.
    """

    __slots__ = ("sent", "steps")

    def __init__(self, setup: Setup | None = None) -> None:
        self.steps: deque[Step] = deque(setup.steps if setup is not None else ())
        self.sent = setup.sent if setup is not None else 0

    def step(self, *kinds: str) -> Step | None:
        """The next recorded step; None where the program goes on from here.

        Raises:
            Diverged: the step is of none of ``kinds``.
        """
        if not self.steps:
            if self.sent:
                raise Diverged(f"it asks for {' or '.join(kinds)} where it had sent {self.sent} more messages")
            return None
        if self.steps[0].kind not in kinds:
            raise Diverged(f"where it had {self.steps[0].kind!r} it now asks for {' or '.join(kinds)}")
        return self.steps.popleft()

    def swallow(self) -> bool:
        """Whether a message that the program sends went out already.

        Raises:
            Diverged: it sends more than it had sent by then.
        """
        if self.sent:
            self.sent -= 1
            return True
        if self.steps:
            raise Diverged("it sends a message that it had not sent")
        return False

    def over(self) -> None:
        """The program saves or ends: nothing recorded may be left.

        Raises:
            Diverged: something is.
        """
        if self.steps or self.sent:
            raise Diverged(f"it is done with {len(self.steps)} steps and {self.sent} messages left")


class Diverged(Exception):
    """A program that is brought back does something else than it did."""
