"""A federation by its commands, each a process as on machines of their own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from safetensors.numpy import load_file

from hansa.cli import main
from hansa.cli.demo import ALONE

pytest.importorskip("grpc")

PLAN: Final = """
name = "digits"
seed = 7
[protocol]
name = "fedavg"
rounds = 3
cohort = 2
quorum = 1.0
[learner]
name = "softmax"
optimizer = { name = "sgd", learning_rate = 0.05 }
"""
BOUND: Final = """
[data.digits]
source = "sklearn:digits"
partition = "iid"
parties = 2
party = {party}
"""
POLICY: Final = """
[policy]
approval = "{approval}"
submitters = ["operator/ada"]
data = ["digits"]
protocols = ["fedavg"]
learners = ["softmax"]
servers = ["hub", "hospital-a"]
least_parties = 2
"""


class Process:
    """A command of Hansa that goes on until it is ended."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log.open("a", encoding="utf-8")
        self.child = subprocess.Popen(
            [sys.executable, "-c", ALONE, str(os.getpid()), *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, text=True, start_new_session=True,
        )  # fmt: skip

    def until(self, wanted: str) -> str:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            if wanted in line:
                return line.strip()
        raise AssertionError(f"ended with {self.child.wait()}:\n{Path(self.log.name).read_text()}")

    def ended(self) -> int:
        """Wait until it ends by itself; its exit code."""
        self.child.wait(30)
        return self.end()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.child.poll() is None:
            self.child.send_signal(number)
        status = self.child.wait(30)
        if self.child.stdout is not None:
            self.child.stdout.close()
        self.log.close()
        return status


class Federation:
    """A hub and two nodes; the second asks its owner."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.running: dict[str, Process] = {}

    def home(self, name: str) -> Path:
        return self.place / name

    def start(self, name: str, *arguments: str) -> str:
        command = "hub" if name == "hub" else "node"
        process = self.running[name] = Process(
            self.place / f"{name}.log", command, "--home", str(self.home(name)), *arguments
        )
        return process.until("listens at" if name == "hub" else "is connected")

    def ask(self, *arguments: str, home: str = "hub", code: int = 0, stdin: str = "") -> str:
        """A command that ends by itself; its standard output, or what it complains about."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.chdir(self.place))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            stack.enter_context(pytest.MonkeyPatch.context()).setattr(sys, "stdin", io.StringIO(stdin))
            stopped = stack.enter_context(pytest.raises(SystemExit))
            main([*arguments, "--home", str(self.home(home))])
        assert (stopped.value.code or 0) == code, out.getvalue() + err.getvalue()
        return out.getvalue() if code == 0 else out.getvalue() + err.getvalue()


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    place = tmp_path_factory.mktemp("federation")
    place.chmod(0o700)
    made = Federation(place)
    try:
        made.start("hub", "--federation", "hearts", "--operator", "ada", "--listen", "127.0.0.1:0")
        made.running["hub"].end()
        with (made.home("hub") / "hub.toml").open("a") as file:
            file.write('\n[data.digits]\nsource = "sklearn:digits"\n')
        made.start("hub")
        for party, approval in enumerate(("automatic", "manual")):
            name = f"hospital-{'ab'[party]}"
            token = made.ask("invite", name)
            joined = made.ask("join", "-", home=name, stdin=token)
            assert "fingerprint of your keys" in joined and "hansa node" in joined
            (made.home(name) / "node.toml").write_text(BOUND.format(party=party) + POLICY.format(approval=approval))
            made.start(name)
        (place / "plan.toml").write_text(PLAN)
        yield made
    finally:
        for process in made.running.values():
            process.end()


def test_four_commands_train_a_model(federation: Federation) -> None:
    members = {row["name"]: row for row in json.loads(federation.ask("members", "--json"))}
    kinds = {name: members[name]["kind"] for name in ("ada", "hospital-a", "hospital-b")}
    assert kinds == {"ada": "operator", "hospital-a": "node", "hospital-b": "node"}
    assert members["hospital-a"]["state"] == "connected"

    run = federation.ask("submit", "plan.toml").strip()
    watching = Process(
        federation.place / "watch.log", "watch", run[:8], "--json", "--home", str(federation.home("hub"))
    )
    asked = watching.until("hansa approve")
    assert json.loads(asked)["party"] == "hospital-b"
    (waiting,) = json.loads(federation.ask("pending", "--json", home="hospital-b"))
    assert (waiting["run"], waiting["submitter"]) == (run, "operator/ada")
    assert "fedavg" in federation.ask("pending", run[:6], home="hospital-b")
    federation.ask("approve", run[:6], home="hospital-b")
    ended = json.loads(watching.until('"event":"end"'))
    assert (ended["status"], ended["run"]) == ("completed", run)
    assert watching.ended() == 0

    assert "waits for your answer" in federation.ask("pending", home="hospital-b")
    listed = json.loads(federation.ask("runs", "--json"))[0]
    assert (listed["run"], listed["status"], listed["round"]) == (run, "completed", 3)
    assert "round 3" in federation.ask("logs", run)
    federation.ask("fetch", run, "--out", "got")
    assert sum(tensor.size for tensor in load_file(federation.place / "got" / "model.safetensors").values()) == 650
    assert "</html>" in (federation.place / "got" / "report.html").read_text()
    assert "choose another with --out" in federation.ask("fetch", run, "--out", "got", code=2)
    assert f"run {run}: completed at round 3 of 3" in federation.ask("doctor", run)

    assert f"forgot {run}" in federation.ask("forget", run[:8])
    assert "no run that you may see" in federation.ask("forget", run, code=2)
    assert run not in [listed["run"] for listed in json.loads(federation.ask("runs", "--json", "--all"))]
    assert not (federation.home("hub") / "runs" / run).exists()

    flows = json.loads(federation.ask("audit", "--json", home="hospital-a"))
    assert sum(flow["messages"] for flow in flows if "update" in flow["discloses"]) == 3
    head = federation.ask("audit", "head", home="hospital-a").strip()
    assert "each what was written" in federation.ask("audit", "verify", "--head", head, home="hospital-a")
    number, digest = head.split(":")
    forged = f"{number}:{digest[::-1]}"
    assert "not the one that was noted" in federation.ask(
        "audit", "verify", "--head", forged, home="hospital-a", code=2
    )


def test_a_model_made_on_a_node_is_its_owners_to_take(federation: Federation) -> None:
    run = federation.ask("submit", "plan.toml", "--server", "hospital-a").strip()
    watching = Process(federation.place / "watch.log", "watch", run, "--json", "--home", str(federation.home("hub")))
    watching.until("hansa approve")
    federation.ask("approve", run, home="hospital-b")
    assert json.loads(watching.until('"event":"end"'))["status"] == "completed"
    assert watching.ended() == 0
    for home in ("hub", "hospital-b"):
        told = federation.ask("fetch", run, "--out", f"without-{home}", home=home)
        assert f"without the model: hospital-a keeps it, and its owner gets it there: hansa fetch {run[:6]}" in told
        assert not (federation.place / f"without-{home}" / "model.safetensors").exists()
    assert "without" not in federation.ask("fetch", run, "--out", "owned", home="hospital-a")
    assert sum(tensor.size for tensor in load_file(federation.place / "owned" / "model.safetensors").values()) == 650
    assert (federation.place / "owned" / "report.html").exists()


def test_a_refusal_ends_the_run_by_name(federation: Federation) -> None:
    run = federation.ask("submit", "plan.toml").strip()
    watching = Process(federation.place / "watch.log", "watch", run, "--json", "--home", str(federation.home("hub")))
    watching.until("hansa approve")
    federation.ask("refuse", run, "--reason", "not in August", home="hospital-b")
    ended = json.loads(watching.until('"event":"end"'))
    assert (ended["status"], ended["party"]) == ("failed", "hospital-b")
    assert watching.ended() == 1
    told = federation.ask("doctor", run, code=1)
    assert "warning  hospital-b: refused: not in August" in told and f"problem  run {run}" in told
    assert "has failed already" in federation.ask("stop", run, code=2)
    assert "no run that waits begins with" in federation.ask("approve", run, home="hospital-b", code=2)


def test_a_run_can_be_stopped(federation: Federation) -> None:
    run = federation.ask("submit", "plan.toml").strip()
    federation.ask("stop", run[:10])
    assert federation.ask("watch", run, "--json", code=1).splitlines()[-1].count('"stopped"') == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("submit", "absent.toml"), "absent.toml: cannot be read"),
        (("submit", "plan.toml", "--set", "protocol.name=fedvag"), "did you mean 'fedavg'?"),
        (("submit", "plan.toml", "--parties", "hospital-z"), "no node of this federation is called 'hospital-z'"),
        (("watch", "ffffffff"), "no run that you may see begins with 'ffffffff'"),
        (("watch", ""), "no run that you may see begins with ''"),
        (("invite", "../etc"), "cannot be used"),
        (("invite", "x", "--kind", "king"), "is no kind of member"),
        (("invite", "hospital-a"), "is a member already"),
        (("invite", "x", "--within", "-5"), "more than 0 and at most 2,592,000 seconds, not -5"),
        (("hub", "--operator", "eve"), "the operator in"),
        (("revoke", "nobody"), "no member and no invitation is called 'nobody'"),
        (("join", "hansa1-abc"), "mistyped or cut-off invitation"),
        (("audit", "verfy"), "did you mean 'verify'?"),
        (("audit", "verify", "--head", "12"), "a head is a number"),
    ],
)
def test_a_mistake_is_one_sentence(federation: Federation, arguments: tuple[str, ...], sentence: str) -> None:
    told = federation.ask(*arguments, code=2)
    assert sentence in told
    assert told.startswith("hansa: ") and len(told.strip().splitlines()) <= 2


