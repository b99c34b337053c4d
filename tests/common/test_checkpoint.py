"""Model files: whole or absent, never run as code, and every wrong file named in one line."""

import os
import pickle
import random
import re
import resource
import signal
import zipfile

import pytest
import torch
from torch import nn

from common import checkpoint
from common.errors import UserError
from common.release import write_weights

KIND = "test/net"


def network(width=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))


def content(**more):
    return {"kind": KIND, "model_args": {"width": 4}, "step": 7, "weights": network().state_dict(), **more}


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(tmp_path / "net.pt", content())
    return tmp_path / "net.pt"


def refused(path, kind=KIND):
    """Return the message of the UserError that `path` ends in; it has one line and names the file."""
    with pytest.raises(UserError) as mistake:
        checkpoint.load(path, kind)
    message = str(mistake.value)
    assert "\n" not in message and str(path) in message
    return message


def test_what_was_saved_comes_back(saved):
    model_args, weights = checkpoint.load_weights(saved, KIND)
    other = network()
    nn.init.zeros_(other[0].weight)
    checkpoint.load_into(other, weights, saved)
    assert model_args == {"width": 4}
    for name, value in network().state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert checkpoint.load(saved)["step"] == 7
    assert os.listdir(saved.parent) == ["net.pt"]


def test_folders_are_made(tmp_path):
    checkpoint.save(tmp_path / "a" / "b" / "net.pt", content())
    assert checkpoint.load(tmp_path / "a" / "b" / "net.pt", KIND)["step"] == 7


class Unsavable:
    def __reduce__(self):
        raise ArithmeticError("half-way")


