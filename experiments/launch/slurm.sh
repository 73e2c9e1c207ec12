#!/usr/bin/env bash
# GPU nodes under Slurm: one process for each GPU, and a job that goes back into the queue when it is interrupted.
#
#   hydra-jax check --config=configs/cifar10.py --devices=16 \
#     --config.parallel.mesh.data=-1 --config.parallel.mesh.head=2
#   WORKDIR=/shared/hydra/cifar10 DATA_DIR=/shared/data sbatch experiments/launch/slurm.sh
#
# from the root of the repository, with an environment activated in which hydra-jax is installed (the job inherits
# both). What follows the script's name goes to hydra-jax, such as --config.teacher.members=20. Options of sbatch that
# stand before it win over those below; --ntasks-per-node=1 gives one process for all GPUs of a node.
#
#   scancel --signal=TERM JOB    saves, and goes back into the queue
#   scancel JOB                  ends it
#
#SBATCH --job-name=hydra
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
#
# --signal without B: reaches the processes that srun started, two minutes (up to three) before the time is up, and
# not this script, which therefore lives to see their exit code.
# GPUs are asked for by node and not by task: JAX picks the one of its rank among all that it sees on the node.
set -euo pipefail

CONFIG=${CONFIG:-configs/cifar10.py}
WORKDIR=${WORKDIR:?which folder? All nodes must see it}
DATA_DIR=${DATA_DIR:?where are the data sets?}
HEAD=${HEAD:-2} # devices over which members and heads are spread; the batch is spread over the rest
RETRY_AFTER=${RETRY_AFTER:-600}

# One process for many GPUs has to be told: under Slurm, JAX would give it the first and no more.
if ((${SLURM_NTASKS_PER_NODE:-1} == 1 && ${SLURM_GPUS_ON_NODE:-0} > 1)); then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi

# hydra-jax itself is what srun starts, with no shell around it: many clusters send signals to that process alone.
# Where one process fails, JAX ends the others (after 30 s). Slurm must not do it: by SIGTERM they would return 75,
# which hides the code of the first.
code=0
srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  hydra-jax run --config="$CONFIG" --workdir="$WORKDIR" --data_dir="$DATA_DIR" --distributed \
  --config.parallel.mesh.data=-1 --config.parallel.mesh.head="$HEAD" "$@" || code=$?

# 75: saved. 2: nothing to gain by trying again. Anything else may be a lost node; but who fails in the first ten
# minutes will do so again.
echo "hydra-jax returned $code after $SECONDS s"
if ((code == 75 || (code != 0 && code != 2 && SECONDS >= RETRY_AFTER))); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
