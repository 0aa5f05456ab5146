#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=288
#SBATCH --dependency=afterany:4711
#SBATCH --gpus-per-node=4
#SBATCH --job-name=s1-demo-a1
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/attempt/job.log
#SBATCH --partition=ghx4-interactive
#SBATCH --signal=B:USR1@120
#SBATCH --time=120:00

# command
export SUBMITIT_EXECUTOR=slurm
exec PYTHON -u /attempt/payload.py
# runs: srun --kill-on-bad-exit=1 --cpus-per-task=288 --ntasks-per-node=1 PYTHON -m torch.distributed.run --nnodes=1 --rdzv-backend=c10d --rdzv-id=s1-demo-a1 --nproc-per-node=4 pretrain.py --lr 1e-3
# with: TORCH_ELASTIC_SHUTDOWN_TIMEOUT=115
# with: TRITON_CACHE_DIR=/tmp/somebody/triton
# with: TORCHINDUCTOR_CACHE_DIR=/tmp/somebody/inductor
# with: NCCL_SOCKET_IFNAME=hsn
# with: GLOO_SOCKET_IFNAME=hsn0
