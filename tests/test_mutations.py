"""The list of mutations fits the code; `python tests/mutations.py` tries them."""

import pytest

from tests.mutations import MUTATIONS, PROJECT, mutated

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.place} {mutation.breaks}")
def test_the_pattern_is_in_its_function_once(mutation):
    text = (PROJECT / mutation.place.split(":")[0]).read_text()
    assert mutated(text, mutation) != text


def test_the_tests_that_must_fail_exist():
    assert all((PROJECT / mutation.tests.split()[0]).exists() for mutation in MUTATIONS)
