"""Several processes of one program, on one host or many: who they are, and what they agree on.

Every process runs the same program; `parallel` spreads arrays over the devices of all of them.
The first one (number 0) alone reads and writes the run's folder and prints.

Processes find one another in one of three ways, tried in this order:

==================  ================================================================================
explicit address    ``METAMF_COORDINATOR=HOST:PORT`` (of the first process),
                    ``METAMF_NUM_PROCESSES`` and ``METAMF_PROCESS_ID``; `launch.local_hosts` sets
                    them. ``METAMF_DEVICES_PER_PROCESS`` makes so many virtual devices on a CPU.
SLURM               a job step (``srun``) of more than one task
TPU pod             ``TPU_WORKER_HOSTNAMES`` names more than one host, or ``METAMF_CLUSTER=tpu_pod``
==================  ================================================================================

``METAMF_CLUSTER=none`` keeps the tasks of a job apart: each is then a program of its own.
"""

import functools
import inspect
import ipaddress
import json
import os
import re
import socket
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

_CLUSTERS = ("none", "slurm", "tpu_pod")

# A peer that dies silently, its host with it, or whose link hangs is noticed after so long. Left at
# 100 the others went on waiting for 95 s. JAX then aborts; given a callback to call instead
# (``missed_heartbeat_callback``), jaxlib 0.10 and 0.12 end with std::bad_cast.
_HEARTBEAT_SECONDS = 10
# The first process scores and draws plots while the others wait for it to leave.
_SHUTDOWN_SECONDS = 24 * 3600

_count = 1


class Cluster(NamedTuple):
    """The processes as the environment describes them; None where JAX itself is to find out.

    Attributes:
      name: how they were found.
      coordinator: ``HOST:PORT`` of the first process.
      count: number of processes.
      index: number of this one.
      local_device_ids: of this process, where several share a host's accelerators.
      devices_per_process: virtual devices to make on a CPU.
    """

    name: str
    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    local_device_ids: list[int] | None = None
    devices_per_process: int | None = None


def detect(environ: Mapping[str, str]) -> Cluster | None:
    """The processes that this one belongs to, or None where it is alone.

    Args:
      environ: environment variables.

    Raises:
      ValueError: variables that are missing, are no numbers, or contradict one another.
    """
    wanted = environ.get("METAMF_CLUSTER")
    if wanted is not None and wanted not in _CLUSTERS:
        raise ValueError(f"expected METAMF_CLUSTER among {', '.join(_CLUSTERS)}, got {wanted!r}")
    if wanted == "none":
        return None
    if wanted is None and "METAMF_COORDINATOR" in environ:
        return _explicit(environ)
    if wanted == "slurm" or (wanted is None and int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1):
        return _slurm(environ)
    if wanted == "tpu_pod" or "," in environ.get("TPU_WORKER_HOSTNAMES", ""):
        return Cluster("a TPU pod")
    return None


def _numbers(environ: Mapping[str, str], names: tuple[str, ...], found: str) -> list[int]:
    for name in names:
        if not environ.get(name, "").isdecimal():
            raise ValueError(
                f"{found}: expected a number in {name}, got {environ.get(name)!r}; set"
                f" {', '.join(names)} for every process"
            )
    count, index = (int(environ[name]) for name in names)
    if not index < count:
        raise ValueError(f"{found}: expected {names[1]} from 0 to {count - 1}, got {index}")
    return [count, index]


def _explicit(environ: Mapping[str, str]) -> Cluster:
    coordinator = environ["METAMF_COORDINATOR"]
    if not re.fullmatch(r".+:\d+", coordinator):
        raise ValueError(f"expected METAMF_COORDINATOR as HOST:PORT, got {coordinator!r}")
    count, index = _numbers(
        environ, ("METAMF_NUM_PROCESSES", "METAMF_PROCESS_ID"), f"METAMF_COORDINATOR={coordinator}"
    )
    devices = environ.get("METAMF_DEVICES_PER_PROCESS")
    return Cluster(
        f"the address {coordinator}",
        coordinator,
        count,
        index,
        devices_per_process=None if devices is None else int(devices),
    )


def _slurm(environ: Mapping[str, str]) -> Cluster:
    count, index = _numbers(environ, ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"), "SLURM")
    nodes = environ.get("SLURM_STEP_NODELIST", "")
    # "a7", "a[7-9,12],b1" or "a[07-09]-ib": the first host.
    first = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^\[,]*))?", nodes)
    if first is None:
        raise ValueError(
            f"SLURM: expected the names of hosts in SLURM_STEP_NODELIST, got {nodes!r}"
        )
    # Jobs that share a host differ in this number; the range is that of ephemeral ports.
    port = 61440 + int(environ.get("SLURM_JOB_ID", 0)) % 4096
    # Tasks that share a host and all see its accelerators part them evenly.
    visible = [x for x in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if x]
    on_host = int(re.split(r"[(,]", environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))[0])
    share = None
    if 1 < on_host <= len(visible):
        each, local = len(visible) // on_host, int(environ.get("SLURM_LOCALID", 0))
        share = list(range(local * each, (local + 1) * each))
    host = "".join(part for part in first.groups() if part is not None)
    return Cluster("SLURM", f"{host}:{port}", count, index, share)


