"""The wire format: golden frames, more bad ones than good; laws of the codec; a decoder that nothing upsets."""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from msgspec import structs

import hansa
from hansa.errors import MalformedMessage, MessageError, OversizedMessage, UnknownMessage
from hansa.message import MAX_BODY, Message, decode, encode, parts, tag_of, wire_size
from hansa.params import Layout, Params
from hansa.tensor import Dense, Tensor


class Sample(Message, frozen=True):
    tag = "vector.sample/1"
    discloses = "nothing"

    count: int
    rate: float
    label: str
    values: Tensor


class Pair(Message, frozen=True):
    tag = "vector.pair/1"
    discloses = "nothing"

    first: Tensor
    second: Tensor


class Model(Message, frozen=True):
    tag = "vector.model/1"
    discloses = "nothing"

    params: Params


class Nest(Message, frozen=True):
    tag = "vector.nest/1"
    discloses = "nothing"

    child: Nest | None


class Everything(Message, frozen=True):
    tag = "vector.everything/1"
    discloses = "nothing"

    flag: bool
    count: int
    rate: float
    label: str
    raw: bytes
    maybe: float | None
    numbers: list[int]
    pairs: list[tuple[str, float]]
    scores: dict[str, float]
    tensors: dict[str, Tensor]
    params: Params | None = None
    more: dict[str, list[Tensor]] = {}


KINDS: tuple[type[Message], ...] = (Sample, Pair, Model, Nest, Everything)
ERRORS = {"malformed": MalformedMessage, "unknown": UnknownMessage, "oversized": OversizedMessage}
VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "vectors" / "message.json").read_text())
GOOD = [vector for vector in VECTORS if vector["expect"] == "ok"]
BAD = [vector for vector in VECTORS if vector["expect"] != "ok"]


def named(vectors: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("vector", vectors, ids=lambda vector: str(vector["name"]))


def plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"dtype": str(value.dtype), "shape": list(value.shape), "items": value.array.ravel().tolist()}
    if isinstance(value, Params):
        return {name: part.tolist() for name, part in value.tensors().items()}
    return value


@named(GOOD)
def test_a_golden_frame_says_what_it_says(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["hex"])
    message = decode(frame, KINDS)
    assert {name: plain(getattr(message, name)) for name in message.__struct_fields__} == vector["fields"]


@named([vector for vector in GOOD if vector["name"] != "a whole number among floats"])
def test_a_golden_frame_is_what_encode_makes(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["hex"])
    assert encode(decode(frame, KINDS)) == frame


def test_a_sample_encodes_to_its_golden_frame() -> None:
    values = Tensor(np.array([[1, -2], [0.5, 0]], np.float32))
    assert encode(Sample(3, 0.25, "ab", values)).hex() == GOOD[0]["hex"]


@named(BAD)
def test_a_bad_frame_is_refused_by_name(vector: dict[str, Any]) -> None:
    with pytest.raises(ERRORS[vector["expect"]]):
        decode(bytes.fromhex(vector["hex"]), KINDS)


def test_bad_frames_outnumber_good_ones() -> None:
    assert len(BAD) > 10 * len(GOOD)
    assert len({vector["hex"] for vector in VECTORS}) == len({vector["name"] for vector in VECTORS}) == len(VECTORS)


@named(GOOD)
def test_a_frame_cut_anywhere_is_malformed(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["hex"])
    for end in range(len(frame)):
        with pytest.raises(MalformedMessage):
            decode(frame[:end], KINDS)


def test_the_parts_of_a_frame_are_the_tensors_own_memory() -> None:
    values = np.arange(6, dtype=np.float32)
    found = parts(Sample(1, 0.5, "a", Tensor(values)))
    assert b"".join(found) == encode(Sample(1, 0.5, "a", Tensor(values)))
    assert sum(map(len, found)) % 16 == 0
    (view,) = (part for part in found if isinstance(part, memoryview))
    assert np.shares_memory(np.frombuffer(view, np.float32), values)


def test_a_frame_is_known_by_its_tag_before_it_is_read() -> None:
    frame = encode(Sample(1, 0.5, "a", Tensor(np.arange(100.0))))
    assert tag_of(frame) == tag_of(memoryview(frame)[:275]) == "vector.sample/1"


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"HNSA",
        b"HNSB" + bytes([1, 1, 0, 0]) + bytes(12) + b"a",
        b"HNSA" + bytes([2, 1, 0, 0]) + bytes(12) + b"a",
        b"HNSA" + bytes([1, 1, 1, 0]) + bytes(12) + b"a",
        b"HNSA" + bytes([1, 0, 0, 0]) + bytes(12) + b"a",
        b"HNSA" + bytes([1, 9, 0, 0]) + bytes(12) + b"a",
        b"HNSA" + bytes([1, 1, 0, 0]) + bytes(12) + b"\xff",
    ],
)
def test_what_has_no_tag_is_malformed(frame: bytes) -> None:
    with pytest.raises(MalformedMessage):
        tag_of(frame)


