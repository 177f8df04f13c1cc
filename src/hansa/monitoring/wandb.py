"""A run in Weights & Biases."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, final

from hansa.errors import ConfigError, MissingExtra
from hansa.monitoring.records import RoundRecord, RunEnd, RunInfo


@final
class WandB:
    """Logs the plan as configuration, metrics by round, and how the run ended as summary.

    Only what Hansa reports is logged: no source code, no console, no machine, packages or repository. Offline, everything stays in a
    folder, from which ``wandb sync`` sends it when somebody decides to.

    Args:
        project: the project's name.
        mode: "offline" writes to the folder, "online" sends to the service, "disabled" does nothing.
        folder: where the folder ``wandb`` goes; None is the working directory.

    Raises:
        MissingExtra: the library is not installed.
        ConfigError: there is no such mode.
    """

    def __init__(
        self,
        project: str,
        mode: Literal["offline", "online", "disabled"] = "offline",
        folder: str | Path | None = None,
    ) -> None:
        if mode not in {"offline", "online", "disabled"}:
            raise ConfigError(f"WandB: mode must be 'offline', 'online' or 'disabled', not {mode!r}")
        try:
            import wandb
        except ImportError:
            raise MissingExtra("the Weights & Biases tracker", "wandb") from None
        self._library: Any = wandb
        self._project = project
        self._mode = mode
        self._folder = None if folder is None else Path(folder)
        self._run: Any = None

    def begin(self, info: RunInfo) -> None:
        """Start a run there, with the plan as its configuration."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        quiet = self._library.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            host="-",
            x_disable_stats=True,
            x_disable_meta=True,
            x_save_requirements=False,
        )
        facts = {
            "digest": info.digest,
            "parties": info.parties,
            "parameters": info.parameters,
            "first_round": info.first_round,
        }
        self._run = self._library.init(
            project=self._project,
            name=info.name or None,
            mode=self._mode,
            dir=None if self._folder is None else str(self._folder),
            config={"plan": tomllib.loads(info.plan), **facts},
            settings=quiet,
            reinit="create_new",
        )

    def round(self, record: RoundRecord) -> None:
        """Log a round's metrics."""
        values = {**record.metrics, "virtual_seconds": record.time, "real_seconds": record.seconds}
        self._run.log(values, step=record.round)

    def end(self, end: RunEnd) -> None:
        """Write traffic, baselines and the cause into the summary, and end the run."""
        traffic = {f"traffic/{kind}/{unit}": n for kind, counts in end.traffic.items() for unit, n in counts.items()}
        compared = {
            f"baseline/{name}/{metric}": value
            for name, metrics in end.baselines.items()
            for metric, value in metrics.items()
        }
        self._run.summary.update({"status": end.status, "cause": end.cause, **traffic, **compared})
        self._run.finish(exit_code=1 if end.status == "failed" else 0)
