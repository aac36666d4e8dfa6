#!/usr/bin/env bash
# The datasets of general.yaml, from pictures and clips of yours: bash build_data.sh PICTURES CLIPS OUT
#
# PICTURES holds faces.zip, officials.zip and people.zip with faces.npz, officials.npz and people.npz (`files`,
# `landmarks`, and of people `pose`), animals.zip, and held_out.txt: names of people and pictures that are for
# validation in all of them. CLIPS holds folders of videos: people, film, hands, machines, drawn, grid.
# Each dataset can be stopped, and goes on when the script is started again.
set -euo pipefail
if (( $# != 3 )); then
    sed -n '2,7p' "$0" | sed 's/^# \?//'
    exit 2
fi
pictures=$1 clips=$2 out=$3
held_out=(--held-out "$pictures/held_out.txt" --val-share 0)
turning=(--smallest-face 0.2 --largest-turn 40)
# Who is on a picture is in the archive's meta.json, for a split by people.
people() { unzip -p "$pictures/$1.zip" meta.json > "$out/$1-people.json"; }

mkdir -p "$out"
for set in faces officials people; do people "$set"; done
dynadrag build-portraits "$pictures/faces.zip" --landmarks "$pictures/faces.npz" --people "$out/faces-people.json" \
    "${held_out[@]}" "${turning[@]}" --motions-per-portrait 4 --out "$out/faces"
dynadrag build-portraits "$pictures/officials.zip" --landmarks "$pictures/officials.npz" \
    --people "$out/officials-people.json" "${held_out[@]}" --motions-per-portrait 3 --seed 1 --out "$out/officials"
dynadrag build-portraits "$pictures/people.zip" --landmarks "$pictures/people.npz" \
    --people "$out/people-people.json" "${held_out[@]}" "${turning[@]}" --motions-per-portrait 8 --out "$out/bodies"
dynadrag build-portraits "$pictures/animals.zip" "${held_out[@]}" --smallest-face 0.2 --motions-per-portrait 16 \
    --out "$out/animals"
for kind in people film hands machines drawn; do
    dynadrag build-dataset "$clips/$kind" --out "$out/clips_$kind" --short-side 128 --val-share 0.2 \
        --records-per-video 8 --source "$kind"
done
dynadrag build-dataset "$clips/grid" --out "$out/grid" --short-side 128 --val-share 0.05 --records-per-video 6 \
    --source grid
