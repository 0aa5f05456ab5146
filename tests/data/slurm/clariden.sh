#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=72
#SBATCH --dependency=afterany:4711
#SBATCH --gpus-per-node=4
#SBATCH --job-name=s1-demo-a1
#SBATCH --mem=460000
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/attempt/job.log
#SBATCH --partition=normal
#SBATCH --signal=B:USR1@120
#SBATCH --time=720:00

# command
export SUBMITIT_EXECUTOR=slurm
exec PYTHON -u /attempt/payload.py
# runs: srun --kill-on-bad-exit=1 --cpus-per-task=72 sh -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; exec "$@"' sh numactl --membind=0-3 PYTHON pretrain.py --lr 1e-3
# with: TRITON_CACHE_DIR=/tmp/somebody/triton
# with: TORCHINDUCTOR_CACHE_DIR=/tmp/somebody/inductor
# with: NCCL_NET=AWS Libfabric
# with: NCCL_NET_GDR_LEVEL=PHB
# with: NCCL_CROSS_NIC=1
# with: NCCL_PROTO=^LL128
# with: FI_CXI_DEFAULT_CQ_SIZE=131072
# with: FI_CXI_DEFAULT_TX_SIZE=16384
# with: FI_CXI_DISABLE_HOST_REGISTER=1
# with: FI_CXI_RX_MATCH_MODE=software
# with: FI_MR_CACHE_MONITOR=userfaultfd