def test_a_node_may_not_invite_or_stop(federation: Federation) -> None:
    assert "may not invite anybody" in federation.ask("invite", "friend", home="hospital-a", code=2)
    run = federation.ask("submit", "plan.toml").strip()
    assert "may not stop it" in federation.ask("stop", run, home="hospital-a", code=2)
    federation.ask("stop", run)


def test_an_invitation_is_good_for_one(federation: Federation) -> None:
    token = federation.ask("invite", "eve", "--kind", "observer")
    federation.ask("join", token, home="eve")
    assert "was used" in federation.ask("join", token, home="thief", code=2)
    federation.ask("revoke", "eve")
    assert "was revoked" in federation.ask("runs", home="eve", code=2)


def test_doctor_finds_nothing_and_then_what_is_wrong(federation: Federation) -> None:
    told = federation.ask("doctor", home="hospital-a")
    assert "718 training and 180 test examples of 64 features" in told and "problem" not in told
    assert "this hub runs" in federation.ask("doctor")
    home = federation.home("hospital-a")
    file = home / "node.toml"
    good = file.read_text()
    try:
        file.write_text(
            good.replace("sklearn:digits", "csv:absent.csv").replace('"fedavg"', "").replace('"iid"', '"iid"')
        )
        home.chmod(0o755)
        found = json.loads(federation.ask("doctor", "--json", home="hospital-a", code=1))
    finally:
        file.write_text(good)
        home.chmod(0o700)
    verdicts = {one["about"]: one["verdict"] for one in found}
    assert (verdicts["data.digits"], verdicts["policy"], verdicts["home"]) == ("problem", "warning", "warning")


