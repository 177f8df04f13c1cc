"""A record is one line that holds no secret, whatever a peer sends."""

from __future__ import annotations

import io
import json
import logging
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.deployment.logs import LONGEST, LONGEST_TRACEBACK, Format, Level, Log, printable, written
from hansa.errors import IdentityError

FORMS: tuple[Format, ...] = ("text", "json")
LOG = Log("hub")


def lines(write: Callable[[], None], form: Format = "text", level: Level = "info") -> list[str]:
    stream = io.StringIO()
    with written(form, level=level, stream=stream, clock=lambda: 1_700_000_000.25):
        write()
    text = stream.getvalue()
    assert not text or text.endswith("\n")
    return text.split("\n")[:-1]


def the_line(write: Callable[[], None], form: Format = "text") -> str:
    (line,) = lines(write, form)
    return line


def parsed(write: Callable[[], None]) -> dict[str, Any]:
    value = json.loads(the_line(write, "json"))
    assert isinstance(value, dict)
    return value


def test_text_reads_as_a_sentence() -> None:
    assert (
        the_line(lambda: LOG.bind(party="hospital-a", run="r1").info("update kept", size=12, late=False, peer=None))
        == "2023-11-14T22:13:20.250Z info    hub: update kept run=r1 party=hospital-a size=12 late=no"
    )


@pytest.mark.parametrize("form", FORMS)
def test_what_there_is_not_is_left_out(form: Format) -> None:
    line = the_line(lambda: LOG.bind(run="r1", party=None).info("told", run=None, round=None, text="", share=0), form)
    assert "none" not in line.lower() and "null" not in line
    assert not any(name in line for name in ("run", "party", "round")) and "text" in line and "share" in line


def test_json_holds_the_same() -> None:
    assert parsed(lambda: LOG.bind(run="r1").warning("refused", round=3, share=0.5, known=True)) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "log": "hub",
        "event": "refused",
        "run": "r1",
        "round": 3,
        "share": 0.5,
        "known": True,
    }


def test_bind_leaves_the_log_that_it_was_asked_of() -> None:
    LOG.bind(run="r1")
    assert "run" not in parsed(lambda: LOG.info("begun"))
    assert parsed(lambda: LOG.bind(run="r1").bind(run="r2").info("begun", run="r3"))["run"] == "r3"


@pytest.mark.parametrize("form", FORMS)
@given(text=st.text(alphabet=st.characters(), max_size=600))
def test_nothing_ends_the_line_or_steers_the_terminal(form: Format, text: str) -> None:
    line = the_line(lambda: LOG.bind(peer=text).info(text, error=ValueError(text)), form)
    assert line.isprintable()
    assert not [c for c in line if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}]
    line.encode("utf-8")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "hostile",
    [
        "x\n2023-11-14T22:13:20.250Z info hub: all is well",
        "\x1b[2J\x1b]0;gone\x07",
        "\u202egnp.exe",
        "\u2028",
        "\x85",
        "\udcff",
    ],
)
def test_a_forged_record_stays_inside_its_field(form: Format, hostile: str) -> None:
    line = the_line(lambda: LOG.info("node connected", peer=hostile), form)
    assert line.isprintable()
    if form == "text":
        assert line.startswith('2023-11-14T22:13:20.250Z info    hub: node connected peer="')


@pytest.mark.parametrize("hostile", ["a run=forged", 'a" run="forged', "a\\", "", " ", "a\trun=forged"])
def test_a_forged_field_stays_inside_its_quotes(hostile: str) -> None:
    line = the_line(lambda: LOG.info("seen", peer=hostile, last=1))
    value = line.partition(" peer=")[2].removesuffix(" last=1")
    assert value[0] == value[-1] == '"'
    inner = value[1:-1].replace("\\\\", "").replace('\\"', "")
    assert '"' not in inner
    assert not inner.endswith("\\")


def test_the_escapes_of_two_values_are_never_equal() -> None:
    assert the_line(lambda: LOG.info("seen", peer="\n")) != the_line(lambda: LOG.info("seen", peer="\\n"))


@given(st.text(max_size=2000))
def test_a_field_is_bounded(text: str) -> None:
    value = parsed(lambda: LOG.info("seen", peer=text))["peer"]
    assert len(value) <= LONGEST + len("...(+100000)")
    assert len(printable(text, 10)) <= 10 * len("\\U0010ffff") + len("...(+100000)")


