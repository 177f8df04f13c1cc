"""``hansa demo``: a whole federation on this machine, a hub and four hospitals, each a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final

import numpy as np
import typer
from safetensors.numpy import load_file

from hansa.cli.following import Following
from hansa.cli.home import home_of
from hansa.cli.output import Json, say
from hansa.cli.runs import _fresh, simulated_demo
from hansa.data import Dirichlet, FederatedData, arrays, from_parties, load
from hansa.errors import RunError, StoreError
from hansa.examples import Examples, Shard
from hansa.horizontal import FedAvg
from hansa.learners import MLP, SGD
from hansa.monitoring.strict_json import dumps
from hansa.plan import Plan
from hansa.rng import Key
from hansa.simulation.run import Run
from hansa.simulation.simulate import simulate

if TYPE_CHECKING:
    from hansa.deployment.api import RunView
    from hansa.deployment.identity import Credentials

HOSPITALS: Final = ("hospital-a", "hospital-b", "hospital-c", "hospital-d")
ALONE: Final = """\
import sys
from hansa.deployment.signals import die_with
die_with(int(sys.argv.pop(1)))
from hansa.cli import main
main(sys.argv[1:])
"""
"""A command of Hansa as a process that the kernel ends with this one."""
_BINDING: Final = """\
[data.digits]
source = "npz:{file}"
test = 0.0
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
"""
_POLICY: Final = """\
[policy]
approval = "automatic"
submitters = ["researcher"]
data = ["digits"]
protocols = ["fedavg"]
learners = ["mlp"]
servers = ["hub"]
least_parties = 2
"""


def demo(
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/demo-N if not said.")] = None,
    simulated: Annotated[
        bool, typer.Option("--simulate", help="Ten parties in this one process, without a network.")
    ] = False,
    json: Json = False,
) -> None:
    """Start a federation here, a hub and four hospital nodes over mutual TLS, and train one model on their real data, live."""
    if simulated:
        simulated_demo(out, json)
        return
    home_of(None, "hansa demo without --simulate")
    folder = out or _fresh(Path("runs"), "demo")
    with _ending_in_order(), tempfile.TemporaryDirectory(prefix="hansa-demo-", ignore_cleanup_errors=True) as place:
        _Demonstration(Path(place), folder, json).run()


class _Demonstration:
    """One run of the demo: its folder, its children, what it shows."""

    def __init__(self, place: Path, folder: Path, json: bool) -> None:
        self.place, self.folder, self.json = place, folder, json

    def run(self) -> None:
        began = time.monotonic()
        data = _hospitals()
        self._tell("Four hospitals hold handwritten digits (scikit-learn's, real data), each mostly some of the ten.")
        self._tell("None shows its own to anybody. Here each is a process of its own, with mutual TLS in between.\n")
        _write(self.place, data)
        with contextlib.ExitStack() as children:
            mine = self._federation(children, data)
            view, metrics = self._train(mine)
            if view.status != "completed":
                raise RunError(view.cause, party=view.party, round=view.round, remedy=view.remedy)
            self._fetch(mine, view)
        self._conclude(data, metrics, time.monotonic() - began)

    def _federation(self, children: contextlib.ExitStack, data: FederatedData) -> Credentials:
        """The hub, the hospitals and who submits: made and connected as anybody would."""
        from hansa.deployment import api, daemon, people

        hub = self.place / "hub"
        settings = daemon.hub_settings(hub, "127.0.0.1:0")
        daemon.found_federation(hub, "hearts", "ada", settings)
        _append(hub / daemon.HUB_FILE, _BINDING.format(file=self.place / "public.npz"))
        address = _line(_start(children, hub, "hub", "--home", str(hub)), "listens at").split()[-1]
        operator = people.credentials_at(hub)
        self._tell(f"  {'hub':<11} {address}")
        for name in HOSPITALS:
            home = self.place / name
            token = people.ask(operator, api.Invite(name), api.Invited).token
            keys = people.join(home, token).certificate.sealing
            text = _BINDING.format(file=self.place / f"{name}.npz") + _POLICY
            (home / daemon.NODE_FILE).write_text(text, encoding="utf-8")
            assert keys is not None
            labels = data.shard(HOSPITALS.index(name)).train.y
            most = " ".join(
                str(digit) for digit in np.flatnonzero(np.bincount(labels, minlength=10) > 0.1 * len(labels))
            )
            self._tell(f"  {name:<11} {len(labels)} images, mostly of {most:<13} keys {keys.fingerprint[:19]}")
        nodes = [_start(children, self.place / name, "node", "--home", str(self.place / name)) for name in HOSPITALS]
        token = people.ask(operator, api.Invite("researcher", "submitter"), api.Invited).token
        mine = people.join(self.place / "researcher", token)
        for node in nodes:
            _line(node, "is connected")
        self._tell(
            "\nall hospitals are connected; a researcher submits the plan, and each checks it against its own policy"
        )
        return mine

    def _train(self, mine: Credentials) -> tuple[RunView, Mapping[str, float]]:
        from hansa.deployment import api, people

        run = people.ask(mine, api.Submit(_plan().to_toml(), "demo", "digits"), api.Submitted).run
        shown = Following(people.find_run(mine, run), self.json)
        try:
            people.watch(mine, run, shown.event)
        except BaseException:
            shown.leave()
            raise
        view = people.find_run(mine, run)
        shown.end(view)
        return view, shown.metrics

    def _fetch(self, mine: Credentials, view: RunView) -> None:
        from hansa.deployment import people

        self.folder.parent.mkdir(parents=True, exist_ok=True)
        people.fetch(mine, view.run, self.folder)

    def _conclude(self, data: FederatedData, metrics: Mapping[str, float], seconds: float) -> None:
        """The federated model beside what else could have been, and what left each hospital."""
        from hansa.deployment import audit

        plan = _plan()
        run = simulate(plan, _as_bound(self.place, data.central_test), baselines=True)
        apart = _apart(run, self.folder)
        flows = {name: audit.summary(self.place / name / "audit.log") for name in HOSPITALS}
        count = {name: audit.verify(self.place / name / "audit.log") for name in HOSPITALS}
        rows: dict[str, Mapping[str, float]] = {
            "federated": {name: metrics[f"test_{name}"] for name in ("loss", "accuracy")},
            **run.baselines,
        }
        if self.json:
            left = {n: [{"what": f.discloses, "to": f.receiver, "messages": f.messages, "bytes": f.bytes} for f in all_]
                    for n, all_ in flows.items()}  # fmt: skip
            ended = {"event": "end", "status": "completed", "seconds": seconds, "test": rows, "left": left}
            print(dumps({**ended, "apart_from_simulation": apart, "folder": str(self.folder)}), flush=True)
            return
        say("\n  on the public test set         loss  accuracy")
        for name, row in rows.items():
            say(f"    {name:<23}{row['loss']:>10.4f}{row['accuracy']:>10.4f}")
        same = "bit for bit" if apart == 0.0 else f"to {apart:.0e} in each weight"
        say(f"  the same plan, simulated in one process, ends with the same model {same}")
        say("\n  what left each hospital, by its own audit log, whose chain was verified")
        for name in HOSPITALS:
            say(f"    {name}, {count[name]:,} records")
            for flow in flows[name]:
                say(
                    f"      {flow.messages:>4} messages {flow.bytes / 1e3:>8,.1f} kB to {flow.receiver}: {flow.discloses}"
                )
        say(f"\n  report: {self.folder / 'report.html'}    in all {seconds:.1f} s")

    def _tell(self, text: str) -> None:
        if not self.json:
            say(text)


def _plan() -> Plan:
    return Plan(
        protocol=FedAvg(rounds=60, cohort=len(HOSPITALS)),
        learner=MLP(hidden=(64,), optimizer=SGD(0.1), batch_size=10),
        name="demo",
        seed=7,
    )


def _hospitals() -> FederatedData:
    """The digits, divided so that each hospital has mostly some of them; a fifth is public, for testing."""
    digits = load("sklearn:digits")
    order = Key.root(0).child("demo").permutation(len(digits.y))
    public, others = order[: len(order) // 5], order[len(order) // 5 :]
    pool = arrays(digits.x[others], digits.y[others], classes=digits.classes)
    divided = pool.partition(Dirichlet(alpha=0.2), parties=len(HOSPITALS), seed=1, test=0.0)
    parties = {}
    for place, name in enumerate(HOSPITALS):
        train = divided.shard(place).train
        # The central test set is that of all parties together.
        tested = public if place == 0 else public[:0]
        parties[name] = (train.x, train.y, digits.x[tested], digits.y[tested])
    return from_parties(parties)


def _write(place: Path, data: FederatedData) -> None:
    """What each machine has of its own: no other can read it there either."""
    for number, name in enumerate(HOSPITALS):
        train = data.shard(number).train
        np.savez(place / f"{name}.npz", x=train.x, y=train.y)
    public = data.central_test
    np.savez(place / "public.npz", x=public.x, y=public.y, x_test=public.x, y_test=public.y)


def _as_bound(place: Path, public: Examples) -> FederatedData:
    """The same data as the nodes load them, in one place: what no federation could have."""
    from hansa.deployment import binding, daemon

    shards: dict[str, Shard] = {}
    for name in HOSPITALS:
        bound = daemon.node_settings(place / name).data["digits"]
        shards[name] = Shard(
            binding.load(bound, many=True).train, public if not shards else Examples(public.x[:0], public.y[:0])
        )
    return from_parties(shards)


def _apart(run: Run, folder: Path) -> float:
    """The largest difference of a weight between the simulated model and the one that was fetched."""
    assert run.params is not None
    fetched = load_file(folder / "model.safetensors")
    return max(float(np.abs(run.params[name] - tensor).max()) for name, tensor in fetched.items())


def _start(children: contextlib.ExitStack, home: Path, *arguments: str) -> subprocess.Popen[str]:
    """A command of Hansa as a child that ends with the demo, however that ends."""
    log = children.enter_context((home / "stderr.log").open("w", encoding="utf-8"))
    child = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", ALONE, str(os.getpid()), *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
    )  # fmt: skip
    children.callback(_end, child)
    return child


def _end(child: subprocess.Popen[str]) -> None:
    """Ask it to end, and see to it; whatever it started and left behind ends too."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(5.0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdout is not None:
        child.stdout.close()


def _line(child: subprocess.Popen[str], wanted: str) -> str:
    """The next line of a child that has ``wanted`` in it.

    Raises:
        StoreError: the child ended before it said it.
    """
    assert child.stdout is not None
    for line in child.stdout:
        if wanted in line:
            return line.strip()
    raise StoreError(
        f"a process of the demo ended at its start, with status {child.wait()}; try: hansa demo --simulate"
    )


def _append(file: Path, text: str) -> None:
    with file.open("a", encoding="utf-8") as end:
        end.write(f"\n{text}")


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: its children and its folder go with it."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        for number, disposition in before.items():
            signal.signal(number, disposition)
