#!/bin/bash
# One short visit to a GPU machine that has CUDA, JAX and PyTorch, no TensorFlow and no network.
#
#   benchmarks/gpu/run.sh FOLDER     FOLDER holds cifar10-jpeg.tar.xz and whl/ (see benchmarks/gpu/README.md)
#
# STEPS names what to run. Each step writes its results under $OUT (default: ./gpu-results), and what is not finished
# after SECONDS_TOTAL resumes in the next run on the same machine, from WORK. Steps that train run at the same time: while
# one compiles, the others compute. Do not mix them with the steps that measure times: stacked and depth_time.
set -u
cd "$(dirname "$0")/../.."
carried=${1:?the folder with the data and the wheels}
out=${OUT:-$PWD/gpu-results}
total=${SECONDS_TOTAL:-480}
work=${WORK:-/tmp/keras-committee-gpu}
steps=${STEPS:-stacked figure depth_time}
mkdir -p "$out" "$work"
left() { echo $((total - SECONDS)); }
has() { [[ " $steps " == *" $1 "* ]]; }

if compgen -G "$carried/whl/*.whl" >/dev/null && [ ! -d "$work/site" ]; then
    python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$work/site" "$carried"/whl/*.whl || exit 1
fi
# The package runs from its folder; its commands read its version from the metadata of an installed one.
metadata=$work/site/keras_committee-0.dist-info
mkdir -p "$metadata" && printf 'Metadata-Version: 2.1\nName: keras-committee\nVersion: 0\n' >"$metadata/METADATA"
export PYTHONPATH="$work/site:$PWD" PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=3 XLA_PYTHON_CLIENT_PREALLOCATE=false
data=$work/cifar10.npz
[ -e "$data" ] || python3 benchmarks/gpu/decode_cifar.py "$carried/cifar10-jpeg.tar.xz" "$data" || exit 1

stacked() { # members in one program against PyTorch
    python3 benchmarks/stacked.py ${STACKED:---widths 4 --members 8 --modes packed --steps 30 --rounds 3} \
        --torch-python "$(command -v python3)" --budget "${STACKED_SECONDS:-60}" --json "$out/stacked.json"
}
levers() { # the parts of the speed net: part I of N of the variants
    python3 benchmarks/gpu/speed_net.py --data "$data" --out "$work/speed_net.jsonl" --part "$1" \
        --budget "${LEVER_SECONDS:-150}" ${LEVERS:-}
}
figure() { # widths, epochs
    python3 benchmarks/figure1.py --data "$data" --out "$work/figure1" --widths "$1" --epochs "$2" \
        --modes "${MODES:-8:sequential}" --budget "$(($(left) - 15))" ${FIGURE:-}
}
depth() { # survival of the last block: networks of that depth, trained
    timeout -s TERM "$(($(left) - 25))" python3 -m keras_committee.cli train recipes/cifar_stochastic_depth.py --stacked \
        --run "$work/depth/survival_$1" --set survival="$1" --set data_dir="$data" --set precision=mixed_bfloat16 \
        ${DEPTH_SET:---set depth=56 --set members=2 --set epochs=40}
}
depth_time() { # the time of a step in each mode
    timeout "$(left)" python3 benchmarks/gpu/stochastic_depth.py ${DEPTH:-} --budget "$(($(left) - 10))" \
        --json "$out/stochastic_depth.json"
}
log() { # NAME COMMAND...: run a step with its output in the log, each line with its name
    local name=$1
    shift
    "$@" 2>&1 | sed -u "s/^/$name: /" | tee -a "$out/log.txt"
}

has stacked && log stacked stacked
has depth_time && log depth_time depth_time
if has figure; then log figure figure "${WIDE:-8:3}" "${WIDE_EPOCHS:-16}" & fi
if has levers; then
    parts=${LEVER_PARTS:-4}
    for ((part = 0; part < parts; part++)); do log levers levers "$part/$parts" & levers_pids+=($!); done
    wait "${levers_pids[@]}"
    cp "$work/speed_net.jsonl" "$out"
fi
if has depth; then for survival in 1.0 0.5; do log "depth $survival" depth "$survival" & done; fi
if has figure; then log figure figure "${WIDTHS:-1:8,2:6,4:4}" "${EPOCHS:-20}" & fi
wait

# Few files: what carries them back may limit their number.
cp "$work"/figure1/*.json "$work"/*.jsonl "$out" 2>/dev/null
[ -d "$work/figure1" ] && tar -cf "$out/predictions.tar" -C "$work/figure1" --exclude=runs --exclude="*.json" .
# Whole, with the state to resume from, in parts of 15 MB.
[ -d "$work/depth" ] && tar -cz -C "$work/depth" --exclude=validation . | split -b 15M - "$out/depth.tar.gz."
if [ -d "$work/figure1/runs" ]; then
    tar -czf "$out/wrn_16_1.tar.gz" -C "$work/figure1/runs" --exclude=stacked --exclude=validation wrn_16_1
    tar -czf "$out/runs.tar.gz" -C "$work/figure1/runs" --exclude=stacked --exclude=model.keras --exclude=predictions \
        --exclude=validation .
fi
exit 0
