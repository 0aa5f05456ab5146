#!/bin/bash

# Parameters
#SBATCH --core-spec=8
#SBATCH --cpus-per-task=7
#SBATCH --dependency=afterany:4711
#SBATCH --gpus-per-node=8
#SBATCH --job-name=s1-demo-a1
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/attempt/job.log
#SBATCH --partition=batch
#SBATCH --qos=debug
#SBATCH --signal=B:USR1@120
#SBATCH --time=30:00

# command
export SUBMITIT_EXECUTOR=slurm
exec PYTHON -u /attempt/payload.py
# runs: srun --kill-on-bad-exit=1 --cpus-per-task=7 --cpu-bind=mask_cpu:0xfe000000000000,0xfe00000000000000,0xfe0000,0xfe000000,0xfe,0xfe00,0xfe00000000,0xfe0000000000 sh -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; exec "$@"' sh PYTHON -c 'import os,runpy; runpy.run_path(os.path.join(os.environ['"'"'AUTOEXP_ATTEMPT'"'"'],'"'"'node.py'"'"'),run_name='"'"'__main__'"'"')' start PYTHON pretrain.py --lr 1e-3
# with: TRITON_CACHE_DIR=/tmp/somebody/triton
# with: TORCHINDUCTOR_CACHE_DIR=/tmp/somebody/inductor
# with: NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3
# with: GLOO_SOCKET_IFNAME=hsn0
# with: NCCL_NET_GDR_LEVEL=PHB
# with: NCCL_CROSS_NIC=1
# with: MIOPEN_USER_DB_PATH=/tmp/somebody/miopen
# with: MIOPEN_CUSTOM_CACHE_DIR=/tmp/somebody/miopen
# meets by: {'address': True}
