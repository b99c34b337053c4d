"""What check_trainers.py trains, by name: a command and its flags. No name is part of another one."""

CASES = {
    "dcgan": ("gan.train", "--model dcgan --width {width} --augment"),
    "sagan": ("gan.train", "--model sagan --width {width}"),
    "diffusion": ("diffusion.train", "--width {width} --warmup 1"),
    "distill": ("diffusion.distill", "--teacher {teacher}"),
    "adversarial": ("diffusion.adversarial", "--student {teacher} --teacher {teacher} --lr 1e-3"),
    "plain": ("dann.train", "--source mnist --target usps --recipe plain"),
    "plus": ("dann.train", "--source mnist --target usps --recipe plus --target-only 0.5"),
}
