"""The run folder and small parts of the loop; resume and signals are tested with diffusion.train as well."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from common import checkpoint, release
from common.ema import EMA
from common.errors import UserError
from common.metrics_log import read_metrics
from common.release import write_weights
from common.run import Run
from common.run_folder import RunFolder

SETTINGS = {"resume": None, "steps": 4, "batch_size": 2, "log_every": 2, "save_every": 4, "seed": 0, "lr": 0.1,
            "lr_schedule": "linear", "width": 3, "data": "here", "dry_run": False}


def make_run(out, model, data="1234", **settings):
    settings = SETTINGS | {"out": out} | settings
    return Run(out, "test/run", settings, {"width": 3}, {"model": model}, model, {"data": data})


def train(run):
    for step in run.steps():
        run.record({"loss": torch.tensor(float(step)), "gain": torch.tensor(1.0)})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "a" / "b"
    train(make_run(out, nn.Linear(2, 3)))
    return out


def test_rows_are_means_over_the_steps_since_the_last_row(finished):
    assert read_metrics(finished) == [{"step": 2, "loss": 0.5, "gain": 1.0},
                                      {"step": 4, "loss": 2.5, "gain": 1.0}]


def test_settings_and_versions_are_written(finished):
    assert json.loads((finished / "args.json").read_text())["out"] == str(finished)
    versions = json.loads((finished / "versions.json").read_text())
    assert versions["torch"] == torch.__version__
    assert {"python", "machine", "command"} <= versions.keys()
    assert json.loads((finished / "done").read_text())["steps"] == 4


def test_the_mean_of_a_metric_is_over_the_steps_that_it_came_with(tmp_path):
    run = make_run(tmp_path / "run", nn.Linear(2, 3))
    for step in run.steps():
        run.record({"loss": torch.tensor(float(step))} | ({"seldom": torch.tensor(5.0)} if step == 1 else {}))
    assert read_metrics(tmp_path / "run") == [{"step": 2, "loss": 0.5, "seldom": 5.0}, {"step": 4, "loss": 2.5}]


def test_a_recorded_parameter_is_read_at_once(tmp_path):
    run, parameter = make_run(tmp_path / "run", nn.Linear(2, 3)), nn.Parameter(torch.tensor(1.0))
    for _ in run.steps():
        run.record({"gamma": parameter})
        with torch.no_grad():
            parameter.add_(1)  # in place, as an optimizer does
    assert [row["gamma"] for row in read_metrics(tmp_path / "run")] == [1.5, 3.5]


def test_due_and_the_name_of_the_picture(tmp_path):
    run = make_run(tmp_path / "run", nn.Linear(2, 3), steps=7)
    due = []
    for step in range(7):
        run.step = step
        due.append(run.due(3))
    assert due == [False, False, True, False, False, True, True]
    assert run.sample_path() == tmp_path / "run" / "samples" / "0000007.png"


def test_a_longer_plan_another_rate_and_precision_are_said_and_kept(finished, tmp_path, capsys):
    before = checkpoint.load(finished / "last.pt")["weights"]
    model = nn.Linear(2, 3)
    train(make_run(tmp_path / "longer", model, resume=str(finished / "last.pt"), steps=6, lr=0.01))
    out = capsys.readouterr().out
    assert "at step 4" in out and "lr: 0.1 until step 4, 0.01 from here on" in out
    assert "a linear schedule depends on --steps: the learning rate jumps" in out
    assert torch.equal(model.weight, before["weight"])
    assert json.loads((tmp_path / "longer" / "done").read_text())["steps"] == 6
    starts = json.loads((tmp_path / "longer" / "versions.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 4]
    assert (starts[1]["lr"], starts[1]["steps"]) == (0.01, 6) and "lr" not in starts[0]
    assert checkpoint.load(tmp_path / "longer" / "last.pt")["starts"] == starts


def test_a_constant_rate_does_not_jump(tmp_path, capsys):
    out = tmp_path / "run"
    train(make_run(out, nn.Linear(2, 3), lr_schedule="constant"))
    train(make_run(out, nn.Linear(2, 3), lr_schedule="constant", steps=6, resume="auto"))
    assert "jumps" not in capsys.readouterr().out


def test_a_finished_run_that_is_started_again_stays_as_it_is(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    train(make_run(out, nn.Linear(2, 3), resume="auto"))
    assert [(out / name).read_text() for name in ("done", "metrics.jsonl")] == [
        (finished / name).read_text() for name in ("done", "metrics.jsonl")]
    assert len(json.loads((out / "versions.json").read_text())["starts"]) == 1


def test_fewer_steps_than_are_done_are_refused(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match=r"is at step 4, got --steps 3: give at least 4"):
        make_run(out, nn.Linear(2, 3), resume="auto", steps=3)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_data_are_compared_by_their_content_and_not_by_their_name(finished, tmp_path):
    resume = {"resume": str(finished / "last.pt")}
    make_run(tmp_path / "renamed", nn.Linear(2, 3), **resume, data="1234").folder.release()
    with pytest.raises(UserError, match=r"trained with another content of --data, got there: resume with the same"):
        Run(tmp_path / "replaced", "test/run", SETTINGS | resume | {"data": "there", "out": "replaced"}, {},
            {"model": (model := nn.Linear(2, 3))}, model, {"data": "5678"})


@pytest.mark.parametrize("name", ["last.pt", "metrics.jsonl", "done", "result.json", "curves.png"])
def test_files_of_something_else_are_not_taken_for_a_run(tmp_path, name):
    (tmp_path / name).write_text("mine")
    for resume in (None, "auto"):
        with pytest.raises(UserError, match=f"has {name}, but not of a run: name another --out"):
            make_run(tmp_path, nn.Linear(2, 3), resume=resume)
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_text() == "mine"


def test_a_run_is_not_continued_over_another_one(finished, tmp_path):
    other = tmp_path / "other"
    train(make_run(other, nn.Linear(2, 3)))
    before = (other / "last.pt").read_bytes()
    with pytest.raises(UserError, match="other already holds a run"):
        make_run(other, nn.Linear(2, 3), resume=str(finished / "last.pt"), steps=6)
    with pytest.raises(UserError, match="holds a run of another command"):
        Run(other, "test/run", {"resume": "auto", "dry_run": False},
            {}, {"model": (model := nn.Linear(2, 3))}, model, {})
    assert (other / "last.pt").read_bytes() == before
    make_run(other, nn.Linear(2, 3), resume=str(other / "last.pt"), steps=6)  # its own


def test_a_run_whose_checkpoint_is_gone_is_not_started_again(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "last.pt").unlink()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match=r"last\.pt is gone: put it back"):
        make_run(out, nn.Linear(2, 3), resume="auto", steps=9)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(("logged", "now", "starts"), [(4, 1, True), (1, 4, False)])
def test_a_lost_checkpoint_is_missed_by_the_saves_of_the_start_that_logged_the_rows(tmp_path, logged, now, starts):
    run = make_run(tmp_path / "run", nn.Linear(2, 3), save_every=logged)
    for step in run.steps():
        run.record({"loss": torch.tensor(1.0), "gain": torch.tensor(1.0)})
        if step == 2:
            run.folder.release()  # killed after the row of step 2
            (tmp_path / "run" / "last.pt").unlink(missing_ok=True)
            break
    if starts:
        make_run(tmp_path / "run", nn.Linear(2, 3), resume="auto", save_every=now)
    else:
        with pytest.raises(UserError, match=r"last\.pt is gone"):
            make_run(tmp_path / "run", nn.Linear(2, 3), resume="auto", save_every=now)


def test_the_folder_is_held_until_the_run_says_that_it_is_done(tmp_path, monkeypatch):
    def plot(path, starts):
        with pytest.raises(UserError, match="another process trains there"):
            make_run(path, nn.Linear(2, 3), resume="auto", steps=8)

    monkeypatch.setattr("common.run.plot_curves", plot)
    train(make_run(tmp_path / "run", nn.Linear(2, 3)))
    assert (tmp_path / "run" / "done").exists()
    make_run(tmp_path / "run", nn.Linear(2, 3), resume="auto", steps=8)


def test_pictures_of_an_abandoned_continuation_go(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "samples").mkdir()
    for name in ("0000004.png", "0000005.png", "20240101.png"):
        (out / "samples" / name).write_text("")
    make_run(out, nn.Linear(2, 3), resume="auto", steps=9)
    assert sorted(os.listdir(out / "samples")) == ["0000004.png", "20240101.png"]


def test_a_dry_run_times_steps_and_writes_nothing(tmp_path, capsys):
    run, seen = make_run(tmp_path / "run", nn.Linear(2, 3), dry_run=True, steps=1000), []
    with pytest.raises(SystemExit) as end:
        for step in run.steps():
            seen.append(step)
            assert not run.due(1)
            run.record({"loss": torch.tensor(1.0)})
    assert end.value.code == 0 and len(seen) == 4
    assert "9 parameters" in (out := capsys.readouterr().out) and "1000 steps" in out
    assert os.listdir(tmp_path) == []


def test_every_row_has_the_learning_rates(tmp_path):
    model = nn.Linear(2, 3)
    parts = {"model": model, "g_optimizer": torch.optim.SGD(model.parameters(), lr=0.5)}
    run = Run(tmp_path / "run", "test/run", SETTINGS, {}, parts, model, {})
    for step in run.steps():
        parts["g_optimizer"].param_groups[0]["lr"] = 1 / (1 + step)
    assert read_metrics(tmp_path / "run") == [{"step": 2, "g_lr": 0.5}, {"step": 4, "g_lr": 0.25}]


def shown(path):
    """Return (step, metric, value) of all events that TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path)).Reload()
    return [(event.step, name, event.value) for name in events.Tags()["scalars"] for event in events.Scalars(name)]


