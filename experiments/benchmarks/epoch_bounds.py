"""What memory and links allow an epoch of DSGD: counted, not measured.

D devices cut E entries of N x M into D x D blocks. With ``s = 4 K + 12`` bytes for a row's K
factors, its memory of AdaGrad, its count and its weight:

* a device holds ``12 E / D`` bytes of entries and ``s (N + M) / D`` of rows and columns;
* an update reads its entry and two rows, and writes these: ``16 K + 12`` bytes, or ``8 K + 12``
  where caches hold the device's block of columns (``4 K M / D`` bytes);
* a block of columns travels before each of D strata, so that a device sends ``s M`` bytes.
"""

from typing import NamedTuple

# K factors apart: bytes of an entry, and of what else is known of a row.
_ENTRY, _OF_ROW = 12, 12


class Machine(NamedTuple):
    """Devices that are linked; figures of their makers.

    Attributes:
      name: for the table.
      devices: D.
      memory: bytes of each.
      bandwidth: bytes a second that its memory reads and writes.
      link: bytes a second that it sends.
    """

    name: str
    devices: int
    memory: float
    bandwidth: float
    link: float


# NVLink's 900 GB/s are of both directions. A TPU v4 has two cores: 32 GiB, 1.2 TB/s and links of
# 2400 Gbit/s, halved here.
MACHINES = (
    Machine("8 H200", 8, 141e9, 4.8e12, 450e9),
    Machine("256 TPU v4 cores", 256, 16 * 2**30, 0.6e12, 150e9),
)


class Problem(NamedTuple):
    """E entries of N x M."""

    entries: int
    rows: int
    columns: int


BILLION = Problem(10**9, 10**7, 10**5)


def epoch_bounds(machine: Machine, problem: Problem, rank: int) -> dict[str, float]:
    """Memory, traffic and the seconds that they take at least.

    Returns:
      Of a device, in bytes: `held`, `columns_block`, `from_memory` and, where caches hold the block
      of columns, `from_memory_cached`, of an epoch, and `sent`. In seconds: `memory_seconds`,
      `memory_seconds_cached` and `link_seconds`.
    """
    entries, rows, columns = (count / machine.devices for count in problem)
    row = 4 * rank + _OF_ROW
    traffic, cached = (entries * (bytes * rank + _ENTRY) for bytes in (16, 8))
    sent = row * problem.columns
    return {
        "held": entries * _ENTRY + row * (rows + columns),
        "columns_block": 4 * rank * columns,
        "from_memory": traffic,
        "from_memory_cached": cached,
        "sent": sent,
        "memory_seconds": traffic / machine.bandwidth,
        "memory_seconds_cached": cached / machine.bandwidth,
        "link_seconds": sent / machine.link,
    }
