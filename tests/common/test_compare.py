"""Curves of several runs: what is drawn where, and what the legend says."""

import json
from pathlib import Path

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from common import compare
from common.errors import UserError

STEPS = range(1, 41)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, settings, **metrics):
    Path(name).mkdir(parents=True)
    Path(name, "args.json").write_text(json.dumps(settings))
    rows = [{"step": step} | {metric: values[step - 1] for metric, values in metrics.items()} for step in STEPS]
    Path(name, "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    seen, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **more: seen.append(self) or save(self, *args, **more))
    return seen


def test_each_shared_metric_has_a_panel_and_each_run_its_rows_and_their_average(figures):
    peak = [0.0] * 19 + [5.0] + [0.0] * 20
    a = write("a", {"lr": 1}, loss=peak, own=peak)
    b = write("b", {"lr": 2}, loss=[1.0] * 40, accuracy=peak)
    c = write("c", {"lr": 3}, accuracy=peak)
    compare.main([a, b, c, "--out", "out.png"])
    first, second = figures[0].axes
    assert [(axes.get_ylabel(), axes.get_xlabel()) for axes in (first, second)] == [
        ("loss", "optimizer steps"), ("accuracy", "optimizer steps")]
    rows, average, other, _ = first.lines[:4]
    assert list(rows.get_xdata()) == list(average.get_xdata()) == list(STEPS)
    assert list(rows.get_ydata()) == peak
    # Of 40 rows a tenth is 4, made odd: 5.
    assert list(average.get_ydata()) == pytest.approx([0.0] * 17 + [1.0] * 5 + [0.0] * 18)
    assert list(other.get_ydata()) == [1.0] * 40
    colours = [line.get_color() for axes in (first, second) for line in axes.lines if len(line.get_xdata())]
    assert colours == ["C0", "C0", "C1", "C1", "C1", "C1", "C2", "C2"]
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["lr=1", "lr=2", "lr=3"]
    assert [to_rgb(line.get_color()) for line in legend.get_lines()] == [to_rgb(f"C{i}") for i in range(3)]


def test_the_same_bytes_on_every_call_and_nothing_is_replaced():
    a, b = (write(name, {"lr": name}, loss=[1.0] * 40) for name in ("a", "b"))
    compare.main([a, b, "--out", "out.png"])
    before = Path("out.png").read_bytes()
    with pytest.raises(UserError, match=r"out\.png exists already"):
        compare.main([a, b, "--out", "out.png"])
    compare.main([a, b, "--out", "out.png", "--force"])
    assert Path("out.png").read_bytes() == before
    with Image.open("out.png") as picture:
        assert picture.size == (400, 300)  # a panel of 260, and two rows of 20 for the legend


@pytest.mark.parametrize(("settings", "labels"), [
    ([{"lr": 0.1, "seed": 0, "out": "x", "log_every": 1}, {"lr": 0.2, "seed": 0, "out": "y", "log_every": 2}],
     ["lr=0.1", "lr=0.2"]),
    ([{"lr": 0.1, "seed": 0}, {"lr": 0.2, "seed": 1}], ["lr=0.1, seed=0", "lr=0.2, seed=1"]),
    ([{"steps": 3}, {"steps": 3, "r1": 0.5}], ["r1=None", "r1=0.5"]),  # of another version
    ([{"lr": 1}, {"lr": 1}], ["0", "1"]),
    ([{"lr": 1}, {"lr": 2}, {"lr": 1}], ["0", "1", "2"]),
    ([{f"setting_{i}": value for i in range(4)} for value in (5, 6)], ["0", "1"]),
])
def test_the_legend_has_the_settings_that_differ_if_they_are_few(settings, labels):
    assert compare.labels_of({Path("runs", str(i)): entry for i, entry in enumerate(settings)}) == labels


def test_names_tell_runs_apart_that_are_called_the_same():
    assert compare.labels_of({Path("x/run"): {}, Path("y/run"): {}}) == ["x/run", "y/run"]
    assert compare.labels_of({Path("x/a"): {}, Path("b").resolve(): {}}) == ["x/a", "b"]


def test_a_folder_may_have_any_name(figures):
    names = [write(name, {}, loss=[1.0] * 40) for name in ("_a", r"$\b$", "c d")]
    compare.main([*names, "--out", "out.png"])
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == names


def test_more_than_ten_runs_have_other_lines(figures):
    names = [write(f"run-{i}", {"seed": i}, loss=[1.0] * 40) for i in range(11)]
    compare.main([*names, "--out", "out.png"])
    lines = figures[0].legends[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 11
    assert to_rgb(lines[0].get_color()) == to_rgb(lines[10].get_color())


def test_a_run_alone_or_without_a_common_metric_is_named():
    a = write("a", {}, loss=[1.0] * 40)
    b = write("b", {}, loss=[1.0] * 40)
    c = write("c", {}, d_loss=[1.0] * 40)
    for runs, said in (([a], "expected at least two runs"), ([a, str(Path(a).absolute())], "two runs, and none twice"),
                       ([a, b, c], "c has no metric of another run here")):
        with pytest.raises(UserError, match=said):
            compare.main([*runs, "--out", "out.png"])
    assert not Path("out.png").exists()