class Events:
    """Stands for PyTorch's writer of event files; `shown` has what TensorBoard would show."""

    shown = ()

    def __init__(self, log_dir, purge_step):
        Events.shown = [event for event in Events.shown if event[0] < purge_step]
        (log_dir / f"events.{len(list(log_dir.glob('events.*')))}").write_text("")

    def add_scalar(self, name, value, step):
        Events.shown.append((step, name, value))

    def flush(self):
        pass


@pytest.mark.parametrize("real", [False, True])
def test_event_files_have_the_rows_of_the_metrics_once(tmp_path, monkeypatch, real):
    if real:
        pytest.importorskip("tensorboard")
    else:
        monkeypatch.setattr("common.run.require_tensorboard", lambda: Events)
    out, flags = tmp_path / "run", {"log_every": 1, "save_every": 2, "tensorboard": True}
    run = make_run(out, nn.Linear(2, 3), **flags)
    loop = run.steps()
    for _ in range(4):  # logs three rows, of which the checkpoint has two
        run.record({"loss": torch.tensor(float(next(loop)))})
    loop.close()
    train(make_run(out, nn.Linear(2, 3), resume="auto", **flags))
    rows = [(row["step"], name, row[name]) for row in read_metrics(out) for name in row if name != "step"]
    assert sorted(shown(out) if real else Events.shown) == sorted(rows) and len(rows) > 4
    train(make_run(out, nn.Linear(2, 3), resume="auto", **flags))  # nothing is left to do
    assert len(list(out.glob("events.*"))) == 2
    assert "tensorboard" not in json.loads((out / "args.json").read_text())


