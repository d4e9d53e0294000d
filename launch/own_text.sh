#!/usr/bin/env bash
# Train a small model on your own text: a data set with a tokenizer of its own, then a run.
#
#   launch/own_text.sh story.txt                     text files, folders or globs
#   launch/own_text.sh a.txt b.txt --steps 2000      then any flags of train/main.py
#   launch/own_text.sh story.txt --out runs/second   another run, with a data set of its own
#   make run TEXT=story.txt                         a URL too: TEXT=https://HOST/story.txt
#
# The data set is data/own/NAME and the run runs/NAME; NAME is that of the first text or of --out.
# The same command again continues the run, or says that it is finished. The bash of macOS, 3.2,
# is enough.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

texts=()
while (($#)) && [[ $1 != -* ]]; do
    texts+=("$1")
    shift
done
if ((${#texts[@]} == 0)) && [[ -n ${TEXT:-} ]]; then # from make
    if [[ -e $TEXT ]]; then
        texts=("$TEXT")
    else
        read -ra texts <<<"$TEXT"
    fi
fi
if ((${#texts[@]} == 0)) || [[ -z ${texts[0]} ]]; then
    fail "no text is given; name a file: launch/own_text.sh story.txt, or make run TEXT=story.txt"
fi

run=
is_run=no
for word in "$@"; do
    if [[ $is_run == yes ]]; then run=$word; fi
    is_run=no
    case $word in
        --out) is_run=yes ;;
        --out=*) run=${word#--out=} ;;
        --data | --data=*)
            fail "--data is given, but own_text.sh makes the data set from the text; to train on one that exists: launch/node.sh own-text --data FOLDER"
            ;;
    esac
done

# Print the name of a text's data set: its file's, without suffixes and what needs quotes in a shell.
name_of() {
    local name=${1%/} unsafe=$'[][:space:][\'"`$\\*?!&;|<>(){}#%~:]' suffix
    name=${name##*/}
    for suffix in .gz .bz2 .xz .zst .txt .text .jsonl .jsonlines .ndjson .json .parquet .pq; do
        name=${name%"$suffix"}
    done
    name=${name//$unsafe/_}
    name=${name#"${name%%[!.-]*}"} # a hidden folder, or an option
    printf '%s' "${name:-text}"
}

name=$(name_of "${run:-${texts[0]}}")
data=data/own/$name
python "$REPO/data_prep/text.py" "${texts[@]}" --vocab-size auto --split auto --out "$data"
exec "$REPO/launch/node.sh" own-text --data "$data" --out "${run:-runs/$name}" "$@"
