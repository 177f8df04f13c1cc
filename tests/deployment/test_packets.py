"""The messages of the network: the bytes that docs/wire.md describes, and what a receiver calls those that it does not."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("grpc", reason="needs the extra 'net'")

from docs.packets import LISTS, PAGE, about, meanings, structs, with_table
from hansa.deployment import api, packets, wire
from hansa.deployment.packets import Hello, Received, Sending
from hansa.deployment.standing import greeted
from hansa.errors import (
    HansaError,
    LinkError,
    MalformedMessage,
    MessageError,
    OversizedMessage,
    UnknownMessage,
    VersionMismatch,
)
from hansa.message import Message, decode, encode
from hansa.protocol import Progress

BOOK: dict[str, list[dict[str, Any]]] = json.loads((Path(__file__).parent / "golden" / "packets.json").read_text())
GOOD = [case for case in BOOK["frames"] if case["expect"] == "ok"]
BAD = [case for case in BOOK["frames"] if case["expect"] != "ok"]
ACCEPTED: dict[str, Sequence[type[Message]]] = {
    "link": packets.LINK,
    "to-node": packets.TO_NODE,
    "to-hub": packets.TO_HUB,
    "call": api.REQUESTS,
    "fetch": (api.Fetch,),
    "answer": api.ANSWERS,
    "progress": (Progress,),
}
RUN = "00000000000000ff"
ERRORS = {kind.__name__: kind for kind in (MalformedMessage, UnknownMessage, OversizedMessage, VersionMismatch)}


def named(cases: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=lambda case: str(case.get("name", case.get("text"))))


def plain(value: Any) -> Any:
    if isinstance(value, bytes | memoryview):
        return {"hex": bytes(value).hex()}
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def read(case: dict[str, Any]) -> Message:
    return decode(bytes.fromhex(case["hex"]), ACCEPTED[case["place"]], packets.MAX_PACKET)


@named(GOOD)
def test_a_golden_frame_says_what_it_says_and_is_what_encode_makes(case: dict[str, Any]) -> None:
    word = read(case)
    assert (word.tag, plain(word)) == (case["name"], case["fields"])
    assert encode(word).hex() == case["hex"]


@named(BAD)
def test_a_spoiled_frame_is_refused_by_name(case: dict[str, Any]) -> None:
    with pytest.raises(MessageError) as caught:
        read(case)
    assert type(caught.value).__name__ == case["expect"], caught.value
    assert "\n" not in str(caught.value)


def test_there_is_a_golden_frame_of_every_class_and_several_bad_ones_for_each() -> None:
    every = {kind.tag for _, _, kinds in LISTS for kind in kinds}
    assert {case["name"] for case in GOOD} == every
    assert len(BAD) > 7 * len(GOOD)
    assert len({(case["place"], case["hex"]) for case in BOOK["frames"]}) == len(BOOK["frames"])
    assert len({case["name"] for case in BOOK["frames"]}) == len(BOOK["frames"])


@named(GOOD)
def test_a_frame_is_accepted_in_its_own_place_and_in_no_other(case: dict[str, Any]) -> None:
    for place, kinds in ACCEPTED.items():
        if place != case["place"]:
            with pytest.raises(UnknownMessage):
                decode(bytes.fromhex(case["hex"]), kinds, packets.MAX_PACKET)


@named([case for case in GOOD if case["place"] == "link"])
def test_a_frame_cut_anywhere_is_malformed(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    for end in range(len(data)):
        with pytest.raises(MalformedMessage):
            decode(data[:end], packets.LINK, packets.MAX_PACKET)


def test_a_packet_above_its_bound_is_refused_before_it_is_read() -> None:
    with pytest.raises(OversizedMessage, match=str(packets.MAX_PACKET)):
        decode(b"\xff" * (packets.MAX_PACKET + 1), packets.LINK, packets.MAX_PACKET)


@pytest.mark.parametrize("kind", {inner for _, _, kinds in LISTS for kind in kinds for inner in structs(kind)})
def test_a_map_inside_a_message_takes_no_field_that_it_has_not(kind: type[msgspec.Struct]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"no such field": 1}, kind)
    assert kind.__struct_config__.forbid_unknown_fields and kind.__struct_config__.frozen


# Pieces.


@named([case for case in BOOK["pieces"] if case["expect"] == "ok"])
def test_a_golden_piece_says_what_it_says(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    found = packets.read_piece(data)
    assert packets.is_piece(data) and plain(found) == case["fields"]
    assert packets.piece(found.run, found.seq, found.offset, found.data) == data


@named([case for case in BOOK["pieces"] if case["expect"] != "ok"])
def test_a_spoiled_piece_is_malformed(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    assert packets.is_piece(data)
    with pytest.raises(ERRORS[case["expect"]]):
        packets.read_piece(data)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.binary(min_size=1))
def test_a_piece_comes_back_as_it_was_written(run: int, seq: int, offset: int, data: bytes) -> None:
    packet = packets.piece(f"{run:016x}", seq, offset, data)
    found = packets.read_piece(packet)
    assert (found.run, found.seq, found.offset, bytes(found.data)) == (f"{run:016x}", seq, offset, data)
    assert len(packet) == 32 + len(data)


@named(GOOD)
def test_a_frame_is_no_piece(case: dict[str, Any]) -> None:
    assert not packets.is_piece(bytes.fromhex(case["hex"]))


def test_a_piece_and_an_inline_parcel_fit_into_a_packet() -> None:
    assert len(packets.piece("f" * 16, 1, 0, bytes(packets.PIECE_BYTES))) <= packets.MAX_PACKET
    longest = Sending("f" * 16, 1, "a" * 63, "b" * 63, True, "t" * 255, 1 << 20, bytes(1 << 20))
    assert len(encode(longest)) <= packets.MAX_PACKET


@given(st.integers().filter(lambda number: not 0 <= number < 2**63 and -(2**63) <= number < 2**64))
def test_a_number_that_no_database_keeps_is_malformed(number: int) -> None:
    for word, name in ((Received(RUN, number), "seq"), (api.ReadEvents(RUN, number), "after")):
        with pytest.raises(MalformedMessage, match=name):
            decode(encode(word), type(word))


# Versions and refusals.


@named(BOOK["versions"])
def test_who_speaks_which_versions_is_let_in_or_refused_by_name(case: dict[str, Any]) -> None:
    async def read() -> bytes:
        return bytes.fromhex(case["hex"])

    hello = decode(bytes.fromhex(case["hex"]), Hello)
    if case["expect"] == "ok":
        assert asyncio.run(greeted(read)) == hello
        return
    with pytest.raises(VersionMismatch) as caught:
        asyncio.run(greeted(read))
    assert f"versions {hello.oldest} to {hello.protocol}" in str(caught.value)
    # The caller finds the same error by the sentence.
    back = wire.named(wire.said(caught.value))
    assert (type(back), str(back)) == (VersionMismatch, str(caught.value))


def test_a_refusal_of_a_version_says_who_is_older() -> None:
    assert "it is older" in str(packets.mismatch(0, 0, "0.0.1"))
    assert "it is newer" in str(packets.mismatch(9, 9, "9.0.0"))
    assert len(str(packets.mismatch(9, 9, "x" * 10_000))) < 300


@named(BOOK["errors"])
def test_a_name_of_an_error_that_is_none_of_the_list_is_a_link_error(case: dict[str, Any]) -> None:
    found = wire.named(case["text"])
    assert (type(found).__name__, str(found)) == (case["kind"], case["what"])
    assert (case["kind"] == "LinkError") or case["kind"] in wire.ERRORS


@pytest.mark.parametrize("kind", [*wire.ERRORS.values(), MalformedMessage], ids=lambda kind: kind.__name__)
def test_an_error_crosses_the_network_under_its_name(kind: type[HansaError]) -> None:
    back = wire.named(wire.said(kind("what: it was")))
    assert type(back) is (MessageError if kind is MalformedMessage else kind)
    assert str(back) == "what: it was"


def test_an_error_that_is_not_of_the_list_arrives_as_a_link_error() -> None:
    assert type(wire.named(wire.said(HansaError("inner")))) is LinkError


# The page.


def test_the_page_has_the_table_of_the_classes_as_they_are() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert with_table(text) == text, "run: python docs/packets.py"


def test_every_class_and_every_field_says_what_it_is() -> None:
    for _, _, kinds in LISTS:
        for kind in {*kinds, *(inner for outer in kinds for inner in structs(outer))}:
            assert about(kind)
            assert set(meanings(kind)) == set(kind.__struct_fields__), kind


def test_the_page_has_the_numbers_of_the_code() -> None:
    from hansa.deployment.identity import certificates, invitation, request

    text = PAGE.read_text(encoding="utf-8")
    for said in (
        f"`{wire.SERVICE}`", certificates.HUB_TLS_NAME, certificates.SEALING_KEYS.dotted_string, request.PROOF.dotted_string,
        f"{packets.MAX_PACKET:,}", f"{packets.PIECE_BYTES:,}", f"{packets.PROTOCOL}", f"{invitation.MAX_TOKEN:,}",
    ):  # fmt: skip
        assert said in text, said
    named_errors = re.findall(r"^\| `(\w+)` \|", text.partition("### Refusals")[2].partition("\n## ")[0], re.MULTILINE)
    assert set(named_errors) == set(wire.ERRORS)
    options = dict(wire.SERVER_OPTIONS)
    assert options["grpc.max_receive_message_length"] == packets.MAX_PACKET
