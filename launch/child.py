"""Becomes the command in its arguments, after setting what the sweep cannot set from outside.

    python launch/child.py PARENT CORES COMMAND...

The command runs on the cores of the list ``CORES`` (``0,1``; empty for all) and dies with the
process ``PARENT``, on Linux. A function that runs between fork and exec would do the same, but not
in a process with threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, cores, *command = sys.argv[1:]
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, cores.split(",")))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have died before.
        if os.getppid() != int(parent):
            sys.exit("the sweep is gone")
    os.execvp(command[0], command)
