"""The table of domains: names, heights, and the addresses of the raw files."""

import pytest

from common.data.domains import DOMAIN_CHOICES, DOMAINS, digit_height, split_name
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


def test_heights():
    assert [digit_height(name) for name in DOMAINS] == [20, 20, 28, 28]
    assert digit_height("builtin-usps") == 28


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
