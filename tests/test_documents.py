"""README, report and docs: links lead somewhere, commands exist, diffs apply, and the first page stays short."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([PROJECT / "README.md", PROJECT / "hw2_report.md", PROJECT / "report/networks.md",
                    *(PROJECT / "docs").glob("*.md")])


def anchors(path):
    """Return the anchors of a document's headings, as Markdown viewers make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_exist_and_no_field_is_left(path):
    text = path.read_text()
    assert "<!--" not in text and "{table." not in text
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = path.parent / name if name else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(path):
    text = path.read_text()
    assert all((PROJECT / script).is_file() for script in re.findall(r"bash (scripts/\w+\.sh)", text))
    modules = set(re.findall(r"(?:python|processes?_per_node \d+) -m ([a-z]+\.[a-z]+)", text))
    assert all(importlib.util.find_spec(module) for module in modules)


def lines_of(hunk, sign):
    """Return the lines of a diff without those that begin with `sign`."""
    return "".join(line[1:] + "\n" for line in hunk.splitlines() if line[0] != sign)


@pytest.mark.slow
def test_the_diffs_of_the_first_page_apply_and_the_tests_of_their_files_pass(tmp_path):
    for name in ("common", "gan", "diffusion", "dann", "tests"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("golden", "__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    diffs = re.findall(r"```diff\n--- a/(\S+)\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    assert {name for name, _ in diffs} == {"common/data/domains.py", "gan/losses.py"}
    for name, hunk in diffs:
        before, old = (tmp_path / name).read_text(), lines_of(hunk, "+")
        assert before.count(old) == 1
        (tmp_path / name).write_text(before.replace(old, lines_of(hunk, "-")))
    tests = [f"tests/{Path(name).parent}/test_{Path(name).name}" for name, _ in diffs]
    for command in (["pytest", "-p", "no:cacheprovider", *tests], ["ruff", "check", *(name for name, _ in diffs)]):
        done = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_picture_and_table_of_the_report_is_shown_or_linked():
    linked = {(path.parent / link).resolve() for path in DOCUMENTS
              for link in re.findall(r"\]\(([^)#:]+)[^)]*\)", path.read_text())}
    shown = [path for path in (PROJECT / "report").iterdir() if path.suffix in (".md", ".png", ".gif")]
    assert not [path.name for path in shown if path not in linked and not path.name.endswith(".template.md")]


def test_the_first_page_is_short_and_begins_with_pictures():
    text = (PROJECT / "README.md").read_text()
    assert len(text.encode()) <= 12_000
    assert text.index("![") < text.index("```bash") < 1500
