"""A process that is no proper worker: ``naughty.py MODE DESCRIPTOR``. It imports nothing of Hansa, so that it starts at once."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
from typing import NoReturn


def stay() -> NoReturn:
    while True:
        signal.pause()  # until it is killed


def misbehave(mode: str, link: socket.socket) -> None:
    if mode == "dies":
        sys.exit(7)
    link.recv(1 << 16)  # the setup has come
    if mode == "garbage":
        link.sendall(framed(bytes(100)))
        stay()
    if mode == "tag":
        head = b"HNSA" + bytes([1, 6, 0, 0]) + struct.pack("<IQ", 1, 0) + b"nope/1" + b"\x80"
        link.sendall(framed(head + bytes(-len(head) % 16)))
        stay()
    if mode == "huge":
        link.sendall(struct.pack("<Q", 1 << 62))
        stay()
    if mode == "partial":
        link.sendall(struct.pack("<Q", 100) + b"HNSA")
    if mode == "closes":
        link.close()
        stay()
    if mode == "kills itself":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "has a child":
        child = os.fork()
        if child == 0:
            stay()
        with open(os.environ["CHILD"], "w", encoding="ascii") as file:
            file.write(str(child))
        link.sendall(framed(b"no word"))
        stay()
    if mode == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stay()
    while mode == "floods":
        link.sendall(framed(bytes.fromhex(os.environ["FRAME"])) * 1000)


def framed(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


if __name__ == "__main__":
    misbehave(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
