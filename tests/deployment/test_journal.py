"""The journal on the disk keeps what the journal in memory keeps, which is the law; and it lets go of every file that it held."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.deployment.store import Database, Journal, Mailbox
from hansa.deployment.worker.frames import (
    Began,
    Body,
    Dropped,
    Ended,
    Failed,
    Letter,
    Saved,
    Sent,
    Setup,
    Step,
    Stepped,
)
from hansa.deployment.worker.journal import Journal as Law
from hansa.deployment.worker.spool import Spool
from hansa.message import Message

RUN, PARTY = "00000000000000aa", "p"
FIRST = Setup(RUN, PARTY, "server", "", {}, {}, "", 1)


class Pair:
    """The law and the tables, told the same: what an owner would tell them of a worker that keeps to its rules."""

    def __init__(self, folder: Path, starts: bool) -> None:
        self.folder = folder
        self.starts = starts
        self.law = Law()
        self.time = 0.0
        self.live = self.over = False
        self.open()
        self.journal.enter(RUN, PARTY, "server")

    def open(self) -> None:
        self.database = Database(self.folder / "a.db")
        self.spool = Spool(self.folder / "spool")
        self.mailbox = Mailbox(self.database, self.spool)
        self.journal = Journal(self.database, self.mailbox)

    def body(self, text: str, large: bool) -> Body:
        if large:
            return Body("t", len(text), None, self.spool.write([text.encode()]))
        return Body("t", len(text), text.encode())

    def tick(self) -> float:
        self.time += 1.0
        return self.time

    def tell(self, word: Message) -> None:
        self.law.heard(word)
        self.journal.heard(RUN, PARTY, word)

    def free(self) -> list[Letter]:
        """Letters that no program has taken."""
        taken = {step.letter for step in self.law.steps if step.kind == "took"}
        return [letter for letter in self.law.letters if letter.number not in taken]

    def do(self, action: str, large: bool) -> None:
        if action == "letter":
            letter = self.journal.received(RUN, PARTY, "x", self.body("letter", large))
            self.law.received(letter)
        elif action == "drop" and self.free():
            self.tell(Dropped(self.free()[-1].number, "x", "too late"))
        elif action == "crash":
            self.database.commit()
            self.database._connection.close()
            os.close(self.database._lock)
            self.open()
        elif not self.live and not self.over:
            self.tell(Began(self.tick(), not self.starts))
            self.live = True
        elif self.live:
            self.program(action, large)

    def program(self, action: str, large: bool) -> None:
        if action == "took" and self.free():
            self.tell(Stepped(Step("took", self.tick(), self.free()[0].number)))
        elif action == "computed":
            self.tell(Stepped(Step("computed", self.tick())))
        elif action == "expired":
            self.tell(Stepped(Step("expired", self.tick())))
        elif action == "woke":
            self.tell(Stepped(Step("woke", self.tick())))
        elif action == "sent":
            self.tell(Sent("y", Body("t", 1, b"1"), self.time))
        elif action == "saved":
            self.tell(Saved(self.body("state", large), self.tick()))
        elif action == "ended":
            saved = None if self.starts else self.body("kept", large)
            self.tell(Ended(self.tick(), Body("t", 1, b"1") if self.starts else None, saved))
            self.live, self.over = False, self.starts
        elif action == "failed":
            self.tell(Failed("E", "it failed", "", self.tick()))
            self.live, self.over = False, self.starts

    def held(self) -> set[str]:
        bodies = [letter.body for letter in self.law.letters]
        if self.law.saved is not None:
            bodies.append(self.law.saved)
        return {body.blob for body in bodies if body.blob}


WORDS = st.lists(
    st.tuples(
        st.sampled_from(
            ("letter", "letter", "drop", "crash", "began", "took", "took", "computed", "expired", "woke", "sent", "saved",
             "ended", "failed")
        ),
        st.booleans(),
    ),
    max_size=50,
)  # fmt: skip


def paired(starts: bool, then: Callable[[Pair], None]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        pair = Pair(folder, starts)
        then(pair)
        pair.database.close()
    finally:
        shutil.rmtree(folder)


@settings(max_examples=80)
@given(st.booleans(), WORDS)
def test_the_tables_say_what_the_law_says_after_every_word(starts: bool, words: list[tuple[str, bool]]) -> None:
    def then(pair: Pair) -> None:
        for action, large in words:
            pair.do(action, large)
            expected = pair.law.setup(FIRST)
            found = pair.journal.standing(RUN, PARTY)
            for name in ("saved", "live", "since", "steps", "sent", "letters", "time"):
                assert found[name] == getattr(expected, name), name
            pair.database.commit()
            # Exactly the files of letters that may be read again and of the state.
            assert {path.name for path in pair.spool.folder.iterdir()} == pair.held()
            _, ended = pair.journal.progress(RUN, PARTY)
            if pair.starts:
                assert bool(ended) == pair.law.over

    paired(starts, then)


@settings(max_examples=30)
@given(st.booleans(), WORDS, st.booleans())
def test_a_further_attempt_begins_from_what_was_saved_and_nothing_else(
    starts: bool, words: list[tuple[str, bool]], forget: bool
) -> None:
    def then(pair: Pair) -> None:
        for action, large in words:
            pair.do(action, large)
        if forget:
            pair.journal.forget(RUN)
            pair.journal.enter(RUN, PARTY, "server")
        else:
            pair.journal.rewind(RUN)
        found = pair.journal.standing(RUN, PARTY)
        assert found["saved"] == (None if forget else pair.law.saved)
        assert (found["live"], found["sent"], found["steps"], found["letters"]) == (False, 0, [], [])
        assert pair.journal.progress(RUN, PARTY)[1] == 0
        pair.database.commit()
        kept = set() if forget or pair.law.saved is None else {pair.law.saved.blob} - {""}
        assert {path.name for path in pair.spool.folder.iterdir()} == kept

    paired(starts, then)


def test_parties_and_runs_are_kept_apart(tmp_path: Path) -> None:
    pair = Pair(tmp_path, True)
    other = "00000000000000bb"
    for run, party in ((RUN, "q"), (other, PARTY)):
        pair.journal.enter(run, party, "client")
        pair.journal.received(run, party, "x", Body("t", 1, b"1"))
        pair.journal.heard(run, party, Began(1.0, True))
        pair.journal.heard(run, party, Saved(Body("t", 1, b"s"), 2.0))
    before = [pair.journal.standing(run, party) for run, party in ((RUN, "q"), (other, PARTY))]
    for action in ("letter", "began", "took", "saved", "ended"):
        pair.do(action, False)
    # A letter's number is another party's business: naming it must not remove it.
    pair.journal.heard(RUN, PARTY, Dropped(999, "x", "no"))
    assert [pair.journal.standing(run, party) for run, party in ((RUN, "q"), (other, PARTY))] == before
    pair.journal.forget(RUN)
    assert pair.journal.standing(other, PARTY) == before[1]
    pair.database.close()


def test_entering_again_changes_nothing(tmp_path: Path) -> None:
    pair = Pair(tmp_path, True)
    for action in ("letter", "began", "took", "sent"):
        pair.do(action, False)
    before = pair.journal.standing(RUN, PARTY)
    pair.journal.enter(RUN, PARTY, "server")
    assert pair.journal.standing(RUN, PARTY) == before
    pair.database.close()
