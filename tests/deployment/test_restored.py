"""A hub or a node that comes back from a backup: what goes on, what ends and says so, and what cannot be done with it."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grpc", reason="needs the extra 'net'")

from hansa.deployment import api, dial, host
from hansa.deployment.backup import take
from hansa.deployment.dial import calling
from hansa.deployment.hub import Hub
from hansa.deployment.identity import Credentials, SealingKeys, read_invitation
from hansa.deployment.identity.authority import Authority
from hansa.deployment.identity.certificates import Certificate, read
from hansa.deployment.identity.keys import make_tls_key
from hansa.deployment.identity.request import make_request, read_request
from hansa.deployment.node import Node
from hansa.deployment.packets import Lane, Offer, Start
from hansa.deployment.quantity import Address
from hansa.deployment.restoration import Restored, restore
from hansa.deployment.settings import HubLimits, HubSettings
from hansa.deployment.store import Parcel, Record
from hansa.deployment.worker.frames import Body
from hansa.errors import ConfigError, IdentityError, LinkError, MessageError, SealError
from tests.deployment.adversarial.strangers import hello
from tests.deployment.adversarial.test_identity import fed_puppet
from tests.deployment.federation import PLAN, Federation, drive, federation

FEDAVG = PLAN.format(name="fedavg")
LONG = FEDAVG.replace("rounds = 3", "rounds = 1000")
HASTY = LONG.replace("cohort = 4", 'cohort = 4\nquorum = 0.5\ndeadline = 0.6\nmissed_quorum = "skip"')


def record(fed: Federation, run: str) -> Record:
    found = fed.hub.runs.table.get(run)
    assert found is not None
    return found


async def round_of(fed: Federation, run: str, wanted: int) -> None:
    await fed.until(lambda: (record(fed, run).round or 0) >= wanted, f"round {wanted}")


def copied(fed: Federation, name: str, now: float | None = None) -> Path:
    """A backup of a machine, as it is; the hub's, or a node's."""
    file = fed.folder / f"{name}-{len(list(fed.folder.iterdir()))}.tar"
    take(fed.folder / name, file, time.time() if now is None else now)
    return file


async def hub_from(fed: Federation, file: Path, crash: bool = False, connect: bool = True) -> Restored:
    """The hub's disk is lost, and a new one has what was in the backup."""
    if fed._hub is not None:
        await fed.stop_hub(crash)
    shutil.rmtree(fed.folder / "hub")
    done = restore(file, fed.folder / "hub", time.time())
    await fed.start_hub()
    if connect:
        await fed.until(lambda: all(fed.hub.connected(name) for name in fed.nodes), "the nodes come by themselves")
    return done


async def node_from(fed: Federation, name: str, file: Path, **more: Any) -> Node:
    """The same of a node."""
    if name in fed.nodes:
        await fed.stop_node(name)
    shutil.rmtree(fed.folder / name)
    restore(file, fed.folder / name, time.time())
    return await fed.start_node(name, **more)


def said(home: Path, *kinds: str) -> Sequence[str]:
    return [
        line for line in (home / "audit.log").read_text().splitlines() if any(f'"kind":"{k}"' in line for k in kinds)
    ]


# A hub.


def test_a_hub_that_lost_its_disk_goes_on_with_the_nodes_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "INLINE", 64)  # results lie in the spool

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            first = await fed.submit(FEDAVG)
            assert (await fed.end(first)).status == "completed"
            model = fed.model(first)
            file = copied(fed, "hub")
            for _ in range(2):
                assert (await fed.end(await fed.submit(FEDAVG))).status == "completed"
            done = await hub_from(fed, file)
            assert done.left is not None
            assert (done.left.runs, done.left.results, done.left.failed) == (1, 1, [])
            assert [view.run for view in (await fed.caller.ask(api.ListRuns(), api.RunList)).runs] == [first]
            np.testing.assert_array_equal(fed.model(first).flat, model.flat)
            (fetched := tmp_path / "fetched").mkdir()
            assert any(path.name == "model.safetensors" for path in await fed.caller.fetch(first, fetched))
            again = await fed.submit(FEDAVG)
            view = await fed.end(again)
            assert view.status == "completed", view.cause
            np.testing.assert_array_equal(fed.model(again).flat, model.flat)
            # And the copy of a copy is as good.
            await hub_from(fed, copied(fed, "hub"))
            assert (await fed.end(await fed.submit(FEDAVG))).status == "completed"
            for name in fed.names:
                assert len(said(fed.folder / name, "restored")) == 2

    drive(scenario(), 60.0)


