"""Where else the metrics of a run go (--report-to): TensorBoard, Weights & Biases, MLflow, Trackio; no torch.

Each is a row of REPORTERS and a callback over its own package. What is said at its start is an error, before the first
step; what fails later is said once, and the run goes on: metrics.jsonl holds everything. Knows rows of metrics only.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from jpo.errors import JpoError, MissingExtra
from jpo.train.callbacks import Callback, Row, Run
from jpo.train.config import TrainingConfig

_IDS = "reports.json"  # in the output directory: what a resumed run goes on with


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row but its step, under the names that metrics.jsonl has."""
    return {
        key: float(value)
        for key, value in values.items()
        if key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


class Reporter(Callback):
    """What all of them share: the package is there, options and numbers are handed over, faults are told."""

    package = title = remedy = ""

    def __init__(self, config: TrainingConfig):
        self.output = config.output
        self.name = os.path.basename(os.path.abspath(config.output)) if config.output else None
        self._active = False
        if importlib.util.find_spec(self.package) is None:
            raise MissingExtra(f"reports to {self.title} need {self.package}: pip install 'jpo[{self.package}]'")

    def start(self, run: Run, known: str | None) -> str | None:
        """Begin, or go on with `known`, which an earlier run of this output began; its name, where it has one."""
        raise NotImplementedError

    def log(self, values: dict[str, float], step: int) -> None:
        """Hand over the numbers of a step."""
        raise NotImplementedError

    def finish(self, whole: bool) -> None:
        """End; `whole`: the run came to its end."""
        raise NotImplementedError

    def on_train_begin(self, run: Run) -> None:
        """Begins, and hands over the evaluation before the first step, as step 0."""
        ids = _read_ids(self.output) if run.first else {}
        try:
            started = self.start(run, ids.get(self.package))
        except Exception as error:  # each package has its own kinds
            raise JpoError(f"report_to {self.package}: {_line(error)}; {self.remedy}") from error
        self._active = True
        if started is not None and self.output:
            _write_ids(self.output, {**_read_ids(self.output), self.package: started})
        if run.baseline and not run.first:
            self._hand(scalars(run.baseline), 0)

    def on_log(self, run: Run, row: Row) -> None:
        """Hands over a row."""
        self._hand(scalars(row), int(row["step"]))

    def on_train_end(self, run: Run) -> None:
        """Ends what has begun."""
        if self._active:
            self._active = False
            try:
                self.finish(run.stop or run.step == run.total)
            except Exception as error:
                self._say(error)

    def _hand(self, values: dict[str, float], step: int) -> None:
        if self._active:
            try:
                self.log(values, step)
            except Exception as error:
                self._active = False
                self._say(error)

    def _say(self, error: Exception) -> None:
        where = f"; {self.output}/metrics.jsonl holds all of it" if self.output else ""
        print(f"warning: {self.title} takes no more reports: {_line(error)}{where}", file=sys.stderr)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _read_ids(output: str | None) -> dict[str, str]:
    try:
        with open(os.path.join(output or "", _IDS), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def _write_ids(output: str, ids: dict[str, str]) -> None:
    from jpo.disk import write_atomic

    def write(part: str) -> None:
        with open(part, "w", encoding="utf-8") as file:
            json.dump(ids, file, indent=1)

    write_atomic(os.path.join(output, _IDS), write)


class TensorBoard(Reporter):
    """Events in OUTPUT/tensorboard, by the writer of the package tensorboard itself."""

    package, title = "tensorboard", "TensorBoard"
    remedy = "its folder must be writable"
    _writer: Any = None

    def start(self, run: Run, known: str | None) -> None:
        """A new file of events; TensorBoard joins those of a folder."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(os.path.join(self.output or ".", "tensorboard"))

    def log(self, values: dict[str, float], step: int) -> None:
        """One event."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=key, simple_value=value) for key, value in values.items()])
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def finish(self, whole: bool) -> None:
        """Closes the file."""
        self._writer.close()


class WandB(Reporter):
    """A run of the project WANDB_PROJECT (default jpo), or the run that the caller has open."""

    package, title = "wandb", "Weights & Biases"
    remedy = "`wandb login` once, or WANDB_MODE=offline"
    _run: Any = None
    _own = True

    def start(self, run: Run, known: str | None) -> str:
        """Files stand in OUTPUT/wandb; a resumed run goes on in the run that it began."""
        import wandb

        self._own = wandb.run is None
        self._run = wandb.run or wandb.init(
            project=os.environ.get("WANDB_PROJECT", "jpo"), name=os.environ.get("WANDB_NAME", self.name),
            dir=self.output, config=run.config.to_dict(), id=known, resume="allow" if known else None,
        )  # fmt: skip
        return str(self._run.id)

    def log(self, values: dict[str, float], step: int) -> None:
        """One step of the run."""
        self._run.log(values, step=step)

    def finish(self, whole: bool) -> None:
        """Ends the run, unless it is the caller's."""
        if self._own:
            self._run.finish(exit_code=0 if whole else 1)


class MLflow(Reporter):
    """A run of the experiment MLFLOW_EXPERIMENT_NAME (default jpo) at MLFLOW_TRACKING_URI, or the caller's."""

    package, title = "mlflow", "MLflow"
    remedy = "MLFLOW_TRACKING_URI names the server, sqlite:///FILE or a folder"
    _run: Any = None
    _own = True

    def start(self, run: Run, known: str | None) -> str:
        """Options become parameters; a resumed run goes on in the run that it began."""
        import mlflow

        active = mlflow.active_run()
        self._own = active is None
        if active is None:
            mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "jpo"))
            active = mlflow.start_run(run_id=known, run_name=None if known else self.name)
        self._run = active
        if not known:
            mlflow.log_params({key: value for key, value in run.config.to_dict().items() if value is not None})
        return str(active.info.run_id)

    def log(self, values: dict[str, float], step: int) -> None:
        """One step of the run."""
        import mlflow

        mlflow.log_metrics(values, step=step, run_id=self._run.info.run_id)

    def finish(self, whole: bool) -> None:
        """Ends the run, unless it is the caller's."""
        import mlflow

        if self._own:
            mlflow.end_run("FINISHED" if whole else "KILLED")


class Trackio(Reporter):
    """A run of the project TRACKIO_PROJECT (default jpo) in Trackio's folder on this machine (TRACKIO_DIR)."""

    package, title = "trackio", "Trackio"
    remedy = "TRACKIO_DIR names a folder that can be written"
    _run: Any = None

    def start(self, run: Run, known: str | None) -> str:
        """A resumed run goes on under the name that it began with."""
        import trackio

        config = {key: value for key, value in run.config.to_dict().items() if value is not None}
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "jpo"), name=known or self.name, config=config,
            resume="allow" if known else "never", space_id=os.environ.get("TRACKIO_SPACE_ID"), embed=False,
        )  # fmt: skip
        return str(self._run.name)

    def log(self, values: dict[str, float], step: int) -> None:
        """One step of the run."""
        import trackio

        trackio.log(values, step=step)

    def finish(self, whole: bool) -> None:
        """Waits until what was handed over is written."""
        import trackio

        trackio.finish()


REPORTERS: dict[str, type[Reporter]] = {kind.package: kind for kind in (TensorBoard, WandB, MLflow, Trackio)}


def reporters(config: TrainingConfig) -> list[Reporter]:
    """Those that the options name, each once; MissingExtra where one's package is not there."""
    return [REPORTERS[name](config) for name in config.reporters]
