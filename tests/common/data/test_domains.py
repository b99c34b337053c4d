"""The table of domains: names, heights, and the addresses of the raw files."""

import pytest
from PIL import Image

from common import prepare
from common.data.domains import DOMAIN_CHOICES, DOMAINS, Domain, digit_height, split_name
from common.data.folder import load_digits
from common.errors import UserError


def test_the_order_of_the_domains_stays_because_it_seeds_the_embedded_images():
    assert list(DOMAINS)[:4] == ["mnist", "mnistm", "usps", "svhn"]
    assert DOMAIN_CHOICES[:4] == tuple(DOMAINS)[:4] and "builtin-svhn" in DOMAIN_CHOICES


def test_every_choice_is_split_into_its_row_and_whether_it_is_embedded():
    assert split_name("svhn") == ("svhn", False) and split_name("builtin-svhn") == ("svhn", True)
    assert {split_name(choice)[0] for choice in DOMAIN_CHOICES} == set(DOMAINS)
    for unknown in ("emnist", "builtin-emnist", "builtin", "builtin-", "builtin-builtin-svhn", ""):
        with pytest.raises(UserError, match=f"unknown domain '{unknown}': choose from mnist, mnistm, usps, svhn"):
            split_name(unknown)


def test_a_height_is_enough_for_a_domain_of_ones_own_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(DOMAINS, "receipts", Domain(22))
    folder = tmp_path / "digits" / "receipts"
    (folder / "data").mkdir(parents=True)
    Image.new("RGB", (30, 40)).save(folder / "data" / "a.png")
    (folder / "train.csv").write_text("image_name,label\na.png,7\n")
    digits = load_digits(tmp_path, "receipts", "train")
    assert (digits.images.shape, digits.labels.tolist()) == ((1, 3, 28, 28), [7]) and digit_height("receipts") == 22
    with pytest.raises(UserError, match="domain 'receipts' has no embedded stand-in: name its data folder"):
        load_digits("builtin", "receipts", "train")
    with pytest.raises(UserError, match="holds none of the raw sets"):
        prepare.main(["--raw", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "receipts" not in capsys.readouterr().out


def test_the_raw_files_are_those_that_torchvision_knows():
    from torchvision.datasets import MNIST, SVHN, USPS

    expected = {
        "mnist": [(MNIST.mirrors[0] + name, "MNIST/raw", md5) for name, md5 in MNIST.resources],
        "usps": [(url, "USPS", md5) for url, _, md5 in USPS.split_list.values()],
        "svhn": [(url, "SVHN", md5) for url, _, md5 in (SVHN.split_list["train"], SVHN.split_list["test"])],
    }
    for name, files in expected.items():
        assert list(DOMAINS[name].files) == files
    assert DOMAINS["mnistm"].files[:-1] == DOMAINS["mnist"].files
