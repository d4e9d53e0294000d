# shellcheck shell=bash
# Every launch script sources this file: it finds the project and its Python.
# Sets REPO. Uses $REPO/.venv if it exists, else the python and torchrun on PATH.

REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

if [[ -d $REPO/.venv/bin ]]; then
    PATH=$REPO/.venv/bin:$PATH
fi
if ! command -v torchrun >/dev/null; then
    echo "torchrun is not on PATH and $REPO/.venv is missing; run 'make setup' in $REPO" >&2
    exit 2
fi
export PATH

# Scripts can be started from any folder: PYTHONPATH finds the project's modules, and with
# PYTHONSAFEPATH a file next to a script cannot hide a standard module.
export PYTHONPATH=$REPO${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1

# Without it 3 of 10 jobs died at a restart inside torchrun, because ranks read addresses of the
# previous attempt: https://github.com/pytorch/pytorch/issues/135712
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# Number of collectives that NCCL records for each rank. A run that hangs writes them to
# flight_recorder/ in its folder.
export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-2000}

# Seconds that the ranks have for a last save after torchrun itself was asked to stop. When a rank
# has died, the others always have 30 s (PContext.close of torch/distributed/elastic).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-90}

# Exit unless each of these variables is unset, empty or a whole number. bash would evaluate anything
# else that reaches its arithmetic, also a command inside it.
need_whole_numbers() {
    local name
    for name in "$@"; do
        if [[ -n ${!name:-} && ! ${!name} =~ ^(0|[1-9][0-9]{0,8})$ ]]; then
            printf 'error: %s=%q is not a whole number; correct or unset it\n' "$name" "${!name}" >&2
            exit 2
        fi
    done
}

# Print the number of GPUs that processes on this node can use.
gpus_here() {
    local entry entries count=0
    if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then
        echo "$SLURM_GPUS_ON_NODE"
    elif [[ ${SLURM_GPUS_PER_NODE:-} == 0 ]]; then
        echo 0 # the job asked for none, so those that nvidia-smi lists belong to others
    elif [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        # CUDA ignores everything from the first entry on that names no GPU: -1, NoDevFiles, none.
        IFS=, read -ra entries <<<"$CUDA_VISIBLE_DEVICES," || true
        for entry in ${entries[@]+"${entries[@]}"}; do
            [[ $entry =~ ^[[:space:]]*([0-9]|GPU-|MIG-) ]] || break
            count=$((count + 1))
        done
        echo "$count"
    elif command -v nvidia-smi >/dev/null; then
        nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true
    else
        echo 0
    fi
}

# Print the number of cores. macOS has no nproc.
cores_here() {
    local cores
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
    if [[ $cores =~ ^[1-9][0-9]*$ ]]; then echo "$cores"; else echo 1; fi
}

# Replace this shell by an srun that runs launch/node.sh "$@" once on every node of this job.
become_srun_on_every_node() {
    need_whole_numbers SLURM_JOB_ID SLURM_JOB_NUM_NODES SLURM_CPUS_PER_TASK
    local hosts options=(--ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1)
    hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    export NODES=$SLURM_JOB_NUM_NODES
    export RDZV_ID=${SLURM_JOB_ID}_${SLURM_RESTART_COUNT:-0}
    # Below the range from which Linux assigns ports itself (from 32768); another one for each job.
    export RDZV_ENDPOINT=${hosts%%$'\n'*}:$((20000 + SLURM_JOB_ID % 10000))
    # If one node ends, srun must not kill another node that is still saving.
    options+=(--kill-on-bad-exit=0)
    # Since SLURM 22.05 srun does not inherit it from the job: https://slurm.schedmd.com/srun.html
    if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
        options+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
    fi
    exec srun "${options[@]}" bash "$REPO/launch/node.sh" "$@"
}
