"""The table: from invented results and from real runs; confusion matrices; mistakes in one line."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import one_hot

from common.errors import UserError
from dann import evaluate
from dann.evaluate import build_table, main, map_table, to_markdown
from dann.scoring import read_result


@pytest.fixture
def runs(tmp_path):
    """Return the function that adds a run folder with a result.json."""
    def add(name, mode, seed=0, val=0.9, **changes):
        folder = tmp_path / name
        folder.mkdir()
        result = {"data": "hw2_data", "source": "mnistm", "target": "usps", "mode": mode,
                  "recipe": "plain" if mode == "dann" else None, "changes": [], "seed": seed, "steps": 10,
                  "seconds": 1.0, "batch_size": 128, "precision": "fp32", "inputs": {"data": "0"}, "parts": {},
                  "val": val} | changes
        result.setdefault("oracle", {"step": 5, **{k: result[k] for k in ("val", "test") if k in result}})
        (folder / "result.json").write_text(json.dumps(result))
        return str(folder)

    return add


def test_table(runs, tmp_path, capsys):
    paths = [runs("t", "target", val=0.99, test=0.97, oracle={"step": 5, "val": 1.0, "test": 0.98}),
             runs("d1", "dann", 1, 0.92), runs("d0", "dann"), runs("p", "dann", recipe="plus", val=0.96),
             runs("a", "dann", recipe="plus", val=0.95, changes=["no geometry", "adversary"]),
             runs("s", "source", val=0.8), runs("x", "dann", val=0.456, data="builtin", target="svhn"),
             runs("n", "source", val=0.6, changes=["no geometry"])]
    out = tmp_path / "report" / "table.md"
    out.parent.mkdir()
    out.touch()
    assert main([*paths, "--out", str(out), "--force"]) == 0
    assert out.read_text() == capsys.readouterr().out == """\
| accuracy on val, % | mnistm -> usps, 10 steps | builtin-mnistm -> builtin-svhn, 10 steps |
| --- | --- | --- |
| trained on source | 80.0 | - |
| trained on source, no geometry | 60.0 | - |
| DANN | 91.0 ± 1.4 (2 seeds) | 45.6 |
| plus | 96.0 | - |
| plus, no geometry, adversary | 95.0 | - |
| trained on target | 99.0 | - |

| accuracy on test, % | mnistm -> usps, 10 steps |
| --- | --- |
| trained on target | 97.0 |

| accuracy on test at the oracle's step (chosen by target labels, for comparison only), % | mnistm -> usps, 10 steps |
| --- | --- |
| trained on target | 98.0 |
"""
    cells = {(cell["row"], cell["column"]): cell for cell in json.loads(out.with_suffix(".json").read_text())}
    assert cells["DANN", "mnistm -> usps"]["seeds"] == [0, 1]
    assert cells["DANN", "mnistm -> usps"]["steps"] == 10
    assert cells["DANN", "mnistm -> usps"]["val"] == pytest.approx({"mean": 0.91, "std": 0.02 / 2 ** 0.5})
    assert cells["trained on target", "mnistm -> usps"]["test"] == {"mean": 0.97, "std": None}


def test_every_length_is_told(runs, capsys):
    paths = [runs("s", "source", val=0.5, steps=4000), runs("d", "dann", val=0.6, steps=2000),
             runs("p0", "dann", recipe="plus", val=0.7, steps=12000),
             runs("p1", "dann", 1, recipe="plus", val=0.7, steps=12000), runs("t", "target", val=0.9, steps=4000),
             runs("u", "dann", source="mnist", val=0.8, steps=2000)]
    assert main(paths) == 0
    assert capsys.readouterr().out == """\
