"""Who may ask what of a hub, over the wire: every request, every kind of identity, of every run; and no answer tells more."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hansa.deployment import api
from hansa.deployment.authorization import RIGHTS
from hansa.deployment.dial import Caller, calling
from hansa.deployment.identity import Credentials, SealingKeys, make_request, make_tls_key, read_invitation
from hansa.deployment.settings import HubLimits, HubSettings
from hansa.errors import HansaError, NotAuthorized
from hansa.message import Message
from tests.deployment.adversarial.strangers import STANDARD, book, channel, no_traceback, paper
from tests.deployment.federation import Federation, drive, federation

ABSENT = "00000000000000ff"
OTHER_NAMES = ("", "../../etc", ABSENT + "\n", "x" * 100_000, "1", "0" * 16, "' OR 1=1 --", "%", "\x00")

REQUESTS: dict[type[Message], Callable[[str], Message]] = {
    api.Submit: lambda _: api.Submit(STANDARD, data="iris", parties=("node-0",), least=1),
    api.ListRuns: lambda _: api.ListRuns(),
    api.StopRun: api.StopRun,
    api.ResumeRun: api.ResumeRun,
    api.ForgetRun: api.ForgetRun,
    api.ReadEvents: api.ReadEvents,
    api.Invite: lambda _: api.Invite("somebody-new"),
    api.Revoke: lambda _: api.Revoke("nobody-known"),
    api.ListMembers: lambda _: api.ListMembers(),
    api.Enrol: lambda _: api.Enrol(make_request("x", make_tls_key(), SealingKeys.make())),
    api.Renew: lambda _: api.Renew(b"no request"),
    api.Greet: lambda _: api.Greet("0", 1),
}
NEEDS: dict[type[Message], tuple[str, str]] = {
    api.Submit: ("submit", "run"), api.StopRun: ("stop", "run"), api.ResumeRun: ("resume", "run"),
    api.ForgetRun: ("forget", "run"),
    api.Invite: ("invite", "invitation"), api.Revoke: ("revoke", "member"), api.ListMembers: ("see", "member"),
    api.Enrol: ("enrol", "invitation"), api.Renew: ("renew", "member"),
}  # fmt: skip
"""What the table must allow; whatever is not here is open to every identity, or asked in another way."""


def test_every_request_is_in_the_matrix() -> None:
    assert set(REQUESTS) == set(api.REQUESTS), "a request that nobody thought about"


def allowed(kind: str, verb: str, thing: str, whose: str) -> bool:
    return any(
        (right.kind, right.thing) == (kind, thing) and verb in right.verbs and whose in right.whose for right in RIGHTS
    )


@contextlib.asynccontextmanager
async def everybody(fed: Federation) -> Any:
    """A caller of each kind; two submitters."""
    async with contextlib.AsyncExitStack() as stack:
        found: dict[tuple[str, str], Caller] = {("operator", "operator"): fed.caller}
        for name, kind in (("ada", "submitter"), ("bob", "submitter"), ("eve", "observer")):
            found[kind, name] = await stack.enter_async_context(fed.person(name, kind))  # type: ignore[arg-type]
        for name in ("node-2", "node-3"):
            held = replace(Credentials.load(fed.folder / name, fed.clock()), addresses=(str(fed.address),))
            found["node", name] = await stack.enter_async_context(calling(held))
        invited = read_invitation((await fed.caller.ask(api.Invite("guest"), api.Invited)).token)
        shown = replace(paper(fed.hub.authority, "x"), certificate_pem=invited.certificate.pem, key_pem=invited.key_pem)
        found["invited", "guest"] = Caller(await stack.enter_async_context(channel(fed, shown)), str(fed.address))
        yield found


async def asked(caller: Caller, word: Message) -> HansaError | Message:
    """What the hub answers."""
    try:
        if isinstance(word, api.ReadEvents):
            events = [event async for event in caller.events(word.run, follow=False)]
            return events[0] if events else api.Done()
        return await caller.ask(word, Message)
    except HansaError as error:
        return error


def test_the_whole_matrix_over_the_wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hansa.deployment import dial
    from hansa.message import decode as real

    monkeypatch.setattr(dial, "decode", lambda frame, _, most: real(frame, (*api.ANSWERS, api.Event), most))

    async def scenario() -> None:
        settings = HubSettings(limits=HubLimits(enrolments_per_minute=10_000))
        async with federation(tmp_path, start=[], hub=settings) as fed, everybody(fed) as people:
            # Runs wait for ever: their nodes are away. Of ada's, node-2 is a party.
            runs = {
                ("submitter", "ada"): await fed.submit(
                    STANDARD, people["submitter", "ada"], parties=("node-2", "node-1"), seconds=9e3
                ),
                ("submitter", "bob"): await fed.submit(
                    STANDARD, people["submitter", "bob"], parties=("node-0", "node-1"), seconds=9e3
                ),
            }
            parties = {("submitter", "ada"): {"node-2", "node-1"}, ("submitter", "bob"): {"node-0", "node-1"}}
            with book() as lines:
                for (kind, name), caller in people.items():
                    for owner, run in runs.items():
                        whose = "own" if owner == (kind, name) else "other"
                        if kind == "node" and name in parties[owner]:
                            whose = "part"
                        for request, make in REQUESTS.items():
                            verb, thing = NEEDS.get(request, ("", ""))
                            if request is api.ReadEvents:
                                verb, thing = "watch", "run"
                            of = whose if thing == "run" and verb != "submit" else "own"
                            if (verb, thing) in (("invite", "invitation"), ("revoke", "member"), ("see", "member")):
                                of = "federation"
                            may = not verb or allowed(kind, verb, thing, of)
                            if may and request in (api.StopRun, api.Submit):
                                continue  # tried below, for what it does
                            answer = await asked(caller, make(run))
                            refused = isinstance(answer, NotAuthorized)
                            assert refused != may, (kind, name, request.__name__, whose, answer)
                        # A list holds what its reader may see, and no more.
                        listed = await asked(caller, api.ListRuns())
                        assert isinstance(listed, api.RunList)
                        assert (run in [view.run for view in listed.runs]) == allowed(kind, "see", "run", whose)
            no_traceback(lines)
            for owner, run in runs.items():
                assert (await fed.view(run)).status in ("queued", "joining"), owner

    drive(scenario(), 60)


def test_a_run_that_is_absent_and_one_that_is_forbidden_are_refused_in_the_same_words(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed, everybody(fed) as people:
            run = await fed.submit(STANDARD, people["submitter", "ada"], parties=("node-2", "node-1"), seconds=9e3)
            with book() as lines:
                for key in (("submitter", "bob"), ("node", "node-3"), ("invited", "guest")):
                    for make in (api.StopRun, api.ResumeRun, api.ForgetRun, api.ReadEvents, api.Fetch):
                        said = set()
                        for name in (run, ABSENT, *OTHER_NAMES):
                            with pytest.raises(NotAuthorized) as caught:
                                await tried(people[key], make(name), tmp_path)
                            said.add(str(caught.value))
                        assert len(said) == 1, said
            no_traceback(lines)

    drive(scenario(), 60)


async def tried(caller: Caller, word: Message, folder: Path) -> None:
    if isinstance(word, api.ReadEvents):
        async for _ in caller.events(word.run, follow=False):
            pass
    elif isinstance(word, api.Fetch):
        await caller.fetch(word.run, folder)
    else:
        await caller.ask(word, api.Done)


def test_an_operator_hears_no_more_of_a_member_by_asking_oddly(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with federation(tmp_path, start=[]) as fed:
            with book() as lines:
                for name in OTHER_NAMES:
                    for word in (
                        api.Revoke(name),
                        api.StopRun(name),
                        api.ResumeRun(name),
                        api.ForgetRun(name),
                        api.Invite(name),
                    ):
                        with pytest.raises(HansaError):
                            await fed.caller.ask(word, api.Done)
                for odd in (
                    api.Submit("", data="iris"), api.Submit("[[", data="iris"), api.Submit("\x00" * 1000),
                    api.Submit(STANDARD, parties=("../x",)), api.Submit(STANDARD, parties=("hub",)), api.Submit(STANDARD, server="nobody"),
                    api.Submit(STANDARD, least=-1), api.Submit(STANDARD, least=10**18), api.Submit(STANDARD, seconds=float("nan")),
                    api.Submit(STANDARD, seconds=float("inf")), api.Submit(STANDARD, seconds=-1.0), api.Submit("x = [" * 20_000),
                    api.Submit(STANDARD.replace('"softmax"', '"os:system"')), api.Submit(STANDARD, name="x" * 1_000_000),
                    api.Submit(STANDARD, data="x" * 1_000_000),
                ):  # fmt: skip
                    with pytest.raises(HansaError):
                        raise AssertionError(f"taken: {str(odd)[:200]} {await fed.caller.ask(odd, api.Submitted)}")
            no_traceback(lines)
            assert not (await fed.caller.ask(api.ListRuns(), api.RunList)).runs

    drive(scenario(), 60)
