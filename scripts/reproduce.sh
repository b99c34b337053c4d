#!/usr/bin/env bash
# Train what this project ships from the data, score it, release it into a folder of its own, and compare:
#
#     bash scripts/reproduce.sh [all|faces|digits|domains|NAME ...] [--data hw2_data] [--out runs/reproduce]
#                               [--device auto|cpu|cuda] [--dry-run] [FLAG ... of every training, e.g. --steps 20]
#
# --dry-run prints what each line takes, and stops. The same command continues a stopped one, and skips finished lines.
# OUT/logs/NAME.log is what a line printed, OUT/weights has its file, OUT/comparison.md the scores. A time limit such as
# `timeout 840 bash scripts/reproduce.sh` saves; `python -m scripts.reproduce compare OUT` shows the scores so far.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# One line per released file, per student on the way to one, and per cell of the table of domains: part, name, training.
# A line with the name of a file of weights/ is also released.
# SAGAN ends at step 4,600 of a plan of 7,175 (hw2_report.md, "The released SAGAN").
lines() {
    line faces dcgan gan.train --model dcgan
    line faces sagan scripts.reproduce until 4600 gan.train --model sagan --batch-size 32 --steps 7175

    line digits diffusion diffusion.train --batch-size 256 --lr 1e-3 --steps 7800
    line digits diffusion-8 diffusion.distill --teacher "$out/weights/diffusion.pt" --steps 750
    line digits diffusion-4 diffusion.distill --teacher "$out/runs/diffusion-8/last.pt" --steps 250
    line digits diffusion-2 diffusion.distill --teacher "$out/runs/diffusion-4/last.pt" --steps 250
    line digits diffusion-distilled diffusion.adversarial --teacher "$out/weights/diffusion.pt" \
        --student "$out/runs/diffusion-2/last.pt" --generated "$out/images/diffusion-8"

    local source target part dann seeds domains="mnist mnistm usps svhn"
    for target in $domains; do
        for source in $domains; do
            [[ $source != "$target" ]] || continue
            dann="dann.train --source $source --target $target --sample-every 500"
            case $source-$target in mnistm-usps | mnistm-svhn) seeds="0 1 2" ;; *) seeds=0 ;; esac
            line domains source-$source-$target $dann --mode source --seeds $seeds
            line domains plain-$source-$target $dann --mode dann --recipe plain --seeds $seeds
            line domains dann-$source-$target $dann --mode dann --recipe plus --seeds 0 1 2
            case $source-$target in  # a target is trained on once
                mnistm-* | mnist-mnistm) line domains target-$target $dann --mode target --seeds $seeds ;;
            esac
        done
    done
    for part in photograph neighbours; do
        line domains dann-mnistm-svhn-no-$part dann.train --source mnistm --target svhn --sample-every 500 --mode dann \
            --recipe plus --no-$part --seeds 0
    done
}

# The command line.
wanted="" data=hw2_data out=runs/reproduce device=auto dry_run=""
[[ -d $data || ! -d $project/$data ]] || data=$project/$data
while (($#)); do
    case $1 in
        --data=* | --out=* | --device=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --data | --out | --device)
            [[ -n ${2:-} ]] || fail "$1: expected a value"
            printf -v "${1#--}" %s "$2"
            shift 2 ;;
        --dry-run) dry_run=$1; shift ;;
        -h | --help) sed -n '2,/^source/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
        -*) break ;;
        *) wanted+="$1 "; shift ;;
    esac
done
for word in "$@"; do
    [[ ! $word =~ ^--(data|out|device|dry-run)(=|$) ]] || fail "$word: write it before the flags of the trainings"
done
refuse "--model --mode --recipe --source --target --teacher --student --generated --seed --seeds" \
    "the command of its line" "$@"
wanted=" ${wanted:-all }"
known=" all $(line() { printf '%s ' "$1" "$2"; }; lines)"
for word in $wanted; do
    [[ $known == *" $word "* ]] || fail "$word: expected all, faces, digits, domains, or the name of a line"
done
flags=(--data "$data" "$@")  # of every training
chosen() { [[ $wanted == *" all "* || $wanted == *" $1 "* || $wanted == *" $2 "* ]]; }

# What it takes.
line() { ! chosen "$@" || { printf '%q ' "$@"; echo; }; }
lines | run -m scripts.reproduce plan $dry_run "${flags[@]}" --device "$device"
echo "The faces of weights/ were trained on CelebA (dcgan) and LFWcrop (sagan): with one --data, only one of the two can be \
compared."
[[ -z $dry_run ]] || exit 0
[[ $data == builtin || -d $data ]] || fail "no data folder $data: build it with \`bash scripts/prepare_data.sh --raw \
DIR --out $data\`, or use \`--data builtin\`"

# Train, generate, score and release, with the variables of `line`. A step that was done already takes seconds.
faces_scores() {
    local reference=$data/face/val
    [[ $data != builtin ]] || reference=builtin
    run -m gan.inference "$images" --weights "$trained/last.pt" --device "$device" &&
        run -m gan.evaluate "$images" --reference "$reference" --out "$scores" --force
}
digits_scores() {
    run -m diffusion.inference "$images" --weights "$trained/last.pt" --device "$device" &&
        run -m diffusion.evaluate "$images" --data "$data" --device "$device" --classifier "$out/classifier.pt" \
            --out "$scores" --force
}
domains_scores() { trained+=-seed0 scores=$trained/result.json; }
reproduce() {
    local trained=$out/runs/$name images=$out/images/$name scores=$out/scores/$name.json word
    for word in "$@"; do
        [[ $word != */last.pt || -f ${word%last.pt}done ]] || { echo "${word%/last.pt} is not finished"; return 2; }
        [[ $word != "$out"/weights/*.pt || -f $word ]] || { echo "$word is not released"; return 2; }
    done
    [[ $name != diffusion-distilled ]] ||
        run -m diffusion.inference "$out/images/diffusion-8" --weights "$out/runs/diffusion-8/last.pt" \
            --per-digit 1200 --seed 1000 --device "$device" || return
    run -m "$@" "${flags[@]}" --device "$device" --out "$trained" --resume auto || return
    [[ ! -f $project/weights/$name.pt ]] ||
        { "${part}_scores" && run -m common.release "$trained" "$out/weights/$name.pt" --scores "$scores" --force; }
}

failed=""
line() {
    chosen "$@" || return 0
    local part=$1 name=$2 code=0; shift 2
    local log=$out/logs/$name command="$* ${flags[*]}"
    if [[ -f $log.command && $(<"$log.command") != "$command" ]]; then
        echo "error: $out holds $name by another command ($log.command): name another --out" >&2
        failed+=" $name"
        return 0
    fi
    [[ ! -f $log.done ]] || { echo "$name: done already"; return 0; }
    echo "$command" >"$log.command"
    echo "$name: see $log.log"
    SECONDS=0
    reproduce "$@" >>"$log.log" 2>&1 || code=$?
    case $code in
        0) touch "$log.done"; echo "$name: $SECONDS s" ;;
        129 | 130 | 143) echo "stopped in $name: the same command continues" >&2; exit "$code" ;;
        *) echo "error: $name: $(tail -n 1 "$log.log")" >&2; failed+=" $name" ;;
    esac
}
mkdir -p "$out/logs" 2>/dev/null || fail "cannot write $out: name another --out"
lines
run -m scripts.reproduce compare "$out"
[[ -z $failed ]] || fail "not finished:$failed: the lines above and $out/logs say why"