@pytest.mark.parametrize("spoiled", ["add_scalar", "flush"])
def test_events_that_cannot_be_written_are_one_line(tmp_path, monkeypatch, spoiled):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("common.run.require_tensorboard", lambda: Events)
    monkeypatch.setattr(Events, spoiled, full)
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot write \(No space left on device\)"):
        train(make_run(tmp_path / "run", nn.Linear(2, 3), tensorboard=True))


def test_a_closed_standard_output_saves_and_stops(tmp_path, monkeypatch):
    def closed(line, **flags):
        if line.startswith("step 2/"):
            raise BrokenPipeError

    monkeypatch.setattr("common.run.drop_stdout", lambda: None)
    run = make_run(tmp_path / "run", nn.Linear(2, 3))
    monkeypatch.setattr("common.run.print", closed, raising=False)
    with pytest.raises(SystemExit) as end:
        train(run)
    assert end.value.code == 128 + signal.SIGPIPE
    assert checkpoint.load(tmp_path / "run" / "last.pt")["step"] == 2


def test_a_closed_terminal_saves_and_stops(tmp_path):
    run, before = make_run(tmp_path / "run", nn.Linear(2, 3)), signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as end:
            for _ in run.steps():
                os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)  # which is to ignore it if nohup started the suite
    assert end.value.code == 128 + signal.SIGHUP
    assert checkpoint.load(tmp_path / "run" / "last.pt")["step"] == 1


def test_a_hangup_that_nohup_ignores_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = make_run(tmp_path / "run", nn.Linear(2, 3))
        for _ in run.steps():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert run.step == 4


