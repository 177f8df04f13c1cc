"""Messages: the only things that travel between parties, and the bytes they travel as.

A message class is a frozen struct with a versioned ``tag`` and a sentence, ``discloses``, that says what its receiver learns.
A frame is::

    offset  size  content
    0       4     "HNSA"
    4       1     format version, 1
    5       1     length of the tag, T
    6       2     zero
    8       4     length of the body, B, little-endian
    12      8     length of the tensor section, little-endian
    20      T     the tag, ASCII
    20+T    B     the fields, a MessagePack map; each tensor is an extension of type 1 (see below)
    ...           zeros up to a multiple of 16 from the start of the frame
    ...           the tensors' bytes in order of appearance, little-endian, C order, each padded to a multiple of 16

A tensor's extension holds: dtype code (1 byte), number of dimensions (1 byte), each dimension (8 bytes), and its offset in the
tensor section (8 bytes). The body is minimal MessagePack, fields in the order of the class and other maps by key, so there is
one frame for each message value and a frame can be compared, hashed and signed. One freedom is left: a whole number in a
field of floats travels as the integer or the float that the sender put there.

*Guarantees of decoding*: the receiver names the classes it accepts, and a tag selects one of those or nothing; sizes are bounded
before anything is allocated; tensors are read-only views into the frame; anything else raises a :class:`MessageError`.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, ClassVar, Final, Literal, TypeAlias, TypeVar, cast, overload

import msgspec
import numpy as np

from hansa.errors import MalformedMessage, OversizedMessage, UnknownMessage
from hansa.params import Layout, Params
from hansa.tensor import Tensor

MAX_FRAME: Final = 1 << 33
"""Bytes that :func:`decode` accepts unless told otherwise: 8 GiB."""
MAX_BODY: Final = 1 << 26
"""Bytes of a frame's body, tensors not counted: 64 MiB."""

