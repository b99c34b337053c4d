#!/usr/bin/env bash
# All three tasks, in 9 to 13 minutes on two CPU cores without bfloat16: pictures by the released weights, then one
# training per task on embedded data, with scores. Everything goes to runs/demo; a second run continues where the first
# stopped. The last line printed is the path of one picture of everything.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$project"
out=runs/demo
[[ ! -e $out/gan || -e $out/released-digits.png ]] || fail "$project/$out is of an older version: remove it"

# What the released weights do.
run -m diffusion.inference $out/released-digits.png --grid --force
run -m gan.inference $out/released-faces.png --grid 32 --force
run -m dann.inference docs/examples/svhn $out/predictions.csv --force

# Street numbers without labels, from labelled MNIST-M.
for row in "source" "dann --recipe plain" "dann --recipe plus"; do
    run -m dann.train --data builtin --source mnistm --target svhn --mode $row --steps 300 \
        --out "$out/dann-${row##* }" --resume auto
done
run -m dann.evaluate $out/dann-source $out/dann-plain $out/dann-plus --out $out/dann.md --force
run -m dann.tsne $out/dann-source/last.pt $out/dann-plus/last.pt --data builtin --out $out/tsne.png --points 500 --force

# Digits: the released U-Net learns another kind of them.
run -m diffusion.train --data builtin --domain mnist --init weights/diffusion.pt --steps 60 --batch-size 32 --lr 3e-4 \
    --warmup 10 --ema-decay 0.95 --log-every 10 --out $out/diffusion --resume auto
run -m diffusion.inference $out/digits --weights $out/diffusion/last.pt --per-digit 10 --steps 10
run -m diffusion.evaluate $out/digits --data builtin --domain mnist --classifier $out/classifier.pt \
    --out $out/digits.json --force

# Faces, from noise.
run -m gan.train --model dcgan --data builtin --width 24 --epochs 15 --batch-size 32 --g-lr 4e-4 --d-lr 4e-4 \
    --augment --ema-decay 0.99 --log-every 100 --sample-every 100 --out $out/gan --resume auto
run -m gan.inference $out/faces --model dcgan --weights $out/gan/last.pt --n 200
run -m gan.evaluate $out/faces --reference builtin --out $out/faces.json --force

echo
echo "Before and after, with scores:"
run -m scripts.contact_sheet $out --out $out/sheet.png --force
