#!/usr/bin/env bash
# All GPU rows of the model benchmarks, as one command on a machine that has torch and a GPU, and no network:
#
#     [WHEELS=folder] [OUT=folder] bash benchmarks/gpu.sh
#
# WHEELS: wheels of what that machine lacks, besides torch: monai, pydantic, pydantic_core, annotated_types,
# typing_inspection, typing_extensions, safetensors (`pip download --no-deps` fetches them). Ray, DeepSpeed, MLflow and
# zarr are not needed. OUT gets model-gpu.md and one log a part; the whole takes about six minutes. A part that fails
# says so at the end, and the others still run.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/results}
python=${PYTHON:-python3}
mkdir -p "$OUT"
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl || exit 1
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "torch sees no GPU here")' || exit 1
result="$OUT/model-gpu.md"
failed=()

part() {  # name, seconds it may take, arguments of python -m
    local name=$1 limit=$2
    shift 2
    echo "== $name: $*"
    timeout "$limit" "$python" -m "$@" --device cuda --write "$result" 2>"$OUT/$name.log" || failed+=("$name")
    tail -n 3 "$OUT/$name.log"
}

# visible against dense and against SwinUNETR at batches that keep the GPU busy, and at one where launches take longer
part tumor-128 150 benchmarks.model --crop 128 --batch 24 --precision bf16 --only dense visible segmentation
part tumor-128-small 60 benchmarks.model --crop 128 --batch 4 --precision bf16 --only dense visible
part tumor-64 60 benchmarks.model --crop 64 --batch 32 --precision bf16 --only segmentation swinunetr
part tumor-96 90 benchmarks.model --crop 96 --batch 16 --precision bf16 --only segmentation swinunetr
# share of the matrix rate
part visible-full 60 benchmarks.model --crop 128 --fill-memory 0.85 --precision bf16-weights --rounds 3 --only visible
part visible-compiled 150 benchmarks.model --crop 128 --fill-memory 0.85 --precision bf16-weights --rounds 3 --only visible --compile
part attention 120 benchmarks.attention --precision bf16 --batch 64

[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]} (logs in $OUT)"; exit 1; }
