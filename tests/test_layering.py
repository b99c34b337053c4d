"""The plan of the house: who may import whom, what importing does, and that ruff finds nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("common", "gan", "diffusion", "dann")
FILES = sorted(path for package in PACKAGES for path in (PROJECT / package).rglob("*.py"))
TREES = {path.relative_to(PROJECT).as_posix(): ast.parse(path.read_text()) for path in FILES}
# The papers' own matter: it can be read, tested and copied with PyTorch alone.
PURE = {
    "common/losses.py",
    "gan/dcgan.py", "gan/sagan.py", "gan/losses.py",
    "diffusion/unet.py", "diffusion/schedule.py", "diffusion/loss.py", "diffusion/samplers.py",
    "diffusion/attention.py", "diffusion/layers.py",
    "dann/grl.py", "dann/networks.py", "dann/losses.py",
}


def module_name(name):
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_name(name) for name in TREES}


def imports(tree):
    """Return the dotted names that a file imports, wherever it does so; `from a import b` may mean a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES
            names.update(inner)
            # A package alone is what `from gan import dcgan` reads, and it is empty.
            if node.module not in PACKAGES or len(inner) < len(node.names):
                names.add(node.module)
    return names


@pytest.mark.parametrize("name", TREES)
def test_packages_keep_apart(name):
    own = name.split("/")[0]
    allowed = {own, "common"}
    for imported in imports(TREES[name]):
        package = imported.split(".")[0]
        assert package not in PACKAGES or package in allowed, f"{name} imports {imported}"
        assert package not in ("tests", "scripts"), f"{name} imports {imported}"


@pytest.mark.parametrize("name", TREES)
def test_nobody_imports_a_command(name):
    commands = [i for i in imports(TREES[name]) if i.split(".")[-1] in ("train", "inference")]
    assert not commands, f"{name} imports {commands}: move what is shared into a module of its own"


@pytest.mark.parametrize("name", TREES)
def test_imports_are_written_out(name):
    hidden = [node.lineno for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)
              and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("__import__", "import_module")]
    assert not hidden, f"{name} lines {hidden}"


@pytest.mark.parametrize("name", sorted(PURE))
def test_networks_losses_and_samplers_need_torch_alone(name):
    siblings = {module_name(other) for other in PURE if other.split("/")[0] in ("common", name.split("/")[0])}
    for imported in imports(TREES[name]):
        top = imported.split(".")[0]
        assert top == "torch" or top in sys.stdlib_module_names or imported in siblings, f"{name}: {imported}"


def names_cuda(tree):
    """Say whether the code of a file, not its comments and docstrings, names CUDA."""
    docstrings = {id(node.body[0].value) for node in ast.walk(tree)
                  if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)}
    return any((isinstance(node, ast.Attribute) and "cuda" in node.attr.lower())
               or (isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
               and "cuda" in node.value.lower()) for node in ast.walk(tree))


def test_one_file_knows_gpus():
    assert {name for name, tree in TREES.items() if names_cuda(tree)} == {"common/device.py", "common/cli.py"}
    # The command line has the word as a choice of --device and nowhere else.
    lines = [line for line in (PROJECT / "common/cli.py").read_text().splitlines() if "cuda" in line.lower()]
    assert len(lines) == 1 and '"--device"' in lines[0]


def test_no_circle_of_imports():
    graph = {module_name(name): imports(tree) & MODULES for name, tree in TREES.items()}
    while graph:
        leaves = {module for module, needs in graph.items() if not needs & graph.keys() - {module}}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in leaves}


def test_rooms_are_small():
    lines = {name: (PROJECT / name).read_text().count("\n") for name in TREES}
    assert all(count <= 300 for count in lines.values())
    assert all(count <= 190 for name, count in lines.items() if name.endswith("/train.py"))
    assert sum(lines.values()) <= 7830


def test_one_module_reads_and_writes_model_files_and_none_can_run_code_from_them():
    using = {name for name, tree in TREES.items() for node in ast.walk(tree)
             if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
             and (node.value.id, node.attr) in {("torch", "save"), ("torch", "load")}}
    assert using == {"common/checkpoint.py"}
    assert not {name for name, tree in TREES.items() if {"pickle", "joblib", "dill"} & imports(tree)}


# Everything from outside is imported first; then only source files of the project may be opened.
IMPORT_ALL = """
import sys
import matplotlib, numpy, PIL.Image, PIL.ImageDraw, PIL.ImageFont, PIL.PngImagePlugin, scipy.io, scipy.ndimage
import sklearn, torch, torchvision.datasets, tqdm
import importlib, http.client, tarfile, zipfile
from pathlib import Path

project, *modules = sys.argv[1:]
seen = []

def watch(event, args):
    if event == "open":
        path = Path(str(args[0]))
        source = path.suffix in (".py", ".pyc")
        if not (source and (path.is_relative_to(project) or path.is_relative_to(outside))):
            seen.append(f"{event} {args[0]}")
    elif event == "os.listdir" and (str(args[0]) in sys.path or Path(str(args[0]), "__init__.py").exists()):
        pass  # the import system looks for modules
    elif event.split(".")[0] in ("socket", "subprocess", "urllib", "glob") or event in (
            "os.system", "os.mkdir", "os.remove", "os.rename", "os.listdir", "os.scandir", "os.putenv"):
        seen.append(f"{event} {args}")

outside = str(Path(torch.__file__).parent.parent)
state, threads = torch.get_rng_state(), torch.get_num_threads()
sys.addaudithook(watch)
for module in modules:
    before = len(seen)
    importlib.import_module(module)
    for event in seen[before:]:
        print(module, event)
for module in modules:
    assert module in sys.modules, module
assert not torch.cuda.is_initialized()
assert torch.equal(state, torch.get_rng_state()), "importing draws random numbers"
assert torch.get_num_threads() == threads
"""


