#!/usr/bin/env bash
# All that needs a GPU, in one go: at most 12 minutes on one H100 with 16 cores.
#
#     bash scripts/gpu.sh DATA
#
# DATA is tiny_imagenet_60 (60 classes of Tiny ImageNet, 64 pixels), as a zip or as a folder with train/ and val/.
# It needs the checkout and an environment with the project's requirements and those of its tests: pip install -e '.[test]'.
# Only where torch is missing does it make one, in .venv, which takes a network.
#
#   tests    the tests that are marked gpu
#   bench    scripts/bench.py: scan (against the bare forward pass, and against decoding alone), projection and occlusion
#            (against Captum), training (images a second, bfloat16)
#   table 3  its four rows of depth, three seeds of each, at half of the paper's widths: maps 48-128-192-192-128, fully
#            connected layers 2048-2048, by the paper's recipe. Images lie on the card as bytes. The rows of a seed run
#            side by side, one seed after the other, so that a run that is stopped leaves whole seeds
#   table    what experiment=table3 makes of them
#
# Every result is in its file as soon as it is there: results/gpu/tests.txt, bench/*.json, table3/*/result.json. One line
# for each part, with its seconds, is printed and added to summary.txt; logs/ has what the parts print, and about.json the
# hardware, its driver, the versions and the commit. Each part has its own limit, after which the next begins.
# Stop it at any time (Ctrl-C, kill) and start it again: existing results are skipped, and training resumes.
#
# Settings, in front of the command as in `SCALE=0.01 bash scripts/gpu.sh DATA`:
#   OUT      folder of the results                    results/gpu
#   SCALE    share of the images and of the epochs    1; without a GPU 0.01. Below 1 it is a rehearsal of the script: narrow
#            networks, bench.py --small; its figures mean nothing. It needs another OUT than the real run
#   EPOCHS   of each network of Table 3               60
#   AT_ONCE  networks that are trained side by side   4
#   MINUTES  until all has ended, done or not         12
#   PYTHON   the interpreter                          python3
#
# How long it takes. 30,000 images x 60 epochs x 12 networks are 21.6 million images. A network of these widths takes
# about 32 million multiply-adds an image, 100 million with the way back: 12 thousand million for a batch of 128, which an
# H100 has done in a fraction of a millisecond. What takes the time is to start some 250 kernels for each batch, 2 to 4 ms
# of one core: 30,000 to 60,000 images a second of one process. One network after the other would take 6 to 12 minutes;
# four at once, on a core each, about 3, and as long again is spent on starting, decoding and checkpoints (60 a network).
# With 1 minute for the tests and 3 for the benchmarks, 10 in all. These are estimates: the line after `bench train`
# gives the time by the speed that was measured.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

usage() { sed -n '2,/^set -u/{/^set -u/d;s/^# \{0,1\}//;p}' scripts/gpu.sh; }
die() {
    echo "gpu.sh: $*" >&2
    exit 2
}

case "${1:-}" in
-h | --help)
    usage
    exit 0
    ;;
