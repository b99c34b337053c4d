"""The metrics of a run: their file, their moving average, and the plot."""

import json
import os

import pytest
from PIL import Image

from common.errors import UserError
from common.metrics_log import moving_average, plot_curves, read_metrics


def test_read_metrics_leaves_out_a_cut_line(tmp_path):
    assert read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 2.0}\n{"step": 2, "a": 1.0}\n{"step": 3, "')
    assert read_metrics(tmp_path) == [{"step": 1, "a": 2.0}, {"step": 2, "a": 1.0}]


def test_a_bad_line_costs_no_other_and_is_counted(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\n5\n{"a": 2}\n{"step": 2}\n')
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]
    assert "3 of 5 lines are damaged" in caplog.text


def test_curves_are_a_picture_with_a_panel_a_metric(tmp_path):
    plot_curves(tmp_path, [])
    assert not (tmp_path / "curves.png").exists()  # nothing to draw
    sizes = []
    for count in (1, 3, 4):
        rows = [{"step": s} | {f"m{i}": s * i for i in range(count)} for s in (1, 2, 3)]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        plot_curves(tmp_path, [])
        with Image.open(tmp_path / "curves.png") as picture:
            assert picture.format == "PNG"
            assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 2  # not blank
            sizes.append(picture.size)
    assert sizes == [(400, 260), (1200, 260), (1200, 520)]


@pytest.mark.parametrize(("values", "expected"), [
    ([3.0], [3.0]),
    ([1.0, 5.0] * 9, [1.0, 5.0] * 9),  # below 20 rows every row stands for itself
    ([0.0] * 9 + [3.0] + [0.0] * 10, [0.0] * 8 + [1.0] * 3 + [0.0] * 9),
    ([2.0, 5.0] + [2.0] * 18, [4.0, 3.0, 3.0] + [2.0] * 17),  # the first has the second on both sides
])
def test_a_moving_average_is_over_a_tenth_of_the_rows(values, expected):
    assert moving_average(values).tolist() == pytest.approx(expected)


def test_curves_mark_where_a_run_was_resumed(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "a": 1.0}) + "\n" for s in range(1, 9)))
    pictures = []
    for resumes in ([], [3], [3, 5]):
        plot_curves(tmp_path, resumes)
        pictures.append((tmp_path / "curves.png").read_bytes())
    assert len(set(pictures)) == 3


def test_curves_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 1}\n')
    (tmp_path / "curves.png").mkdir()
    with pytest.raises(UserError, match=r"curves\.png: cannot write \(Is a directory\)"):
        plot_curves(tmp_path, [])
    assert sorted(os.listdir(tmp_path)) == ["curves.png", "metrics.jsonl"]


@pytest.mark.parametrize("rows", ['{"step": 1, "a": 1}\n{"step": 2, "a": 1, "b": 2}\n',
                                  '{"step": 1, "a": 1, "b": 2}\n{"step": 2, "a": 1}\n'])
def test_curves_stand_a_metric_that_is_not_in_every_row(rows, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(rows)
    plot_curves(tmp_path, [])
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (800, 260)
