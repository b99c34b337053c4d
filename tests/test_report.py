"""The documents and pictures against what they are made from, and what the report script says when they differ."""

import json
import re
import shutil

import pytest
from PIL import Image

from common.checkpoint import sha256
from common.errors import UserError
from common.files import write_json
from dann import tsne
from diffusion import evaluate as diffusion_evaluate
from diffusion import inference as diffusion_inference
from diffusion.generate import DISTILLED
from gan import evaluate as gan_evaluate
from gan import inference as gan_inference
from scripts import report

DOCUMENT = """\
Sure of <!-- value: report/digits.json accuracy .1% -->?<!-- end -->,
and trained for <!-- training: dcgan.pt -->?<!-- end -->.
<!-- table: samplers -->
<!-- end -->
<!-- network: dann --><!-- end -->
"""


# As they stand


def test_documents_and_pictures_are_what_they_are_made_from(capsys):
    code = report.main(["--check"])
    assert (capsys.readouterr().err, code) == ("", 0)


@pytest.mark.parametrize("name", report.DOCUMENTS)
def test_pictures_exist_and_no_line_begins_with_a_number_of_a_sentence(name):
    text = (report.PROJECT / name).read_text()
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert pictures and all((report.PROJECT / picture).is_file() for picture in pictures)
    # Markdown takes a line that begins with a comment for HTML, and what follows in it for plain text.
    assert not re.findall(r"^<!-- (?:value|training): .*", text, re.MULTILINE)


def test_the_report_is_small():
    assert sum(path.stat().st_size for path in (report.PROJECT / "report").iterdir()) < 8 * 2**20


def test_commands_of_pictures_are_ones(monkeypatch, tmp_path):
    seen = []
    for command in (gan_inference, diffusion_inference):
        monkeypatch.setattr(command, "main", lambda argv, command=command: seen.append(command.parse_args(argv).out))
    inferred = {name: figure for name, figure in report.FIGURES.items()
                if getattr(figure.draw, "__qualname__", "").startswith("by_command.")}
    for name, figure in inferred.items():
        figure.draw(tmp_path / name, "builtin")  # an unknown flag or a wrong suffix would be a UserError
    assert [path.name for path in seen] == list(inferred) and len(seen) == 6


def test_pictures_of_nearest_neighbours_come_from_released_images(monkeypatch, tmp_path):
    seen = []
    commands = (gan_inference, gan_evaluate, diffusion_inference, diffusion_evaluate)
    for command in commands:
        monkeypatch.setattr(command, "main", lambda argv, command=command: seen.append(command.parse_args(argv)))
    near = [tmp_path / "faces-nearest.png", tmp_path / "digits-nearest.png"]
    for path in near:
        report.FIGURES[path.name].draw(path, "some")
    faces, scored_faces, digits, scored_digits = seen
    assert (scored_faces.folder, scored_digits.folder) == (faces.out, digits.out)
    assert (scored_faces.reference, scored_digits.data) == ("some/face/val", "some")
    assert [scored_faces.neighbours, scored_digits.neighbours] == near
    assert (faces.weights.name, digits.weights.name) == ("dcgan.pt", DISTILLED) and faces.n == 1000
    assert (report.FIGURES[near[0].name].shows, report.FIGURES[near[1].name].shows) == (("dcgan.pt",), (DISTILLED,))


# A project of one document, one weight file and one picture


