"""What nobody needs any more goes: files of letters and results, and what memory holds of runs that are over."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from hansa.deployment.courier import Part
from hansa.deployment.host import Work
from hansa.deployment.packets import MAX_PACKET, Offer, Trouble
from hansa.deployment.store import Database, Mailbox, Parcel, RunTable, WorkTable
from hansa.deployment.terms import Terms
from hansa.deployment.worker.duty import describe
from hansa.deployment.worker.frames import Body, Described
from hansa.deployment.worker.spool import Spool
from tests.deployment.federation import PLAN, drive, federation

RUN = "0" * 16
WORK = Work(RUN, 1, "", {}, frozenset(), {"a": "other", "node-0": "node-0"})


def frame(spool: Spool, content: bytes) -> Body:
    return Body("t", len(content), None, spool.write([content]))


def files(spool: Spool) -> set[str]:
    return {path.name for path in spool.folder.iterdir()}


def test_the_result_of_a_further_attempt_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    with contextlib.closing(Database(tmp_path / "hub.db")) as database:
        table = RunTable(database, Mailbox(database, spool))
        described = describe(PLAN.format(name="fedavg"))
        assert isinstance(described, Described) and isinstance(described.terms, Terms)
        table.add(RUN, "trial", ("operator", "ada"), described, b"", 1.0)
        results = [frame(spool, content) for content in (b"first", b"second", b"third")]
        for body in results:
            table.keep_result(RUN, body)
            database.commit()
        assert files(spool) == {results[-1].blob}
        assert (record := table.get(RUN)) is not None and record.result == results[-1]


def test_so_it_does_on_a_node(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0"]) as fed:
            node = fed.nodes["node-0"]
            results = [frame(node.spool, content) for content in (b"first", b"second")]
            for body in results:
                node.courier.finished(WORK, "node-0", body)
                node.database.commit()
            assert files(node.spool) == {results[-1].blob}
            assert node.works.results(RUN) == {"node-0": results[-1]}

    drive(scenario())


def test_a_letter_for_a_program_that_is_over_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0"]) as fed:
            node = fed.nodes["node-0"]
            node.begun[RUN] = Part(WORK, {}, {})
            monkeypatch.setattr(node.envelopes, "opened", lambda *_: frame(node.spool, b"what was in it"))
            assert node.take("hub", Parcel(RUN, 1, "a", "node-0", True, Body("t", 1, b"x"))) == ""
            node.database.commit()
            assert not files(node.spool)

    drive(scenario())


def test_memory_holds_few_offers_and_the_disk_all(tmp_path: Path) -> None:
    with contextlib.closing(Database(tmp_path / "node.db")) as database:
        works = WorkTable(database)
        offers = [Offer(f"{n:016x}", 1, "trial", "", "", "", "", {}, {}, {}, 1.0) for n in range(100)]
        for offer in offers:
            works.offered(offer, 1.0)
        assert len(works._offers) < 20
        assert [works.offer(offer.run) for offer in offers] == offers
        assert len(works._offers) < 20


def test_a_report_that_no_packet_holds_is_said_and_does_not_close_the_lane(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0"]) as fed:
            node = fed.nodes["node-0"]
            node.courier.report(WORK, "node-0", Body("t", MAX_PACKET, bytes(MAX_PACKET)))
            node.database.commit()
            ((tag,),) = node.database.read("SELECT tag FROM outbox")
            assert tag == Trouble.tag
            await fed.until(lambda: not node.database.read("SELECT 1 FROM outbox"), "it is heard")

    drive(scenario())
