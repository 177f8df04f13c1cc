"""``hansa backup`` and ``hansa restore``: a home in one file, and a home from it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hansa.cli.home import Home, date, home_of, same_home
from hansa.cli.output import Json, emit, say

if TYPE_CHECKING:
    from hansa.deployment.backup import Manifest
    from hansa.deployment.restoration import Restored


def backup(
    file: Annotated[Path, typer.Argument(help="The file to write; one that is there is not overwritten.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Write all of a home that can be restored into one file, while its hub or node runs or not."""
    place = home_of(home, "hansa backup")
    from hansa.deployment import backup as archive

    taken = archive.take(place, file, time.time())
    if json:
        emit({"file": str(file), "bytes": taken.size, **_told(taken.manifest), "results": taken.results})
        return
    keys = "the private keys of the hub, the operator and the federation's authority"
    keys = keys if taken.manifest.kind == "hub" else "its private keys"
    say(
        f"wrote {file}, {taken.size:,} bytes: {_who(taken.manifest)}, {len(taken.manifest.files)} files; it contains {keys}: "
        f"keep it as secret as the home"
    )


def restore(
    file: Annotated[Path, typer.Argument(help="What hansa backup wrote.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Make a new home of a backup; the old one must not run any more."""
    place = home_of(home, "hansa restore")
    from hansa.deployment import restoration

    done = restoration.restore(file, place, time.time())
    left = done.left
    if json:
        emit(
            {"home": str(place), **_told(done.manifest),
             "failed": [] if left is None else [record.run for record in left.failed],
             "lost": [] if left is None else left.works, "invitations": 0 if left is None else left.invitations}
        )  # fmt: skip
        return
    say(f"restored {_who(done.manifest)} into {place}")
    _say_runs(done)
    what = same_home(home)
    if done.manifest.kind == "hub":
        if left is not None and left.invitations:
            say(f"invitations that were open are void: {left.invitations}; invite anew")
        say(
            "what this hub cannot know: who was invited, joined or was revoked since then. Revoke again before you start it:"
        )
        say(f"      hansa revoke NAME{what}")
        say("whoever joined since then is invited again, and joins with the home that it has")
    elif done.expires < time.time():
        say("its certificate has expired: ask the operator for an invitation, then, with this home: hansa join -")
    if done.manifest.kind in ("hub", "node"):
        say(
            "the home that the backup was taken of must never run again beside this one; who has met this one refuses that one"
        )
        say(f"next: hansa {done.manifest.kind}{what}")


def _say_runs(done: Restored) -> None:
    left = done.left
    if left is None:
        return
    if done.manifest.kind == "hub":
        say(f"it knows {left.members} members and {left.runs} runs, and holds the results of {left.results}")
    if left.failed:
        say(f"runs that were under way have failed, and can begin anew with hansa resume: {len(left.failed)}")
        for record in left.failed[:20]:
            say(f"      {record.run}  {record.name}")
    if left.works:
        say(
            f"its parts of runs that were under way are lost: {len(left.works)}; the hub ends those runs, or goes on without it"
        )


def _who(manifest: Manifest) -> str:
    name = f"the {manifest.kind}" if manifest.kind == "hub" else f"{manifest.kind} '{manifest.name}'"
    return f"{name} of '{manifest.federation}' as of {date(manifest.time)} UTC"


def _told(manifest: Manifest) -> dict[str, object]:
    return {
        "kind": manifest.kind, "federation": manifest.federation, "name": manifest.name, "time": manifest.time,
    }  # fmt: skip
