"""Addresses, sizes and times: what is written is what is meant, and anything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.deployment.quantity import Address, in_bytes, in_seconds
from hansa.errors import ConfigError

hosts = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]([a-z0-9-]{0,20}[a-z0-9])?){0,3}", fullmatch=True),
)


@given(hosts, st.integers(0, 65535))
def test_an_address_is_read_as_it_is_written(host: str, port: int) -> None:
    assert Address.of(str(Address(host, port))) == Address(host, port)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = Address.of(text)
    except ConfigError:
        return
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":7400",
        "*:7400",
        "7400",
        "localhost",
        "localhost:",
        "localhost:http",
        "localhost:-1",
        "localhost:+1",
        "localhost:65536",
        "localhost:99999999",
        "localhost:07400",
        "localhost:7_400",
        "localhost: 7400",
        "localhost:7400 ",
        " localhost:7400",
        "localhost:٧٤٠٠",
        "::1:7400",
        "[::1]",
        "[::1:7400",
        "[127.0.0.1]:7400",
        "[]:7400",
        "0:7400",
        "127.1:7400",
        "2130706433:7400",
        "0x7f000001:7400",
        "127.0.0.0x1:7400",
        "127.0.0.256:7400",
        "127.0.0.01:7400",
        "a..b:7400",
        "-a:7400",
        "a_b:7400",
        "hub.example.org/path:7400",
        "user@hub.example.org:7400",
        "https://hub.example.org:7400",
        "a" * 64 + ":7400",
        "hub.example.org:7400\n",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Address.of(text)


@pytest.mark.parametrize("text", ["0.0.0.0:1", "[::]:1", "[::ffff:0.0.0.0]:1", "[0:0:0:0:0:0:0:0]:1"])
def test_a_wildcard_is_known_however_it_is_written(text: str) -> None:
    assert Address.of(text).wildcard
    assert not Address.of(text).loopback


def test_only_a_loopback_number_is_loopback() -> None:
    assert Address.of("127.0.0.1:1").loopback and Address.of("127.8.9.1:1").loopback and Address.of("[::1]:1").loopback
    for text in ("localhost:1", "128.0.0.1:1", "0.0.0.0:1", "127.0.0.1.example.org:1"):
        assert not Address.of(text).loopback


def test_a_wildcard_that_is_not_written_says_how_to_write_it() -> None:
    with pytest.raises(ConfigError, match=r"write 0\.0\.0\.0:7400"):
        Address.of(":7400")


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("8GiB", 8 * 2**30), ("8gb", 8 * 10**9), ("1 kB", 1000), ("0B", 0), ("2.5MB", 2_500_000)],
)
def test_bytes(text: str, size: int) -> None:
    assert in_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "8", "GB", "-8GB", "8 gigs", "8GB8", "1e3MB", "8,5GB", "infGB", "٨GB", "9" * 16 + "B"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="bytes"):
        in_bytes(text)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("1.5h", 5400.0), ("15 min", 900.0), ("7d", 604800.0)])
def test_seconds(text: str, seconds: float) -> None:
    assert in_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "s", "-1s", "1m", "1 month", "forever", "nan s", "1h30min"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="time"):
        in_seconds(text)