def test_a_finished_run_that_is_extended_and_stopped_is_not_finished_any_more(tmp_path):
    out = tmp_path / "run"
    train(make_run(out, nn.Linear(2, 3)))
    (out / "result.json").write_text("{}")
    with pytest.raises(SystemExit):
        for _ in make_run(out, nn.Linear(2, 3), resume="auto", steps=9).steps():
            os.kill(os.getpid(), signal.SIGTERM)
    assert not (out / "done").exists() and not (out / "result.json").exists()
    with pytest.raises(UserError, match="is not a finished run"):
        release.main([str(out), str(tmp_path / "a.pt")])
    assert not (tmp_path / "a.pt").exists()
    train(make_run(out, nn.Linear(2, 3), resume="auto", steps=9))
    assert json.loads((out / "done").read_text())["steps"] == 9


@pytest.mark.parametrize(("name", "said"), [("run/last.pt", "is in the run folder"),
                                            ("manifest.json", "ends in .pt")])
def test_a_release_replaces_no_file_of_a_run_and_no_manifest(finished, tmp_path, name, said):
    shutil.copytree(finished, tmp_path / "run")
    before = (tmp_path / "run" / "last.pt").read_bytes()
    with pytest.raises(UserError, match=said):
        release.main([str(tmp_path / "run"), str(tmp_path / name), "--force"])
    assert (tmp_path / "run" / "last.pt").read_bytes() == before and not (tmp_path / "manifest.json").exists()


def test_what_inference_reads_is_brought_up_to_date_before_every_save(tmp_path):
    model, updates = nn.Linear(2, 3), []
    run = make_run(tmp_path / "run", model, log_every=9, save_every=3)

    def update():
        updates.append(run.step)
        nn.init.constant_(model.bias, run.step)

    with pytest.raises(SystemExit):
        for step in run.steps(before_save=update):
            if step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
    assert updates == [2] and checkpoint.load(tmp_path / "run" / "last.pt")["weights"]["bias"].tolist() == [2, 2, 2]
    for _ in make_run(tmp_path / "run", model, log_every=9, save_every=3, resume="auto").steps(before_save=update):
        pass
    assert len(updates) == 3  # at step 3, and at the end


def test_resume_auto_in_an_empty_folder_starts(tmp_path):
    run = make_run(tmp_path / "run", nn.Linear(2, 3), resume="auto")
    assert run.step == 0


def test_a_released_file_is_not_resumed(finished, tmp_path):
    write_weights(checkpoint.load(finished / "last.pt"), tmp_path / "small.pt")
    with pytest.raises(UserError, match="is a released file"):
        make_run(tmp_path / "run", nn.Linear(2, 3), resume=str(tmp_path / "small.pt"))
    assert not (tmp_path / "run").exists()


def test_other_settings_are_named(finished, tmp_path):
    with pytest.raises(UserError, match=r"trained with width=3, got width=4"):
        make_run(tmp_path / "run", nn.Linear(2, 3), resume=str(finished / "last.pt"), width=4)


@pytest.mark.parametrize("change", [
    lambda content: content["parts"].update(another={}), lambda content: content["parts"].clear(),
    lambda content: content["args"].update(removed=True), lambda content: content["args"].pop("width"),
    lambda content: content["args"].pop("lr"), lambda content: content.pop("starts")])
def test_a_checkpoint_of_another_version_is_named(finished, tmp_path, change):
    content = checkpoint.load(finished / "last.pt")
    change(content)
    checkpoint.save(tmp_path / "other.pt", content)
    with pytest.raises(UserError, match=r"other.pt was written by another version of this project: start a new run"):
        make_run(tmp_path / "run", nn.Linear(2, 3), resume=str(tmp_path / "other.pt"))
    assert not (tmp_path / "run").exists()


def test_two_processes_never_share_a_folder(tmp_path):
    first = make_run(tmp_path / "run", nn.Linear(2, 3))
    with pytest.raises(UserError, match="another process trains there"):
        make_run(tmp_path / "run", nn.Linear(2, 3), resume="auto")
    train(first)
    make_run(tmp_path / "run", nn.Linear(2, 3), resume="auto")  # what has ended holds nothing


def test_a_killed_process_gives_the_folder_free(tmp_path):
    script = ("import os; from pathlib import Path; from torch import nn\n"
              "from common.run import Run\n"
              "model = nn.Linear(2, 3)\n"
              f"out = Path({str(tmp_path / 'run')!r})\n"
              f"settings = {SETTINGS | {'resume': 'auto', 'out': ''}}\n"
              "Run(out, 'test/run', settings, {}, {'model': model}, model, {})\n"
              "os.kill(os.getpid(), 9)")
    project = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=project, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "run" / "args.json").exists()
    make_run(tmp_path / "run", nn.Linear(2, 3), resume="auto")