| accuracy on val, % | mnistm -> usps, 4,000 steps | mnist -> usps, 2,000 steps |
| --- | --- | --- |
| trained on source | 50.0 | - |
| DANN | 60.0 (2,000 steps) | 80.0 |
| plus | 70.0 ± 0.0 (2 seeds, 12,000 steps) | - |
| trained on target | 90.0 | 90.0 (4,000 steps) |
"""


def test_a_run_of_mode_target_belongs_to_its_target(runs, capsys):
    paths = [runs("t", "target", val=0.9), runs("other-source", "target", source="mnist", val=0.1),
             runs("seed", "target", 1, source="mnist", val=0.9)]
    assert main(paths) == 0
    assert capsys.readouterr().out == ("| accuracy on val, % | usps, 10 steps |\n| --- | --- |\n"
                                       "| trained on target | 90.0 ± 0.0 (2 seeds) |\n")
    paths += [runs("pair", "source", source="svhn"), runs("back", "source", source="usps", target="svhn")]
    assert main(paths) == 0
    assert capsys.readouterr().out.splitlines()[0::3] == [
        "| accuracy on val, % | svhn -> usps, 10 steps | usps -> svhn, 10 steps |",
        "| trained on target | 90.0 ± 0.0 (2 seeds) | - |"]
    with pytest.raises(UserError, match="twin: same settings and seed as .*/t: leave one out"):
        main([*paths, runs("twin", "target", val=0.9)])
    with pytest.raises(UserError, match="got steps 20, expected 10 like the other runs of its cell"):
        main([*paths, runs("longer", "target", source="svhn", steps=20)])


def test_embedded_domains_are_the_same_in_every_folder(runs):
    paths = [runs("a", "dann", data="builtin"), runs("b", "dann", 1, source="builtin-mnistm", target="builtin-usps"),
             runs("c", "target", data="builtin", target="builtin-svhn")]
    cells = build_table([read_result(Path(path)) for path in paths])
    assert [(cell["column"], cell["seeds"]) for cell in cells] == [("builtin-mnistm -> builtin-usps", [0, 1]),
                                                                   ("builtin-svhn", [0])]


@pytest.fixture
def map_runs(runs):
    """Return run folders of two pairs there and back, named in no order, and of one target."""
    return [runs("d", "dann", source="svhn", target="mnist", test=0.5),
            runs("p0", "dann", recipe="plus", source="mnist", target="svhn", test=0.8),
            runs("p1", "dann", 1, recipe="plus", source="mnist", target="svhn", test=0.7),
            runs("a", "dann", source="usps", target="mnist", changes=["no geometry"], test=0.1),
            runs("s", "source", source="builtin-usps", target="mnist", test=0.4, steps=20),
            runs("v", "source", source="usps", target="mnist"),
            runs("t", "target", source="usps", target="mnist", test=0.9)]


def test_map_as_a_table(map_runs):
    cells = build_table([read_result(Path(path)) for path in map_runs])
    assert map_table(cells) == """\
