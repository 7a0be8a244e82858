"""Hosts in network namespaces join one another, though each knows itself as 127.0.1.1."""

import pathlib
import sys

import pytest

from experiments.robustness import hosts

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def two_hosts():
    missing = hosts.what_is_missing()
    if missing is not None:
        pytest.skip(f"this machine lacks {missing}")
    with hosts.network(2) as there:
        yield there


def _start(there, command, tmp_path):
    environment = {
        "METAMF_COORDINATOR": f"{there[0].address}:9000",
        "METAMF_NUM_PROCESSES": "2",
        "METAMF_DEVICES_PER_PROCESS": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    return [
        host.start(
            command, {**environment, "METAMF_PROCESS_ID": str(index)}, tmp_path / f"{index}.txt"
        )
        for index, host in enumerate(there)
    ]


def test_training_over_two_hosts(two_hosts, tmp_path):
    for host in two_hosts:
        host.connect(loss=0.001)
    command = [sys.executable, "-m", "tests.training_program", str(tmp_path / "run"), "2"]
    started = _start(two_hosts, command, tmp_path)
    assert hosts.wait(started, 60) is not None
    told = [(tmp_path / f"{index}.txt").read_text() for index in range(2)]
    assert [process.returncode for process in started] == [0, 0], told
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_silent_host_is_not_heard_and_then_is(two_hosts, tmp_path):
    first, last = two_hosts
    send = f"import socket; socket.create_connection(('{first.address}', 9001), timeout=0.5)"
    serve = "import socket; s = socket.create_server(('', 9001)); [s.accept() for _ in range(9)]"
    server = first.start([sys.executable, "-c", serve], {}, tmp_path / "server.txt")

    def reached():
        client = last.start([sys.executable, "-c", send], {}, tmp_path / "client.txt")
        client.wait()
        return client.returncode == 0

    try:
        last.connect()
        assert any(reached() for _ in range(20))
        last.silence()
        assert not reached()
        last.connect()
        assert reached()
    finally:
        server.kill()
        server.wait()
