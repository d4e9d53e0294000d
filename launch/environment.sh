# shellcheck shell=bash
# Sourced by every launch script: finds the project and its Python, sets what training needs.
# Sets REPO. Prefers $REPO/.venv; without one, the python and torchrun on PATH are used.

REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

if [[ -d $REPO/.venv/bin ]]; then
    PATH=$REPO/.venv/bin:$PATH
fi
if ! command -v torchrun >/dev/null; then
    echo "torchrun is not on PATH and $REPO/.venv is missing; run 'make setup' in $REPO" >&2
    exit 2
fi
export PATH

# Scripts run as files from any folder: ours are found, and no sibling hides a standard module.
export PYTHONPATH=$REPO${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1

# Otherwise about 3 of 10 restarts inside torchrun read addresses of the previous attempt.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# NCCL remembers its last collectives of each rank; a run that hangs writes them to flight_recorder/.
export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-2000}

# Seconds that the ranks have for a last save once torchrun itself was told to end. Once a rank has
# died the others have torchrun's 30, whatever this says (torch's PContext.close).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-90}

# Print how many GPUs processes started here may use.
gpus_here() {
    if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then
        echo "$SLURM_GPUS_ON_NODE"
    elif [[ ${SLURM_GPUS_PER_NODE:-} == 0 ]]; then
        echo 0 # asked for none: those that nvidia-smi sees are for others
    elif [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c '^[^-]' || true
    elif command -v nvidia-smi >/dev/null; then
        nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true
    else
        echo 0
    fi
}

# Become an srun that starts launch/node.sh with arguments "$@" once on every node of this job.
become_srun_on_every_node() {
    local hosts options=(--ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1)
    hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    export NODES=$SLURM_JOB_NUM_NODES
    export RDZV_ID=${SLURM_JOB_ID}_${SLURM_RESTART_COUNT:-0}
    # Below the ports that systems hand out by themselves (from 32768), different for each job.
    export RDZV_ENDPOINT=${hosts%%$'\n'*}:$((20000 + SLURM_JOB_ID % 10000))
    # One node's end must not kill a node that is still saving.
    options+=(--kill-on-bad-exit=0)
    # Since SLURM 22.05 a step no longer inherits this from its job.
    if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
        options+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
    fi
    exec srun "${options[@]}" bash "$REPO/launch/node.sh" "$@"
}