_HEADER = struct.Struct("<4sBBHIQ")
_MAGIC, _VERSION, _TENSOR = b"HNSA", 1, 1
_ALIGN = 16
_MAX_DIMENSIONS = 8
_MOST_ELEMENTS: Final = 1 << 48
_DTYPES: Final[dict[int, np.dtype[Any]]] = {
    1: np.dtype("<f4"), 2: np.dtype("<f8"), 3: np.dtype("<f2"),
    4: np.dtype("i1"), 5: np.dtype("<i2"), 6: np.dtype("<i4"), 7: np.dtype("<i8"),
    8: np.dtype("u1"), 9: np.dtype("<u2"), 10: np.dtype("<u4"), 11: np.dtype("<u8"), 12: np.dtype("?"),
}  # fmt: skip
_CODES: Final = {dtype: code for code, dtype in _DTYPES.items()}


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parent of all message classes.

    A class sets ``tag`` (``"name/version"``, unique in Hansa) and ``discloses``, and declares fields of: bool, int, float,
    str, bytes, :class:`~hansa.tensor.Tensor`, :class:`~hansa.params.Params`, optional ones, other structs, and lists, tuples
    or string-keyed dicts of them. NumPy's scalars travel as the numbers that they are.
    """

    tag: ClassVar[str] = ""
    discloses: ClassVar[str] = ""


M = TypeVar("M", bound=Message)
Frame: TypeAlias = bytes | bytearray | memoryview


def encode(message: Message) -> bytes:
    """The frame of ``message``; the same bytes for the same content.

    Raises:
        MalformedMessage: the class has no tag, or the message holds something that cannot travel.

    >>> class Ping(Message, frozen=True):
    ...     tag = "doc.ping/1"
    ...     discloses = "nothing"
    ...     count: int
    >>> decode(encode(Ping(3)), Ping)
    Ping(count=3)
    """
    return b"".join(parts(message))


def parts(message: Message) -> list[bytes | memoryview]:
    """What :func:`encode` joins: the head, then the tensors' own memory wherever that needs no conversion.

    For writing a large message somewhere without a copy of it. The views are good as long as the message is.

    Raises:
        MalformedMessage: as :func:`encode` does.
    """
    tag = _tag_of(type(message))
    tensors: list[Tensor] = []
    end = 0

    def hook(value: Any) -> Any:
        nonlocal end
        if isinstance(value, Params):
            return _wire_params(value)
        if not isinstance(value, Tensor):
            return _number(value)
        start, end = end, end + _padded(value.nbytes)
        tensors.append(value)
        return _extension(value, start)

    try:
        body = msgspec.msgpack.Encoder(enc_hook=hook, order="deterministic").encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise MalformedMessage(f"{type(message).__name__} cannot travel: {error}") from None
    if len(body) > MAX_BODY:
        raise OversizedMessage(f"{type(message).__name__}: a body of {len(body)} bytes; at most {MAX_BODY} can travel")
    head = _HEADER.pack(_MAGIC, _VERSION, len(tag), 0, len(body), end) + tag + body
    found: list[bytes | memoryview] = [head + bytes(_padded(len(head)) - len(head))]
    for tensor in tensors:
        array = np.ascontiguousarray(tensor.array, dtype=tensor.dtype.newbyteorder("<"))
        if array.size:
            found.append(array.data.cast("B"))
            if short := _padded(array.nbytes) - array.nbytes:
                found.append(bytes(short))
    return found


def tag_of(frame: Frame) -> str:
    """The tag that a frame bears; its first 275 bytes are enough. What follows the tag is not looked at.

    Raises:
        MalformedMessage: it does not begin as a frame does.

    >>> tag_of(b"HNSA" + bytes([1, 6, 0, 0]) + bytes(12) + b"ping/1")
    'ping/1'
    """
    head = bytes(memoryview(frame).cast("B")[: _HEADER.size + 255])
    if len(head) >= _HEADER.size:
        magic, version, length, zero, _, _ = _HEADER.unpack_from(head)
        tag = head[_HEADER.size : _HEADER.size + length]
        if (magic, version, zero) == (_MAGIC, _VERSION, 0) and 0 < length == len(tag) and tag.isascii():
            return tag.decode("ascii")
    raise MalformedMessage("not a Hansa frame of version 1 with a tag")


def wire_size(message: Message) -> int:
    """``len(encode(message))``, without building any tensor."""
    sizer = _sizer
    sizer.tensor_bytes = 0
    head = _HEADER.size + len(type(message).tag) + len(sizer.encoder.encode(message))
    return _padded(head) + sizer.tensor_bytes


@overload
def decode(frame: Frame, kinds: type[M], max_bytes: int = MAX_FRAME) -> M: ...
@overload
def decode(frame: Frame, kinds: Iterable[type[Message]], max_bytes: int = MAX_FRAME) -> Message: ...
def decode(frame: Frame, kinds: type[Message] | Iterable[type[Message]], max_bytes: int = MAX_FRAME) -> Message:
    """The message in ``frame``, which must be of one of ``kinds``.

    Args:
        frame: one whole frame; tensors of the result are read-only views into it.
        kinds: the message class, or the classes, that the receiver accepts here.
        max_bytes: the largest frame accepted.

    Raises:
        OversizedMessage: the frame, its body or a tensor exceeds its bound.
        UnknownMessage: the tag is none of ``kinds``.
        MalformedMessage: anything else that is not exactly what :func:`encode` makes.
    """
    view = memoryview(frame).cast("B").toreadonly()
    if len(view) > max_bytes:
        raise OversizedMessage(f"a frame of {len(view)} bytes; at most {max_bytes} are accepted here")
    if len(view) < _HEADER.size:
        raise MalformedMessage(f"a frame of {len(view)} bytes is shorter than its header")
    magic, version, tag_length, zero, body_length, tensor_length = _HEADER.unpack_from(view)
    if magic != _MAGIC or version != _VERSION or zero != 0:
        raise MalformedMessage("not a Hansa frame of version 1")
    if body_length > MAX_BODY:
        raise OversizedMessage(f"a body of {body_length} bytes; at most {MAX_BODY} are accepted")
    body_start = _HEADER.size + tag_length
    body_end = body_start + body_length
    tensor_start = _padded(body_end)
    if len(view) != tensor_start + tensor_length or any(view[body_end:tensor_start]):
        raise MalformedMessage("the frame's length is not what its header says")
    tag = bytes(view[_HEADER.size : body_start])
    accepted = (kinds,) if isinstance(kinds, type) else kinds
    kind = {k.tag.encode(): k for k in accepted}.get(tag)
    if kind is None or not tag:
        raise UnknownMessage(f"a message tagged {tag.decode('ascii', 'replace')[:80]!r} is not accepted here")
    reader = _TensorReader(view[tensor_start:])
    body = view[body_start:body_end]
    try:
        message = msgspec.msgpack.Decoder(kind, ext_hook=reader.read, dec_hook=_custom).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError, TypeError, ValueError) as error:
        raise MalformedMessage(f"{kind.tag}: {error}") from None
    reader.finish()
    _only_form(body, message)
    return message


def _only_form(body: memoryview, message: Message) -> None:
    """Refuse a body that says ``message`` in other bytes than :func:`encode` does: keys twice or in disorder, long forms."""
    place = 0

    def hook(value: Any) -> Any:
        nonlocal place
        if isinstance(value, Params):
            return _wire_params(value)
        start, place = place, place + _padded(value.nbytes)
        return _extension(value, start)

    again = msgspec.msgpack.Encoder(enc_hook=hook, order="deterministic").encode(message)
    if again == body:
        return
    loose: Any = msgspec.msgpack.decode(body)
    if msgspec.msgpack.encode(loose) != body or not _alike(loose, msgspec.msgpack.decode(again)):
        raise MalformedMessage(f"{type(message).tag}: a body that is not in the form that a sender gives it")


def _alike(sent: Any, expected: Any) -> bool:
    """Whether two decoded bodies differ only in whole numbers, sent as integers, that are floats."""
    if isinstance(sent, dict) and isinstance(expected, dict):
        return list(sent) == list(expected) and all(map(_alike, sent.values(), expected.values()))
    if isinstance(sent, list) and isinstance(expected, list):
        return len(sent) == len(expected) and all(map(_alike, sent, expected))
    if type(sent) is int and type(expected) is float:
        return sent == expected
    return type(sent) is type(expected) and (sent == expected or (type(sent) is float and math.isnan(sent)))


@lru_cache(maxsize=1024)
def _tag_of(kind: type[Message]) -> bytes:
    if not (kind.tag.isascii() and 0 < len(kind.tag) < 256):
        raise MalformedMessage(
            f"{kind.__name__} has no tag of 1 to 255 ASCII characters; set tag = 'name/1' on the class"
        )
    return kind.tag.encode("ascii")


def _number(value: Any) -> bool | int | float:
    """A NumPy scalar as the number that it is."""
    if isinstance(value, np.bool_ | np.integer | np.floating):
        number: Any = value.item()
        if isinstance(number, bool | int | float):
            return number
    raise MalformedMessage(f"a {type(value).__name__} cannot travel")


class _TensorReader:
    """Reads tensors in order; refuses gaps, overlaps, wrong sizes and non-zero padding."""

    def __init__(self, section: memoryview) -> None:
        self.section = section
        self.place = 0

    def read(self, code: int, data: memoryview) -> Tensor:
        raw = bytes(data)
        if code != _TENSOR or len(raw) < 10 or len(raw) != 10 + 8 * raw[1] or raw[1] > _MAX_DIMENSIONS:
            raise MalformedMessage("an extension that is not a tensor")
        dtype = _DTYPES.get(raw[0])
        if dtype is None:
            raise MalformedMessage(f"a tensor of unknown dtype code {raw[0]}")
        *shape, start = struct.unpack_from(f"<{raw[1]}QQ", raw, 2)
        count = math.prod(shape)
        nbytes = count * dtype.itemsize
        if math.prod(max(side, 1) for side in shape) >= _MOST_ELEMENTS:
            raise MalformedMessage("a tensor with an impossible dimension")
        if start != self.place or start + nbytes > len(self.section):
            raise MalformedMessage("a tensor that is not where the frame's order puts it")
        self.place = start + _padded(nbytes)
        if any(self.section[start + nbytes : self.place]):
            raise MalformedMessage("a tensor whose padding is not zero")
        array = np.frombuffer(self.section, dtype, count, start) if count else np.zeros(0, dtype)
        if dtype.kind == "b" and count and array.view(np.uint8).max() > 1:
            raise MalformedMessage("a tensor of booleans with another byte than 0 or 1")
        return Tensor(array.reshape(shape))

    def finish(self) -> None:
        if self.place != len(self.section):
            raise MalformedMessage("bytes after the last tensor")


def _custom(expected: type, value: Any) -> Any:
    if expected is Tensor and isinstance(value, Tensor):
        return value
    if expected is Params:
        wire = msgspec.convert(value, _WireParams, dec_hook=_custom)
        if len(set(wire.names)) != len(wire.names) or not wire.buffers <= set(wire.names):
            raise MalformedMessage("parameters whose names do not fit together")
        if any(side < 0 for shape in wire.shapes for side in shape) or len(wire.shapes) != len(wire.names):
            raise MalformedMessage("parameters whose shapes do not fit their names")
        layout = Layout(wire.names, wire.shapes, wire.dtype, wire.buffers)
        if wire.flat.shape != (layout.size,) or wire.flat.dtype != np.dtype(wire.dtype):
            raise MalformedMessage("parameters whose values do not fit their layout")
        return Params(wire.flat.array, layout)
    raise MalformedMessage(f"expected a {expected.__name__}")


class _WireParams(msgspec.Struct, forbid_unknown_fields=True):
    flat: Tensor
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: Literal["float32", "float64"]
    buffers: frozenset[str]


def _wire_params(params: Params) -> _WireParams:
    layout = params.layout
    return _WireParams(Tensor(params.flat), layout.names, layout.shapes, cast(Any, layout.dtype), layout.buffers)


def _extension(tensor: Tensor, start: int) -> msgspec.msgpack.Ext:
    dtype, shape = tensor.dtype, tensor.shape
    code = _CODES.get(dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype)
    if code is None:
        raise MalformedMessage(f"a tensor of dtype {dtype} cannot travel")
    if len(shape) > _MAX_DIMENSIONS:
        raise MalformedMessage(f"a tensor of {len(shape)} dimensions cannot travel; {_MAX_DIMENSIONS} at most")
    return msgspec.msgpack.Ext(_TENSOR, _extension_format(len(shape)).pack(code, len(shape), *shape, start))


@lru_cache(maxsize=_MAX_DIMENSIONS + 1)
def _extension_format(dimensions: int) -> struct.Struct:
    return struct.Struct(f"<BB{dimensions}QQ")


def _padded(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


class _Sizer(threading.local):
    """Encodes bodies and adds up their tensors beside, because a hook's result can carry only what goes into the body."""

    def __init__(self) -> None:
        self.tensor_bytes = 0
        self.encoder = msgspec.msgpack.Encoder(enc_hook=self._hook)

    def _hook(self, value: Any) -> Any:
        if isinstance(value, Params):
            return _wire_params(value)
        if not isinstance(value, Tensor):
            return _number(value)
        self.tensor_bytes += -(-value.nbytes // _ALIGN) * _ALIGN
        # As long as the real one: its length depends on the number of dimensions alone.
        return _BLANK[len(value.shape)]


_BLANK: Final = tuple(msgspec.msgpack.Ext(_TENSOR, bytes(10 + 8 * count)) for count in range(65))
_sizer = _Sizer()