def draw(path, data):
    path.write_bytes(b"picture")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project, rebuilt."""
    shutil.copytree(report.PROJECT / "report", tmp_path / "report", ignore=shutil.ignore_patterns("*.png", "*.gif"))
    (tmp_path / "report" / "figures.json").unlink()
    write_json(tmp_path / "report" / "points.json", {"a": {"b": 1}})
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "dcgan.pt").write_bytes(b"weights")
    manifest = json.loads((report.PROJECT / report.MANIFEST).read_text())
    manifest["dcgan.pt"]["sha256"] = sha256(tmp_path / "weights" / "dcgan.pt")
    write_json(tmp_path / report.MANIFEST, manifest)
    (tmp_path / "a.md").write_text(DOCUMENT)
    figures = {"a.png": report.Figure(("dcgan.pt",), draw), "b.png": report.Figure((), draw),
               "c.png": report.by_plot(lambda found, path: path.write_text(str(found["a"]["b"])), "points.json")}
    for name, value in (("PROJECT", tmp_path), ("DOCUMENTS", ("a.md",)), ("FIGURES", figures)):
        monkeypatch.setattr(report, name, value)
    assert report.main([]) == 0
    return tmp_path


def check(project, capsys):
    """Run the check, which must not write; return its lines."""
    files = {path: path.read_bytes() for path in project.rglob("*.*")}
    capsys.readouterr()
    code = report.main(["--check"])
    assert files == {path: path.read_bytes() for path in project.rglob("*.*")}
    lines = capsys.readouterr().err.splitlines()
    assert code == (2 if lines else 0)
    return lines


def change(project, path, keys, value):
    """Put another value into a JSON file."""
    content = found = json.loads((project / path).read_text())
    for key in keys[:-1]:
        found = found[key]
    found[keys[-1]] = value
    write_json(project / path, content)


def test_regions_are_filled_and_what_stands_between_them_is_kept(project, capsys):
    text = (project / "a.md").read_text()
    manifest, accuracy = report.result(report.MANIFEST)["dcgan.pt"], report.result("report/digits.json")["accuracy"]
    assert text.startswith(f"Sure of <!-- value: report/digits.json accuracy .1% -->{accuracy:.1%}<!-- end -->,\n")
    assert f"dcgan.pt -->{manifest['step']:,} steps of batch {manifest['args']['batch_size']} (" in text
    assert f"samplers -->\n{(project / 'report' / 'samplers.md').read_text()}<!-- end -->" in text
    assert "dann -->\n```\nDANN(\n  (feature): Sequential(\n" in text and text.endswith(")\n```\n<!-- end -->\n")
    assert check(project, capsys) == []


def test_a_number_typed_by_hand_is_named(project, capsys):
    before = (project / "a.md").read_text()
    (project / "a.md").write_text(before.replace("trained for", "trained 9 times for"))
    assert check(project, capsys) == []  # outside of regions everything may change
    (project / "a.md").write_text(before.replace("<!-- training: dcgan.pt -->", "<!-- training: dcgan.pt -->9"))
    assert check(project, capsys) == [
        "error: a.md: <!-- training: dcgan.pt -->: not what its source says: bash scripts/report.sh makes it anew"]
    assert report.main(["--text"]) == 0
    assert (project / "a.md").read_text() == before


def test_a_new_result_changes_its_regions_alone(project, capsys):
    for path, keys in (("report/digits.json", ["accuracy"]), (report.MANIFEST, [DISTILLED, "scores", "accuracy"])):
        change(project, path, keys, 0.5)
    (line,) = check(project, capsys)
    assert line.startswith("error: a.md: <!-- value: report/digits.json accuracy .1% -->: ")
    assert report.main([]) == 0 and "-->50.0%<!-- end -->" in (project / "a.md").read_text()


def test_results_of_other_weights_are_named(project, capsys):
    change(project, "report/sagan.json", ["variety"], 1.0)
    change(project, "report/samplers.json", ["about", "weights"], "0")
    scores, samplers = check(project, capsys)
    assert scores.startswith("error: report/sagan.json: not the scores that weights/manifest.json has for sagan.pt: ")
    assert samplers.startswith("error: report/samplers.json: measured with other weights than diffusion.pt: ")
    assert report.main([]) == 2  # nothing to be made anew here


def test_pictures_of_other_weights_and_other_pictures_are_named(project, capsys):
    (project / "weights" / "dcgan.pt").write_bytes(b"better weights")
    change(project, report.MANIFEST, ["dcgan.pt", "sha256"], sha256(project / "weights" / "dcgan.pt"))
    (project / "report" / "b.png").write_bytes(b"painted")
    change(project, "report/points.json", ["a", "b"], 2)
    assert [line.partition(": bash")[0] for line in check(project, capsys)] == [
        "error: report/a.png: drawn from another dcgan.pt than there is",
        "error: report/b.png: not the picture that report/figures.json records",
        "error: report/c.png: drawn from another points.json than there is"]
    assert report.main(["--text"]) == 2
    assert report.main([]) == 0 and check(project, capsys) == []
    assert (project / "report" / "c.png").read_text() == "2"
    (project / "report" / "b.png").unlink()
    assert len(check(project, capsys)) == 1


@pytest.mark.parametrize(("data", "why"), [
    ("builtin", "real images are not at hand: name their folder with --data"), ("some", "some: no such folder")])
def test_a_picture_of_real_images_that_are_not_at_hand_is_left(project, capsys, monkeypatch, data, why):
    def draw(path, data):
        raise UserError(f"{data}: no such folder")

    before = json.loads((project / report.FIGURES_JSON).read_text())
    monkeypatch.setitem(report.FIGURES, "b.png", report.Figure((), draw, real=True))
    assert report.main(["--data", data]) == 0
    assert f"left report/b.png as it is: {why}\n" in capsys.readouterr().out
    assert (project / "report" / "b.png").exists()
    assert json.loads((project / report.FIGURES_JSON).read_text()) == before
    monkeypatch.setitem(report.FIGURES, "b.png", report.Figure((), draw))
    with pytest.raises(UserError, match="no such folder"):
        report.main(["--data", data])


def test_pictures_of_real_images_are_known_as_such():
    assert {name for name, figure in report.FIGURES.items() if figure.real} == {
        "faces-nearest.png", "digits-nearest.png",
        *(f"tsne-mnistm-{target}{recipe}.png" for target in ("usps", "svhn") for recipe in ("", "-plus"))}


@pytest.mark.parametrize(("text", "message"), [
    ("<!-- table: samplers -->\n", r"a\.md: <!-- table: samplers -->: a region begins"),
    ("<!-- end -->\n", r"a\.md: <!-- end -->: a region begins"),
    ("<!-- table: samplers -->\n<!-- table: speed -->\n<!-- end -->\n", r"<!-- table: samplers -->: a region begins"),
    ("<!-- tabel: samplers --><!-- end -->", r"<!-- tabel: samplers -->: cannot be made \(KeyError\('tabel'\)\)"),
    ("<!-- table: sampler --><!-- end -->", r"<!-- table: sampler -->: cannot be made \(KeyError\('sampler'\)\)"),
    ("<!-- value: report/x.json a d --><!-- end -->", r"report/x\.json a d -->: cannot be made \(FileNotFoundError"),
    ("<!-- value: report/digits.json a d --><!-- end -->", r"cannot be made \(KeyError\('a'\)\)"),
    ("<!-- value: report/digits.json accuracy d --><!-- end -->", r"cannot be made \(ValueError"),
    ("<!-- value: report/digits.json --><!-- end -->", r"cannot be made \(ValueError"),
])
def test_a_wrong_region_is_named_and_nothing_written(project, text, message):
    (project / "a.md").write_text(f"<!-- training: dcgan.pt -->?<!-- end -->{text}")
    with pytest.raises(UserError, match=message):
        report.main([])
    assert (project / "a.md").read_text() == f"<!-- training: dcgan.pt -->?<!-- end -->{text}"


# Parts


def test_a_value_is_found_by_keys_with_spaces_and_a_list_counts_by_its_mean(project):
    write_json(project / "report" / "x.json", {"a b": {"c": [1, 2, 6]}, "rows": "three", "list": [{"c": 6}, {"c": 7}]})
    assert report.value("report/x.json a b/c .1f") == "3.0"
    assert report.value("report/x.json rows s") == "three"
    assert report.value("report/x.json list/1/c d") == "7"


def test_the_faces_table_shows_what_all_have(project):
    scores = {"reference": "faces", "images": 10, "swd": [1, 2, 6], "swd_real": [0.5, 0.5, 2], "variety": 9,
              "variety_real": 8, "near_duplicates": 0.25, "near_duplicates_real": 0, "suspicious": 0.02}
    write_json(project / "report" / "dcgan.json", scores | {"fid": 3, "fid_real": 1})
    write_json(project / "report" / "sagan.json", scores | {"variety": 7})
    assert report.faces_table(report.RELEASED_FACES) == """\
