#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=32
#SBATCH --dependency=afterany:4711
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --job-name=s1-demo-a1
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/attempt/job.log
#SBATCH --partition=boost_usr_prod
#SBATCH --qos=boost_qos_dbg
#SBATCH --signal=B:USR1@120
#SBATCH --time=30:00

# command
export SUBMITIT_EXECUTOR=slurm
exec PYTHON -u /attempt/payload.py
# runs: srun --kill-on-bad-exit=1 --cpus-per-task=32 --ntasks-per-node=1 PYTHON -c 'import os,runpy; runpy.run_path(os.path.join(os.environ['"'"'AUTOEXP_ATTEMPT'"'"'],'"'"'node.py'"'"'),run_name='"'"'__main__'"'"')' start PYTHON -m torch.distributed.run --nnodes=1 --rdzv-backend=c10d --rdzv-id=s1-demo-a1 --nproc-per-node=4 pretrain.py --lr 1e-3
# with: TORCH_ELASTIC_SHUTDOWN_TIMEOUT=115
# with: TRITON_CACHE_DIR=/dev/shm/somebody/triton
# with: TORCHINDUCTOR_CACHE_DIR=/dev/shm/somebody/inductor
# with: WANDB_MODE=offline
# with: HF_HUB_OFFLINE=1
# with: TRANSFORMERS_OFFLINE=1
# with: HF_DATASETS_OFFLINE=1
# meets by: {'address': True}
