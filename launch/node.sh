#!/usr/bin/env bash
# Train on this machine: one process per GPU, or two processes on the CPU if it has none.
#
#   launch/node.sh                           the reference run (preset gpt2)
#   launch/node.sh gpt2-medium --steps 1000  a preset, then any flags of train/main.py
#   launch/node.sh --continue runs/gpt2      continue the run in this folder with its settings
#   NPROC=4 launch/node.sh                   four processes
#   MAX_RESTARTS=0 launch/node.sh            exit when a process dies, without a restart
#   SCRIPT=eval/main.py launch/node.sh --checkpoint runs/gpt2/checkpoints/latest
#
# To continue a run, start the same command again. On several machines that share a disk, start it on
# each, with one address of the first (a port that is free there) and the number of machines:
#
#   RDZV_ENDPOINT=first:29400 NODES=2 launch/node.sh
#
# Jobs that share a machine need different ports. The SLURM scripts do the same once on every node, with
# RDZV_ID and LOG_DIR set.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

need_whole_numbers NPROC NODES MAX_RESTARTS SLURM_GPUS_ON_NODE
gpus=$(gpus_here)
options=()
if [[ -n ${RDZV_ENDPOINT:-} ]]; then
    processes=${NPROC:-$((gpus > 0 ? gpus : 1))}
    if [[ -z ${NODES:-} ]]; then
        echo "error: RDZV_ENDPOINT is set but NODES is not; set it to the number of machines" >&2
        exit 2
    fi
    options+=(--nnodes="$NODES" --rdzv-backend=c10d)
    options+=(--rdzv-id="${RDZV_ID:-ratchet}" --rdzv-endpoint="$RDZV_ENDPOINT")
else
    processes=${NPROC:-$((gpus > 0 ? gpus : 2))}
    options+=(--standalone)
fi
options+=(--nproc_per_node="$processes")
# When a rank dies, the others save and the launcher restarts all of them. It counts all restarts of a
# run, even if they are days apart, so the limit is high. The run itself ends after three restarts
# without progress.
script=${SCRIPT:-train/main.py}
if [[ ! -f $REPO/$script ]]; then
    echo "error: SCRIPT=$script is no file of $REPO; name one such as eval/main.py" >&2
    exit 2
fi
if [[ $script == train/main.py ]]; then
    MAX_RESTARTS=${MAX_RESTARTS:-20}
fi
options+=(--max-restarts="${MAX_RESTARTS:-0}")
if [[ -n ${LOG_DIR:-} ]]; then
    options+=(--log-dir="$LOG_DIR/node_${SLURM_NODEID:-0}" --tee=3)
fi

cores=$(cores_here)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}

exec python "$REPO/parallel/launcher.py" "${options[@]}" "$REPO/$script" "$@"
