"""Runs over several hosts: one dies, a link hangs or loses packets; what becomes of the run.

Claim: when a host is gone or silent the others end within seconds, with a message that names the
remedy; a short silence and lost packets they outlast. Started again with the same flags, the run
ends with the parameters, metrics and results of one process on one host, to the last bit.

    python -m experiments.robustness.hosts

The hosts are network namespaces of this machine, each with an address, a name, memory segments and
``/etc/hosts`` of its own (as Debian writes it: the host's name is 127.0.1.1) and a cable to a
switch; what they share is the folder of the run, as on a cluster. It needs Linux, the rights of
root, and ``ip``, ``tc`` and ``unshare``; without them it says so and ends with code 0. Delay needs
the kernel's ``netem``; where that is missing, packets are lost by a filter that draws a random
number, and none is late.

The last line is ``N of N cases ended as they should``, the exit code 1 if one did not.
"""

import contextlib
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from absl import flags

from experiments import common
from experiments.robustness import small_runs

# Steps of milliseconds, so many that what happens after some of them happens in the middle.
RUNS = {
    "dsgd": ("factorize", *small_runs.FLAGS["factorize"], "--epochs=400"),
    "gibbs": ("factorize", "--preset=smoke", "--devices=2", "--solver=gibbs", "--draws=80"),
    "train": (
        "train",
        *small_runs.FLAGS["train"],
        "--override=training.max_steps=200",
        "--override=training.evaluate_every=2",
        "--override=training.batch=8",
    ),
}
_RUNS = flags.DEFINE_multi_enum("run", list(RUNS), list(RUNS), "The runs to disturb.")
_HOSTS = flags.DEFINE_integer("hosts", 2, "Hosts, a process each.", lower_bound=2)
_DELAY = flags.DEFINE_integer("delay", 1, "Milliseconds a packet takes, where there is netem.")

_CASES = flags.DEFINE_multi_integer("case", None, "Numbers of the cases, from 0. Default: all.")

_PORT = 9000
# After which a run that should have ended is taken for one that never does.
_PATIENCE_SECONDS = 90.0
_MOST_STARTS = 3
# What JAX says where a peer or the first process was not heard of for too long.
_ABORTED = "Terminating process because the JAX distributed service detected fatal errors"
# Of the logged lines, before anything happens.
_STEPS_BEFORE = 10

# Within a namespace: a name, shared memory and a table of hosts of its own, then the program.
_BECOME_HOST = (
    'hostname "$1" && mount -t tmpfs none /dev/shm && mount --bind "$2" /etc/hosts && shift 2'
    ' && exec "$@"'
)


def _run(command: str) -> None:
    """Runs a command of the system.

    Raises:
      OSError: it failed.
    """
    done = subprocess.run(shlex.split(command), capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{command} failed: {done.stderr.strip()}")


def what_is_missing() -> str | None:
    """What this machine lacks to be several hosts; None where nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "namespaces need Linux and the rights of root"
    for tool in ("ip", "tc", "unshare", "hostname", "mount"):
        if shutil.which(tool) is None:
            return f"the program {tool}"
    try:
        with network(1):
            return None
    except OSError as error:
        return f"namespaces: {error}"


class Host(NamedTuple):
    """A network namespace at the end of a cable.

    Attributes:
      name: of the host and its namespace.
      address: its own.
      switch: the namespace at the other end of the cable.
      port: the cable's end there.
      hosts_file: its ``/etc/hosts``.
    """

    name: str
    address: str
    switch: str
    port: str
    hosts_file: pathlib.Path

    def start(
        self, command: list[str], environment: Mapping[str, str], output: pathlib.Path
    ) -> subprocess.Popen:
        """Starts a program on the host; what it prints is appended to a file."""
        enter = ["ip", "netns", "exec", self.name, "unshare", "--uts", "--ipc"]
        become = ["sh", "-c", _BECOME_HOST, "sh", self.name, str(self.hosts_file)]
        with output.open("ab") as printed:
            return subprocess.Popen(
                [*enter, *become, *command],
                env={**os.environ, **environment},
                stdout=printed,
                stderr=subprocess.STDOUT,
            )

    @property
    def _ends(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Namespace and device of the cable's two ends."""
        return (self.name, "eth0"), (self.switch, self.port)

    def silence(self) -> None:
        """Packets vanish in both directions, and nobody is told."""
        for namespace, device in self._ends:
            _run(f"tc -n {namespace} qdisc replace dev {device} root blackhole")

    def connect(self, loss: float = 0.0, delay_ms: int = 0) -> None:
        """Packets pass again, less a part of them, after a delay where the kernel knows it."""
        for namespace, device in self._ends:
            tc = f"tc -n {namespace}"
            with contextlib.suppress(OSError):  # There may be none.
                _run(f"{tc} qdisc del dev {device} root")
            try:
                _run(f"{tc} qdisc add dev {device} root netem delay {delay_ms}ms loss {loss:%}")
            except OSError:
                if loss:
                    _lose_at_random(tc, device, loss)


def _lose_at_random(tc: str, device: str, loss: float) -> None:
    """By a classic filter that draws a number and sends the packet to a class that has no way out.

    Its program: load the number; where it is at least the limit, skip the next; found; not found.
    """
    chosen = f"4,32 0 0 4294963256,53 1 0 {int(loss * 2**32)},6 0 0 4294967295,6 0 0 0"
    _run(f"{tc} qdisc add dev {device} root handle 1: htb default 10")
    for number in (10, 20):
        _run(
            f"{tc} class add dev {device} parent 1: classid 1:{number} htb rate 10gbit"
            " quantum 60000"
        )
    _run(f"{tc} qdisc add dev {device} parent 1:20 blackhole")
    _run(f"{tc} filter add dev {device} parent 1: protocol all bpf bytecode '{chosen}' flowid 1:20")


@contextlib.contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """So many hosts on one switch; nothing is left of them in the end.

    Raises:
      OSError: the system refuses.
    """
    prefix = f"metamf-{os.getpid()}"
    switch = f"{prefix}-switch"
    with contextlib.ExitStack() as undo:
        folder = pathlib.Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="hosts-")))
        _add_namespace(switch, undo)
        _run(f"ip -n {switch} link add name bridge0 type bridge")
        _run(f"ip -n {switch} link set bridge0 up")
        hosts = []
        for index in range(count):
            name, port, address = f"{prefix}-{index}", f"port{index}", f"10.77.0.{index + 1}"
            hosts_file = folder / name
            hosts_file.write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
            _add_namespace(name, undo)
            _run(f"ip link add name eth0 netns {name} type veth peer name {port} netns {switch}")
            _run(f"ip -n {switch} link set {port} master bridge0 up")
            _run(f"ip -n {name} addr add {address}/24 dev eth0")
            _run(f"ip -n {name} link set lo up")
            _run(f"ip -n {name} link set eth0 up")
            hosts.append(Host(name, address, switch, port, hosts_file))
        yield hosts


