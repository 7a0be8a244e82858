"""A binary that sends itself a signal where it logs a step, before the checkpoint of that step.

python -m tests.signalled_program NAME STEP SIGNAL PROCESS FLAGS...
"""

import importlib
import os
import sys

import jax

from experiments import common
from metamf_jax import processes
from metamf_jax.runs.run_log import RunLog, SilentRunLog


def _signalled(logged, last, number, index):
    def metrics(log, step, values):
        logged(log, step, values)
        if step == last and processes.index() == index:
            os.kill(os.getpid(), number)

    return metrics


if __name__ == "__main__":
    name = sys.argv.pop(1)
    last, number, index = (int(sys.argv.pop(1)) for _ in range(3))
    for log in (RunLog, SilentRunLog):
        log.metrics = _signalled(log.metrics, last, number, index)
    if "METAMF_COORDINATOR" not in os.environ:
        # As many devices as in the tests, or no compiled program is shared.
        jax.config.update("jax_num_cpu_devices", 8)
        jax.local_devices()
    common.run_main(importlib.import_module(f"experiments.{name}").main, several_processes=True)