| accuracy on test, %, 10 steps | trained on source | DANN | plus | trained on target |
| --- | --- | --- | --- | --- |
| mnist -> svhn | - | - | 75.0 ± 7.1 (2 seeds) | - |
| svhn -> mnist | - | 50.0 | - | 90.0 |
| builtin-usps -> mnist | 40.0 (20 steps) | - | - | 90.0 |
"""
    for cell in cells:
        cell.pop("test", None)
    assert map_table(cells).splitlines()[0] == (
        "| accuracy on val, %, 10 steps | trained on source | DANN | plus | trained on target |")


def test_map_as_a_picture(map_runs, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(evaluate.heatmap, "draw", lambda *args: drawn.extend(args))
    assert main([*map_runs, "--map", str(tmp_path / "map.png"), "--out", str(tmp_path / "table.md")]) == 0
    assert "\n\n| accuracy on test, %, 10 steps | trained on source | DANN |" in capsys.readouterr().out
    assert "| svhn -> mnist | - | 50.0 | - | 90.0 |" in (tmp_path / "table.md").read_text()
    assert drawn == [{"trained on source": {("builtin-usps", "mnist"): (0.4, "20 steps")},
                      "DANN": {("svhn", "mnist"): (0.5, "")}, "plus": {("mnist", "svhn"): (0.75, "")}},
                     ("trained on target", {"mnist": (0.9, "")}), ["mnist", "svhn", "builtin-usps"],
                     "accuracy on test, %, 10 steps", tmp_path / "map.png"]


def test_mistakes_of_the_map(map_runs, tmp_path):
    path = tmp_path / "map.png"
    for only in ("t", "a"):  # without a source, or with changes
        with pytest.raises(UserError, match="--map shows pairs of domains: name runs of --mode source or dann"):
            main([str(tmp_path / only), "--map", str(path)])
    assert not path.exists()
    with pytest.raises(UserError, match=r"--map: got map\.pdf, expected a name that ends in \.png"):
        main([*map_runs, "--map", "map.pdf"])
    path.write_text("mine")
    with pytest.raises(UserError, match=r"map\.png exists already"):
        main([*map_runs, "--map", str(path)])
    assert main([*map_runs, "--map", str(path), "--force"]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_real_runs(train, capsys):
    paths = [str(train(mode, "--mode", mode)) for mode in ("source", "dann")]
    capsys.readouterr()
    assert main(paths) == 0
    assert capsys.readouterr().out.count("| trained on source |") == 3  # val, test, oracle


def test_confusion_of_a_real_run(train, capsys):
    out = train("run", "--mode", "source")
    capsys.readouterr()
    assert main(["--confusion", str(out)]) == 0
    title, _, *rows = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert title.startswith("| trained on source, mnistm -> usps, seed 0: digits of val, predicted as | 0 | 1 |")
    names, *counts = zip(*([int(cell) for cell in row.strip("| ").split("|")] for row in rows), strict=True)
    assert names == tuple(range(10))
    assert [sum(row) for row in zip(*counts, strict=True)] == [2] * 10  # the set has two of each digit
    right = sum(counts[digit][digit] for digit in range(10))
    assert right / 20 == pytest.approx(json.loads((out / "result.json").read_text())["val"])


def test_confusion_has_one_row_per_digit_and_one_column_per_prediction(train, tmp_path, monkeypatch, capsys):
    out = train("run", "--mode", "source")
    predicted = torch.arange(20) % 10
    predicted[3] = 5  # one of the two threes
    monkeypatch.setattr(evaluate, "predict", lambda *args: (None, one_hot(predicted, 10)))
    result = json.loads((out / "result.json").read_text())
    (out / "result.json").write_text(json.dumps(result | {"val": 16 / 20}))  # three digits differ; two may
    with pytest.raises(UserError, match=r"run: data or last\.pt changed since result\.json"):
        main(["--confusion", str(out)])
    (out / "result.json").write_text(json.dumps(result | {"val": 17 / 20}))
    assert main(["--confusion", str(out), "--out", str(tmp_path / "table.md")]) == 0
    table = (tmp_path / "table.md").read_text()
    assert "| 3 | 0 | 0 | 0 | 1 | 0 | 1 | 0 | 0 | 0 | 0 |\n" in table
    assert "| 5 | 0 | 0 | 0 | 0 | 0 | 2 | 0 | 0 | 0 | 0 |\n" in table
    assert capsys.readouterr().out.endswith(table)


def test_runs_of_one_cell_have_equal_settings(runs):
    first = runs("a", "dann")
    for key, value, expected in (("steps", 20, 10), ("batch_size", 64, 128), ("precision", "bf16", "fp32"),
                                 ("inputs", {"data": "1"}, {"data": "0"}), ("parts", {"dropout": 0.1}, {})):
        other = runs(key, "dann", 2, **{key: value})
        with pytest.raises(UserError, match=f"{key}: got {key} {value}, expected {expected} like the other runs"):
            main([first, other])


@pytest.mark.parametrize("text", ["[]", "{}", "1", '{"mode": ["dann"], "recipe": null}',
                                  '{"mode": "source", "recipe": null, "changes": null}'])
def test_a_foreign_result_is_one_line(text, runs, tmp_path):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UserError, match=r"result\.json .* the scores of a run of dann\.train"):
        main([runs("a", "dann"), str(tmp_path)])


@pytest.mark.parametrize("name", ["steps", "seed", "oracle", "source"])
def test_a_result_without_a_key_is_one_line(name, runs, tmp_path):
    path = Path(runs("a", "dann", test=0.9), "result.json")
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != name}))
    with pytest.raises(UserError, match=r"result\.json does not hold the scores"):
        main([str(path.parent)])


@pytest.mark.parametrize("edited", [{"recipe": "best"}, {"recipe": None}, {"mode": "source"}, {"mode": "both"}])
def test_a_recipe_of_another_version_is_one_line(runs, edited):
    path = Path(runs("a", "dann", test=0.9), "result.json")
    result = json.loads(path.read_text()) | edited
    path.write_text(json.dumps(result))
    message = rf"a/result\.json: recipe {result['recipe']} of mode {result['mode']} is of another version: leave it out"
    with pytest.raises(UserError, match=message):
        main([str(path.parent)])


def test_a_target_without_labels_has_no_scores(runs, capsys):
    run = Path(runs("a", "dann", oracle=None))
    result = json.loads((run / "result.json").read_text())
    del result["val"]
    (run / "result.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match="a has no scores, because its target has no labels: leave it out"):
        main([str(run)])
    (run / "result.json").write_text(json.dumps(result | {"test": 0.8}))  # labels of test alone
    assert main([str(run)]) == 0
    assert capsys.readouterr().out == ("| accuracy on test, % | mnistm -> usps, 10 steps |\n"
                                       "| --- | --- |\n| DANN | 80.0 |\n")


def test_results_of_an_earlier_version_still_render():
    """Changes are stored as text, so the table keeps rows whose settings have since been renamed."""
    cells = [{"row": "DANN, lr_decay cosine", "column": "mnistm -> usps", "steps": 10, "seeds": [0],
              "val": {"mean": 0.5, "std": None}}]
    assert "| DANN, lr_decay cosine | 50.0 |" in to_markdown(cells)