| 10 images against faces | 64 px | 32 px | 16 px | mean | variety | near-duplicates | close to a training face |
|---|---|---|---|---|---|---|---|
| DCGAN (A) | 1.0 | 2.0 | 6.0 | 3.0 | 9.0 | 25.0% | 2.0% |
| SAGAN (B) | 1.0 | 2.0 | 6.0 | 3.0 | 7.0 | 25.0% | 2.0% |
| real against real | 0.5 | 0.5 | 2.0 | 1.0 | 8.0 | 0.0% | - |
"""
    write_json(project / "report" / "sagan.json", scores | {"reference": "other faces"})
    with pytest.raises(ValueError, match="not measured against the same faces"):
        report.faces_table(report.RELEASED_FACES)


def test_the_strip_is_faces_and_digits_of_one_height(project):
    Image.new("RGB", (8, 4), "red").save(project / "report" / f"{gan_inference.DEFAULT_MODEL}.png")
    Image.new("RGB", (12, 12), "blue").save(project / "report" / "digits.png")
    report.draw_strip(project / "report" / "strip.png", "builtin")
    with Image.open(project / "report" / "strip.png") as strip:
        assert strip.size == (16 + 20 + 8, 8)
        assert [strip.getpixel((x, 7)) for x in (15, 16, 35, 36)] == [(255, 0, 0), *[(255,) * 3] * 2, (0, 0, 255)]


def test_tsne_shows_the_source_network_and_the_adapted_one(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(tsne, "main", lambda argv: seen.append(tsne.parse_args(argv)))
    names = "tsne-mnistm-usps.png", "tsne-mnistm-usps-plus.png"
    for name in names:
        report.FIGURES[name].draw(tmp_path / name, "some")
    plain, plus = seen
    assert [args.out.name for args in seen] == list(names) and plain.data == "some"
    assert plain.before == plus.before != plain.after and plus.after.name == "dann-mnistm-usps.pt"
    assert [report.FIGURES[name].shows for name in names] == [(), ("dann-mnistm-usps.pt",)]


def test_tsne_without_its_checkpoints_is_a_mistake_and_draws_nothing(tmp_path):
    figure = report.by_tsne(tmp_path / "before.pt", tmp_path / "after.pt")
    with pytest.raises(UserError, match="no checkpoint at"):
        figure.draw(tmp_path / "a.png", str(tmp_path))
    assert not (tmp_path / "a.png").exists()