def own_address(coordinator: str) -> str:
    """The address of this host at which the others reach it: that of its way to the first one.

    Where the first host knows itself by a loopback address alone, as Debian's ``/etc/hosts`` has
    it, that of its way out.

    Args:
      coordinator: ``HOST:PORT`` of the first process.

    Raises:
      ValueError: the name of the first host is unknown here.
    """
    host, _, port = coordinator.rpartition(":")
    try:
        address = _way_to(host.strip("[]"), int(port))
    except OSError as error:
        raise ValueError(
            f"the first process's host {host} cannot be found: {error}; give its address, as in"
            " METAMF_COORDINATOR=10.0.0.1:9000"
        ) from error
    if not _is_loopback(address) or host == "localhost" or _is_loopback(host):
        return address
    try:
        return _way_to("192.0.2.1", 9)  # Of no host: an address set apart for documents.
    except OSError:
        return address


def _way_to(host: str, port: int) -> str:
    """Address of the interface by which packets to a host leave; none is sent."""
    family, kind, protocol, _, there = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(there)
        return probe.getsockname()[0]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # A name.


def _offer_address(address: str) -> None:
    """Has Gloo, which moves arrays between CPUs, tell the others this address of the host.

    It tells what the host's name resolves to, on Debian 127.0.1.1, where the others find nobody;
    JAX (0.10 to 0.12) has no option for it.
    """
    from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

    _jax.make_gloo_tcp_collectives = functools.partial(
        _jax.make_gloo_tcp_collectives, hostname=address
    )


def initialize() -> None:
    """Joins the other processes, if the environment tells of any; before the first array is made.

    Prints one line, from the first process, on what was found; nothing where this process is alone.
    It tells what to do when one is lost: JAX aborts the others, with words of its own.

    Raises:
      ValueError: as `detect`, or the others cannot be reached.
    """
    global _count
    cluster = detect(os.environ)
    if cluster is None:
        return
    if cluster.devices_per_process is not None:
        jax.config.update("jax_num_cpu_devices", cluster.devices_per_process)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would swallow SIGTERM, by which a run is asked to end.
    jax.config.update("jax_enable_preemption_service", False)
    known: dict[str, Any] = {}
    if cluster.coordinator is not None:
        _offer_address(own_address(cluster.coordinator))
        known = {
            "coordinator_address": cluster.coordinator,
            "num_processes": cluster.count,
            "process_id": cluster.index,
            "local_device_ids": cluster.local_device_ids,
            "cluster_detection_method": "deactivate",
        }
    waits: dict[str, Any] = {
        "heartbeat_timeout_seconds": _HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": _SHUTDOWN_SECONDS,
    }
    there = inspect.signature(jax.distributed.initialize).parameters
    try:
        jax.distributed.initialize(**known, **{k: v for k, v in waits.items() if k in there})
    except RuntimeError as error:
        raise ValueError(
            f"the processes found by {cluster.name} could not join: {error}; start all of them, and"
            " see that they reach the first one's address"
        ) from error
    _count = cluster.count or jax.process_count()
    if is_first():
        print(
            f"{_count} processes, found by {cluster.name}; when one is lost the others end, and the"
            " same command, given to all again, goes on",
            flush=True,
        )


def count() -> int:
    """Number of processes."""
    return _count


def index() -> int:
    """Number of this process, from 0."""
    return jax.process_index() if _count > 1 else 0


def is_first() -> bool:
    """Whether this process reads and writes the run's folder, and prints."""
    return index() == 0


def from_first(value: Any) -> Any:
    """The first process's `value` (anything that JSON can tell) in every process; all must call."""
    if _count == 1:
        return value
    return json.loads(bytes_from_first(json.dumps(value).encode()))


def bytes_from_first(data: bytes) -> bytes:
    """The first process's bytes in every process; all must call."""
    if _count == 1:
        return data
    from jax.experimental import multihost_utils

    # Lengths beyond 32 bits: JAX has no wider integers here.
    size = multihost_utils.broadcast_one_to_all(np.array(divmod(len(data), 2**30), np.int32))
    length = int(size[0]) * 2**30 + int(size[1])
    sent = np.frombuffer(data, np.uint8) if is_first() else np.zeros(length, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes()


def any_process(flag: bool) -> bool:
    """Whether `flag` is set in any of the processes; all must call."""
    if _count == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def told(error: Exception) -> str:
    """What an error says, and the remedy where it is the loss of another process."""
    if _count == 1 or "Gloo" not in str(error):
        return str(error)
    first_line = str(error).partition("\n")[0]
    return (
        f"process {index()} of {_count} lost another ({first_line}); its output may tell why;"
        " the same command, given to all again, goes on from the last checkpoint"
    )


def leave(code: int, together: bool = False) -> NoReturn:
    """Ends this process before its work is done.

    One of several ends at once: to take leave of the others would mean to wait for them, who wait
    for this one's part of the work. Unless they end ``together``: then it waits, since those that
    are left when the first process is gone are aborted by JAX, with a code of its own.
    """
    if _count > 1 and not together:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