def test_only_the_kinds_that_are_named_are_accepted() -> None:
    frame = encode(Nest(None))
    with pytest.raises(UnknownMessage, match=r"vector\.nest/1"):
        decode(frame, [Sample, Model])
    with pytest.raises(UnknownMessage):
        decode(frame, [])


def test_a_frame_above_the_bound_is_refused_before_it_is_read() -> None:
    frame = encode(Nest(None))
    assert decode(frame, Nest, max_bytes=len(frame)) == Nest(None)
    with pytest.raises(OversizedMessage, match=f"{len(frame)} bytes"):
        decode(frame, Nest, max_bytes=len(frame) - 1)
    with pytest.raises(OversizedMessage):
        decode(b"x" * 100, Nest, max_bytes=99)


def header(tag: bytes, body: int, tensors: int) -> bytes:
    return b"HNSA" + bytes([1, len(tag), 0, 0]) + body.to_bytes(4, "little") + tensors.to_bytes(8, "little") + tag


def framed(tag: bytes, body: bytes) -> bytes:
    head = header(tag, len(body), 0) + body
    return head + bytes(-len(head) % 16)


def test_a_body_above_the_bound_is_oversized_on_both_sides() -> None:
    with pytest.raises(OversizedMessage):
        decode(header(b"vector.nest/1", MAX_BODY + 1, 0) + bytes(64), Nest)
    with pytest.raises(OversizedMessage, match="Everything"):
        encode(Everything(True, 0, 0.0, "", bytes(MAX_BODY), None, [], [], {}, {}))


@pytest.mark.parametrize(
    "size", [b"\xdd\xff\xff\xff\xff", b"\xdd\x10\x00\x00\x00", b"\xdf\x10\x00\x00\x00", b"\xc6\xff\xff\xff\xff"]
)
@pytest.mark.parametrize("field", ["numbers", "pairs", "scores", "raw", "label", "tensors"])
def test_a_declared_size_allocates_nothing(size: bytes, field: str) -> None:
    frame = framed(b"vector.everything/1", b"\x81" + bytes([0xA0 | len(field)]) + field.encode() + size)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            decode(frame, Everything)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_giant_tensor_that_is_not_there_allocates_nothing() -> None:
    frame = encode(Sample(3, 0.25, "ab", Tensor(np.zeros((2, 2), np.float32))))
    giant = frame.replace((2).to_bytes(8, "little"), (1 << 20).to_bytes(8, "little"))
    assert giant != frame
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            decode(giant, Sample)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bomb", [b"\x91", b"\x81\xa5child", b"\x81\x01", b"\x81\xa4more\x91"])
@pytest.mark.parametrize("kind", [Nest, Everything])
def test_depth_is_bounded(bomb: bytes, kind: type[Message]) -> None:
    for depth in (5_000, 1_000_000):
        with pytest.raises(MalformedMessage):
            decode(framed(kind.tag.encode(), bomb * depth + b"\xc0"), [kind])


def test_a_sender_is_told_what_cannot_travel() -> None:
    deep: Any = None
    for _ in range(100_000):
        deep = Nest(deep)
    with pytest.raises(MalformedMessage):
        encode(deep)
    # Taken down by hand: the interpreter would do it by recursion.
    while deep is not None:
        deep = deep.child

    class Untagged(Message, frozen=True):
        discloses = "nothing"

    class Foreign(Message, frozen=True):
        tag = "vector.größe/1"
        discloses = "nothing"

    for message in (Untagged(), Foreign()):
        with pytest.raises(MalformedMessage, match="tag"):
            encode(message)
    for wrong in (
        object(),
        1j,
        np.complex128(1),
        np.zeros(3),
        np.longdouble(1),
        np.datetime64(0, "s"),
        1 << 64,
        "\ud800",
    ):
        with pytest.raises(MalformedMessage):
            encode(Sample(wrong, 0.0, "", Tensor(np.zeros(1))))  # type: ignore[arg-type]
    for array in (np.zeros(2, complex), np.array(["a"]), np.array([None]), np.zeros(1, "M8[s]"), np.zeros((1,) * 9)):
        with pytest.raises(MalformedMessage):
            encode(Pair(Tensor(array), Tensor(array)))


