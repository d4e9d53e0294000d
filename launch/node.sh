#!/usr/bin/env bash
# Train on this machine: one process per GPU; without a GPU, two processes on the CPU.
#
#   launch/node.sh                           the reference run (preset gpt2)
#   launch/node.sh gpt2-medium --steps 1000  a preset, then any flags of train/main.py
#   NPROC=4 launch/node.sh                   four processes
#   MAX_RESTARTS=0 launch/node.sh            end when a process dies, instead of starting again
#   SCRIPT=eval/main.py launch/node.sh --checkpoint runs/gpt2/checkpoints/latest
#
# Start the same command again to continue a run. The SLURM scripts start this file once on every
# node, with RDZV_ENDPOINT (host:port), RDZV_ID, NODES and LOG_DIR set.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

gpus=$(gpus_here)
options=()
if [[ -n ${RDZV_ENDPOINT:-} ]]; then
    processes=${NPROC:-$((gpus > 0 ? gpus : 1))}
    options+=(--nnodes="$NODES" --rdzv-backend=c10d)
    options+=(--rdzv-id="$RDZV_ID" --rdzv-endpoint="$RDZV_ENDPOINT")
else
    processes=${NPROC:-$((gpus > 0 ? gpus : 2))}
    options+=(--standalone)
fi
options+=(--nproc_per_node="$processes")
# A dead rank: the others save, torchrun starts all again. It counts every restart of a run, however
# far apart; the run itself gives up after three that brought it no step further.
script=${SCRIPT:-train/main.py}
if [[ $script == train/main.py ]]; then
    MAX_RESTARTS=${MAX_RESTARTS:-20}
fi
options+=(--max-restarts="${MAX_RESTARTS:-0}")
if [[ -n ${LOG_DIR:-} ]]; then
    options+=(--log-dir="$LOG_DIR/node_${SLURM_NODEID:-0}" --tee=3)
fi
# An unhandled warning signal would kill torchrun and leave its workers running; one that nohup has
# us ignore stays ignored. Older torchruns lack the flag. (No pipe into grep: it would close early
# and look like a failure.)
signals=SIGTERM,SIGINT,SIGQUIT,SIGUSR1,SIGUSR2
if [[ -z $(trap -p HUP) ]]; then
    signals+=,SIGHUP
fi
help=$(torchrun --help)
if [[ $help == *--signals-to-handle* ]]; then
    options+=("--signals-to-handle=$signals")
fi

cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > processes ? cores / processes : 1))}

exec torchrun "${options[@]}" "$REPO/$script" "$@"
