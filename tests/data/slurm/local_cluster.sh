#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=1
#SBATCH --dependency=afterany:4711
#SBATCH --gpus-per-node=4
#SBATCH --job-name=s1-demo-a1
#SBATCH --mem=300M
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/attempt/job.log
#SBATCH --partition=main
#SBATCH --signal=B:USR1@30
#SBATCH --time=10:00

# command
export SUBMITIT_EXECUTOR=slurm
exec PYTHON -u /attempt/payload.py
# runs: PYTHON pretrain.py --lr 1e-3
# with: TRITON_CACHE_DIR=/tmp/somebody/triton
# with: TORCHINDUCTOR_CACHE_DIR=/tmp/somebody/inductor
