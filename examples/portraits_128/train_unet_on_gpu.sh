#!/usr/bin/env bash
# Ten minutes of training on a GPU, from the weights in the package: bash train_unet_on_gpu.sh DATA OUT
#
# DATA holds faces.zip, of which 60 faces are held out, and framed.zip, officials.zip, people.zip and moved.zip, as
# README.md says how to make them; with `--per-portrait 5 --quality 80` they stay under 40 MB.
# Ctrl-C, and the same command again, goes on; the weights of the lowest held-out loss are in OUT/unet.
set -euo pipefail
if (( $# != 2 )); then
    sed -n '2,6p' "$0" | sed 's/^# \?//'
    exit 2
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)" data=$1 out=$2
weights="$here/../../dynadrag_pipeline/weights/portraits-128"

python "$here/train_unet.py" --vae "$weights/vae" --start-from "$weights/unet" --hold-out "$data/faces.zip" \
    --pictures "$data/faces.zip" "$data/framed.zip" "$data/officials.zip" "$data/people.zip" "$data/moved.zip" \
    --shares 20 40 28 4 8 --batch-size 256 --learning-rate 5e-4 --steps 7500 --patience 12 --bfloat16 --compile \
    --out "$out"
