#!/usr/bin/env bash
# The committed results, made again piece by piece.
#
#     bash scripts/reproduce.sh --list              # the pieces: done or not, expected seconds, data that are needed
#     bash scripts/reproduce.sh                     # all of them, in order
#     bash scripts/reproduce.sh 'fig*/*' 'train/*'  # those whose names match
#
# A piece is one committed result, results/<experiment>/<name>/result.json, or one of the networks of published/. Its
# command is the one in its provenance. Its files go to OUT/<experiment>/<name>. A piece whose result.json is there is
# skipped. Stop it at any time (Ctrl-C, kill) and start it again: trainings, scans and features resume.
# Pieces that need data which are not there are named and left out.
#
# Settings, in front of the command as in `DATA=/mnt/data bash scripts/reproduce.sh`:
#   DATA    the folder that has the data sets of docs/reproduce.md    data
#   OUT     the folder of the results                                 outputs/reproduce
#   PYTHON  the interpreter                                           python3
#
# It exits with 0 if every piece that was asked for is done, else with 1.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONHASHSEED=0
data=${DATA:-data} out=${OUT:-outputs/reproduce} python=${PYTHON:-python3}

usage() { sed -n '2,/^set -u/{/^set -u/d;s/^# \{0,1\}//;p}' scripts/reproduce.sh; }
die() {
    echo "reproduce.sh: $*" >&2
    exit 2
}

list=
case "${1:-}" in
-h | --help)
    usage
    exit 0
    ;;
--list)
    list=yes
    shift
    ;;
-*) die "unknown option $1 (--help says all)" ;;
esac
(($# > 0)) || set -- '*'

wanted() { # NAME PATTERN...
    local name=$1
    shift
    for pattern; do
        # shellcheck disable=SC2053
        [[ $name == $pattern ]] && return 0
    done
    return 1
}

missing() { # NEED...: the first of them that DATA has not
    for need; do
        [[ -e $data/$need ]] || { echo "$need" && return 0; }
    done
    return 1
}

say() { printf '%-4s %-52s %6s s  %s\n' "$@"; }

all=$("$python" scripts/pieces.py) || exit 2
undone=0
for pattern; do
    grep -q . < <(while IFS=$'\t' read -r name _; do wanted "$name" "$pattern" && echo "$name"; done <<<"$all") ||
        die "no piece matches $pattern (--list names them)"
done
while IFS=$'\t' read -r name seconds needed; do
    wanted "$name" "$@" || continue
    read -ra needed <<<"$needed"
    if [[ -e $out/$name/result.json ]]; then
        say DONE "$name" "$seconds" "$out/$name"
        continue
    fi
    if need=$(missing "${needed[@]}"); then
        say MISS "$name" "$seconds" "there is no $data/$need"
        undone=1
        continue
    fi
    if [[ -n $list ]]; then
        say TODO "$name" "$seconds" "${needed[*]}"
        continue
    fi
    say RUN "$name" "$seconds" "expected"
    began=$SECONDS
    mkdir -p "$out/logs" || die "cannot write to $out"
    log="$out/logs/${name//[\/ ]/-}.log"
    if "$python" scripts/pieces.py "$name" "$data" "$out" >"$log.words" && mapfile -d '' -t words <"$log.words" &&
        "$python" "${words[@]}" </dev/null >"$log" 2>&1 && [[ -e $out/$name/result.json ]]; then
        say DONE "$name" "$((SECONDS - began))" "$out/$name"
    else
        [[ -s $log ]] && tail -n 1 "$log"
        say FAIL "$name" "$((SECONDS - began))" "start again to resume: $log"
        undone=1
    fi
    rm -f "$log.words"
done <<<"$all"
[[ -n $list ]] || exit "$undone"