def _add_namespace(name: str, undo: contextlib.ExitStack) -> None:
    _run(f"ip netns add {name}")
    undo.callback(_run, f"ip netns del {name}")


class Case(NamedTuple):
    """What happens to the last host, or to the first.

    Attributes:
      told: in words.
      strike: does it, to a host and its process.
      victim: number of the host.
      seconds: after which its link is whole again; None for never.
      outlasted: whether the run goes on.
    """

    told: str
    strike: Callable[[Host, subprocess.Popen], None]
    victim: int = -1
    seconds: float | None = None
    outlasted: bool = False


def _kill(host: Host, process: subprocess.Popen) -> None:
    process.kill()


def _cut_power(host: Host, process: subprocess.Popen) -> None:
    host.silence()
    process.kill()


def _hang(host: Host, process: subprocess.Popen) -> None:
    host.silence()


def _lose(host: Host, process: subprocess.Popen) -> None:
    host.connect(loss=0.01)


CASES = (
    Case("the last process is killed", _kill),
    Case("the first process is killed", _kill, victim=0),
    Case("the last host loses power", _cut_power),
    Case("the first host loses power", _cut_power, victim=0),
    Case("a link hangs", _hang),
    Case("a link hangs for 2 s", _hang, seconds=2.0, outlasted=True),
    Case("a packet in a hundred is lost", _lose, outlasted=True),
)


class Outcome(NamedTuple):
    """What became of a disturbed run.

    Attributes:
      seconds: until the last of the processes that were left had ended; None where one did not.
      codes: their exit codes.
      message: the last line that names an error.
      starts: how often it was started again; more than once where a host of this machine, busy
        with others, was not heard of for seconds.
      difference: from the undisturbed run, in the end; None for none.
    """

    seconds: float | None
    codes: tuple[int | None, ...]
    message: str
    starts: int
    difference: str | None

    def __str__(self) -> str:
        took = "never" if self.seconds is None else f"{self.seconds:.1f} s"
        end = "bit-identical" if self.difference is None else f"DIFFERS: {self.difference}"
        message = self.message and f"\n  {self.message}"
        return f"{took}, codes {self.codes}, {self.starts} starts, {end}{message}"

    def as_it_should(self, case: Case) -> bool:
        if self.seconds is None or self.difference is not None:
            return False
        return not any(self.codes) if case.outlasted else all(self.codes)


def start(run: str, hosts: list[Host], workdir: pathlib.Path) -> list[subprocess.Popen]:
    """Starts a run, a process a host."""
    name, *given = RUNS[run]
    command = [sys.executable, "-m", f"experiments.{name}", *given, f"--devices={len(hosts)}"]
    return [
        host.start(
            [*command, f"--workdir={workdir}"],
            {
                "METAMF_COORDINATOR": f"{hosts[0].address}:{_PORT}",
                "METAMF_NUM_PROCESSES": str(len(hosts)),
                "METAMF_PROCESS_ID": str(index),
                "METAMF_DEVICES_PER_PROCESS": "1",
            },
            _output(workdir, index),
        )
        for index, host in enumerate(hosts)
    ]


