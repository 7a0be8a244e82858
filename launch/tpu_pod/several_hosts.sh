#!/usr/bin/env bash
# One run over all hosts of a Cloud TPU slice, each with this package installed in ~/metamf_jax/.venv
# (pip install -e '.[tpu]'); the workdir may be a folder of the first host.
#   TPU_NAME=my-slice ZONE=us-central2-b bash launch/tpu_pod/several_hosts.sh \
#       train --dataset=ml1m --data_dir=data --preset=best --workdir=runs/ml1m
# Started again with the same arguments it goes on from the last checkpoint. When one process ends in
# an error, the others notice within seconds and end too. DRY_RUN=1 prints the command instead.
set -euo pipefail

source "$(dirname "$0")/../several_hosts.sh"
check_program "$@"
: "${TPU_NAME:?error: set TPU_NAME to the name of the TPU slice}"
: "${ZONE:?error: set ZONE to the zone of the TPU slice}"
on_host=(env METAMF_CLUSTER=tpu_pod .venv/bin/python -m "experiments.$1" "${@:2}")
run_or_print gcloud compute tpus tpu-vm ssh "$TPU_NAME" "--zone=$ZONE" --worker=all \
  "--command=cd metamf_jax && $(printf '%q ' "${on_host[@]}")"
