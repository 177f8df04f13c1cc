"""Backups: what is in one, what a home made of one is, and what is refused before anything is written."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import sqlite3
import stat
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc", reason="needs the extra 'net'")

import msgspec

from hansa.deployment.audit import AuditLog
from hansa.deployment.backup import MANIFEST, take
from hansa.deployment.identity import Credentials
from hansa.deployment.membership import revoke_at
from hansa.deployment.restoration import restore
from hansa.deployment.store import Database, Mailbox, MemberTable
from hansa.deployment.worker.frames import Body
from hansa.deployment.worker.spool import Spool
from hansa.errors import AuditError, ConfigError, HansaError, IdentityError, LinkError, StoreError
from tests.deployment.federation import _template, enrol

NAMES = ("node-0", "node-1")
NOW = time.time()


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """The home of a hub that has seen something."""
    home = tmp_path / "hub"
    shutil.copytree(_template("trial", NAMES) / "hub", home)
    (home / "hub.toml").write_text("# mine\n")
    with contextlib.closing(Database(home / "hub.db")) as database, database.at_once():
        mailbox = Mailbox(database, Spool(home / "spool"))
        mailbox.put("node-0", "", "", "", Body("t", 1, b"x"))
        mailbox.take("node-0", "", 3)
        mailbox.meet("node-0", "a" * 32)
        MemberTable(database).invite(77, "late", "node", NOW + 1000)
        MemberTable(database).invite(78, "used", "node", NOW + 1000)
        MemberTable(database).burn(78, "print", b"certificate")
    with AuditLog(home / "audit.log", lambda: NOW, key=Credentials.load(home, NOW).sealing.sign) as audit:
        audit.append("invited", name="late")
    return home


@pytest.fixture
def file(tmp_path: Path, hub: Path) -> Path:
    take(hub, tmp_path / "hub.tar", NOW)
    return tmp_path / "hub.tar"


def contents(home: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(home)): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.suffix not in (".lock", ".db")
    }


# What is right.


def test_a_backup_holds_what_its_home_needs_and_is_its_owners_alone(tmp_path: Path, hub: Path) -> None:
    (hub / "notes.txt").write_text("mine")
    (hub / "spool" / ("0" * 32)).write_bytes(b"under way")
    taken = take(hub, tmp_path / "it.tar", NOW)
    assert stat.S_IMODE((tmp_path / "it.tar").stat().st_mode) == 0o600
    with tarfile.open(tmp_path / "it.tar", "r:") as archive:
        assert archive.getnames() == [MANIFEST, *(part.name for part in taken.manifest.files)]
        assert all(member.mode == 0o600 and member.isreg() and not member.uid for member in archive)
    assert {part.name for part in taken.manifest.files} == {
        "hub.db", "hub.toml", "audit.log", "authority/authority.key",
        *(f"{where}identity/{name}" for where in ("", "operator/") for name in
          ("authority.pem", "tls.pem", "sealing.pem", "hub.json")),
    }  # fmt: skip
    manifest = taken.manifest
    assert (manifest.kind, manifest.federation, manifest.name, manifest.time) == ("hub", "trial", "hub", NOW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "it.tar"]


def test_a_restored_home_is_the_same_but_for_what_is_counted(tmp_path: Path, hub: Path, file: Path) -> None:
    done = restore(file, tmp_path / "new", NOW + 5)
    made = tmp_path / "new"
    before, after = contents(hub), contents(made)
    assert after.pop("audit.log").startswith(before.pop("audit.log"))
    assert before == after
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.rglob("*") if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.rglob("*") if path.is_file()} == {0o600}
    assert done.left is not None and (done.left.members, done.left.invitations) == (3, 1)
    with contextlib.closing(Database(hub / "hub.db")) as old, contextlib.closing(Database(made / "hub.db")) as new:
        mailbox = Mailbox(new, Spool(made / "spool"))
        assert mailbox.epoch != Mailbox(old, Spool(hub / "spool")).epoch
        assert mailbox.known("node-0") == "a" * 32
        assert (mailbox.sent("node-0", ""), mailbox.lanes("node-0", 9), mailbox.spooled()) == (0, {}, 0)
        assert mailbox.next("node-0", "", 0) is None
        members = MemberTable(new)
        assert members.copies() == [(NOW, NOW + 5)]
        with pytest.raises(IdentityError, match="revoked"):
            members.used(77, "print", NOW)
        with pytest.raises(IdentityError, match="used already"):
            members.used(78, "another", NOW)
        assert members.used(78, "print", NOW) == b"certificate"
    with AuditLog(made / "audit.log", lambda: NOW, key=Credentials.load(made, NOW).sealing.sign):
        assert b'"kind":"restored"' in (made / "audit.log").read_bytes()


def test_two_homes_of_one_backup_are_two(tmp_path: Path, file: Path) -> None:
    epochs = set()
    for name in ("one", "two"):
        restore(file, tmp_path / name, NOW)
        with contextlib.closing(Database(tmp_path / name / "hub.db")) as database:
            epochs.add(Mailbox(database, Spool(tmp_path / name / "spool")).epoch)
    assert len(epochs) == 2


def test_a_person_has_a_home_too(tmp_path: Path) -> None:
    shutil.copytree(_template("trial", NAMES) / "hub", tmp_path / "hub")
    enrol(tmp_path / "hub", tmp_path / "ada", "ada", "submitter")
    taken = take(tmp_path / "ada", tmp_path / "ada.tar", NOW)
    assert len(taken.manifest.files) == 4
    done = restore(tmp_path / "ada.tar", tmp_path / "again", NOW)
    assert done.left is None and contents(tmp_path / "again") == contents(tmp_path / "ada")


def test_an_audit_log_that_is_written_to_is_copied_to_its_last_line(tmp_path: Path, hub: Path) -> None:
    whole = (hub / "audit.log").read_bytes()
    for torn in (b'{"n":', b"x" * (1 << 20), b"x" * (2 << 20)):
        (hub / "audit.log").write_bytes(whole + torn)
        file = tmp_path / f"{len(torn)}.tar"
        take(hub, file, NOW)
        with tarfile.open(file) as archive:
            found = archive.extractfile("audit.log")
            assert found is not None and found.read() == whole


def test_a_mailbox_knows_the_epochs_that_a_peer_has_left(tmp_path: Path) -> None:
    with contextlib.closing(Database(tmp_path / "x.db")) as database, database.at_once():
        mailbox = Mailbox(database, Spool(tmp_path / "spool"))
        assert len(mailbox.epoch) == 32 and mailbox.known("b") == ""
        mailbox.put("b", "", "", "", Body("t", 1, b"x"))
        assert not mailbox.meet("b", "1" * 32), "the first meeting keeps what waits for it"
        assert mailbox.sent("b", "") == 1
        assert not mailbox.meet("b", "1" * 32)
        assert mailbox.meet("b", "2" * 32)
        assert (mailbox.sent("b", ""), mailbox.next("b", "", 0)) == (0, None)
        with pytest.raises(LinkError, match="must not run beside each other"):
            mailbox.meet("b", "1" * 32)
        assert mailbox.known("b") == "2" * 32
        for number in range(100):
            assert mailbox.meet("b", f"{number:032x}")
        ((kept,),) = database.read("SELECT COUNT(*) FROM epochs WHERE peer = 'b'")
        assert kept == 16
        assert not mailbox.meet("c", "1" * 32), "another's epoch is its own"
        mailbox.forget("b")
        assert not mailbox.meet("b", f"{98:032x}")


# What is refused.


@dataclass
class Archive:
    """A backup in pieces, to be put together in another way."""

    manifest: dict[str, Any]
    members: list[tuple[tarfile.TarInfo, bytes]] = field(default_factory=list)
    after: bytes = b""
    first: bytes | None = None

    @staticmethod
    def of(file: Path) -> Archive:
        with tarfile.open(file, "r:") as archive:
            pairs = [(member, archive.extractfile(member)) for member in archive]
            read = [(member, b"" if found is None else found.read()) for member, found in pairs]
        return Archive(msgspec.json.decode(read[0][1]), read[1:])

    def write(self, file: Path) -> None:
        with file.open("wb") as out:
            with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
                text = msgspec.json.encode(self.manifest) if self.first is None else self.first
                if text:
                    member = tarfile.TarInfo(MANIFEST)
                    member.size = len(text)
                    archive.addfile(member, io.BytesIO(text))
                for member, data in self.members:
                    archive.addfile(member, io.BytesIO(data))
            out.write(self.after)

    def place(self, name: str) -> int:
        return next(place for place, (member, _) in enumerate(self.members) if member.name == name)

    def put(self, name: str, data: bytes, told: bool = True) -> None:
        """Exchange a member, or add one; the manifest is told."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        names = [one.name for one, _ in self.members]
        if name in names:
            self.members[names.index(name)] = (member, data)
        else:
            self.members.append((member, data))
        if told:
            part = {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            files = [one for one in self.manifest["files"] if one["name"] != name]
            files.insert(names.index(name) if name in names else len(files), part)
            self.manifest["files"] = files

    def drop(self, name: str, told: bool = True) -> None:
        del self.members[self.place(name)]
        if told:
            self.manifest["files"] = [one for one in self.manifest["files"] if one["name"] != name]

    def kind(self, name: str, kind: bytes, to: str = "") -> None:
        member, _ = self.members[self.place(name)]
        member.type, member.linkname, member.size = kind, to, 0

    def database(self, *statements: str) -> None:
        """Do something to the database."""
        _, data = self.members[self.place("hub.db")]
        path = Path(f"{os.environ['PYTEST_TMP']}.db")
        path.write_bytes(data)
        with contextlib.closing(sqlite3.connect(path)) as database:
            for statement in statements:
                database.execute(statement)
            database.commit()
        self.put("hub.db", path.read_bytes())
        path.unlink()


def _swap(made: Archive) -> None:
    made.members[0], made.members[1] = made.members[1], made.members[0]


def _flip(made: Archive) -> None:
    member, data = made.members[made.place("hub.toml")]
    made.members[made.place("hub.toml")] = member, bytes([data[0] ^ 1]) + data[1:]


def _log(made: Archive) -> None:
    _, data = made.members[made.place("audit.log")]
    made.put("audit.log", data.replace(b"late", b"lame"))


def _other(made: Archive, *names: str) -> None:
    for name in names:
        made.put(name, (_template("other", NAMES) / "hub" / name).read_bytes())


def _size(made: Archive) -> None:
    made.manifest["files"][0]["size"] += 1


def _pax(made: Archive) -> None:
    made.members[0][0].pax_headers = {"comment": "x"}


def _result(made: Archive) -> None:
    made.database(
        "INSERT INTO runs (run, name, owner_kind, owner, described, request, status, created, tag, size, blob) VALUES"
        f" ('00000000000000aa', 'x', 'operator', 'a', x'', x'', 'completed', 1, 't', 9, '{'ab' * 16}')"
    )


ALL = ("authority/authority.key", *(f"{where}identity/{name}" for where in ("", "operator/") for name in
       ("authority.pem", "tls.pem", "sealing.pem", "hub.json")))  # fmt: skip
FLAWS: dict[str, tuple[Callable[[Archive], object], str]] = {
    "no manifest": (lambda it: setattr(it, "first", b""), "where its manifest says manifest.json|holds 'hub.db'"),
    "no JSON": (lambda it: setattr(it, "first", b"{nothing"), "manifest cannot be read"),
    "no UTF-8": (lambda it: setattr(it, "first", b'{"format":1,"kind":"\xff"}'), "manifest cannot be read"),
    "a deep manifest": (lambda it: setattr(it, "first", b"[" * 100_000), "manifest cannot be read"),
    "more in the manifest": (lambda it: it.manifest.update(more=1), "manifest cannot be read"),
    "a newer format": (lambda it: it.manifest.update(format=2, more=1), "newer Hansa .format 2, this one knows 1"),
    "no format": (lambda it: it.manifest.update(format=0), "does not know"),
    "a time that is none": (lambda it: it.manifest.update(time=-1.0), "manifest cannot be read"),
    "an unknown kind": (lambda it: it.manifest.update(kind="king"), "does not know"),
    "a hub as a node": (lambda it: it.manifest.update(kind="node"), "nothing that a backup of a node holds"),
    "another name": (lambda it: it.manifest.update(name="node-0"), "its manifest is of hub 'node-0'"),
    "another federation": (lambda it: it.manifest.update(federation="other"), "its manifest is of"),
    "a path outside": (lambda it: it.put("../outside", b"x"), "'../outside' is nothing that"),
    "a path outside in a folder": (lambda it: it.put("spool/../../outside", b"x"), "outside' is nothing that"),
    "an absolute path": (lambda it: it.put("/tmp/outside", b"x"), "'/tmp/outside' is nothing that"),
    "a name and more": (lambda it: it.put("hub.toml\n", b"x"), "is nothing that"),
    "a file of another kind": (lambda it: it.put("node.toml", b"x"), "'node.toml' is nothing that"),
    "a program": (lambda it: it.put("identity/run.sh", b"x"), "is nothing that"),
    "an extra member": (lambda it: it.put("address", b"x", told=False), "holds 'address', which its manifest does not"),
    "a member that is told and not there": (lambda it: it.drop("hub.toml", told=False), "holds|lacks"),
    "the last member is not there": (lambda it: it.members.pop(), "lacks|cut short"),
    "no database": (lambda it: it.drop("hub.db"), "it lacks hub.db"),
    "no keys": (lambda it: it.drop("identity/sealing.pem"), "it lacks identity/sealing.pem"),
    "no authority": (lambda it: it.drop("authority/authority.key"), "it lacks authority/authority.key"),
    "a name twice": (lambda it: it.manifest["files"].append(it.manifest["files"][0]), "names a member twice"),
    "another order": (_swap, "where its manifest says"),
    "another size": (_size, "its manifest says"),
    "a flipped bit": (_flip, "hub.toml is not what was written"),
    "a symbolic link": (lambda it: it.kind("hub.toml", tarfile.SYMTYPE, "/etc/passwd"), "no plain file but a link"),
    "a hard link": (lambda it: it.kind("hub.toml", tarfile.LNKTYPE, "/etc/passwd"), "no plain file but a link"),
    "a device": (lambda it: it.kind("hub.toml", tarfile.CHRTYPE), "a device"),
    "a pipe": (lambda it: it.kind("hub.toml", tarfile.FIFOTYPE), "a device"),
    "a folder": (lambda it: it.kind("hub.toml", tarfile.DIRTYPE), "a folder|where its manifest says"),
    "words of its own": (_pax, "no plain file"),
    "something after its end": (lambda it: setattr(it, "after", bytes(512) + b"more"), "something follows its end"),
    "another hub's authority": (lambda it: _other(it, "authority/authority.key"), "its authority is not the one"),
    "another hub's certificate": (lambda it: _other(it, "identity/tls.pem"), "did not issue"),
    "another hub's sealing keys": (lambda it: _other(it, "identity/sealing.pem"), "not for the sealing keys"),
    "another hub, all of it": (lambda it: _other(it, *ALL), "its manifest is of hub 'hub'"),
    "another's operator": (lambda it: _other(it, "operator/identity/tls.pem"), "did not issue"),
    "a log that was altered": (_log, "audit.log"),
    "no database at all": (lambda it: it.put("hub.db", b"SQLite format 3\0" + b"x" * 5000), "no database, or a damaged"),
    "a newer database": (lambda it: it.database("PRAGMA user_version = 99"), "newer Hansa .schema 99"),
    "a trigger": (
        lambda it: it.database("CREATE TRIGGER t AFTER DELETE ON lanes BEGIN UPDATE members SET revoked = NULL; END"),
        "other tables than Hansa makes",
    ),
    "a view": (lambda it: it.database("CREATE VIEW v AS SELECT * FROM members"), "other tables than Hansa makes"),
    "a table less": (lambda it: it.database("DROP TABLE invitations"), "other tables than Hansa makes"),
    "a result that is not there": (_result, "a result of 9 bytes is not in the spool"),
}  # fmt: skip


@pytest.mark.parametrize("flaw", sorted(FLAWS))
@pytest.mark.parametrize("empty", [True, False], ids=["empty", "absent"])
def test_what_is_wrong_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, file: Path, flaw: str, empty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_TMP", str(tmp_path / "scratch"))
    edit, words = FLAWS[flaw]
    archive = Archive.of(file)
    edit(archive)
    archive.write(bad := tmp_path / "bad.tar")
    place = tmp_path / "place"
    place.mkdir()
    if empty:
        (place / "home").mkdir(mode=0o700)
    with pytest.raises(HansaError, match=words) as caught:
        restore(bad, place / "home", NOW)
    assert isinstance(caught.value, StoreError | IdentityError | AuditError) and "bad.tar" in str(caught.value)
    assert list(place.rglob("*")) == ([place / "home"] if empty else [])
    assert not (tmp_path / "outside").exists()


def test_the_flaws_are_flaws(tmp_path: Path, file: Path) -> None:
    Archive.of(file).write(tmp_path / "same.tar")
    restore(tmp_path / "same.tar", tmp_path / "home", NOW)


@pytest.mark.parametrize("length", [0, 1, 511, 600, 5000, 50_000, -10_241, -12_000])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, file: Path, length: int) -> None:
    data = file.read_bytes()
    (bad := tmp_path / "bad.tar").write_bytes(data[:length])
    with pytest.raises(StoreError, match="cannot be restored"):
        restore(bad, tmp_path / "home", NOW)
    assert not (tmp_path / "home").exists()