@pytest.mark.parametrize("crash", [False, True], ids=["stopped", "killed"])
def test_a_run_under_way_at_both_ends_at_both_and_begins_anew(tmp_path: Path, crash: bool) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await fed.submit(LONG)
            await round_of(fed, run, 2)
            file = copied(fed, "hub")
            await round_of(fed, run, 10)
            done = await hub_from(fed, file, crash)
            assert done.left is not None and [one.run for one in done.left.failed] == [run]
            view = await fed.view(run)
            assert view.status == "failed" and view.cause.startswith("restored from a backup of 2")
            assert f"hansa resume {run}" in view.remedy
            for node in fed.nodes.values():
                assert node.works.state(run) == "ended" and run not in node.begun
                await fed.until(lambda node=node: not node.host.running(), "its workers stop")  # type: ignore[misc]
                assert node.database.read("SELECT * FROM states") == node.database.read("SELECT * FROM letters") == []
                assert "the hub was restored from a backup" in said(node.credentials.home, "ended")[-1]
            again = (await fed.caller.ask(api.ResumeRun(run), api.Submitted)).run
            assert again != run and again in (await fed.view(run)).remedy
            await round_of(fed, again, 2)
            assert [node.works.attempt(again) for node in fed.nodes.values()] == [1] * 4
            assert [node.works.attempt(run) for node in fed.nodes.values()] == [1] * 4
            assert record(fed, again).owner == record(fed, run).owner
            await fed.caller.ask(api.StopRun(again), api.Done)

    drive(scenario(), 60.0)


def test_a_run_that_went_on_after_the_copy_is_not_gone_on_with_from_before(tmp_path: Path) -> None:
    plan = FEDAVG.replace("rounds = 3", "rounds = 30")

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            undisturbed = await fed.run(plan)
            run = await fed.submit(plan)
            await round_of(fed, run, 5)
            await fed.caller.ask(api.StopRun(run), api.Done)
            file = copied(fed, "hub")
            await fed.caller.ask(api.ResumeRun(run), api.Submitted)  # attempt 2, which only the nodes will remember
            assert (await fed.end(run)).status == "completed"
            await hub_from(fed, file)
            assert (await fed.view(run)).status == "stopped"
            again = (await fed.caller.ask(api.ResumeRun(run), api.Submitted)).run
            assert again != run
            view = await fed.end(again)
            assert view.status == "completed", view.cause
            np.testing.assert_array_equal(fed.model(again).flat, undisturbed.flat)
            rounds = [event.round for event in await fed.events(again, "round")]
            assert rounds[0] == 0, "from the beginning"

    drive(scenario(), 60.0)


def test_runs_that_waited_are_failed_too_and_one_that_is_whole_is_not_resumed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0"]) as fed:
            whole = await fed.submit(FEDAVG.replace("cohort = 4", "cohort = 1"), parties=("node-0",))
            assert (await fed.end(whole)).status == "completed"
            joining = await fed.submit(FEDAVG)
            await fed.until(lambda: fed.nodes["node-0"].works.state(joining) == "accepted", "it takes part")
            await hub_from(fed, copied(fed, "hub"))
            assert (await fed.view(joining)).status == "failed" and (await fed.view(whole)).status == "completed"
            await fed.until(lambda: fed.nodes["node-0"].works.state(joining) == "ended", "the node is told")
            with pytest.raises(ConfigError, match="only a run that was stopped or failed"):
                await fed.caller.ask(api.ResumeRun(whole), api.Submitted)

    drive(scenario())


