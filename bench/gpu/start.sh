#!/usr/bin/env bash
# Measure a GPU on a machine without a network: the kit's wheels first, then measure.py.
#
#   bench/gpu/start.sh gpu_kit --out results              the first call
#   bench/gpu/start.sh gpu_kit --out results --call 2     the second
#
# The kit is the folder that prepare.py packed; the other words are flags of measure.py. Nothing is
# installed into the machine's Python: python3 on PATH, or $PYTHON, finds the wheels in a folder.
set -euo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
if (($# == 0)) || [[ ! -d $1 ]]; then
    echo "error: ${1:-no folder} is no kit; make one with bench/gpu/prepare.py and name it first" >&2
    exit 2
fi
kit=$1
shift

wheels=("$kit"/wheels/*.whl)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [[ -e ${wheels[0]} ]]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
        --target "$site" "${wheels[@]}"
fi
export PYTHONPATH=$site:$repo${PYTHONPATH:+:$PYTHONPATH}
"$python" "$repo/bench/gpu/measure.py" --kit "$kit" "$@"