def test_what_is_no_backup_is_refused(tmp_path: Path, file: Path) -> None:
    (zipped := tmp_path / "zipped.tar.gz").write_bytes(__import__("gzip").compress(file.read_bytes()))
    (noise := tmp_path / "noise").write_bytes(os.urandom(100_000))
    for bad in (zipped, noise, tmp_path / "absent", tmp_path):
        with pytest.raises(StoreError, match="cannot be restored"):
            restore(bad, tmp_path / "home", NOW)
    assert not (tmp_path / "home").exists()


def test_a_home_that_is_not_empty_stays_as_it_is(tmp_path: Path, hub: Path, file: Path) -> None:
    before = contents(hub)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / ".hidden").write_text("x")
    (tmp_path / "plain").write_text("x")
    for home in (hub, tmp_path / "one", tmp_path / "plain"):
        with pytest.raises(ConfigError, match="is not empty"):
            restore(file, home, NOW)
    assert contents(hub) == before and (tmp_path / "plain").read_text() == "x"


def test_a_folder_that_others_can_write_to_is_no_home(tmp_path: Path, file: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(IdentityError, match="others can write"):
        restore(file, tmp_path / "open", NOW)
    assert not list((tmp_path / "open").iterdir())


def test_a_backup_overwrites_nothing_and_leaves_nothing_behind(tmp_path: Path, hub: Path) -> None:
    (tmp_path / "there").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for file in (tmp_path / "there", tmp_path / "link"):
        with pytest.raises(ConfigError, match="is not overwritten"):
            take(hub, file, NOW)
    with pytest.raises(ConfigError, match="no home of a federation"):
        take(tmp_path, tmp_path / "new.tar", NOW)
    with pytest.raises(StoreError, match="cannot be"):
        take(hub, tmp_path / "no such folder" / "new.tar", NOW)
    (hub / "hub.db").write_bytes(b"noise" * 1000)
    with pytest.raises(StoreError, match="cannot be copied"):
        take(hub, tmp_path / "new.tar", NOW)
    assert (tmp_path / "there").read_text() == "mine" and not (tmp_path / "nowhere").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "link", "there"]


