"""Inference: the CSV file, the choice of the network, and broken images."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import checkpoint
from common.errors import UserError
from dann import inference
from dann.inference import main, target_of
from dann.inputs import standardise
from dann.networks import DANN
from dann.predict import predict


@pytest.fixture
def released(tmp_path, monkeypatch):
    """A folder of released checkpoints with untrained networks, one per target."""
    folder = tmp_path / "weights"
    for seed, target in enumerate(("usps", "svhn")):
        torch.manual_seed(seed)
        checkpoint.save(folder / f"dann-mnistm-{target}.pt", {
            "kind": "dann", "step": 1, "weights": {name: value.half() if value.is_floating_point() else value
                                                   for name, value in DANN().state_dict().items()},
            "model_args": {"source": "mnistm", "target": target, "mode": "dann", "recipe": "plus"}})
    monkeypatch.setattr(inference, "RELEASED", folder)
    return folder


@pytest.fixture
def images(tmp_path):
    """Twelve images in five modes, written in another order than that of their names."""
    folder = tmp_path / "digits" / "USPS" / "data"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in reversed(range(12)):
        image = Image.fromarray(rng.integers(0, 255, (28, 28, 3), dtype=np.uint8))
        image.convert(("RGB", "L", "RGBA", "P", "1")[i % 5]).save(folder / f"{i:03d}.png")
    return folder


def rows_of(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text().splitlines()))


def test_csv_is_sorted_and_complete(released, images, tmp_path, capsys):
    out = tmp_path / "new" / "OUT.csv"
    assert main([str(images), str(out)]) == 0
    header, *rows = rows_of(out)
    assert header == ["image_name", "label"]
    assert [name for name, _ in rows] == [f"{i:03d}.png" for i in range(12)]
    assert {label for _, label in rows} <= set("0123456789")
    assert "12 digits" in capsys.readouterr().out
    assert [p.name for p in out.parent.iterdir()] == ["OUT.csv"]


def test_labels_are_those_of_the_network(released, images, tmp_path):
    main([str(images), str(tmp_path / "OUT.csv")])
    _, state = checkpoint.load_weights(released / "dann-mnistm-usps.pt", "dann")
    model = DANN()
    model.load_state_dict(state)
    model.eval()
    for name, label in rows_of(tmp_path / "OUT.csv")[1:]:
        rgb = np.asarray(Image.open(images / name).convert("RGB")).copy()
        x = standardise(torch.from_numpy(rgb).permute(2, 0, 1)[None] / 127.5 - 1)
        assert model(x, 0.0)[0].argmax().item() == int(label), name


def test_batches_change_nothing():
    images = torch.randint(0, 256, (2300, 3, 28, 28), dtype=torch.uint8)
    model = DANN()
    features, logits = predict(model, images, torch.device("cpu"))
    assert features.shape == (2300, 768) and logits.shape == (2300, 10) and logits.dtype == torch.float32
    again = predict(model, images[1500:1510], torch.device("cpu"))
    torch.testing.assert_close(again, (features[1500:1510], logits[1500:1510]))
    assert not model.training


def test_prediction_and_training_prepare_images_alike():
    images = torch.randint(0, 256, (4, 3, 28, 28), dtype=torch.uint8)
    model = DANN().eval()
    x = images / 127.5 - 1
    with torch.no_grad():
        expected = model.features(standardise(x))
    torch.testing.assert_close(predict(model, images, torch.device("cpu"))[0], expected)


def test_broken_image_is_named_and_the_others_predicted(released, images, tmp_path, capsys):
    (images / "004.png").write_bytes(b"not a picture")
    assert main([str(images), str(tmp_path / "OUT.csv")]) == 2
    names = [name for name, _ in rows_of(tmp_path / "OUT.csv")[1:]]
    assert names == [f"{i:03d}.png" for i in range(12) if i != 4]
    (line,) = capsys.readouterr().err.splitlines()
    assert str(images / "004.png") in line


def test_all_images_broken(released, images, tmp_path):
    for path in images.iterdir():
        path.write_bytes(b"")
    assert main([str(images), str(tmp_path / "OUT.csv")]) == 2
    assert rows_of(tmp_path / "OUT.csv") == [["image_name", "label"]]


@pytest.mark.parametrize("path, target", [
    ("hw2_data/digits/svhn/data", "svhn"), ("/data/USPS", "usps"), ("my_svhn_test", "svhn"), (".", "svhn"),
    ("data/..", "svhn"), ("usps", "usps"),
])
def test_target_in_the_path(path, target, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("of-svhn"))
    assert target_of(Path(path), ["svhn", "usps"]) == target


@pytest.mark.parametrize("path, named", [("hw2_data/test", "no target domain"), ("usps/and/svhn", "svhn and usps")])
def test_unclear_target(path, named, released, tmp_path):
    with pytest.raises(UserError, match=rf"{path} names {named}: choose with --target svhn \(printed and street "
                                        r"numbers\) or --target usps \(handwriting\)"):
        main([path, str(tmp_path / "OUT.csv")])


def test_target_flag_or_weights_override_the_path(released, images, tmp_path, capsys):
    main([str(images), str(tmp_path / "a.csv"), "--target", "svhn"])
    assert "mnistm -> svhn" in capsys.readouterr().out
    main([str(images), str(tmp_path / "b.csv"), "--weights", str(released / "dann-mnistm-svhn.pt")])
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_every_released_target_can_be_chosen(released, images, tmp_path, capsys):
    (released / "dann-mnistm-svhn.pt").rename(released / "dann-mnistm-mnist.pt")
    assert main([str(images), str(tmp_path / "OUT.csv"), "--target", "mnist"]) == 0
    with pytest.raises(UserError, match="--target"):
        main([str(images), str(tmp_path / "other.csv"), "--target", "svhn"])


def test_two_networks_for_one_target(released, images, tmp_path):
    (released / "dann-mnistm-svhn.pt").rename(released / "dann-mnist-usps.pt")
    with pytest.raises(UserError, match=r"dann-mnist-usps.pt and .*mnistm-usps.pt are for one target: choose"):
        main([str(images), str(tmp_path / "OUT.csv")])
    assert main([str(images), str(tmp_path / "OUT.csv"), "--weights", str(released / "dann-mnist-usps.pt")]) == 0


def test_a_target_whose_name_begins_like_another():
    assert target_of(Path("digits/mnistm/data"), ["mnist", "mnistm"]) == "mnistm"
    assert target_of(Path("digits/MNIST-test"), ["mnist", "mnistm"]) == "mnist"


def test_says_when_the_target_was_a_stand_in(images, tmp_path, capsys):
    for target in ("builtin-svhn", "usps", "receipts"):  # the last one: a domain that a user has added
        path = tmp_path / f"{target}.pt"
        model_args = {"source": "mnistm", "target": target, "mode": "dann"}
        checkpoint.save(path, {"kind": "dann", "weights": DANN().state_dict(), "model_args": model_args})
        capsys.readouterr()
        main([str(images), str(tmp_path / f"{target}.csv"), "--weights", str(path)])
        out = capsys.readouterr().out
        assert f"(mnistm -> {target} dann)" in out
        assert ("stand-in for svhn" in out) == (target == "builtin-svhn")


def test_refuses_to_overwrite(released, images, tmp_path):
    out = tmp_path / "OUT.csv"
    out.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        main([str(images), str(out)])
    assert out.read_text() == "mine"
    assert main([str(images), str(out), "--force"]) == 0
    assert len(rows_of(out)) == 13


def test_the_first_of_several_processes_predicts_all(released, images, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "10":
        assert not (tmp_path / "OUT.csv").exists()
        monkeypatch.setenv("RANK", rank)
        assert main([str(images), str(tmp_path / "OUT.csv")]) == 0
    assert len(rows_of(tmp_path / "OUT.csv")) == 13


def test_a_csv_file_below_a_file_cannot_be_written(released, images):
    with pytest.raises(UserError, match="cannot write"):
        main([str(images), str(images / "000.png" / "x.csv")])


def test_reads_the_checkpoint_of_a_run(train, images, tmp_path, capsys):
    out = train("run", "--mode", "source")
    assert main([str(images), str(tmp_path / "OUT.csv"), "--weights", str(out / "last.pt")]) == 0
    assert "(mnistm -> usps source)" in capsys.readouterr().out
