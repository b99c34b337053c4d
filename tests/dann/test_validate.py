"""The comparison of validators: both tables by hand, from real runs, and mistakes in one line."""

import json
from pathlib import Path

import pytest

from common.errors import UserError
from dann.validate import main
from dann.validators import VALIDATORS


@pytest.fixture
def runs(tmp_path):
    """Return the function that adds a run; it gives every preview's val, test and validators, equal if not named."""
    def add(name, val, test=None, mode="dann", target="usps", without=(), **values):
        previews = [{"step": 10 * (i + 1), "val": val[i]} | ({} if test is None else {"test": test[i]})
                    | {name: values.get(name, val)[i] for name in VALIDATORS if name not in without}
                    for i in range(len(val))]
        result = {"data": "hw2_data", "source": "mnistm", "target": target, "mode": mode,
                  "recipe": "plus" if mode == "dann" else None, "changes": [], "seed": 0, "steps": 10,
                  "batch_size": 128, "precision": "fp32", "inputs": {}, "parts": {}, "oracle": None, "val": 0.5}
        (tmp_path / name).mkdir()
        (tmp_path / name / "previews.json").write_text(json.dumps({"previews": previews}))
        (tmp_path / name / "result.json").write_text(json.dumps(result))
        return str(tmp_path / name)

    return add


def test_both_tables_by_hand(runs, tmp_path, capsys):
    accuracies = [0.9, 0.8, 0.6, 0.7]
    paths = [runs("a", [0.5, 0.6, 0.4, 0.3], accuracies, snd=[1, 2, 3, 4], entropy=[-1, -2, -2, -2]),
             runs("b", [0.8, 0.4], [0.95, 0.5], snd=[1, 0], entropy=[-3, -3]),
             runs("s", [0.3, 0.9], [0.2, 0.1], mode="source", snd=[7, 0], entropy=[0, -9]),
             runs("of-target", [0.99], mode="target"),
             runs("c", [0.7, 0.6, 0.65], target="svhn", without=("source", "dev"), snd=[2, 3, 3], entropy=[1, 1, 1])]
    out = tmp_path / "table.md"
    assert main([*paths, "--out", str(out)]) == 0
    # Chosen in a, b and c: the 4th, 2nd, 3rd by step; 1st, 2nd, 3rd by entropy; 4th, 1st, 3rd by snd; 2nd, 1st, 1st by
    # val. The rank correlations are those of numpy.corrcoef of the ranks, of which equal values have the mean.
    assert out.read_text() == capsys.readouterr().out == """\
| criterion | choosing a step: accuracy, %, mean over 3 runs | choosing a run and step: rank correlation \
| accuracy, %, mean over 2 pairs |
| --- | --- | --- | --- |
| last step | 61.7 | - | 54.2 |
| source | - | - | - |
| entropy | 68.3 | - | 42.5 |
| information | 81.7 | 0.60 | 40.0 |
| bnm | 81.7 | 0.60 | 40.0 |
| snd | 76.7 | -0.41 | 42.5 |
| dev | - | - | - |
| class-ami | 81.7 | 0.60 | 40.0 |
| oracle | 81.7 | - | 40.0 |

| rank correlation / accuracy, % | last step | source | entropy | information | bnm | snd | dev | class-ami | oracle |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| mnistm -> usps (8 checkpoints) | 43.3 | 0.19 / 10.0 | 0.16 / 20.0 | 0.19 / 10.0 | 0.19 / 10.0 | 0.04 / 20.0 | \
0.19 / 10.0 | 0.19 / 10.0 | 10.0 |
| mnistm -> svhn (3 checkpoints) | 65.0 | - / - | - / 65.0 | 1.00 / 70.0 | 1.00 / 70.0 | -0.87 / 65.0 | - / - | \
1.00 / 70.0 | 70.0 |
"""
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert numbers["steps"]["runs"] == 3 and numbers["steps"]["accuracy"]["dev"] is None
    of_svhn = numbers["checkpoints"]["mnistm -> svhn"]
    assert of_svhn["count"] == 3 and of_svhn["correlation"]["snd"] == pytest.approx(-0.75 ** 0.5)


def test_rank_correlation_by_hand(runs, tmp_path):
    """Without ties it is 1 - 6 sum d^2 / (n (n^2 - 1)); here two neighbours are exchanged, d^2 = 1 + 1."""
    out = tmp_path / "table.md"
    assert main([runs("a", [0.1, 0.2, 0.3, 0.4], snd=[5, 70, 60, 800]), "--out", str(out)]) == 0
    numbers = json.loads(out.with_suffix(".json").read_text())["checkpoints"]["mnistm -> usps"]
    assert numbers["correlation"]["snd"] == pytest.approx(0.8)
    with pytest.raises(UserError, match=r"table\.md exists already"):
        main([str(tmp_path / "a"), "--out", str(out)])
    assert main([str(tmp_path / "a"), "--out", str(out), "--force"]) == 0


def test_what_some_runs_lack_is_not_compared(runs, capsys):
    assert main([runs("a", [0.1, 0.2]), runs("b", [0.3, 0.4], without=["dev"])]) == 0
    shown = capsys.readouterr().out
    assert "| dev | - | - | - |" in shown and "| - / - | 1.00 / 40.0 | 40.0 |" in shown


def test_runs_of_mode_source_alone_have_no_steps_to_choose(runs, capsys):
    assert main([runs("s", [0.3, 0.9], mode="source")]) == 0
    assert "mean over 0 runs" in (shown := capsys.readouterr().out) and "| bnm | - | 1.00 | 90.0 |" in shown


def test_real_runs(train, capsys):
    paths = [str(train(mode, "--mode", mode, "--sample-every", "2")) for mode in ("source", "dann", "target")]
    capsys.readouterr()
    assert main(paths) == 0
    shown = capsys.readouterr().out
    assert "mean over 1 runs" in shown and "mnistm -> usps (6 checkpoints)" in shown and "nan" not in shown


def test_mistakes(runs, tmp_path):
    good, cut = runs("a", [0.5, 0.6]), runs("none", [0.5])
    Path(cut, "previews.json").unlink()
    empty = runs("empty", [])
    for path, expected in ((tmp_path, "expected the scores of a run"),
                           (runs("one", [0.5], target="svhn"), "mnistm -> svhn has one checkpoint, expected at least"),
                           (good, "a run is named twice"), (empty, "empty/previews.json has no previews"),
                           (cut, "previews.json .* expected the previews of a run")):
        with pytest.raises(UserError, match=expected):
            main([good, str(path)])
    with pytest.raises(UserError, match=r"\.md"):
        main([good, "--out", "table.txt"])
    with pytest.raises(UserError, match="runs of mode target have no checkpoints"):
        main([runs("t", [0.5, 0.6], mode="target")])


def test_a_target_without_labels_has_no_scores(runs, tmp_path):
    good, path = runs("a", [0.5, 0.6]), tmp_path / "a" / "result.json"
    result = json.loads(path.read_text()) 
    del result["val"]
    path.write_text(json.dumps(result))
    with pytest.raises(UserError, match="a has no scores, because its target has no labels: leave it out"):
        main([good])
