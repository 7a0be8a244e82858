#!/usr/bin/env bash
# Makes (or reuses) the environment in .venv and runs all tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh dev
exec python -m pytest -n 2 "$@"
