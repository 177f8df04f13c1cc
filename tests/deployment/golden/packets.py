"""The messages of the network as docs/wire.md describes them, written without the code under test; `main` writes packets.json.

Run from the repository's root: ``python -m tests.deployment.golden.packets``.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "packets.json"
RUN = "00000000000000ff"
SHAPE = {"features": [1, 28, 28], "tokens": False, "targets": [], "classes": 10, "names": "cd" * 32}
Fields = dict[str, Any]

LANE = {"run": RUN, "received": 3, "partial": 4, "offset": 1 << 20}
PARTY = {"party": "hospital-a", "host": "hospital-a", "answer": "accepted", "reason": "", "connected": True}
VIEW = {
    "run": RUN, "name": "hearts", "owner": "ada", "status": "running", "cause": "", "party": "", "remedy": "", "round": 2,
    "rounds": None, "created": 1.75e9, "started": 1.75e9 + 0.5, "ended": None, "digest": "ab" * 32, "participants": [PARTY],
}  # fmt: skip
MEMBER = {
    "name": "hospital-a", "kind": "node", "state": "connected", "fingerprint": "ab" * 32, "since": 1.75e9,
    "expires": 1.75e9 + 604800.0, "seen": None,
}  # fmt: skip
PROGRESS: tuple[str, Fields] = (
    "hansa.progress/1",
    {"round": 2, "metrics": {"loss": 0.5}, "parties": {"hospital-a": {"loss": 0.25}}, "note": "two parties"},
)

PLACES: dict[str, list[tuple[str, Fields]]] = {
    "link": [
        ("hansa.link.hello/1", {"protocol": 1, "oldest": 1, "software": "0.1.0", "instance": "5a" * 16,
                                "epoch": "e1" * 16, "known": "e2" * 16, "lanes": [LANE]}),
        ("hansa.link.welcome/1", {"protocol": 1, "software": "0.1.0", "federation": "hearts", "time": 1.75e9,
                                  "epoch": "e2" * 16, "lanes": []}),
        ("hansa.link.sending/1", {"run": RUN, "seq": 4, "sender": "hospital-a", "receiver": "server", "sealed": False,
                                  "kind": "hansa.withdraw/1", "size": 3, "inline": b"abc", "offset": 0}),
        ("hansa.link.received/1", {"run": "", "seq": (1 << 63) - 1}),
        ("hansa.link.refused/1", {"run": RUN, "seq": 4, "reason": "no"}),
        ("hansa.link.probe/1", {"nonce": 70000, "answer": False}),
        ("hansa.link.farewell/1", {"reason": "the hub is going away"}),
    ],
    "to-node": [
        ("hansa.control.offer/1", {"run": RUN, "attempt": 1, "name": "hearts", "plan": "name = 'hearts'\n", "digest": "ab" * 32,
                                   "submitter": "ada", "data": "hearts", "roles": {"client": ["hospital-a"], "server": ["server"]},
                                   "hosts": {"hospital-a": "hospital-a", "server": "hub"}, "certificates": {"hub": "-----"},
                                   "seconds": 60.0}),
        ("hansa.control.start/1", {"run": RUN, "attempt": 1, "roles": {"client": ["hospital-a"], "server": ["server"]},
                                   "addresses": {"hospital-a": "a.example.org:7402"}, "shape": SHAPE,
                                   "epochs": {"hospital-b": "e3" * 16}}),
        ("hansa.control.end/1", {"run": RUN, "attempt": 1, "status": "failed", "cause": "no quorum"}),
        ("hansa.control.recall/1", {"names": ["hospital-b"]}),
    ],
    "to-hub": [
        ("hansa.control.answer/1", {"run": RUN, "attempt": 1, "verdict": "refused", "reason": "node.toml:9: no", "address": "",
                                    "shape": None}),
        ("hansa.control.report/1", {"run": RUN, "party": "server", "progress": b"HNSA"}),
        ("hansa.control.trouble/1", {"run": RUN, "attempt": 1, "party": "hospital-a", "kind": "DataError", "cause": "no rows",
                                     "round": 3, "remedy": "", "fatal": True}),
        ("hansa.control.finished/1", {"run": RUN, "attempt": 2, "party": "server"}),
    ],
    "call": [
        ("hansa.api.submit/1", {"plan": "name = 'hearts'\n", "name": "", "data": "hearts", "parties": ["hospital-a"], "least": 0,
                                "server": "hub", "seconds": 0.0}),
        ("hansa.api.list-runs/1", {"before": {"created": 1.75e9, "run": RUN}, "most": 20, "begins": ""}),
        ("hansa.api.stop-run/1", {"run": RUN}),
        ("hansa.api.resume-run/1", {"run": RUN}),
        ("hansa.api.forget-run/1", {"run": RUN}),
        ("hansa.api.read-events/1", {"run": RUN, "after": 0, "follow": True}),
        ("hansa.api.invite/1", {"name": "hospital-a", "kind": "node", "seconds": 3600.0}),
        ("hansa.api.revoke/1", {"name": "hospital-a"}),
        ("hansa.api.list-members/1", {}),
        ("hansa.api.enrol/1", {"request": b"\x30\x00"}),
        ("hansa.api.renew/1", {"request": b"\x30\x00"}),
        ("hansa.api.greet/1", {"software": "0.1.0", "protocol": 1}),
    ],
    "fetch": [("hansa.api.fetch/1", {"run": RUN})],
    "answer": [
        ("hansa.api.submitted/1", {"run": RUN}),
        ("hansa.api.run-list/1", {"runs": [VIEW], "more": 7}),
        ("hansa.api.done/1", {}),
        ("hansa.api.event/1", {"number": 9, "time": 1.75e9, "run": RUN, "kind": "round", "party": "server", "round": 2,
                               "text": "", "progress": b"HNSA"}),
        ("hansa.api.file-part/1", {"name": "plan.toml", "data": b"name", "last": True}),
        ("hansa.api.invited/1", {"token": "hansa1-AA", "expires": 1.75e9}),
        ("hansa.api.member-list/1", {"members": [MEMBER]}),
        ("hansa.api.certified/1", {"certificate": b"-----"}),
        ("hansa.api.greeting/1", {"federation": "hearts", "software": "0.1.0", "protocol": 1, "oldest": 1, "time": 1.75e9,
                                  "name": "ada", "kind": "submitter"}),
        ("hansa.api.problem/1", {"kind": "NotAuthorized", "what": "there is no such run"}),
    ],
    "progress": [PROGRESS],
}  # fmt: skip
"""One message of each class, by the place where it is accepted."""


def pack(value: Any) -> bytes:
    """Minimal MessagePack of a value; a map keeps its order."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, str):
        text = value.encode()
        return _sized(len(text), 0xA0, 32, (0xD9, 0xDA, 0xDB)) + text
    if isinstance(value, bytes):
        return _sized(len(value), 0, 0, (0xC4, 0xC5, 0xC6)) + value
    if isinstance(value, list):
        return _sized(len(value), 0x90, 16, (0, 0xDC, 0xDD)) + b"".join(map(pack, value))
    return _sized(len(value), 0x80, 16, (0, 0xDE, 0xDF)) + b"".join(
        pack(key) + pack(item) for key, item in value.items()
    )


