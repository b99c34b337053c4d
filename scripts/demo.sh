#!/usr/bin/env bash
# All three tasks on the embedded data, from nothing to scored results, in some eight minutes on two CPU cores:
# train a little, infer, evaluate. Everything goes to runs/demo; a second run goes on where the first stopped.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$project"
out=runs/demo

run -m gan.train --model dcgan --data builtin --width 16 --epochs 10 --batch-size 32 --ema-decay 0.99 --log-every 100 \
    --out $out/gan --resume auto
run -m gan.inference $out/faces --model dcgan --weights $out/gan/last.pt --n 200
run -m gan.inference $out/faces.png --model dcgan --weights $out/gan/last.pt --grid 32 --force
run -m gan.evaluate $out/faces --reference builtin --out $out/faces.json --force

run -m diffusion.train --data builtin --domain mnist --width 16 --epochs 4 --batch-size 32 --lr 2e-3 --warmup 100 \
    --log-every 100 --out $out/diffusion --resume auto
run -m diffusion.inference $out/digits --weights $out/diffusion/last.pt --per-digit 10
run -m diffusion.inference $out/digits.png --weights $out/diffusion/last.pt --grid --force
run -m diffusion.evaluate $out/digits --data builtin --domain mnist --classifier $out/classifier.pt \
    --out $out/digits.json --force

for row in "source" "dann --recipe plain" "dann --recipe plus" "target"; do
    run -m dann.train --data builtin --source mnistm --target usps --mode $row --steps 300 \
        --out "$out/dann-${row##* }" --resume auto
done
run -m dann.evaluate $out/dann-source $out/dann-plain $out/dann-plus $out/dann-target --out $out/dann.md --force

cat <<END

The demo is done. It trained for minutes on small embedded data, so expect sketches, not results.
  faces     $out/faces.png, scores in $out/faces.json
  digits    $out/digits.png, scores in $out/digits.json
  table     $out/dann.md
END
