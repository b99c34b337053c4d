"""The demo's contact sheet: every picture beside its scores, and the scores are those of the files."""

import shutil

import pytest
from PIL import Image

from common.errors import UserError
from common.files import write_json
from scripts import contact_sheet

SCORES = {"faces.json": {"swd_mean": 31.4, "swd_mean_real": 8.6, "near_duplicates": 0.125},
          "digits.json": {"accuracy": 0.93, "classifier_accuracy_on_val": 0.997},
          "diffusion/done": {"steps": 70},
          "dann-source/result.json": {"test": 0.8504}, "dann-plus/result.json": {"test": 0.9632}}
PICTURES = ("released-faces", "released-digits", "gan/samples/0000100", "gan/samples/0000200", "faces/0", "digits/0",
            "tsne")


@pytest.fixture
def demo(tmp_path):
    """Return a folder as the demo leaves it; each picture has a colour of its own, t-SNE another in each half."""
    folder = tmp_path / "demo"
    for folders in ("gan/samples", "diffusion", "dann-source", "dann-plus", "faces", "digits"):
        (folder / folders).mkdir(parents=True)
    for number, name in enumerate(PICTURES):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(folder / f"{name}.png")
    with Image.open(folder / "tsne.png") as halves:
        halves.load()
    halves.paste((200, 0, 0), (20, 0, 40, 20))
    halves.paste((250, 0, 0), (0, 20, 40, 40))  # by domain, which is not shown
    halves.save(folder / "tsne.png")
    for name, scores in SCORES.items():
        write_json(folder / name, scores)
    (folder / "predictions.csv").write_text("image_name,label\n3_0.png,3\n3_1.png,8\n4_0.png,4\n")
    return folder


def test_each_panel_has_its_picture_and_its_scores(demo):
    titles, pictures = zip(*contact_sheet.panels(demo), strict=True)
    assert [picture.height for picture in pictures[-2:]] == [20, 20]
    reds = [picture.convert("RGB").getpixel((9, 9))[0] for picture in pictures]
    del reds[1]  # the street numbers
    assert reds == [0, 2, 4, 1, 5, 6, 200]  # of the previews, the first
    expected = ["", "2 of 3 correctly", "after 100 steps", "SWD 31 (real: 9), 12% near-duplicates", "",
                "after 70 steps on white digits:\n93.0% are read correctly (real: 99.7%)", "85.0% of the street",
                "96.3% are"]
    assert all(words in title for words, title in zip(expected, titles, strict=True)), titles


def test_the_sheet_is_written_and_its_path_is_the_last_line(demo, capsys):
    out = demo / "sheet.png"
    contact_sheet.main([str(demo), "--out", str(out)])
    assert capsys.readouterr().out == f"{out}\n"
    with Image.open(out) as sheet:
        assert sheet.width == 960
    with pytest.raises(UserError, match="exists already"):
        contact_sheet.parse_args([str(demo), "--out", str(out)])


def test_other_files_are_no_previews(demo):
    for name in (".DS_Store", ".0000050.png.partial"):
        (demo / "gan/samples" / name).touch()
    assert "after 100 steps" in contact_sheet.panels(demo)[2][0]


def test_a_demo_that_has_not_ended_is_one_line(demo):
    shutil.rmtree(demo / "dann-plus")
    with pytest.raises(UserError, match=r"dann-plus/result.json .*: expected what scripts/demo.sh leaves"):
        contact_sheet.main([str(demo), "--out", str(demo / "sheet.png")])
    assert not (demo / "sheet.png").exists()


def test_a_demo_without_previews_is_one_line(demo):
    shutil.rmtree(demo / "gan/samples")
    with pytest.raises(UserError, match="gan/samples has no previews: run bash scripts/demo.sh"):
        contact_sheet.panels(demo)