def test_numpy_scalars_travel_as_numbers() -> None:
    message = Everything(
        np.bool_(True), np.int32(3), np.float32(0.5), "", b"", np.float64(2.5), [np.uint8(7)], [("a", np.float64(1.5))],  # type: ignore[arg-type, list-item]
        {"loss": np.float64(0.125)}, {},
    )  # fmt: skip
    found = decode(encode(message), Everything)
    assert (found.flag, found.count, found.rate, found.maybe, found.numbers) == (True, 3, 0.5, 2.5, [7])
    assert found.pairs == [("a", 1.5)] and found.scores == {"loss": 0.125}
    assert wire_size(message) == len(encode(message))


def test_a_size_is_not_measured_for_what_cannot_travel() -> None:
    with pytest.raises(MalformedMessage):
        wire_size(Sample(3, 0.0, np.zeros(4), Tensor(np.zeros(1))))  # type: ignore[arg-type]


names = st.text(max_size=8)
floats = st.floats(allow_nan=False)
ints = st.integers(-(1 << 63), (1 << 64) - 1)
dtypes = st.sampled_from(
    [b + c for c in ("f4", "f8", "f2", "i2", "i4", "i8", "u2", "u4", "u8") for b in "<>"] + ["i1", "u1", "?"]
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = np.dtype(draw(dtypes))
    shape = draw(arrays_of.array_shapes(min_dims=0, max_dims=8, min_side=0, max_side=3))
    array = draw(arrays_of.arrays(dtype, shape, elements={"allow_nan": False} if dtype.kind == "f" else None))
    if array.ndim and draw(st.booleans()):
        array = array[tuple(slice(None, None, draw(st.sampled_from([1, -1, 2]))) for _ in array.shape)].T
    return Tensor(array)


@st.composite
def models(draw: st.DrawFn) -> Params:
    shapes = draw(st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), max_size=3))
    parts = [f"{draw(names)}{place}" for place in range(len(shapes))]
    dtype = draw(st.sampled_from(["float32", "float64"]))
    layout = Layout(
        tuple(parts), tuple(shapes), dtype, frozenset(draw(st.sets(st.sampled_from(parts)))) if parts else frozenset()
    )
    return Params(draw(arrays_of.arrays(dtype, layout.size, elements={"allow_nan": False})), layout)


messages = st.builds(
    Everything,
    st.booleans(), ints, floats, names, st.binary(max_size=20), st.none() | floats, st.lists(ints, max_size=3),
    st.lists(st.tuples(names, floats), max_size=3), st.dictionaries(names, floats | st.integers(-100, 100), max_size=3),
    st.dictionaries(names, tensors(), max_size=3), st.none() | models(), st.dictionaries(names, st.lists(tensors(), max_size=2), max_size=2),
)  # fmt: skip


def same(one: Everything, other: Everything) -> bool:
    """Equal, models by their values."""
    if (one.params is None) != (other.params is None):
        return False
    if one.params is not None and other.params is not None and one.params.layout != other.params.layout:
        return False
    if one.params is not None and other.params is not None and not np.array_equal(one.params.flat, other.params.flat):
        return False
    fields = [name for name in one.__struct_fields__ if name != "params"]
    return all(getattr(one, name) == getattr(other, name) for name in fields)


@given(messages)
def test_decoding_inverts_encoding(message: Everything) -> None:
    frame = encode(message)
    found = decode(frame, Everything)
    assert same(found, message)
    assert len(frame) == wire_size(message)
    assert wire_size(found) <= len(encode(found))


@given(messages)
def test_tensors_are_read_only_views_into_the_frame(message: Everything) -> None:
    frame = bytearray(encode(message))
    found = decode(frame, Everything)
    arrays = [t.array for t in found.tensors.values()] + ([found.params.flat] if found.params is not None else [])
    buffer = np.frombuffer(frame, np.uint8)
    for array in arrays:
        assert array.size == 0 or (np.shares_memory(array, buffer) and not array.flags.writeable)
        assert array.size == 0 or (array.ctypes.data - buffer.ctypes.data) % 16 == 0


@given(messages, st.data())
def test_the_order_of_a_dict_does_not_show(message: Everything, data: st.DataObject) -> None:
    shuffled = dict(data.draw(st.permutations(list(message.scores.items()))))
    other = structs.replace(message, scores=shuffled)
    assert encode(other) == encode(message)


