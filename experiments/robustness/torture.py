"""Ends runs at random moments and compares what becomes of them with the undisturbed run.

Claim: a run that is killed (SIGKILL) or asked to end (SIGTERM), at whatever moment and how often,
and started again with the same flags ends with the same parameters, metrics and results, to the
last bit; so does a run over several processes of which one or all are ended, and its end is that of
one process with as many devices.

    python -m experiments.robustness.torture --runs=50 --experiment=train
    python -m experiments.robustness.torture --runs=50 --experiment=factorize --processes=2

Each run is ended once or twice, three times in four by SIGKILL; the first times are spread evenly
over its logged steps, before the first and after the last among them. The last line is
``50 of 50 runs ended bit-identical``, the exit code 1 if one did not. It takes about 1.6 times as
long as so many undisturbed runs.
"""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import NamedTuple

from absl import flags

from experiments import common
from experiments.robustness.small_runs import FLAGS, difference
from launch import local_hosts
from metamf_jax.runs.run_log import read_metrics

# Many steps that follow one another within milliseconds, each with its checkpoint; and as many
# matrices as devices may be asked for.
_MORE_STEPS = {
    "train": (
        "--override=training.max_steps=60",
        "--override=training.evaluate_every=2",
        "--override=training.batch=8",
    ),
    "factorize": ("--epochs=30",),
}
_RUNS = flags.DEFINE_integer("runs", 50, "Runs to disturb.", lower_bound=1)
_EXPERIMENT = flags.DEFINE_enum("experiment", "train", list(FLAGS), "The binary to end.")
_PROCESSES = flags.DEFINE_integer(
    "processes", 1, "Processes of each run, a divisor of the devices.", lower_bound=1
)
# Between asking the others to end and killing them, when one is gone.
_GRACE_SECONDS = 2.0


class _Start(NamedTuple):
    """How the runs are started.

    Attributes:
      experiment: a key of `FLAGS`.
      devices: of all processes; None for those of `FLAGS`.
      processes: how many.
    """

    experiment: str
    devices: int | None
    processes: int

    def __call__(self, workdir: pathlib.Path) -> dict[str, subprocess.Popen]:
        """Starts a run, its output appended to a file beside the workdir."""
        given = [*FLAGS[self.experiment], *_MORE_STEPS[self.experiment]]
        if self.devices is not None:
            given.append(f"--devices={self.devices}")
        command = [sys.executable, "-m", f"experiments.{self.experiment}", *given]
        command.append(f"--workdir={workdir}")
        with _output(workdir).open("ab") as output:
            if self.processes == 1:
                child = subprocess.Popen(
                    command, stdout=output, stderr=output, start_new_session=True
                )
                return {"the run": child}
            each = (self.devices or 2) // self.processes
            return local_hosts.start(command, self.processes, each, output)


def _output(workdir: pathlib.Path) -> pathlib.Path:
    return workdir.with_name(f"{workdir.name}.txt")


def _finish(start: _Start, workdir: pathlib.Path) -> float:
    """Runs to the end; returns the seconds.

    JAX ends several processes of which one was not heard of for seconds, as on a machine that was
    stopped in between: they are started again like those that were killed.
    """
    begin = time.monotonic()
    for _ in range(5 if start.processes > 1 else 1):
        failure = local_hosts.watch(start(workdir), _GRACE_SECONDS)
        if failure is None:
            return time.monotonic() - begin
        print(f"{workdir.name}, undisturbed: {failure}", flush=True)
    output = _output(workdir).read_text(errors="replace")
    raise ValueError(f"the run in {workdir} does not reach its end: {output[-2000:]}")


