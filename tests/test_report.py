"""The documents and pictures against their sources, and what the report script says when they differ."""

import json
import re
import shutil

import pytest
import torch
from PIL import Image

from common.errors import UserError
from common.files import write_json
from dann import evaluate as dann_evaluate
from dann import tsne, validate
from dann.scoring import read_result
from diffusion.pipeline import DISTILLED
from scripts import report

pytestmark = pytest.mark.slow

TEMPLATE = """\
Sure of {digits.accuracy:.1%},
and trained for {training.dcgan}. {{braces}}
{table.distillation}
{network.dann-mnistm-usps.dann}
"""


# The project as it is


@pytest.mark.skipif(not torch.__version__.startswith("2.11."), reason="other versions print networks differently")
def test_documents_and_pictures_are_up_to_date(capsys):
    code = report.main(["--check"])
    assert (capsys.readouterr().err, code) == ("", 0)


def test_tables_beside_the_json_files_are_up_to_date():
    for name, table in (*((name, dann_evaluate.to_markdown(report.result(name))) for name in ("dann", "dann-parts")),
                        ("validators", validate.to_markdown(report.result("validators")))):
        assert (report.PROJECT / "report" / f"{name}.md").read_text() == table


def test_the_tables_of_domains_are_those_of_the_runs_beside_them():
    runs = {name: sorted((report.PROJECT / "report" / name).iterdir()) for name in ("dann", "dann-parts")}
    for name, of_table in runs.items():
        assert dann_evaluate.build_table([read_result(run) for run in of_table]) == report.result(name)
    assert validate.compare(validate.read_runs([*runs["dann"], *runs["dann-parts"]])) == report.result("validators")


def test_the_report_is_small():
    assert sum(path.stat().st_size for path in (report.PROJECT / "report").iterdir()) < 8 * 2**20


@pytest.fixture
def figures():
    return report.read_json(report.FIGURES)


@pytest.fixture
def seen(monkeypatch):
    """Arguments that the commands get; an unknown flag or a wrong suffix is a UserError."""
    calls = []
    for command in report.COMMANDS.values():
        monkeypatch.setattr(command, "main", lambda argv, command=command: calls.append(command.parse_args(argv)))
    return calls


def test_every_picture_has_a_plot_or_commands_and_shows_the_weights_it_is_made_of(figures, seen):
    made = {name: figure for name, figure in figures.items() if name not in report.PLOTS}
    assert set(figures) - set(made) == set(report.PLOTS)
    for name, figure in made.items():
        report.draw(name, figure["commands"], "some")
        assert set(figure["shows"]) == set(re.findall(r"{weights}/(\S+)", " ".join(figure["commands"])))
    pictures = [args.neighbours if "neighbours" in args else args.out for args in seen]
    assert [path.name for path in pictures if path.suffix] == list(made)
    assert {name for name, figure in made.items() if "{data}" in " ".join(figure["commands"])} == {
        "digits-nearest.png",
        *(f"tsne-mnistm-{target}{recipe}.png" for target in ("usps", "svhn") for recipe in ("", "-plus"))}


def test_nearest_neighbours_are_those_of_released_digits(figures, seen):
    report.draw("digits-nearest.png", figures["digits-nearest.png"]["commands"], "some")
    digits, scored = seen
    assert digits.out == scored.folder and scored.data == "some" and digits.weights.name == DISTILLED


def test_tsne_shows_the_source_network_and_the_adapted_one(figures, seen):
    for name in ("tsne-mnistm-usps.png", "tsne-mnistm-usps-plus.png"):
        report.draw(name, figures[name]["commands"], "some")
    plain, plus = seen
    assert plain.data == "some" and plain.before == plus.before != plain.after
    assert plus.after == report.PROJECT / "weights" / "dann-mnistm-usps.pt"


# A project of one document and three pictures