@given(st.integers(1, 4), st.data())
def test_a_row_travels_as_its_values(count: int, data: st.DataObject) -> None:
    matrix = data.draw(arrays_of.arrays(np.float32, (count, 3), elements=st.floats(-100, 100, width=32)))
    row = Tensor(
        None, Dense(matrix), data.draw(st.integers(0, count - 1)), data.draw(st.sampled_from([1.0, 0.5, -2.0]))
    )
    message = Pair(row, Tensor(np.zeros(0)))
    assert wire_size(message) == len(encode(message))
    np.testing.assert_array_equal(decode(encode(message), Pair).first.array, matrix[row.index] * np.float32(row.scale))


def test_special_floats_keep_their_bits() -> None:
    values = np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324])
    found = decode(encode(Sample(0, math.nan, "", Tensor(values))), Sample)
    assert math.isnan(found.rate) and found.values.array.tobytes() == values.tobytes()


def refused_or_sound(frame: bytes) -> None:
    """A frame either is a message that says itself again, or is refused by name."""
    try:
        message = decode(frame, KINDS)
    except MessageError:
        return
    again = encode(message)
    # A whole number in a field of floats is the one thing that may be said in two ways.
    assert again == frame or encode(decode(again, KINDS)) == again
    assert len(decode(again, KINDS).__struct_fields__) == len(message.__struct_fields__)


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    frame = bytearray(
        encode(draw(messages)) if draw(st.booleans()) else bytes.fromhex(draw(st.sampled_from(GOOD))["hex"])
    )
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(frame) - 1))
        match draw(st.sampled_from(["flip", "set", "insert", "delete", "copy"])):
            case "flip":
                frame[place] ^= 1 << draw(st.integers(0, 7))
            case "set":
                frame[place] = draw(
                    st.sampled_from([0, 1, 0x7F, 0x80, 0x90, 0xA0, 0xC0, 0xC1, 0xC7, 0xCF, 0xDD, 0xDF, 0xFF])
                )
            case "insert":
                frame[place:place] = draw(st.binary(min_size=1, max_size=16))
            case "delete" if len(frame) > 17:
                del frame[place : place + draw(st.integers(1, 16))]
            case _:
                other = draw(st.integers(0, len(frame) - 1))
                frame[place : place + 8] = frame[other : other + 8]
        if not frame:
            break
    return bytes(frame)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Any body in a sound frame, so that the fuzz gets behind the header."""
    kind = draw(st.sampled_from(KINDS))
    return framed(kind.tag.encode(), draw(st.binary(max_size=60)))


fuzz = st.one_of(st.binary(max_size=100), mutants(), bodies())


@given(fuzz)
@settings(max_examples=400)
def test_nothing_upsets_the_decoder(frame: bytes) -> None:
    refused_or_sound(frame)


@pytest.mark.slow
@given(fuzz)
@settings(max_examples=10_000)
def test_nothing_upsets_the_decoder_for_long(frame: bytes) -> None:
    refused_or_sound(frame)


def test_every_single_byte_of_a_golden_frame_matters() -> None:
    """Any byte changed is refused, or decodes to another message: no two frames say the same."""
    for vector in GOOD:
        frame = bytes.fromhex(vector["hex"])
        for place in range(len(frame)):
            for bit in range(8):
                other = bytearray(frame)
                other[place] ^= 1 << bit
                try:
                    message = decode(bytes(other), KINDS)
                except MessageError:
                    continue
                assert encode(message) != frame


def message_classes() -> list[type[Message]]:
    for module in pkgutil.walk_packages(hansa.__path__, "hansa."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            # A library that is not installed is no finding; a module of the project's own is.
            if error.name is None or error.name.startswith("hansa"):
                raise

    def below(kind: type[Message]) -> list[type[Message]]:
        return [k for child in kind.__subclasses__() for k in (child, *below(child))]

    return [kind for kind in below(Message) if kind.__module__.startswith("hansa.")]


def test_every_message_has_a_tag_of_its_own_and_says_what_it_discloses() -> None:
    kinds = message_classes()
    assert len(kinds) >= 10
    tags: dict[str, type[Message]] = {}
    for kind in kinds:
        name, slash, version = kind.tag.partition("/")
        assert slash and version.isdigit() and int(version) >= 1, kind
        assert name == name.lower() and name.isascii() and " " not in name, kind
        assert kind.tag not in tags, (kind, tags.get(kind.tag))
        assert len(kind.discloses.split()) >= 2, kind
        tags[kind.tag] = kind
