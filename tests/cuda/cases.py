"""What check_trainers.py trains, by name: a command and its flags. No name is part of another one."""

CASES = {
    "dcgan": ("gan.train", "--model dcgan --width {width}"),
    "penalty": ("gan.train", "--model dcgan --width {width} --r1 0.1 --spectral-norm"),
    "sagan": ("gan.train", "--model sagan --width {width}"),
    "diffusion": ("diffusion.train", "--width {width} --warmup 1"),
    "guidance": ("diffusion.distill", "--teacher {teacher} --guidance 2"),
    "chain": ("diffusion.distill", "--teacher {teacher} --guidance 2 --chain 4"),
    "plain": ("dann.train", "--source mnist --target usps --recipe plain"),
    "plus": ("dann.train", "--source mnist --target usps --recipe plus --target-only 0.5"),
}
