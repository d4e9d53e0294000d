#!/usr/bin/env bash
# Train on this machine: one process per GPU, or two processes on the CPU if it has none.
#
#   launch/node.sh                           the reference run (preset gpt2)
#   launch/node.sh gpt2-medium --steps 1000  a preset, then any flags of train/main.py
#   NPROC=4 launch/node.sh                   four processes
#   MAX_RESTARTS=0 launch/node.sh            exit when a process dies, without a restart
#   SCRIPT=eval/main.py launch/node.sh --checkpoint runs/gpt2/checkpoints/latest
#
# To continue a run, start the same command again. The SLURM scripts start this file once on every
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
# When a rank dies, the others save and torchrun restarts all of them. torchrun counts all restarts
# of a run, even if they are days apart, so the limit is high. The run itself ends after three
# restarts without progress.
script=${SCRIPT:-train/main.py}
if [[ $script == train/main.py ]]; then
    MAX_RESTARTS=${MAX_RESTARTS:-20}
fi
options+=(--max-restarts="${MAX_RESTARTS:-0}")
if [[ -n ${LOG_DIR:-} ]]; then
    options+=(--log-dir="$LOG_DIR/node_${SLURM_NODEID:-0}" --tee=3)
fi
# A warning signal that torchrun does not handle kills it and leaves its workers running. SIGHUP
# stays ignored under nohup. Older versions of torchrun lack the flag. (No pipe into grep -q: it
# closes early, torchrun could not write, and pipefail would take that for a failure.)
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
