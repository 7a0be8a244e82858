"""Points drawn by optuna. What was found so far is read from the points' folders: nothing else is
kept that a kill could damage."""

import json
import pathlib
from typing import Any

from launch.points import Point, Search, Sweep, make_point, value_at

# So many draws in a row that exist already: the space is used up.
_REPEATS = 100


class Study:
    """Asks optuna for points and tells it their results.

    Args:
      sweep: with a search.
      workdir: of the sweep; finished points there are told to optuna, interrupted ones come first.
      seed: of the sampler.
      retry_failed: whether failed points come again too.

    Raises:
      ValueError: optuna is not installed.
    """

    def __init__(self, sweep: Sweep, workdir: pathlib.Path, seed: int, retry_failed: bool):
        try:
            import optuna
        except ImportError:
            raise ValueError(
                "this sweep searches with optuna, which is not installed: "
                "pip install 'metamf_jax[sweeps]', or list the points in the sweep file"
            ) from None
        assert sweep.search is not None
        self._optuna = optuna
        self._search: Search = sweep.search
        self._binary, self._workdir = sweep.binary, workdir
        self._trials: dict[str, Any] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        found = sorted((workdir / "points").glob("*/point.json"), key=_number)
        # A sampler that began anew with the same seed would draw the same points again.
        sampler = optuna.samplers.TPESampler(seed=seed + 1000 * len(found))
        self._study = optuna.create_study(sampler=sampler, direction=self._search.direction)
        self.points: list[Point] = []
        again = []
        for path in found:
            held = json.loads(path.read_text(encoding="utf-8"))
            if "params" not in held:
                continue
            point = Point(held["binary"], held["flags"], path.parent)
            self.points.append(point)
            state = point.state()
            if state == "missing" or (state == "failed" and retry_failed):
                again.append(held["params"])
                self.points.pop()
            else:
                self._add(held, self._value(point) if state == "done" else None)
        for params in again:
            self._study.enqueue_trial(params)

    def next(self) -> Point | None:
        """A point to run, or None when there are enough."""
        for _ in range(_REPEATS):
            if len(self.points) >= self._search.trials:
                return None
            trial = self._study.ask()
            point = make_point(self._binary, dict(self._search.suggest(trial)), self._workdir)
            if point.name in {known.name for known in self.points}:
                value = self._value(point)
                state = None if value is not None else self._optuna.trial.TrialState.FAIL
                self._study.tell(trial, value, state)
                continue
            point.begin(
                {
                    "number": len(self.points),
                    "params": trial.params,
                    "distributions": {
                        name: self._optuna.distributions.distribution_to_json(distribution)
                        for name, distribution in trial.distributions.items()
                    },
                }
            )
            self.points.append(point)
            self._trials[point.name] = trial
            return point
        return None

    def ended(self, point: Point) -> None:
        """Tells the result of a point that `next` gave."""
        value = self._value(point)
        state = None if value is not None else self._optuna.trial.TrialState.FAIL
        self._study.tell(self._trials.pop(point.name), value, state)

    def best(self) -> str:
        """The best point so far, in words."""
        try:
            trial = self._study.best_trial
        except ValueError:
            return "no point is done"
        return f"best {self._search.objective}: {trial.value:.6g} at {trial.params}"

    def _value(self, point: Point) -> float | None:
        summary = point.summary()
        value = None if summary is None else value_at(summary, self._search.objective)
        if summary is not None and not isinstance(value, int | float):
            raise ValueError(
                f"{point.workdir / 'summary.json'} has no number under {self._search.objective}"
            )
        return value

    def _add(self, held: dict[str, Any], value: float | None) -> None:
        state = self._optuna.trial.TrialState
        self._study.add_trial(
            self._optuna.trial.create_trial(
                state=state.FAIL if value is None else state.COMPLETE,
                value=value,
                params=held["params"],
                distributions={
                    name: self._optuna.distributions.json_to_distribution(text)
                    for name, text in held["distributions"].items()
                },
            )
        )


def _number(path: pathlib.Path) -> int:
    return json.loads(path.read_text(encoding="utf-8")).get("number", 0)