"") die "give the folder or the zip of tiny_imagenet_60: bash scripts/gpu.sh DATA (--help says all)" ;;
esac
(($# == 1)) || die "give DATA alone, not $2 as well; settings stand in front of the command (--help says all)"
cd "$OLDPWD" || exit 2
data=$(realpath -e -- "$1" 2>/dev/null) || die "there is no $1"
out=$(realpath -m -- "${OUT:-$(dirname "${BASH_SOURCE[0]}")/../results/gpu}")
cd - >/dev/null || exit 2
python=${PYTHON:-python3} epochs=${EPOCHS:-60} at_once=${AT_ONCE:-4} minutes=${MINUTES:-12}
for setting in "EPOCHS $epochs" "AT_ONCE $at_once" "MINUTES $minutes"; do
    [[ ${setting#* } =~ ^[1-9][0-9]{0,3}$ || $setting == "MINUTES 0" ]] ||
        die "${setting% *} is ${setting#* }; give a whole number from 1"
done
deadline=$((SECONDS + 60 * minutes))
mkdir -p "$out/logs" "$out/bench" "$out/table3" || die "cannot write to $out"
exec 9>"$out/.lock"
flock -n 9 || die "another run, or what a killed one left behind, writes to $out: wait for it, or give another OUT"

# ---- what there is to work with --------------------------------------------------------------------------------------

if ! "$python" -c "import torch" 2>/dev/null; then
    if [[ ! -x .venv/bin/python ]]; then
        echo "torch is missing in $python: making an environment in .venv (minutes, and it needs a network)"
        "$python" -m venv .venv || die "could not make .venv"
        .venv/bin/python -m pip install -q -e '.[test]' || die "could not install the requirements in .venv"
    fi
    python=.venv/bin/python
fi
device=$("$python" -c "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')") || die "torch does not work"
scale=${SCALE:-$([[ $device == cuda ]] && echo 1 || echo 0.01)}
[[ $scale =~ ^(1|1\.0*|0?\.[0-9]*[1-9][0-9]*)$ ]] || die "SCALE is $scale; give a number above 0 up to 1"
[[ $scale =~ ^1 ]] && small="" || small="--small"
maps="[48,128,192,192,128]" hidden="[2048,2048]" repeats=5 patience=1
if [[ -n $small ]]; then
    echo "a rehearsal on $device, SCALE=$scale: its figures mean nothing"
    maps="[6,16,24,24,16]" hidden="[64,64]" repeats=1 patience=4 # a busy machine has no less work to do
    epochs=$("$python" -c "print(max(2, round($epochs * $scale)))")
fi
[[ $device == cuda ]] || echo "there is no GPU: the tests that need one are left out"
settings="SCALE=$scale EPOCHS=$epochs on $device" # existing results are skipped, so all of it is made alike
if [[ -e $out/settings.txt ]]; then
    was=$(<"$out/settings.txt")
    [[ $was == "$settings" ]] || die "$out has results of $was, not $settings: give another OUT, or delete it"
fi
echo "$settings" >"$out/settings.txt"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + at_once - 1) / at_once))}
"$python" scripts/bench.py --about --device "$device" >"$out/about.json" || die "scripts/bench.py does not start"
cat "$out/about.json"

# ---- parts: each is a process that a signal or its limit can end -----------------------------------------------------

say() { printf '%-5s %-42s %5s s  %s\n' "$@" | tee -a "$out/summary.txt"; }

# part NAME LIMIT RESULT COMMAND... &: unless RESULT is there. The command leaves it, or else RESULT.part, or only prints
part() { # always in the background: it is a process of its own, which passes on the signal that ends it
    name=$1 limit=$(($2 * patience)) result=$3 log="$out/logs/${1// /-}.log" child=
    shift 3
    trap 'trap "" TERM; [[ -n $child ]] && kill "$child" && wait "$child"; exit 143' TERM
    [[ -e $result ]] && { say SKIP "$name" 0 "${result#"$out/"} is there" && exit 0; }
    left=$((deadline - SECONDS)) began=$SECONDS
    ((limit = limit < left ? limit : left))
    ((limit > 0)) || { say LATE "$name" 0 "the $minutes minutes are over; start again to resume" && exit 1; }
    timeout -k 20 "$limit" "$@" >"$log" 2>&1 &
    child=$!
    wait "$child"
    status=$?
    took=$((SECONDS - began))
    if ((status == 0)); then
        [[ -e $result.part ]] && mv "$result.part" "$result"
        [[ -e $result || $result != *.txt ]] || cp "$log" "$result"
    fi
    if ((status == 0)) && [[ ! -e $result ]]; then
        say FAIL "$name" "$took" "it left no ${result#"$out/"}: ${log#"$out/"}"
    elif ((status == 0)); then
        say PASS "$name" "$took" "${result#"$out/"}"
    elif ((status == 124 || status == 137)); then
        say FAIL "$name" "$took" "over its limit of $limit s; start again to resume: ${log#"$out/"}"
    else
        say FAIL "$name" "$took" "$(tr '\r' '\n' <"$log" | grep -v '^ *$' | tail -n 1 | cut -c1-120): ${log#"$out/"}"
    fi
    exit $((status != 0))
}

stopped() {
    trap '' INT TERM
    # shellcheck disable=SC2046
    kill $(jobs -p) 2>/dev/null
    wait
    say STOP "all" "$SECONDS" "start again to resume"
    exit "$1"
}
trap 'stopped 130' INT
trap 'stopped 143' TERM

failed=0 running=0
one() { # until `at_once` run, without waiting for them
    part "$@" &
    ((++running >= at_once)) && await
}
await() {
    wait -n || failed=1
    ((--running))
}
alone() {
    part "$@" &
    wait $! || failed=1
}

# ---- tests and benchmarks --------------------------------------------------------------------------------------------

mapfile -t marked < <(grep -l 'pytest\.mark\.gpu' tests/test_*.py)
alone "tests" 120 "$out/tests.txt" "$python" -m pytest -q -m gpu -p no:cacheprovider "${marked[@]}"
bench() { # NAME LIMIT
    # shellcheck disable=SC2086
    alone "bench $1" "$2" "$out/bench/$1.json" "$python" scripts/bench.py "$1" --device "$device" --repeats $repeats \
        $small --json "$out/bench/$1.json.part"
}
bench scan 60
bench project 60
bench occlusion 120
bench train 60

# ---- Table 3 ---------------------------------------------------------------------------------------------------------

if [[ -n $small && ! -e $out/data/done ]]; then # so many images of each class, at least 4
    "$python" - "$data" "$out/data" "$scale" <<'PYTHON' || die "cannot take images from $data"
import math, sys
from collections import Counter
from pathlib import Path
from zfnet.data.class_folders import home_of
from zfnet.data.folders import Folder

data, out, scale = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
for split in ("train", "val"):
    home = home_of(Folder(data), split)
    if home is None:
        sys.exit(f"no folder {split} in {data}")
    part, taken = Folder(home.path / split), Counter()
    most = Counter(file.split("/")[0] for file in part.files())
    for file in sorted(part.files()):
        name = file.split("/")[0]
        if taken[name] < max(4, math.ceil(scale * most[name])):
            taken[name] += 1
            (out / split / file).parent.mkdir(parents=True, exist_ok=True)
            (out / split / file).write_bytes(part.read(file))
(out / "done").touch()
PYTHON
fi
[[ -n $small ]] && data=$out/data

[[ -n $small || ! -e $out/bench/train.json ]] || "$python" - "$out/bench/train.json" "$epochs" <<'PYTHON'
import json, sys

speed = json.load(open(sys.argv[1]))["rows"][-1]["images_per_second"]
images = 30_000 * int(sys.argv[2]) * 12
print(f"Table 3: {images:,} images, one after the other {images / speed:,.0f} s at {speed:,.0f} a second")
PYTHON

for seed in 0 1 2; do
    for layers in "" " without layers 3, 4" " without layers 6, 7" " without layers 3, 4, 6, 7"; do
        slug=krizhevsky$(tr -d ',' <<<"${layers// /-}")-seed$seed
        one "$slug" 400 "$out/table3/$slug/result.json" "$python" experiments/run.py experiment=variant \
            "variant='krizhevsky$layers'" seed=$seed data=tiny_imagenet "data.root=$data" model=zfnet_small \
            "model.architecture.maps=$maps" "model.architecture.hidden=$hidden" "train.epochs=$epochs" \
            "networks=$out/networks" "out=$out/table3/$slug"
    done
    while ((running)); do await; done
    if [[ $(compgen -G "$out/table3/*-seed$seed/result.json" | wc -l) == 4 ]]; then # their weights are not needed any more
        rm -rf "$out"/networks/*/*", seed $seed, "*
    fi
done

if compgen -G "$out/table3/*/result.json" >/dev/null; then
    rm -f "$out/table/result.json" # of the results that were there before
    alone "table" 60 "$out/table/result.json" "$python" experiments/run.py experiment=table3 "runs=$out/table3" \
        variants=depth data=tiny_imagenet "data.root=$data" "out=$out/table"
fi
say "$([[ $failed == 0 ]] && echo PASS || echo FAIL)" "all" "$SECONDS" "$out"
exit $failed