def test_the_home_that_was_backed_up_is_refused_beside_the_restored_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0"]) as fed:
            file = copied(fed, "hub")
            await fed.stop_hub()
            shutil.copytree(fed.folder / "hub", fed.folder / "old")
            await hub_from(fed, file)
            node = fed.nodes["node-0"]
            await fed.stop_hub()
            shutil.rmtree(fed.folder / "hub")
            (fed.folder / "old").rename(fed.folder / "hub")
            await fed.start_hub()
            with pytest.raises(LinkError, match="the home that it had before it was restored"):
                await node._connect(str(fed.address))
            assert not node.connected.is_set()
            # What was meant to be kept is made a home of its own.
            await hub_from(fed, copied(fed, "hub"))
            await fed.until(node.connected.is_set, "it is connected")

    drive(scenario())


def test_a_hub_that_was_set_back_by_hand_is_refused_as_ever_and_a_backup_of_it_mends_that(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0"]) as fed:
            plan = FEDAVG.replace("cohort = 4", "cohort = 1")
            await fed.stop_hub()
            shutil.copytree(fed.folder / "hub", fed.folder / "old")
            await fed.start_hub()
            node = fed.nodes["node-0"]
            await fed.until(node.connected.is_set, "it is back")
            assert (await fed.end(await fed.submit(plan, parties=("node-0",)))).status == "completed"
            await fed.stop_hub()
            shutil.rmtree(fed.folder / "hub")
            (fed.folder / "old").rename(fed.folder / "hub")
            await fed.start_hub()
            with pytest.raises(LinkError, match=r"set back to an older copy of its home.*hansa restore"):
                await node._connect(str(fed.address))
            await hub_from(fed, copied(fed, "hub"))
            assert (await fed.end(await fed.submit(plan, parties=("node-0",)))).status == "completed"

    drive(scenario())


# Membership at a restored hub.


def issued(fed: Federation, name: str, sealing: SealingKeys, at: float, kind: Any = "node") -> Certificate:
    """A certificate of the federation's authority that no hub knows."""
    authority, key = Authority.open(fed.folder / "hub" / "authority"), make_tls_key()
    pem = authority.issue_member(read_request(make_request(name, key, sealing)), kind, name, at, 86400.0)
    return read(pem, authority.certificate_pem, time.time())


def refused(hub: Hub, certificate: Certificate) -> str:
    with pytest.raises(IdentityError) as caught:
        hub.require_counts(certificate)
    assert not hub.members.counts(certificate.serial)
    return str(caught.value)


def test_a_certificate_that_was_renewed_since_the_copy_is_adopted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            file = copied(fed, "hub")
            node = fed.nodes["node-0"]
            await node.renew()
            await fed.cut("node-0")
            await fed.dial("node-0")
            serial = node.credentials.certificate.serial
            await hub_from(fed, file)
            assert fed.hub.members.counts(serial)
            member = fed.hub.members.get("node-0")
            assert member is not None and member.serial == f"{serial:x}"
            assert len(said(fed.folder / "hub", "adopted")) == 1
            assert (await fed.end(await fed.submit(FEDAVG))).status == "completed"
            await fed.caller.ask(api.Revoke("node-0"), api.Done)
            assert "was revoked" in refused(fed.hub, node.credentials.certificate)
            fed.ended.clear()

    drive(scenario())


def test_no_other_certificate_is_adopted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            async with fed.person("ada", "submitter"):
                pass
            keys = {name: Credentials.load(fed.folder / name, time.time()).sealing for name in fed.names}
            before = issued(fed, "node-0", keys["node-0"], time.time())
            assert "was revoked" in refused(fed.hub, before), "a hub that was never restored adopts nobody"
            await fed.caller.ask(api.Revoke("node-1"), api.Done)
            old = issued(fed, "node-0", keys["node-0"], time.time() - 60)
            file = copied(fed, "hub")
            await hub_from(fed, file)
            now, hub = time.time(), fed.hub
            for certificate in (
                issued(fed, "node-0", SealingKeys.make(), now),  # a stranger with the authority's key
                issued(fed, "stranger", SealingKeys.make(), now),
                issued(fed, "node-0", keys["node-0"], now, "operator"),
                issued(fed, "ada", keys["node-0"], now, "submitter"),
                old,  # issued before the copy was taken, which should know it
                issued(fed, "node-0", keys["node-0"], now, "observer"),
            ):
                assert "is not known to this hub, which was restored from a backup of" in refused(hub, certificate)
            assert "not known" in refused(hub, issued(fed, "node-1", keys["node-1"], now)), "revoked before the copy"
            assert said(fed.folder / "hub", "adopted") == []
            hub.require_counts(issued(fed, "node-0", keys["node-0"], now))
            assert len(said(fed.folder / "hub", "adopted")) == 1

    drive(scenario())


def test_who_was_revoked_before_the_copy_stays_revoked(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            shown = fed.nodes["node-0"].credentials
            await fed.caller.ask(api.Revoke("node-0"), api.Done)
            await fed.until(lambda: "node-0" in fed.ended, "node-0 ends")
            fed.ended.clear()
            await fed.stop_node("node-0")
            await hub_from(fed, copied(fed, "hub"))
            assert "was revoked" in refused(fed.hub, shown.certificate)
            with pytest.raises(IdentityError, match="revoked"):
                async with calling(replace(shown, addresses=(str(fed.address),))):
                    pass

    drive(scenario())


def test_no_invitation_from_before_the_copy_is_good_afterwards(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:

            async def joins(token: str, home: str) -> None:
                invitation = dataclasses.replace(read_invitation(token), addresses=(str(fed.address),))
                await dial.join(tmp_path / home, invitation, time.time())

            tokens = [(await fed.caller.ask(api.Invite(name), api.Invited)).token for name in ("early", "late", "idle")]
            await joins(tokens[0], "early")
            file = copied(fed, "hub")
            await joins(tokens[1], "late")
            done = await hub_from(fed, file)
            assert done.left is not None and done.left.invitations == 2
            for token, words in zip(tokens, ("used already", "was revoked", "was revoked"), strict=True):
                with pytest.raises(IdentityError, match=words):
                    await joins(token, f"again {words} {token[-5:]}")
            late = Credentials.load(tmp_path / "late", time.time())
            assert "not known to this hub" in refused(fed.hub, late.certificate)
            # Invited again, it joins with the keys that it has.
            await joins((await fed.caller.ask(api.Invite("late"), api.Invited)).token, "late")
            fed.hub.require_counts(Credentials.load(tmp_path / "late", time.time()).certificate)
            assert Credentials.load(tmp_path / "late", time.time()).sealing.public.same_as(late.sealing.public)

    drive(scenario())


# A node.


def test_a_node_that_was_restored_ends_what_cannot_do_without_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await fed.submit(LONG, server="node-1")
            await round_of(fed, run, 3)
            file = copied(fed, "node-1")
            await round_of(fed, run, 6)
            node = await node_from(fed, "node-1", file)
            view = await fed.end(run)
            assert (view.status, view.party) == ("failed", "server"), view
            assert "node-1 was restored from a backup, and its part is lost" in view.cause
            assert f"hansa resume {run}" in view.remedy
            assert node.works.state(run) == "ended" and not node.host.running()
            for name in fed.names:
                await fed.until(lambda name=name: fed.nodes[name].works.state(run) == "ended", "all end")  # type: ignore[misc]
            again = (await fed.caller.ask(api.ResumeRun(run), api.Submitted)).run
            assert again != run
            await round_of(fed, again, 3)  # its letters are sealed to the new epoch
            await fed.caller.ask(api.StopRun(again), api.Done)

    drive(scenario(), 60.0)


def test_a_run_goes_on_without_a_restored_node_that_it_can_do_without(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            run = await fed.submit(HASTY)
            await round_of(fed, run, 2)
            node = await node_from(fed, "node-3", copied(fed, "node-3"))
            (told,) = [event.text for event in await fed.events(run, "trouble")]
            assert told == "node-3 was restored from a backup, and its part is lost; the run goes on without it"
            await round_of(fed, run, (record(fed, run).round or 0) + 3)
            assert not node.host.running() and node.works.state(run) == "ended"
            await fed.caller.ask(api.StopRun(run), api.Done)
            # What it saved is lost: it would go on from another round than the others.
            again = (await fed.caller.ask(api.ResumeRun(run), api.Submitted)).run
            assert again != run
            await fed.until(lambda: node.works.state(again) == "started", "it is asked again")
            await fed.caller.ask(api.StopRun(again), api.Done)

    drive(scenario(), 60.0)


def test_a_node_that_was_restored_before_it_answered_is_not_waited_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            await fed.stop_node("node-3")
            run = await fed.submit(FEDAVG)  # the offer waits for node-3
            await fed.until(lambda: fed.hub.mailbox.next("node-3", "", 0) is not None, "it is asked")
            await node_from(fed, "node-3", copied(fed, "node-3"))
            view = await fed.end(run)
            assert (view.status, view.party) == ("failed", "node-3")
            assert "node-3 refused (node-3 was restored from a backup, and its part is lost)" in view.cause
            assert (await fed.end(await fed.submit(FEDAVG))).status == "completed"

    drive(scenario())


def test_a_run_that_waits_to_go_on_with_what_a_node_has_forgotten_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, hub=HubSettings(limits=HubLimits(runs_at_once=1))) as fed:
            first = await fed.submit(LONG)
            await round_of(fed, first, 2)
            second = await fed.submit(FEDAVG)
            await fed.caller.ask(api.StopRun(first), api.Done)
            assert (await fed.end(second)).status == "completed"
            third = await fed.submit(HASTY)
            await round_of(fed, third, 1)
            await fed.caller.ask(api.ResumeRun(first), api.Submitted)
            assert record(fed, first).status == "queued"
            await node_from(fed, "node-0", copied(fed, "node-0"))
            view = await fed.view(first)
            assert (view.status, view.party) == ("failed", "node-0") and "was to go on from" in view.cause
            assert (await fed.view(third)).status == "running" and (await fed.view(second)).status == "completed"
            await fed.caller.ask(api.StopRun(third), api.Done)

    drive(scenario(), 60.0)


def test_a_node_that_comes_with_another_epoch_each_time_harms_only_itself(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-0", "node-1", "node-3"]) as fed:
            run = await fed.submit(LONG.replace("cohort = 4", "cohort = 2"), parties=("node-0", "node-1"))
            await round_of(fed, run, 2)
            for number in range(5):
                async with fed_puppet(fed, "node-2", epoch=f"{number:032x}"):
                    pass
            for former in (0, 3):
                with pytest.raises(LinkError, match="must not run beside each other"):
                    async with fed_puppet(fed, "node-2", epoch=f"{former:032x}"):
                        pass
            # Lanes that were never counted cannot be told of by claiming to have met another database.
            before = record(fed, run).round or 0
            await round_of(fed, run, before + 3)
            assert (await fed.events(run, "trouble")) == []
            await fed.caller.ask(api.StopRun(run), api.Done)

    drive(scenario(), 60.0)


def test_a_lane_that_disagrees_within_an_epoch_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            lanes, mine = [Lane("", 7)], fed.hub.mailbox.epoch
            with pytest.raises(LinkError, match="was set back"):
                async with fed_puppet(fed, "node-2", lanes=lanes, known=mine) as puppet:
                    await puppet.refusal()
                    raise LinkError(await puppet.stream.details())
            async with fed_puppet(fed, "node-2", lanes=lanes, known="f" * 32):
                await fed.until(lambda: fed.hub.connected("node-2"))

    assert hello().known == ""
    drive(scenario())


def test_letters_from_before_cannot_be_played_again_to_a_restored_node(tmp_path: Path) -> None:
    """A hub that has changed sides plays a whole attempt again that the node has ended, and forgotten."""

    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            file = copied(fed, "node-1")
            node = fed.nodes["node-1"]
            letters: list[Parcel] = []
            opened = node.envelopes.opened

            def opening(work: Any, parcel: Parcel) -> Any:
                letters.append(parcel)
                return opened(work, parcel)

            node.envelopes.opened = opening  # type: ignore[method-assign]
            run = await fed.submit(FEDAVG, server="node-1")
            await fed.until(lambda: node.works.start(run) is not None, "it begins")
            offer, start = node.works.offer(run), node.works.start(run)
            assert (await fed.end(run)).status == "completed" and start is not None
            assert len(letters) > 4 and offer.attempt == 1
            with pytest.raises(MessageError, match="was offered already"):
                node.participation.offered(offer)

            before = node.mailbox.epoch
            node = await node_from(fed, "node-1", file)
            assert node.mailbox.epoch != before
            await fed.cut("node-1")
            begun = await _again(fed, node, offer, start)
            first = {parcel.sender: parcel for parcel in reversed(letters)}
            assert set(first) == {"node-0", "node-2", "node-3"}
            for parcel in letters:
                words = "for the run" if parcel is first[parcel.sender] else "came before letter 1"
                with pytest.raises(SealError, match=words):
                    node.envelopes.opened(begun, parcel)
            # Nor can the others be told that what it seals now belongs to what they have begun before.
            other = fed.nodes["node-0"]
            work = dataclasses.replace(begun, run=run)
            other.envelopes.pin(run, other.works.offer(run).certificates)
            other.envelopes.bind(run, {"node-1": before})
            with node.database.at_once():
                sealed = node.envelopes.sealed(begun, "server", "node-0", Body("t/1", 1, b"x"))
            with pytest.raises(SealError, match="for the run"):
                other.envelopes.opened(work, Parcel(run, 1, "server", "node-0", True, sealed))

    drive(scenario(), 60.0)


async def _again(fed: Federation, node: Node, offer: Offer, start: Start) -> Any:
    with node.database.at_once():
        node.participation.offered(offer)
    await fed.until(lambda: node.works.state(offer.run) == "accepted", "it takes part again")
    with node.database.at_once():
        node._control(start)
    return node.begun[offer.run].work


def test_nodes_that_talk_directly_count_anew_with_a_restored_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=["node-1", "node-2", "node-3"]) as fed:
            listening = replace(fed.settings("node-0"), listen=Address("127.0.0.1", 0))
            await fed.start_node("node-0", listening)
            assert (await fed.end(await fed.submit(FEDAVG, server="node-0"))).status == "completed"
            assert fed.nodes["node-1"].mailbox.known("node-0") == fed.nodes["node-0"].mailbox.epoch
            files = {name: copied(fed, name) for name in ("node-0", "node-1")}
            run = await fed.submit(LONG, server="node-0")
            await round_of(fed, run, 3)
            await node_from(fed, "node-0", files["node-0"], settings=listening)
            assert (await fed.end(run)).status == "failed"
            for name in ("node-0", "node-1"):
                view = await fed.end(await fed.submit(FEDAVG, server="node-0"))
                assert view.status == "completed", (name, view.cause)
                await node_from(fed, "node-1", files["node-1"])
            for name in ("node-2", "node-3"):
                assert fed.nodes[name].mailbox.known("node-0") == fed.nodes["node-0"].mailbox.epoch

    drive(scenario(), 60.0)


def test_both_are_restored(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path) as fed:
            assert (await fed.end(await fed.submit(FEDAVG))).status == "completed"
            hub, node = copied(fed, "hub"), copied(fed, "node-0")
            run = await fed.submit(LONG)
            await round_of(fed, run, 3)
            await fed.stop_node("node-0")
            await hub_from(fed, hub)
            await node_from(fed, "node-0", node)
            assert run not in [view.run for view in (await fed.caller.ask(api.ListRuns(), api.RunList)).runs]
            view = await fed.end(await fed.submit(FEDAVG))
            assert view.status == "completed", view.cause

    drive(scenario())
