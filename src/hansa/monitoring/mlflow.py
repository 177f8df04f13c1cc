"""A run in MLflow."""

from __future__ import annotations

import os
import re
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, final

from hansa.errors import ConfigError, MissingExtra
from hansa.monitoring.compare import flat
from hansa.monitoring.records import RoundRecord, RunEnd, RunInfo

_STATUS: Final = {"completed": "FINISHED", "stopped": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_LONGEST: Final = 500
_BATCH: Final = 100
_FILE_STORE: Final = "MLFLOW_ALLOW_FILE_STORE"


@final
class MLflow:
    """Logs the plan's settings as parameters, metrics by round, and how the run ended as tags.

    It has a client of its own and leaves MLflow's global state alone. MLflow wants to be told once, by a variable of the
    environment, that files will do instead of a database; where ``uri`` is a folder, this sets it if nobody has.

    Args:
        experiment: the experiment's name; made if it is not there.
        uri: a tracking server, a database, or a folder as ``file:`` address; None takes ``MLFLOW_TRACKING_URI``, or else
            the folder ``mlruns`` here. Nothing leaves the machine unless this or that variable names a server.
        clock: seconds since the epoch.

    Raises:
        MissingExtra: MLflow is not installed.
        ConfigError: there is no such server or place, or MLflow cannot use it.
    """

    def __init__(self, experiment: str, uri: str | None = None, clock: Callable[[], float] = time.time) -> None:
        try:
            from mlflow.entities import Metric, Param, RunTag
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise MissingExtra("the MLflow tracker", "mlflow") from None
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or Path("mlruns").absolute().as_uri()
        if uri.startswith("file:") or "://" not in uri:
            os.environ.setdefault(_FILE_STORE, "true")
        self._metric: Any = Metric
        self._param: Any = Param
        self._tag: Any = RunTag
        self._clock = clock
        self._run = ""
        self._last = 0
        try:
            self._client: Any = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(experiment)
            self._experiment = found.experiment_id if found else self._client.create_experiment(experiment)
        except Exception as error:  # MLflow raises whatever its stores raise
            reason = str(error).split("\n", 1)[0]
            raise ConfigError(f"MLflow cannot track the experiment {experiment!r} at {uri}: {reason}") from error

    def begin(self, info: RunInfo) -> None:
        """Start a run there, and log the plan."""
        run = self._client.create_run(self._experiment, run_name=info.name or None)
        self._run = run.info.run_id
        settings = {**flat(tomllib.loads(info.plan)), "parties": info.parties, "parameters": info.parameters}
        params = [self._param(_name(key), str(value)[:_LONGEST]) for key, value in settings.items()]
        tags = [self._tag("hansa.digest", info.digest), self._tag("hansa.first_round", str(info.first_round))]
        for start in range(0, len(params), _BATCH):
            self._client.log_batch(self._run, params=params[start : start + _BATCH])
        self._client.log_batch(self._run, tags=tags)
        self._client.log_text(self._run, info.plan, "plan.toml")

    def round(self, record: RoundRecord) -> None:
        """Log a round's metrics."""
        self._last = record.round
        self._log({**record.metrics, "virtual_seconds": record.time, "real_seconds": record.seconds}, record.round)

    def end(self, end: RunEnd) -> None:
        """Log traffic, baselines and the cause, and end the run as what it was."""
        for kind, counts in end.traffic.items():
            self._log({f"traffic/{kind}/{unit}": float(count) for unit, count in counts.items()}, self._last)
        for name, metrics in end.baselines.items():
            self._log({f"baseline/{name}/{metric}": value for metric, value in metrics.items()}, self._last)
        self._client.set_tag(self._run, "hansa.status", end.status)
        if end.cause:
            self._client.set_tag(self._run, "hansa.cause", end.cause[:_LONGEST])
        self._client.set_terminated(self._run, _STATUS[end.status])

    def _log(self, values: Mapping[str, float], step: int) -> None:
        now = int(self._clock() * 1000)
        metrics = [self._metric(_name(name), float(value), now, step) for name, value in values.items()]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._run, metrics=metrics[start : start + _BATCH])


def _name(name: str) -> str:
    """A name that MLflow takes: letters, digits and ``_ - . / space``.

    >>> _name("aggregation[0].bound")
    'aggregation.0.bound'
    """
    return re.sub(r"[^\w\-. /]", "_", re.sub(r"\[(\d+)\]", r".\1", name), flags=re.ASCII)
