#!/usr/bin/env bash
# One run over several hosts of a SLURM cluster, a process a host. From the checkout, whose .venv the
# hosts must see:
#   sbatch --nodes=4 launch/slurm/several_hosts.sh factorize --solver=dsgd --input=big.parquet \
#       --block_store=/scratch/me/store --blocks=32 --workdir=runs/big
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm/several_hosts.sh train --dataset=ml1m --workdir=runs/ml1m
# Submitted again with the same arguments it goes on from the last checkpoint, and so it does when
# SLURM requeues it. DRY_RUN=1 prints the command instead.
#SBATCH --job-name=metamf
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
# sbatch runs a copy of this file from elsewhere.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/../..}"

source launch/several_hosts.sh
check_program "$@"
# When one process ends in an error, srun ends the others at once. srun does not inherit
# --cpus-per-task from the job.
run_or_print srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" \
  .venv/bin/python -m "experiments.$1" "${@:2}"
