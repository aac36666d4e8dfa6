#!/usr/bin/env bash
# Some minutes of training on a GPU, from the weights in the package: bash train_unet_on_gpu.sh DATA OUT
#
# DATA holds faces.zip, of which 60 faces are held out; portraits.zip, officials.zip and people.zip, each with its
# landmarks beside it, and held_out.txt; small.zip and moved.zip, pictures of 128 pixels. README.md says how to make them;
# with squares of 288 pixels as WebP of quality 82 they stay under 30 MB.
# Ctrl-C, and the same command again, goes on; the weights of the lowest held-out loss are in OUT/unet.
set -euo pipefail
if (( $# != 2 )); then
    sed -n '2,7p' "$0" | sed 's/^# \?//'
    exit 2
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)" data=$1 out=$2
weights="$here/../../dynadrag_pipeline/weights/portraits-128"

python "$here/train_unet.py" --vae "$weights/vae" --start-from "$weights/unet" --hold-out "$data/faces.zip" \
    --framed "$data/portraits.zip" "$data/officials.zip" "$data/people.zip" --held-out "$data/held_out.txt" \
    --pictures "$data/small.zip" "$data/moved.zip" --shares 80 20 --batch-size 256 --learning-rate 6e-4 \
    --steps 3000 --patience 12 --bfloat16 --compile --out "$out"
