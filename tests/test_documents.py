"""README, report and docs: their links lead somewhere, their commands exist, and the first page stays short."""

import importlib.util
import re
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
def test_links_and_pictures_exist(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
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


def test_the_first_page_is_short_and_begins_with_pictures():
    text = (PROJECT / "README.md").read_text()
    assert len(text.encode()) <= 12_000
    assert text.index("![") < text.index("```bash") < 1500