def draw(path):
    path.write_bytes(b"picture")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project, up to date."""
    shutil.copytree(report.PROJECT / "report", tmp_path / "report", ignore=shutil.ignore_patterns("*.png", "*.gif"))
    write_json(tmp_path / "report" / "points.json", {"a": {"b": 1}})
    write_json(tmp_path / report.FIGURES, {name: {"commands": [], "shows": dict.fromkeys(shows), "sha256": ""}
                                           for name, shows in (("a.png", ["dcgan.pt"]), ("b.png", []),
                                                               ("c.png", ["points.json"]))})
    manifest = report.read_json(report.MANIFEST)
    manifest["dcgan.pt"]["sha256"] = "first"
    write_json(tmp_path / report.MANIFEST, manifest)
    (tmp_path / "a.template.md").write_text(TEMPLATE)
    plots = {"a.png": draw, "b.png": draw,
             "c.png": lambda path: path.write_text(str(report.result("points")["a"]["b"]))}
    for name, value in (("PROJECT", tmp_path), ("DOCUMENTS", {"a.md": "a.template.md"}), ("PLOTS", plots)):
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


def test_fields_are_filled_in(project, capsys):
    text = (project / "a.md").read_text()
    entry, accuracy = report.read_json(report.MANIFEST)["dcgan.pt"], report.result("digits")["accuracy"]
    assert text.startswith(f"Sure of {accuracy:.1%},\n")
    assert f"for {entry['step']:,} steps of batch {entry['args']['batch_size']} (" in text and ". {braces}\n" in text
    assert f"| {accuracy:.1%} | {report.result('digits')['frechet']:.2f} | " in text
    assert "\n```\nDANN(\n  (feature): Sequential(\n" in text and text.endswith(")\n```\n")
    assert check(project, capsys) == []


def test_an_edited_document_is_stale(project, capsys):
    before = (project / "a.md").read_text()
    (project / "a.md").write_text(before.replace("trained for", "trained 9 times for"))
    assert check(project, capsys) == ["error: a.md: not what a.template.md renders to: run bash scripts/report.sh"]
    assert report.main(["--text"]) == 0
    assert (project / "a.md").read_text() == before


def test_a_new_result_makes_its_document_stale(project, capsys):
    for path, keys in (("report/digits.json", ["accuracy"]), (report.MANIFEST, [DISTILLED, "scores", "accuracy"])):
        change(project, path, keys, 0.5)
    (line,) = check(project, capsys)
    assert line.startswith("error: a.md: ")
    assert report.main([]) == 0 and "Sure of 50.0%" in (project / "a.md").read_text()


def test_results_of_other_weights_are_named(project, capsys):
    change(project, "report/sagan.json", ["one_face"], 1.0)
    change(project, "report/samplers-10-1.75.json", ["made"], "diffusion weights=0 seed=0")
    scores, samplers = check(project, capsys)
    assert scores.startswith("error: report/sagan.json: not the scores that weights/manifest.json has for sagan.pt: ")
    assert samplers.startswith("error: report/samplers-10-1.75.json: measured with other weights than diffusion.pt: ")
    assert report.main([]) == 2  # drawing does not help


def test_pictures_of_other_weights_and_other_pictures_are_named(project, capsys):
    change(project, report.MANIFEST, ["dcgan.pt", "sha256"], "second")
    (project / "report" / "b.png").write_bytes(b"painted")
    change(project, "report/points.json", ["a", "b"], 2)
    assert [line.partition(": run")[0] for line in check(project, capsys)] == [
        "error: report/a.png: shows an older dcgan.pt",
        "error: report/b.png: not the picture that report/figures.json records",
        "error: report/c.png: shows an older points.json"]
    assert report.main(["--text"]) == 2
    assert report.main([]) == 0 and check(project, capsys) == []
    assert (project / "report" / "c.png").read_text() == "2"
    (project / "report" / "b.png").unlink()
    assert len(check(project, capsys)) == 1


@pytest.mark.parametrize(("data", "why"), [
    (None, "real images are needed: name their folder with --data"),
    ("builtin", "real images are needed: name their folder with --data"), ("some", "some: no such folder")])
def test_a_picture_of_real_images_that_are_missing_is_left(project, capsys, monkeypatch, data, why):
    def fail(argv):
        raise UserError(f"{argv[0]}: no such folder")

    monkeypatch.delitem(report.PLOTS, "b.png")
    monkeypatch.setattr(tsne, "main", fail)
    change(project, report.FIGURES, ["b.png", "commands"], ["dann.tsne {data}"])
    before = report.read_json(report.FIGURES)
    assert report.main(["--data", data] if data else []) == 0
    assert f"report/b.png not redrawn: {why}\n" in capsys.readouterr().out
    assert (project / "report" / "b.png").exists() and report.read_json(report.FIGURES) == before
    change(project, report.FIGURES, ["b.png", "commands"], ["dann.tsne x"])
    with pytest.raises(UserError, match="x: no such folder"):
        report.main(["--data", data] if data else [])


@pytest.mark.parametrize(("text", "message"), [
    ("{", r"a\.template\.md, line 2: .* write a brace of the text twice"),
    ("}", r"a\.template\.md, line 2: .*Single '}' encountered"),
    ("{\n}", r"a\.template\.md, line 2: .* write a brace of the text twice"),
    ("{}", r"a\.template\.md, line 2: {}: no such value"),
    ("{digits}", r"line 2: {digits}: no such value \(TypeError\('dict, expected a number or a text'\)\)"),
    ("{dann-parts}", r"line 2: {dann-parts}: no such value \(TypeError"),
    ("{nothing.a}", r"line 2: {nothing\.a}: no such value \(TypeError\('NoneType, expected"),
    ("{tabel.samplers}", r"{tabel\.samplers}: no such value \(FileNotFoundError"),
    ("{table.sampler}", r"{table\.sampler}: no such value \(KeyError\('sampler'\)\)"),
    ("{network.dann}", r"{network\.dann}: no such value \(TypeError"),
    ("{digits.a}", r"{digits\.a}: no such value \(KeyError\('a'\)\)"),
    ("{digits.accuracy:d}", r"{digits\.accuracy}: no such value \(ValueError"),
])
def test_a_wrong_field_is_named_and_nothing_written(project, text, message):
    before = (project / "a.md").read_text()
    write_json(project / "report" / "nothing.json", {"a": None})
    (project / "a.template.md").write_text(f"new\ntext {text}")
    with pytest.raises(UserError, match=message):
        report.main([])
    assert (project / "a.md").read_text() == before


# Parts


def test_a_field_is_found_by_keys_with_spaces_and_a_list_counts_by_its_mean(project):
    write_json(project / "report" / "x.json", {"a b": {"c": [1, 2, 6]}, "rows": "three", "list": [{"c": 6}, {"c": 7}]})
    assert [report.look_up(f"x.{keys}") for keys in ("a b.c", "rows", "list.1.c")] == [3, "three", 7]
    assert report.look_up("weights.dcgan.sha256") == "first"


def test_the_faces_table_shows_what_all_rows_have():
    scores = {"reference": "faces", "images": 10, "swd": [1, 2, 6], "swd_real": [0.5, 0.5, 2],
              "near_duplicates": 0.25, "near_duplicates_real": 0, "suspicious": 0.02}
    assert report.scores_table({"A": scores | {"fid": 3, "fid_real": 1}, "B": scores | {"suspicious": 0.03}}) == """\