def _output(workdir: pathlib.Path, index: int) -> pathlib.Path:
    return workdir.with_name(f"{workdir.name}-host{index}.txt")


def wait(processes: list[subprocess.Popen], seconds: float) -> float | None:
    """Waits for the end of all; returns the seconds, None where some were killed after so many."""
    begin = time.monotonic()
    try:
        while time.monotonic() - begin < seconds:
            if all(process.poll() is not None for process in processes):
                return time.monotonic() - begin
            time.sleep(0.02)
        return None
    finally:
        _kill_all(processes)


def _kill_all(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def _wait_for_steps(processes: list[subprocess.Popen], workdir: pathlib.Path) -> None:
    log = workdir / "metrics.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < _STEPS_BEFORE:
        if any(process.poll() is not None for process in processes):
            raise ValueError(f"the run ended by itself: {_last_error(workdir, len(processes))}")
        time.sleep(0.002)


def _last_error(workdir: pathlib.Path, count: int) -> str:
    """What the newest of the processes' errors says, in a line; "error: ..." or JAX's own."""
    lines = [
        line
        for index in range(count)
        for line in _output(workdir, index).read_text(errors="replace").splitlines()
    ]
    errors = [line for line in lines if line.startswith("error: ") or _ABORTED in line]
    return (errors or lines or ["nothing was printed"])[-1]


def disturb(
    run: str, case: Case, hosts: list[Host], workdir: pathlib.Path, delay_ms: int
) -> tuple[float | None, tuple[int | None, ...], str]:
    """Starts a run and disturbs it; returns seconds, codes and message as of `Outcome`."""
    for host in hosts:
        host.connect(delay_ms=delay_ms)
    processes = start(run, hosts, workdir)
    try:
        _wait_for_steps(processes, workdir)
        victim = processes[case.victim]
        case.strike(hosts[case.victim], victim)
        if case.seconds is not None:
            time.sleep(case.seconds)
            hosts[case.victim].connect(delay_ms=delay_ms)
        left = [p for p in processes if case.strike not in (_kill, _cut_power) or p is not victim]
        seconds = wait(left, _PATIENCE_SECONDS)
    finally:
        _kill_all(processes)
    codes = tuple(process.returncode for process in left)
    return seconds, codes, "" if not any(codes) else _last_error(workdir, len(hosts))


def undisturbed(run: str, devices: int, workdir: pathlib.Path) -> None:
    """Runs as one process with as many devices."""
    name, *given = RUNS[run]
    command = [sys.executable, "-m", f"experiments.{name}", *given, f"--devices={devices}"]
    with _output(workdir, 0).open("ab") as printed:
        subprocess.run(
            [*command, f"--workdir={workdir}"], stdout=printed, stderr=printed, check=True
        )


def run_case(
    run: str,
    case: Case,
    hosts: list[Host],
    workdir: pathlib.Path,
    expected: pathlib.Path,
    delay_ms: int,
) -> Outcome:
    """Disturbs a run, starts it again until it ends, and compares."""
    seconds, codes, message = disturb(run, case, hosts, workdir, delay_ms)
    starts = 0
    while not (workdir / "summary.json").exists():
        if starts == _MOST_STARTS:
            error = f"it does not end: {_last_error(workdir, len(hosts))}"
            return Outcome(seconds, codes, message, starts, error)
        starts += 1
        for host in hosts:
            host.connect(delay_ms=delay_ms)
        wait(start(run, hosts, workdir), _PATIENCE_SECONDS)
    return Outcome(seconds, codes, message, starts, small_runs.difference(workdir, expected))


def main() -> None:
    missing = what_is_missing()
    if missing is not None:
        print(f"nothing was tried: this machine lacks {missing}")
        return
    os.environ["JAX_PLATFORMS"] = "cpu"  # Of the runs to come.
    right = cases = 0
    with (
        tempfile.TemporaryDirectory(prefix="hosts-") as folder,
        network(_HOSTS.value) as hosts,
    ):
        given = common.WORKDIR.value
        root = pathlib.Path(given or folder)
        root.mkdir(parents=True, exist_ok=True)
        for run in _RUNS.value:
            expected = root / f"{run}-undisturbed"
            undisturbed(run, len(hosts), expected)
            for number in _CASES.value or range(len(CASES)):
                case = CASES[number]
                workdir = root / f"{run}-{number}"
                found = run_case(run, case, hosts, workdir, expected, _DELAY.value)
                cases += 1
                right += found.as_it_should(case)
                print(f"{run}, {case.told}: {found}", flush=True)
    print(f"{right} of {cases} cases ended as they should")
    if right < cases:
        raise ValueError("some cases ended otherwise; --workdir=DIR keeps their output")


if __name__ == "__main__":
    common.run_main(main)
