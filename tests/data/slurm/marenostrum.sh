#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=160
#SBATCH --dependency=afterany:4711
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --job-name=s1-demo-a1
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/attempt/job.log
#SBATCH --partition=acc
#SBATCH --qos=acc_ehpc
#SBATCH --signal=B:USR1@120
#SBATCH --threads-per-core=2
#SBATCH --time=4320:00
#SBATCH --wait-all-nodes=1

# command
export SUBMITIT_EXECUTOR=slurm
exec PYTHON -u /attempt/payload.py
# runs: srun --kill-on-bad-exit=1 --cpus-per-task=160 --cpu-bind=none --gpu-bind=none --ntasks-per-node=1 PYTHON -c 'import os,runpy; runpy.run_path(os.path.join(os.environ['"'"'AUTOEXP_ATTEMPT'"'"'],'"'"'node.py'"'"'),run_name='"'"'__main__'"'"')' start PYTHON -m torch.distributed.run --nnodes=1 --rdzv-backend=c10d --rdzv-id=s1-demo-a1 --nproc-per-node=4 pretrain.py --lr 1e-3
# with: TORCH_ELASTIC_SHUTDOWN_TIMEOUT=115
# with: TRITON_CACHE_DIR=/tmp/somebody/triton
# with: TORCHINDUCTOR_CACHE_DIR=/tmp/somebody/inductor
# with: NCCL_NET=IB
# with: NCCL_SOCKET_IFNAME=ib0,ib1,ib2,ib3
# with: GLOO_SOCKET_IFNAME=ib0
# with: NCCL_IB_HCA=mlx5_0,mlx5_1,mlx5_4,mlx5_5
# with: NCCL_NVLS_ENABLE=0
# with: NCCL_MIN_NCHANNELS=32
# with: NCCL_NCHANNELS_PER_PEER=32
# with: WANDB_MODE=offline
# with: HF_HUB_OFFLINE=1
# with: TRANSFORMERS_OFFLINE=1
# with: HF_DATASETS_OFFLINE=1
# on each node: TRITON_CACHE_DIR={tmpdir}/triton
# on each node: TORCHINDUCTOR_CACHE_DIR={tmpdir}/inductor
# on each node: SINGULARITY_BIND={tmpdir}