class _Blow(NamedTuple):
    """What happens to a run.

    Attributes:
      number: the signal.
      victims: numbers of the processes that receive it.
      lines: it comes when so many steps are logged,
      seconds: and so long after.
    """

    number: signal.Signals
    victims: tuple[int, ...]
    lines: int
    seconds: float

    @classmethod
    def draw(cls, rng: random.Random, processes: int, lines: int, duration: float) -> "_Blow":
        """One that comes when so many steps are logged, in a run that takes so many seconds."""
        one = rng.randrange(processes)
        victims = tuple(range(processes)) if rng.random() < 1 / 3 else (one,)
        number = signal.SIGTERM if rng.random() < 0.25 else signal.SIGKILL
        # From a third of a millisecond to a second: where a step or the writing of a file takes
        # no longer than a few of the former.
        seconds = 10 ** rng.uniform(-3.5, 0) if lines else rng.random() * duration
        return cls(number, victims, lines, seconds)

    def strike(self, children: dict[str, subprocess.Popen], workdir: pathlib.Path) -> None:
        """Waits for the moment, unless the run ends before."""
        running = list(children.values())
        log = workdir / "metrics.jsonl"

        def logged() -> int:
            return log.read_bytes().count(b"\n") if log.exists() else 0

        while logged() < self.lines:
            if any(child.poll() is not None for child in running):
                return
            time.sleep(0.001)
        time.sleep(self.seconds)
        for victim in self.victims:
            running[victim].send_signal(self.number)


def _disturb(start: _Start, workdir: pathlib.Path, blow: _Blow) -> str:
    """Starts a run and ends it; tells what happened to it and where it was."""
    children = start(workdir)
    striker = threading.Thread(target=blow.strike, args=(children, workdir))
    striker.start()
    local_hosts.watch(children, _GRACE_SECONDS)
    striker.join()
    if not (workdir / "config.json").exists():
        where = "before it began"
    elif (workdir / "summary.json").exists():
        where = "at its end"
    else:
        lines = read_metrics(workdir)
        where = f"after {lines[-1]['step']:g} steps" if lines else "before the first step"
    who = "" if start.processes == 1 else f" to {' and '.join(map(str, blow.victims))}"
    return f"{blow.number.name}{who} {where}"


def run(
    runs: int,
    experiment: str,
    seed: int,
    folder: pathlib.Path,
    processes: int = 1,
    devices: int | None = None,
) -> int:
    """Returns the number of runs that ended bit-identical.

    Raises:
      ValueError: a run that was started again did not reach its end.
    """
    rng = random.Random(seed)
    undisturbed = folder / "undisturbed"
    _finish(_Start(experiment, devices, 1), undisturbed)
    start = _Start(experiment, devices, processes)
    # Once more, now that the compilation cache is filled, and with all processes.
    duration = _finish(start, folder / "again")
    if processes > 1:
        shutil.rmtree(folder / "again")
        duration = _finish(start, folder / "again")
    found = difference(folder / "again", undisturbed)
    if found is not None:
        raise ValueError(f"two undisturbed runs differ in {found}")
    print(f"an undisturbed run of {experiment} takes {duration:.2f} s", flush=True)
    shutil.rmtree(folder / "again")
    steps = len(read_metrics(undisturbed)) + 1
    identical = 0
    for number, place in enumerate(rng.sample(range(runs), runs), 1):
        workdir = folder / f"run-{number}"
        told = [_disturb(start, workdir, _Blow.draw(rng, processes, place % steps, duration))]
        if rng.random() < 0.3:
            blow = _Blow.draw(rng, processes, rng.randrange(steps), duration)
            told.append(_disturb(start, workdir, blow))
        _finish(start, workdir)
        found = difference(workdir, undisturbed)
        identical += found is None
        end = "bit-identical" if found is None else f"DIFFERS in {found}"
        print(f"run {number}: {', then '.join(told)}: {end}", flush=True)
        if found is None:
            shutil.rmtree(workdir)
            _output(workdir).unlink()
    print(f"{identical} of {runs} runs ended bit-identical")
    return identical


def main() -> None:
    given = common.WORKDIR.value
    folder = pathlib.Path(given or tempfile.mkdtemp(prefix="torture-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder as --workdir")
    processes, devices = _PROCESSES.value, common.DEVICES.value
    if (devices or 2) % processes:
        raise ValueError(f"{devices or 2} devices cannot be shared out evenly to {processes}")
    # Of the runs to come.
    os.environ["JAX_PLATFORMS"] = "cpu"
    identical = run(_RUNS.value, _EXPERIMENT.value, common.SEED.value, folder, processes, devices)
    if identical < _RUNS.value:
        raise ValueError(f"some runs ended otherwise; they are kept in {folder}")
    if given is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    common.run_main(main)
