#!/usr/bin/env bash
# Makes (or reuses) the environment in .venv, meta-trains on rating-like synthetic matrices, imputes
# unseen ones of other sizes, prints a table and writes plots. Arguments go to the binary, as in
#   bash launch/quickstart.sh --dataset=ml100k --data_dir=DIR
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh cpu
exec python -m experiments.quickstart "$@"
