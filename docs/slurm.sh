#!/usr/bin/env bash
# Trains on all nodes of a Slurm job. Run it in the project folder, on a file system that the nodes share:
#     sbatch --nodes 4 docs/slurm.sh --batch-size 256 --run-dir runs/big
# One node and one task work as well.
#SBATCH --job-name=faces
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1    # number of GPUs per node
#SBATCH --gpus-per-task=1      # without GPUs, for example: --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120      # seconds before the time limit at which training saves and stops
#SBATCH --requeue              # after a node failure
#SBATCH --open-mode=append     # one log for all restarts
set -euo pipefail

first=$((20000 + SLURM_JOB_ID % 10000)) # jobs on the same node use different ports
workers=()
for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
  for ((port = first; port < first + SLURM_NTASKS_PER_NODE; port++)); do
    workers+=("\"$node:$port\"")
  done
done
list=$(IFS=, && echo "${workers[*]}")
export CLUSTER="{\"cluster\": {\"worker\": [$list]}, \"task\": {\"type\": \"worker\", \"index\": INDEX}}"

status=0
# shellcheck disable=SC2016 # expanded by each task
srun --distribution=block bash -c 'TF_CONFIG=${CLUSTER/INDEX/$SLURM_PROCID} exec .venv/bin/python train.py "$@"' \
  train --resume "$@" || status=$?
if [ "$status" -eq 75 ]; then # stopped and saved before the last step
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