def test_a_home_that_lacks_a_result_gives_no_backup(tmp_path: Path, hub: Path) -> None:
    with contextlib.closing(sqlite3.connect(hub / "hub.db")) as database:
        database.execute(
            "INSERT INTO results VALUES ('00000000000000aa', 'server', 't', 9, NULL, ?)", ("ab" * 16,)
        )  # fmt: skip
        database.commit()
    with pytest.raises(StoreError, match="the home is damaged"):
        take(hub, tmp_path / "it.tar", NOW)
    assert not (tmp_path / "it.tar").exists()


def test_who_was_revoked_since_is_revoked_before_the_hub_starts(tmp_path: Path, file: Path) -> None:
    home = tmp_path / "new"
    restore(file, home, NOW)
    with pytest.raises(ConfigError, match="the only operator"):
        revoke_at(home, "operator", NOW)
    with pytest.raises(ConfigError, match="no member"):
        revoke_at(home, "nobody", NOW)
    assert revoke_at(home, "node-0", NOW)
    with contextlib.closing(Database(home / "hub.db")) as database:
        assert not revoke_at(home, "node-1", NOW), "a hub that runs is asked"
        member = MemberTable(database).get("node-0")
        assert member is not None and member.revoked == NOW
        parcel = Mailbox(database, Spool(home / "spool")).next("node-1", "", 0)
        assert parcel is not None and parcel.body.tag == "hansa.control.recall/1"
    assert not revoke_at(_template("trial", NAMES) / "node-0", "node-1", NOW), "a node revokes nobody"
