#!/usr/bin/env bash
# Finds out what a GPU makes of this project, in under nine minutes: see launch/gpu_check.py.
#   bash launch/gpu_check.sh OUT [--small]
# Nothing is installed. Taken is PYTHON, or the first Python found that has JAX for CUDA; where none
# has, the first that has JAX.
set -euo pipefail
cd "$(dirname "$0")/.."

# Prints the first Python that can find all of these modules.
python_with() {
  local candidate
  for candidate in ${PYTHON:-python python3 .venv/bin/python}; do
    if "$candidate" -c '
import importlib.util, sys
sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))' "$@" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

if ! python="$(python_with jax jax_cuda13_plugin || python_with jax jax_cuda12_plugin || python_with jax)"; then
  echo "error: none of ${PYTHON:-python, python3, .venv/bin/python} has JAX; name one that has: PYTHON=/path/to/python bash $0" >&2
  exit 1
fi
exec "$python" -m launch.gpu_check "$@"
