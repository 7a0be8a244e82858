"""What the environment tells of other processes."""

import pytest

from metamf_jax import processes
from metamf_jax.processes import Cluster, detect

EXPLICIT = {
    "METAMF_COORDINATOR": "h:1",
    "METAMF_NUM_PROCESSES": "4",
    "METAMF_PROCESS_ID": "3",
}
SLURM = {
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[007-008,12]-ib,b1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        # A job of one task; a shell within an allocation, which is no step.
        ({"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),
        ({**SLURM, **EXPLICIT, "METAMF_CLUSTER": "none"}, None),
        ({**SLURM, **EXPLICIT}, Cluster("the address h:1", "h:1", 4, 3)),
        (
            {**EXPLICIT, "METAMF_DEVICES_PER_PROCESS": "2"},
            Cluster("the address h:1", "h:1", 4, 3, None, 2),
        ),
        (SLURM, Cluster("SLURM", "node007-ib:61441", 6, 5)),
        (
            {**SLURM, "CUDA_VISIBLE_DEVICES": "0,1,2,3"},
            Cluster("SLURM", "node007-ib:61441", 6, 5, [2, 3]),
        ),
        ({**SLURM, "SLURM_STEP_NODELIST": "a,b"}, Cluster("SLURM", "a:61441", 6, 5)),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, Cluster("a TPU pod")),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"METAMF_CLUSTER": "tpu_pod"}, Cluster("a TPU pod")),
    ],
)
def test_detection(environ, expected):
    assert detect(environ) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({**EXPLICIT, "METAMF_PROCESS_ID": "4"}, "METAMF_PROCESS_ID from 0 to 3, got 4"),
        ({"METAMF_COORDINATOR": "h:1"}, "a number in METAMF_NUM_PROCESSES, got None"),
        ({**EXPLICIT, "METAMF_COORDINATOR": "h"}, "as HOST:PORT, got 'h'"),
        ({"METAMF_CLUSTER": "slum"}, "among none, slurm, tpu_pod, got 'slum'"),
        ({"METAMF_CLUSTER": "slurm"}, "a number in SLURM_STEP_NUM_TASKS, got None"),
    ],
)
def test_mistakes(environ, message):
    with pytest.raises(ValueError, match=message):
        detect(environ)


def test_a_host_offers_the_address_of_its_way_to_the_first(monkeypatch):
    assert processes.own_address("127.0.0.1:9000") == "127.0.0.1"
    assert processes.own_address("localhost:9000") in ("127.0.0.1", "::1")
    # The first host itself, by a name that Debian gives to 127.0.1.1.
    ways = {"node1": "127.0.0.1", "node2": "10.0.0.2", "192.0.2.1": "10.0.0.1"}
    monkeypatch.setattr(processes, "_way_to", lambda host, port: ways[host])
    assert processes.own_address("node1:9000") == "10.0.0.1"
    assert processes.own_address("node2:9000") == "10.0.0.2"


def test_a_first_host_that_nobody_knows(monkeypatch):
    def unknown(host, port):
        raise OSError("Name or service not known")

    monkeypatch.setattr(processes, "_way_to", unknown)
    with pytest.raises(ValueError, match="host nowhere cannot be found: Name or service not known"):
        processes.own_address("nowhere:9000")


def test_the_loss_of_another_names_the_remedy(monkeypatch):
    lost = RuntimeError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer\nmore")
    assert processes.told(lost) == str(lost)
    monkeypatch.setattr(processes, "_count", 2)
    assert processes.told(lost) == (
        "process 0 of 2 lost another (UNKNOWN: Gloo all-reduce failed: Connection reset by peer);"
        " its output may tell why; the same command, given to all again, goes on from the last"
        " checkpoint"
    )
    assert processes.told(ValueError("a mistake")) == "a mistake"


def test_alone_nothing_happens(capfd, monkeypatch):
    for name in (*EXPLICIT, *SLURM, "METAMF_CLUSTER", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    processes.initialize()
    assert processes.count() == 1
    assert processes.is_first()
    value = object()
    assert processes.from_first(value) is value
    assert capfd.readouterr() == ("", "")