| 10 faces | SWD 64 px | 32 px | 16 px | mean | near-duplicates | close to a training face |
| --- | --- | --- | --- | --- | --- | --- |
| A | 1.0 | 2.0 | 6.0 | 3.0 | 25.0% | 2.0% |
| B | 1.0 | 2.0 | 6.0 | 3.0 | 25.0% | 3.0% |
| real faces | 0.5 | 0.5 | 2.0 | 1.0 | 0.0% | - |
"""
    with pytest.raises(ValueError, match="not measured against the same images"):
        report.scores_table({"A": scores, "B": scores | {"reference": "other faces"}})


def test_the_digits_table_has_the_scores_of_all_rows_and_real_digits():
    scores = {"images": 10, "accuracy": 0.9, "classifier_accuracy_on_val": 0.75, "frechet": 3, "frechet_real": 1,
              "variety": 0.5, "recall": 0.25, "recall_real": 0.125}
    without = {key: value for key, value in scores.items() if "recall" not in key}
    assert report.scores_table({"A": scores, "B": scores | {"recall": 0}}) == """\
| 10 digits | accuracy | Frechet distance | recall | variety |
| --- | --- | --- | --- | --- |
| A | 90.0% | 3.00 | 0.25 | 0.50 |
| B | 90.0% | 3.00 | 0.00 | 0.50 |
| real digits | 75.0% | 1.00 | 0.12 | 1.00 |
"""
    assert "recall" not in report.scores_table({"A": scores, "B": without})
    with pytest.raises(ValueError, match="not measured against the same images"):
        report.scores_table({"A": scores, "B": scores | {"frechet_real": 2}})


def test_the_strip_is_faces_digits_and_adapted_features_of_one_height(project):
    Image.new("RGB", (8, 4), "red").save(project / "report" / "dcgan.png")
    Image.new("RGB", (12, 12), "blue").save(project / "report" / "digits.png")
    plot = Image.new("RGB", (32, 32), "black")
    plot.paste("lime", (16, 0, 32, 16))  # after adaptation, by digit
    plot.save(project / "report" / "tsne-mnistm-svhn-plus.png")
    report.draw_strip(project / "report" / "strip.png")
    with Image.open(project / "report" / "strip.png") as strip:
        red, blue, lime, white = (255, 0, 0), (0, 0, 255), (0, 255, 0), (255, 255, 255)
        assert strip.size == (16 + 20 + 8 + 20 + 8, 8)
        assert [strip.getpixel((x, 7)) for x in (15, 16, 35, 36, 43, 44, 63, 64, 71)] == [
            red, white, white, blue, blue, white, white, lime, lime]


def test_tsne_without_its_checkpoints_is_a_mistake_and_draws_nothing(project):
    line = f"dann.tsne {project}/before.pt {project}/after.pt --data {{data}} --out {{out}}"
    with pytest.raises(UserError, match="no checkpoint at"):
        report.draw("d.png", [line], str(project))
    assert not (project / "report" / "d.png").exists()