@pytest.mark.slow
def test_importing_reads_no_data_and_opens_no_socket(tmp_path):
    command = [sys.executable, "-B", "-c", IMPORT_ALL, str(PROJECT), *sorted(MODULES)]
    env = {"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Windows has no fcntl, no resource, no hangup signal and none of a closed pipe.
WINDOWS = """
import importlib, signal, sys
from pathlib import Path
import filelock, torch, torchvision, sklearn, scipy.io  # from outside
project, out, *modules = sys.argv[1:]
sys.path.insert(0, project)
sys.modules["fcntl"] = sys.modules["resource"] = None
del signal.SIGHUP, signal.SIGPIPE
for module in modules:
    importlib.import_module(module)
import dann.inference, diffusion.inference, gan.inference
from common.cli import run_main
from common.run import Run
settings = {"resume": None, "steps": 1, "batch_size": 1, "log_every": 1, "save_every": 1, "seed": 0, "dry_run": False}
model = torch.nn.Linear(2, 3)
for _ in Run(Path(out), "test", settings, {}, {"model": model}, model, {}).steps():
    pass
run_main(lambda: gan.inference.main(["faces.png", "--grid", "2", "--device", "cpu"])
         or diffusion.inference.main("digits --digits 3 --per-digit 2 --device cpu --precision fp32".split())
         or dann.inference.main([f"{project}/docs/examples/svhn", "digits.csv", "--device", "cpu"]))
"""


@pytest.mark.slow
def test_everything_imports_trains_and_infers_without_the_modules_of_unix(tmp_path):
    command = [sys.executable, "-c", WINDOWS, str(PROJECT), str(tmp_path / "run"), *sorted(MODULES)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "run" / "done").exists() and (tmp_path / "faces.png").exists()
    assert sorted(path.name for path in (tmp_path / "digits").iterdir()) == ["3_001.png", "3_002.png"]
    assert (tmp_path / "digits.csv").read_text().count("\n") == 21


# What takes long to import, and which modules cannot do without: common.prepare reads torchvision's formats.
SLOW = {"torchvision", "torch._dynamo", "matplotlib", "sklearn", "scipy", "pandas"}
IMPORT_FAST = "import importlib, sys; [importlib.import_module(m) for m in sys.argv[1:]]; print(*sys.modules)"


def test_commands_start_without_what_only_some_of_their_work_needs():
    modules = sorted(MODULES - {"common.prepare"})
    done = subprocess.run([sys.executable, "-c", IMPORT_FAST, *modules], cwd=PROJECT, capture_output=True, text=True,
                          timeout=300, check=True)
    assert set(modules) <= set(done.stdout.split())
    assert not SLOW & set(done.stdout.split())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_no_module_of_its_own(package):
    tree = TREES[f"{package}/__init__.py"]
    assert imports(tree) == ({"signal", "sys"} if package == "common" else {"common"})


def test_the_code_is_clean_and_everything_public_has_a_docstring():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--quiet", "--no-cache", "--output-format=concise"],
                          cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


MODES = {"autocast", "no_grad", "inference_mode", "enable_grad", "sdpa_kernel"}


def yields_under_a_mode(tree):
    """Return the lines of `yield` inside a `with` of a mode of PyTorch, which would stay on in the caller."""
    lines = set()
    for block in (node for node in ast.walk(tree) if isinstance(node, ast.With)):
        names = {getattr(node, "attr", getattr(node, "id", "")) for item in block.items
                 for node in ast.walk(item.context_expr)}
        if names & MODES:
            lines |= {node.lineno for node in own_nodes(block) if isinstance(node, ast.Yield | ast.YieldFrom)}
    return sorted(lines)


def own_nodes(tree):
    """Yield the nodes below one, but not those of functions that are defined there."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            yield node
            yield from own_nodes(node)


def test_no_generator_leaves_a_mode_on_in_its_caller():
    trees = TREES | {path.name: ast.parse(path.read_text()) for path in (PROJECT / "scripts").glob("*.py")}
    assert not {name: lines for name, tree in trees.items() if (lines := yields_under_a_mode(tree))}
    leak = ast.parse("def f():\n with torch.no_grad(), g:\n  if x:\n   yield 1\n")
    no_leak = ast.parse("with autocast(d):\n def f():\n  yield 1\nwith open(p):\n yield 2\n")
    assert yields_under_a_mode(leak) == [4] and not yields_under_a_mode(no_leak)
