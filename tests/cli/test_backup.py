"""`hansa backup` and `hansa restore`: a hub whose disk is lost, by its commands, each a process as on machines of their own."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest
from safetensors.numpy import load_file

pytest.importorskip("grpc")

from tests.cli.test_federation import BOUND, PLAN, POLICY, Federation


def test_a_hub_that_lost_its_home_is_restored_and_its_nodes_come_by_themselves(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    made = Federation(tmp_path)
    (tmp_path / "plan.toml").write_text(PLAN)
    names = ("hospital-a", "hospital-b")
    try:
        made.start("hub", "--federation", "hearts", "--operator", "ada", "--listen", "127.0.0.1:0")
        for party, name in enumerate(names):
            made.ask("join", "-", home=name, stdin=made.ask("invite", name))
            (made.home(name) / "node.toml").write_text(BOUND.format(party=party) + POLICY.format(approval="automatic"))
            made.start(name)
        token = made.ask("invite", "late")
        gone = made.ask("invite", "gone", "--kind", "observer")
        made.ask("join", "-", home="gone", stdin=gone)
        first = json.loads(made.ask("submit", "plan.toml", "--watch", "--json").splitlines()[-1])["run"]
        made.ask("fetch", first, "--out", str(tmp_path / "before"))

        said = made.ask("backup", str(tmp_path / "hub.tar"))
        assert "the hub of 'hearts' as of 2" in said and "the federation's authority" in said and "private keys" in said
        assert stat.S_IMODE((tmp_path / "hub.tar").stat().st_mode) == 0o600
        again = made.ask("backup", str(tmp_path / "hub.tar"), code=2)
        assert "is there already, and is not overwritten" in again
        told = json.loads(made.ask("backup", str(tmp_path / "node.tar"), "--json", home="hospital-a"))
        assert (told["kind"], told["name"], told["federation"]) == ("node", "hospital-a", "hearts")

        second = json.loads(made.ask("submit", "plan.toml", "--watch", "--json").splitlines()[-1])
        assert second["status"] == "completed"
        made.ask("revoke", "gone")
        assert "is not empty" in made.ask("restore", str(tmp_path / "hub.tar"), code=2)
        made.running.pop("hub").end()
        shutil.rmtree(made.home("hub"))

        said = made.ask("restore", str(tmp_path / "hub.tar"))
        for words in (
            "invitations that were open are void: 1",
            "Revoke again before you start it",
            "must never run again",
        ):
            assert words in said
        assert "knows it when it starts" in made.ask("revoke", "gone")
        made.start("hub")
        third = json.loads(made.ask("submit", "plan.toml", "--watch", "--json").splitlines()[-1])
        assert third["status"] == "completed", third
        runs = {row["run"] for row in json.loads(made.ask("runs", "--json"))}
        assert runs == {first, third["run"]}
        made.ask("fetch", first, "--out", str(tmp_path / "after"))
        model = "model.safetensors"
        assert (tmp_path / "before" / model).read_bytes() == (tmp_path / "after" / model).read_bytes()
        made.ask("fetch", third["run"], "--out", str(tmp_path / "third"))
        for name, tensor in load_file(tmp_path / "third" / model).items():
            assert (tensor == load_file(tmp_path / "before" / model)[name]).all()
        assert "was revoked" in made.ask("join", "-", home="late", stdin=token, code=2)
        states = {row["name"]: row["state"] for row in json.loads(made.ask("members", "--json"))}
        assert states == {"ada": "member", "gone": "revoked", **dict.fromkeys(names, "connected")}
        assert "each what was written" in made.ask("audit", "verify")
    finally:
        for process in made.running.values():
            process.end()