@pytest.fixture
def full_disk():
    """No file may grow beyond 20,000 bytes: a disk that fills up while a checkpoint is written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_is_one_line_and_leaves_the_old_file(saved, full_disk):
    before = saved.read_bytes()
    with pytest.raises(UserError, match=r"net\.pt: cannot write \(File too large\)") as mistake:
        checkpoint.save(saved, content(more=torch.zeros(100_000)))
    assert "\n" not in str(mistake.value)
    assert saved.read_bytes() == before
    assert checkpoint.load(saved, KIND)["step"] == 7
    assert os.listdir(saved.parent) == ["net.pt"]


def test_any_failure_half_way_leaves_the_old_file(saved):
    before = saved.read_bytes()
    with pytest.raises(ArithmeticError, match="half-way"):
        checkpoint.save(saved, content(first=torch.zeros(1000), second=Unsavable()))
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["net.pt"]


def test_killed_before_the_rename_leaves_the_old_file(saved, monkeypatch):
    before, seen = saved.read_bytes(), []

    def killed(source, target):
        seen.append(checkpoint.load(source, KIND)["step"])  # whole before it takes the name
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(saved, content(step=8))
    assert seen == [8]
    assert saved.read_bytes() == before


def test_the_bytes_are_on_the_disk_before_the_rename(saved, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *args: (calls.append("fsync"), fsync(*args)))
    monkeypatch.setattr(os, "replace", lambda *args: (calls.append("replace"), replace(*args)))
    checkpoint.save(saved, content())
    assert calls == ["fsync", "replace"]


def test_a_folder_that_cannot_be_made_is_one_line(saved):
    with pytest.raises(UserError, match="cannot write"):
        checkpoint.save(saved / "net.pt", content())


class Malicious:
    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return os.mkdir, (str(self.trap),)


@pytest.mark.parametrize("write", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))],
                         ids=["torch", "pickle"])
def test_no_code_in_a_file_is_run(tmp_path, write):
    path, trap = tmp_path / "net.pt", tmp_path / "trap"
    write({"format": checkpoint.FORMAT, **content(payload=Malicious(trap))}, path)
    assert "not a checkpoint of this project" in refused(path)
    assert not trap.exists()
    torch.load(path, weights_only=False) if write is torch.save else pickle.loads(path.read_bytes())
    assert trap.exists()  # the trap does spring where code is run


def test_a_file_that_cannot_be_read_is_not_called_damaged(saved, monkeypatch):
    def refuse(*args, **flags):
        raise PermissionError(13, "Permission denied", str(saved))

    monkeypatch.setattr("torch.load", refuse)
    assert "Permission denied" in refused(saved)


def test_missing_file(tmp_path):
    assert "no checkpoint at" in refused(tmp_path / "nowhere.pt")
    assert "no checkpoint at" in refused(tmp_path)


def test_wrong_kind_names_both(saved):
    assert re.search("got a checkpoint of test/net, expected gan/sagan", refused(saved, "gan/sagan"))
    assert checkpoint.load(saved)["kind"] == KIND


def test_wrong_format_names_both(tmp_path):
    torch.save({"format": 99, "kind": KIND}, tmp_path / "new.pt")
    assert f"got checkpoint format 99, expected {checkpoint.FORMAT}" in refused(tmp_path / "new.pt")


@pytest.mark.parametrize("lacking", ["kind", "model_args", "weights"])
def test_missing_parts(tmp_path, lacking):
    rest = {name: value for name, value in content().items() if name != lacking}
    checkpoint.save(tmp_path / "net.pt", rest)
    assert "parts of it are missing" in refused(tmp_path / "net.pt")


@pytest.mark.parametrize("data", [
    b"", b"\x80", b"hello world\n" * 50, b"image_name,label\n1.png,3\n", b"\x89PNG\r\n\x1a\n" + bytes(40),
    b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"}", b"a" * 7,
    *(pickle.dumps({"format": 1}, protocol) for protocol in range(6)),
])
def test_foreign_bytes(tmp_path, data, recwarn):
    (tmp_path / "net.pt").write_bytes(data)
    refused(tmp_path / "net.pt")
    assert not recwarn.list  # a warning would be a second line on stderr


@pytest.mark.parametrize("obj", [None, 3, [1], network().state_dict(), network()],
                         ids=lambda obj: type(obj).__name__)
def test_files_of_other_projects(tmp_path, obj):
    torch.save(obj, tmp_path / "net.pt")
    assert "not a checkpoint of this project" in refused(tmp_path / "net.pt")


def test_other_zip_files(tmp_path, recwarn):
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("constants.pkl", b"")
        archive.writestr("readme.txt", b"hello")
    refused(tmp_path / "net.pt")
    assert not recwarn.list


def test_truncated_at_any_length(saved):
    whole = saved.read_bytes()
    rng = random.Random(0)
    for length in [0, 1, 100, len(whole) - 1, *rng.sample(range(len(whole)), 40)]:
        saved.write_bytes(whole[:length])
        assert "damaged" in refused(saved)


@pytest.mark.parametrize(("other", "message"), [
    (network(width=8), r"0\.bias: got shape \(4,\), expected \(8,\)"),
    (nn.Sequential(nn.Conv2d(3, 4, 3)), r"1\.bias: got shape \(4,\), expected None"),
    (nn.Sequential(*network(), nn.Linear(2, 3)), r"2\.bias: got shape None, expected \(3,\)"),
])
def test_a_changed_shape_is_named(saved, other, message):
    _, weights = checkpoint.load_weights(saved, KIND)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(UserError, match=message) as mistake:
        checkpoint.load_into(other, weights, saved)
    assert "\n" not in str(mistake.value) and str(saved) in str(mistake.value)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_a_released_file_holds_half_precision_weights_and_nothing_of_training(saved, tmp_path):
    optimizer = torch.optim.Adam(network().parameters())
    checkpoint.save(saved, content(args={"data": "somebody/hw2_data"}, rng={"cpu": torch.get_rng_state()},
                                   parts={"optimizer": optimizer.state_dict()}))
    released = tmp_path / "weights" / "net.pt"
    about = write_weights(checkpoint.load(saved), released)
    assert about == {"kind": KIND, "model_args": {"width": 4}, "step": 7}
    raw = torch.load(released, weights_only=True)
    assert raw.keys() == {"format", "kind", "model_args", "step", "weights"}
    assert {value.dtype for value in raw["weights"].values()} == {torch.float16, torch.int64}
    assert b"somebody" not in released.read_bytes()

    model_args, weights = checkpoint.load_weights(released, KIND)
    assert model_args == {"width": 4}
    for name, value in network().state_dict().items():
        assert weights[name].dtype == value.dtype
        torch.testing.assert_close(weights[name], value, rtol=2**-11, atol=2**-24)  # rounding of float16
    checkpoint.load_into(network(), weights, released)


def test_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-2
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert checkpoint.sha256(tmp_path / "abc") == expected
