"""What a process has used: seconds of compilation, bytes of memory; and the memory that is left."""

import re
import sys
from collections.abc import Sequence
from typing import Any

import jax

try:
    import resource
except ImportError:  # Windows
    resource = None

_COMPILATION = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
_compile_seconds = 0.0


def _on_event(event: str, duration_secs: float, **kwargs: Any) -> None:
    global _compile_seconds
    if event in _COMPILATION:
        _compile_seconds += duration_secs


jax.monitoring.register_event_duration_secs_listener(_on_event)


def compile_seconds() -> float:
    """Seconds that JAX has spent in this process on tracing, lowering and compiling.

    Counted from the import of this module; executables read from the compilation cache count with
    the time of their reading.
    """
    return _compile_seconds


def peak_memory_bytes(devices: Sequence[Any]) -> int | None:
    """The most memory in use so far: of this process's fullest device, or of itself on a CPU.

    None where the platform does not tell.
    """
    own = [device for device in devices if device.process_index == jax.process_index()]
    stats = [device.memory_stats() or {} for device in own]
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    if peaks:
        return max(peaks)
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else 1024 * peak


def available_memory_bytes() -> int | None:
    """Bytes that this process could still take without swapping; None where nobody tells."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = re.search(r"MemAvailable:\s*(\d+) kB", file.read())
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])