def test_a_folder_without_permission_is_one_line_and_stays_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir(mode=0o555)
    tmp_path.chmod(0o711)
    monkeypatch.chdir(tmp_path)
    user = os.geteuid()
    try:
        if user == 0:  # root may write everywhere
            os.seteuid(65534)
        with pytest.raises(UserError, match=r"run: cannot write the run folder \(Permission denied\)"):
            make_run(Path("run"), nn.Linear(2, 3))
    finally:
        os.seteuid(user)
    assert os.listdir("run") == []


def test_a_run_that_cannot_begin_takes_back_what_it_wrote(tmp_path, monkeypatch):
    def full(path, text):
        raise UserError("metrics.jsonl: cannot write")

    monkeypatch.setattr("common.run_folder.write_text", full)
    with pytest.raises(UserError, match="cannot write"):
        make_run(tmp_path / "new", nn.Linear(2, 3))
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("not a run's")
    with pytest.raises(UserError, match="cannot write"):
        make_run(tmp_path / "mine", nn.Linear(2, 3))
    assert os.listdir(tmp_path / "mine") == ["notes.txt"]


def test_another_process_that_cannot_begin_leaves_the_folder_to_the_first(tmp_path, monkeypatch):
    out = tmp_path / "run"
    out.mkdir()

    def resume(folder, kind, names):
        (out / "args.json").write_text("the first one's")  # meanwhile
        raise UserError("no checkpoint here")

    for room in ("run", "run_folder"):
        monkeypatch.setattr(f"common.{room}.rank", lambda: 1)
    monkeypatch.setattr(RunFolder, "load_checkpoint", resume)
    with pytest.raises(UserError, match="no checkpoint here"):
        make_run(out, nn.Linear(2, 3), resume="last.pt")
    assert (out / "args.json").read_text() == "the first one's"


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "20000.0"])
def test_a_metric_that_diverges_stops_before_its_row_is_written(tmp_path, value):
    run = make_run(tmp_path / "run", nn.Linear(2, 3), log_every=1, save_every=1)
    with pytest.raises(UserError, match=rf"d_loss became {value} before step 3: .*last\.pt is from before; --resume "
                                        "auto continues it with a lower learning rate or --precision fp32"):
        for step in run.steps():
            run.record({"d_loss": torch.tensor(float(value) if step == 2 else 1.0), "norm": torch.tensor(1e9)})
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2]
    assert checkpoint.load(tmp_path / "run" / "last.pt")["step"] == 2
    train(make_run(tmp_path / "run", nn.Linear(2, 3), resume="auto", lr=0.01))  # the advice can be followed


def test_a_run_that_diverges_before_its_first_checkpoint_speaks_of_none(tmp_path):
    run = make_run(tmp_path / "run", nn.Linear(2, 3))
    with pytest.raises(UserError, match="before step 2: no checkpoint was written yet; start again with a lower"):
        for _ in run.steps():
            run.record({"loss": torch.tensor(float("nan"))})


@pytest.mark.parametrize("spoiled", ["model", "optimizer", "average"])
def test_weights_that_the_last_update_spoiled_are_not_saved(tmp_path, spoiled):
    """The loss of that step was finite: it belongs to the weights before the update."""
    model = nn.Linear(2, 3)
    optimizer, average = torch.optim.Adam(model.parameters()), EMA(model, 0.9)
    settings = SETTINGS | {"log_every": 1, "save_every": 2}
    parts = {"model": model, "optimizer": optimizer, "average": average}
    run = Run(tmp_path / "run", "test/run", settings, {}, parts, model, {})

    def train():
        for step in run.steps():
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            if step == 3:
                value = {"model": model.weight, "average": average.module.weight,
                         "optimizer": optimizer.state[model.weight]["exp_avg_sq"]}[spoiled]
                value.data[1, 1] = float("inf")
            run.record({"loss": torch.tensor(1.0)})

    with pytest.raises(UserError, match=f"{spoiled}.* became not finite before step 4: .*is from before"):
        train()
    assert checkpoint.load(tmp_path / "run" / "last.pt")["step"] == 2
    assert not (tmp_path / "run" / "done").exists()
