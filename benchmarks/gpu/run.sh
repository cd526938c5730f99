#!/bin/bash
# One short visit to a GPU machine that has CUDA, JAX and PyTorch, no TensorFlow and no network.
#
#   benchmarks/gpu/run.sh FOLDER     FOLDER holds cifar10-jpeg.tar.xz and whl/ (see benchmarks/gpu/README.md)
#
# Steps in the order of their worth. Each writes its results under $OUT (default: ./gpu-results) when it is done, so that
# nothing is lost when time runs out. SECONDS_TOTAL bounds the visit; WIDTHS, EPOCHS and MODES are those of figure1.py.
set -u
cd "$(dirname "$0")/../.."
carried=${1:?the folder with the data and the wheels}
out=${OUT:-$PWD/gpu-results}
total=${SECONDS_TOTAL:-480}
work=${WORK:-/tmp/keras-committee-gpu}  # kept: the next run on the same machine resumes
mkdir -p "$out" "$work"
left() { echo $((total - SECONDS)); }

if compgen -G "$carried/whl/*.whl" >/dev/null; then
    python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$work/site" "$carried"/whl/*.whl || exit 1
fi
export PYTHONPATH="$work/site:$PWD" PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=3
[ -e "$work/cifar10.npz" ] || python3 benchmarks/gpu/decode_cifar.py "$carried/cifar10-jpeg.tar.xz" "$work/cifar10.npz" || exit 1

echo "== 1. members in one program against PyTorch, $(left) s left"
python3 benchmarks/stacked.py ${STACKED:---widths 4 --members 8 --modes packed --steps 30 --rounds 3} \
    --torch-python "$(command -v python3)" --budget "${STACKED_SECONDS:-60}" --json "$out/stacked.json" 2>&1 |
    tee "$out/log.txt"

echo "== 2. the figure, $(left) s left"
python3 benchmarks/figure1.py --data "$work/cifar10.npz" --out "$work/figure1" --widths "${WIDTHS:-1,2,4,8:4}" \
    --epochs "${EPOCHS:-16}" --modes "${MODES:-8:sequential}" --budget "$(($(left) - 15))" ${FIGURE:-} 2>&1 | tee -a "$out/log.txt"
cp "$work"/figure1/*.npz "$work"/figure1/*.json "$out" 2>/dev/null
# The whole run of the smallest members, which fit into the answer; of the others the journal and the history.
tar -czf "$out/wrn_16_1.tar.gz" -C "$work/figure1/runs" --exclude=stacked --exclude=validation wrn_16_1
tar -czf "$out/runs.tar.gz" -C "$work/figure1/runs" --exclude=stacked --exclude=model.keras --exclude=predictions \
    --exclude=validation .

if [ "$(left)" -gt "${DEPTH_SECONDS:-60}" ]; then
    echo "== 3. stochastic depth, $(left) s left"
    timeout "$(left)" python3 benchmarks/gpu/stochastic_depth.py ${DEPTH:-} --budget "$(($(left) - 10))" \
        --json "$out/stochastic_depth.json" 2>&1 | tee -a "$out/log.txt"
fi