def test_a_second_process_in_one_home_is_refused(federation: Federation) -> None:
    assert "in use by another process" in federation.ask("node", home="hospital-a", code=1)
    assert "in use by another process" in federation.ask("hub", code=1)
    federation.ask("pending", home="hospital-a")


def test_a_killed_hub_is_back_where_its_nodes_look(federation: Federation) -> None:
    before = (federation.home("hub") / "address").read_text()
    federation.running["hub"].end(signal.SIGKILL)
    run = federation.ask("runs", code=1)
    assert "cannot be reached" in run
    assert before.strip() in federation.start("hub")
    ready = federation.place / "ready"
    federation.running["hospital-a"].end(signal.SIGKILL)
    federation.start("hospital-a", "--ready-file", str(ready))
    assert ready.read_text() == before


def test_a_hub_of_no_name_is_not_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["hub", "--home", str(tmp_path / "h")])
    assert stopped.value.code == 2 and "make one with: hansa hub --federation NAME" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--listen", "127.0.0.1:7400"), "there is no federation in"),
        (("--federation", "Hearts!", "--operator", "ada"), "cannot be used"),
        (("--federation", "hearts", "--operator", "Ada"), "cannot be used"),
        (("--federation", "hearts", "--listen", "0.0.0.0:7400"), "say with address what they use"),
        (("--federation", "hearts", "--address", "hub.example.org"), "is no address"),
    ],
)
def test_a_hub_that_is_refused_leaves_nothing_behind(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    """What it would leave is a file with the mistake in it, which the corrected command then went by at each later start."""
    with pytest.raises(SystemExit) as stopped:
        main(["hub", "--home", str(tmp_path / "h"), *arguments])
    assert stopped.value.code == 2 and said in capfd.readouterr().err
    assert not (tmp_path / "h").exists()


def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SystemExit) as stopped:
            main(["hub", "--home", str(tmp_path / "h"), "--federation", "hearts", "--listen", address])
    told = capfd.readouterr().err
    assert stopped.value.code == 2 and told.count("\n") == 1
    assert f"cannot listen on {address}: Address already in use; stop what listens there" in told
    assert f'listen = "{address}"' in (tmp_path / "h" / "hub.toml").read_text()


def test_a_home_where_nothing_ran_has_no_audit_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for what in ("summary", "verify", "head"):
        with pytest.raises(SystemExit) as stopped:
            main(["audit", what, "--home", str(tmp_path)])
        assert stopped.value.code == 2 and "no hub and no node has run there" in capfd.readouterr().err


def test_nothing_of_the_network_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys\nfrom hansa.cli import main\ntry: main(['list', 'protocols'])\nexcept SystemExit: pass\n"
        "print(sorted({'grpc', 'cryptography', 'asyncio', 'sqlite3'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.strip() == "[]"


def test_the_extra_is_named_where_it_lacks() -> None:
    code = (
        "import importlib.util, sys\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'grpc' else find(name, *rest)\n"
        "from hansa.cli import main\nmain(['runs'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "hansa: hansa runs needs the 'net' extra: pip install 'hansa[net]'\n"