def _integer(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack("b", value)
    sizes = zip("BHIQ" if value >= 0 else "bhiq", range(0xCC if value >= 0 else 0xD0, 0xD4), strict=False)
    for form, code in sizes:
        try:
            return bytes([code]) + struct.pack(">" + form, value)
        except struct.error:
            continue
    raise ValueError(value)


def _sized(size: int, short: int, below: int, codes: tuple[int, int, int]) -> bytes:
    if size < below:
        return bytes([short | size])
    if size < 256 and codes[0]:
        return bytes([codes[0], size])
    return bytes([codes[1]]) + struct.pack(">H", size) if size < 65536 else bytes([codes[2]]) + struct.pack(">I", size)


def frame(tag: str, body: bytes) -> bytes:
    head = struct.pack("<4sBBHIQ", b"HNSA", 1, len(tag), 0, len(body), 0) + tag.encode() + body
    return head + bytes(-len(head) % 16)


def plain(value: Any) -> Any:
    """A value as JSON has it; bytes as an object of their hexadecimal digits."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def good() -> list[Fields]:
    return [
        {"name": tag, "place": place, "expect": "ok", "fields": plain(fields), "hex": frame(tag, pack(fields)).hex()}
        for place, messages in PLACES.items()
        for tag, fields in messages
    ]


def bad() -> list[Fields]:
    """Each message spoiled in every way that applies to it, and what a reader of its place calls that."""
    cases: list[Fields] = []

    def add(name: str, place: str, data: bytes, expect: str = "MalformedMessage") -> None:
        cases.append({"name": name, "place": place, "expect": expect, "hex": data.hex()})

    for place, messages in PLACES.items():
        elsewhere = next(other[0] for name, other in PLACES.items() if name != place)
        for tag, fields in messages:
            body, names = pack(fields), list(fields)
            add(f"{tag}: cut", place, frame(tag, body)[:-1])
            add(f"{tag}: longer", place, frame(tag, body) + bytes(16))
            add(f"{tag}: another version", place, frame(tag[:-1] + "2", body), "UnknownMessage")
            add(f"{tag}: one field more", place, frame(tag, pack({**fields, "zz": 0})))
            add(f"{tag}: an array", place, frame(tag, pack(list(fields.values()))))
            add(f"{tag}: bytes after it", place, frame(tag, body + b"\xc0"))
            if names:
                add(f"{tag}: without {names[-1]}", place, frame(tag, pack({n: fields[n] for n in names[:-1]})))
                add(f"{tag}: {names[0]} of another type", place, frame(tag, pack({**fields, names[0]: {"a": 1}})))
                add(f"{tag}: {names[0]} twice", place, frame(tag, _twice(fields)))
            if len(names) > 1:
                add(f"{tag}: another order", place, frame(tag, pack({n: fields[n] for n in reversed(names)})))
        add(f"{place}: {elsewhere[0]}", place, frame(elsewhere[0], pack(elsewhere[1])), "UnknownMessage")
    hello, sending = PLACES["link"][0], PLACES["link"][2]
    for what, number in (("below zero", -1), ("above 63 bits", 1 << 63), ("of 64 bits", (1 << 64) - 1)):
        add(
            f"hansa.link.received/1: seq {what}",
            "link",
            frame("hansa.link.received/1", pack({"run": "", "seq": number})),
        )
        add(f"hansa.link.sending/1: size {what}", "link", frame(sending[0], pack({**sending[1], "size": number})))
        lanes = [{**LANE, "offset": number}]
        add(f"hansa.link.hello/1: offset {what}", "link", frame(hello[0], pack({**hello[1], "lanes": lanes})))
    for what, run in (
        ("short", "ff"),
        ("long", RUN + "f"),
        ("capital", "F" * 16),
        ("a path", "../../../etc/pas"),
        ("two lines", RUN + "\n"),
    ):
        add(f"hansa.link.sending/1: a run that is {what}", "link", frame(sending[0], pack({**sending[1], "run": run})))
        add(
            f"hansa.link.hello/1: a lane that is {what}",
            "link",
            frame(hello[0], pack({**hello[1], "lanes": [{**LANE, "run": run}]})),
        )
    for name in ("sender", "receiver", "kind"):
        add(f"hansa.link.sending/1: {name} too long", "link", frame(sending[0], pack({**sending[1], name: "a" * 256})))
    add("hansa.link.sending/1: number 0", "link", frame(sending[0], pack({**sending[1], "seq": 0})))
    add("hansa.link.farewell/1: too long", "link", frame("hansa.link.farewell/1", pack({"reason": "a" * 4001})))
    probe = ("hansa.link.probe/1", {"nonce": 7, "answer": False})
    add("a number as a float", "link", frame(probe[0], pack({"nonce": 7.0, "answer": False})))
    add("a truth as a number", "link", frame(probe[0], pack({"nonce": 7, "answer": 0})))
    long = b"\x82" + pack("nonce") + b"\xcc\x07" + pack("answer") + b"\xc2"
    add("a number longer than it must be", "link", frame(probe[0], long))
    add("a text that is not UTF-8", "link", frame("hansa.link.farewell/1", b"\x81" + pack("reason") + b"\xa1\xff"))
    add(
        "maps in one another",
        "link",
        frame("hansa.link.farewell/1", b"\x81" + pack("reason") + b"\x81\xa0" * 2000 + b"\xc0"),
    )
    huge = b"\x81" + pack("reason") + b"\xdb\xff\xff\xff\xff"
    add("a text that says it has 4 GiB", "link", frame("hansa.link.farewell/1", huge))
    whole = frame(probe[0], pack(probe[1]))
    add("a frame of another format", "link", whole[:4] + b"\x02" + whole[5:])
    add("a frame that says it has 64 MiB more", "link", whole[:8] + struct.pack("<I", (1 << 26) + 1) + whole[12:],
        "OversizedMessage")  # fmt: skip
    add("no bytes", "link", b"")
    add("a class by its name", "link", frame("builtins.eval", pack({"reason": "1"})), "UnknownMessage")
    return cases


def _twice(fields: Fields) -> bytes:
    """The map with its first field written twice."""
    first = next(iter(fields))
    items = b"".join(pack(key) + pack(value) for key, value in fields.items())
    return _sized(len(fields) + 1, 0x80, 16, (0, 0xDE, 0xDF)) + pack(first) + pack(fields[first]) + items


def pieces() -> list[Fields]:
    head = struct.pack("<4s4xQQQ", b"HNSP", 0xFF, 7, 1 << 20)
    fields = {"run": RUN, "seq": 7, "offset": 1 << 20, "data": {"hex": "616263"}}
    spoiled = {
        "a piece without data": head,
        "a piece shorter than its head": head[:31],
        "a piece of its mark alone": head[:4],
        "a piece with something at 4": head[:4] + b"\x01\0\0\0" + head[8:] + b"abc",
        "a piece with something at 7": head[:7] + b"\x01" + head[8:] + b"abc",
    }
    return [
        {"name": "a piece", "expect": "ok", "fields": fields, "hex": (head + b"abc").hex()},
        *({"name": name, "expect": "MalformedMessage", "hex": data.hex()} for name, data in spoiled.items()),
    ]


def versions() -> list[Fields]:
    hello = PLACES["link"][0]
    spoken = ((1, 1, "ok"), (2, 1, "ok"), (9, 0, "ok"), (0, 0, "VersionMismatch"), (2, 2, "VersionMismatch"),
              (1, 2, "VersionMismatch"), (1 << 40, 2, "VersionMismatch"))  # fmt: skip
    return [
        {"name": f"{oldest} to {newest}", "expect": expect,
         "hex": frame(hello[0], pack({**hello[1], "protocol": newest, "oldest": oldest})).hex()}
        for newest, oldest, expect in spoken
    ]  # fmt: skip


def errors() -> list[Fields]:
    said = {
        "IdentityError: revoked": ("IdentityError", "revoked"),
        "VersionMismatch: older: much": ("VersionMismatch", "older: much"),
        "": ("LinkError", ""),
        "no name": ("LinkError", "no name"),
        "SystemExit: 1": ("LinkError", "SystemExit: 1"),
        "HansaError: the root is none of them": ("LinkError", "HansaError: the root is none of them"),
        "identityerror: lower case": ("LinkError", "identityerror: lower case"),
        "IdentityError:no space": ("LinkError", "IdentityError:no space"),
        "os.system: ls": ("LinkError", "os.system: ls"),
    }
    return [{"text": text, "kind": kind, "what": what} for text, (kind, what) in said.items()]


def main() -> None:
    book = {"frames": [*good(), *bad()], "pieces": pieces(), "versions": versions(), "errors": errors()}
    FILE.write_text(json.dumps(book, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