@pytest.mark.parametrize("form", FORMS)
def test_a_megabyte_is_not_a_megabyte_of_log(form: Format) -> None:
    line = the_line(lambda: LOG.info("x" * 1_000_000, peer="\x00" * 1_000_000, error=ValueError("y" * 1_000_000)), form)
    assert len(line) < 12 * LONGEST


@pytest.mark.parametrize("form", FORMS)
def test_numbers_that_cannot_be_written_are_named(form: Format) -> None:
    line = the_line(lambda: LOG.info("seen", huge=10**5000, rate=float("nan"), most=float("-inf")), form)
    assert "16610 bits" in line
    assert "nan" in line
    assert "-inf" in line


SECRETS = [
    "token",
    "key",
    "private_key",
    "key_bytes",
    "secret",
    "password",
    "invitation_token",
    "credentials",
    "authorization",
]


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("level", ["error", "debug"])
def test_a_field_named_as_a_secret_is_refused_even_where_nothing_is_written(name: str, level: Level) -> None:
    with pytest.raises(ValueError, match="name of a secret"):
        LOG.bind(**{name: "hunter2"})
    with pytest.raises(ValueError, match="name of a secret"):
        lines(lambda: LOG.debug("made", **{name: "hunter2"}), level=level)


@pytest.mark.parametrize("name", ["monkey", "keyhole", "tokenizer", "fingerprint"])
def test_a_name_that_only_contains_such_a_word_is_not(name: str) -> None:
    assert f"{name}=7" in the_line(lambda: LOG.info("seen", **{name: 7}))


@pytest.mark.parametrize(
    "name", ["time", "level", "event", "log", "traceback", "Peer", "a b", "a\nb", "", "x" * 41, "é"]
)
def test_a_field_has_a_plain_name_of_its_own(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a log field"):
        LOG.info("seen", **{name: 1})


@pytest.mark.parametrize("form", FORMS)
def test_planted_secrets_do_not_come_out(form: Format) -> None:
    pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIHunter2\n-----END PRIVATE KEY-----"

    class Carrier:
        def __repr__(self) -> str:
            return "hunter2"

    carrier: Any = Carrier()

    def write() -> None:
        LOG.info("made", first=b"hunter2", second=carrier, third=pem, fourth=ValueError(pem))
        LOG.failed("lost", ValueError(pem))
        logging.getLogger("library").warning("read %s", pem)

    text = "\n".join(lines(write, form))
    assert "unter2" not in text
    assert "PRIVATE" not in text
    assert "(7 bytes)" in text
    assert "(Carrier)" in text


@pytest.mark.parametrize("form", FORMS)
def test_an_error_is_its_class_and_its_sentence(form: Format) -> None:
    line = the_line(lambda: LOG.error("refused", error=IdentityError("the certificate is revoked")), form)
    assert "IdentityError: the certificate is revoked" in line
    assert "Traceback" not in line


@pytest.mark.parametrize("form", FORMS)
def test_a_traceback_stays_on_the_line_and_keeps_its_end(form: Format) -> None:
    def write() -> None:
        try:
            raise ValueError("x" * 20_000 + " the end")
        except ValueError as error:
            LOG.failed("worker lost", error, party="a")

    line = the_line(write, form)
    assert "the end" in line
    assert len(line) < LONGEST_TRACEBACK + 4 * LONGEST


@pytest.mark.parametrize("form", FORMS)
def test_libraries_write_lines_of_the_same_form(form: Format) -> None:
    def write() -> None:
        logging.getLogger("asyncio").info("not said")
        logging.getLogger("asyncio").warning("slow\nx run=1 %s", "y")
        try:
            raise KeyError("gone\nhere")
        except KeyError:
            logging.getLogger("grpc").exception("unhandled")

    slow, unhandled = lines(write, form)
    assert slow.isprintable()
    assert "asyncio" in slow
    assert unhandled.isprintable()
    assert "KeyError" in unhandled
    if form == "text":
        assert slow.endswith('asyncio: "slow\\nx run=1 y"')


def test_the_level_says_what_is_written() -> None:
    def write() -> None:
        LOG.debug("a")
        LOG.info("b")
        LOG.warning("c")
        LOG.error("d")

    counts = {level: len(lines(write, level=level)) for level in ("debug", "info", "warning", "error")}
    assert counts == {"debug": 4, "info": 3, "warning": 2, "error": 1}


def test_logging_is_left_as_it_was_found() -> None:
    root, own = logging.getLogger(), logging.getLogger("hansa")
    before = list(root.handlers), root.level, own.level
    with pytest.raises(RuntimeError, match="boom"), written(stream=io.StringIO()):
        raise RuntimeError("boom")
    assert (list(root.handlers), root.level, own.level) == before
