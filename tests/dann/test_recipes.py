"""Recipes: defaults, flags that contradict each other, and how the result table names changes."""

import pytest

from common.errors import UserError
from dann.recipes import MODES, RECIPES, changes_of, complete

UNSET = dict.fromkeys(RECIPES[None])


def settings(mode="dann", recipe="plus", **given):
    return complete({"mode": mode, "recipe": recipe, **UNSET, **given})


NOTHING = {"geometry": True, "intensity": True, "photograph": False, "neighbours": False, "adversary": False,
           "teacher": False, "alignment": False, "target_only": 0, "dropout": 0.5, "lr": 1e-3,
           "lr_schedule": "cosine"}


@pytest.mark.parametrize("mode, recipe, changed", [
    ("source", None, {}), ("target", None, {}), ("dann", "plain", {"adversary": True}),
    ("dann", "plus", {"photograph": True, "neighbours": True, "teacher": True, "alignment": True, "target_only": 0.3,
                      "dropout": 0.1, "lr": 2e-3}),
])
def test_defaults(mode, recipe, changed):
    completed = settings(mode, recipe or "plus", seed=7)
    assert completed == {"mode": mode, "recipe": recipe, "seed": 7, **NOTHING, **changed}
    assert changes_of(completed) == []


def test_without_a_teacher_nothing_needs_one():
    completed = settings(teacher=False, adversary=True)
    assert (completed["alignment"], completed["target_only"]) == (False, 0)


def test_given_values_win_and_are_named_in_the_order_of_the_table():
    completed = settings(lr=1.0, lr_schedule="constant", geometry=False, adversary=True, teacher=True, alignment=False)
    assert changes_of(settings(target_only=0.0, dropout=0.5)) == ["target only 0.0", "dropout 0.5"]
    assert changes_of(completed) == ["no geometry", "adversary", "no alignment", "lr 1.0", "lr schedule constant"]
    assert changes_of(settings("source", intensity=False, lr=1e-3)) == ["no intensity"]


def test_the_settings_of_a_run_can_be_given_again():
    for mode in MODES:
        completed = settings(mode, "plain")
        assert complete({**completed, "recipe": "plain"}) == completed


@pytest.mark.parametrize("mode", MODES)
def test_the_recipe_belongs_to_mode_dann(mode):
    assert settings(mode, "plain")["recipe"] == ("plain" if mode == "dann" else None)


@pytest.mark.parametrize("given, expected", [
    ({"mode": "source", "teacher": True}, "--teacher belongs to --mode dann"),
    ({"mode": "target", "adversary": True}, "--adversary belongs to --mode dann"),
    ({"teacher": False}, "--mode source"),
    ({"recipe": "plain", "adversary": False}, "--mode source"),
    ({"mode": "source", "target_only": 0.5}, "--target-only belongs to --mode dann"),
    ({"mode": "target", "alignment": True}, "--alignment belongs to --mode dann"),
    ({"recipe": "plain", "target_only": 0.5}, "--target-only .* needs --teacher"),
    ({"recipe": "plain", "alignment": True}, "--alignment .* needs --teacher"),
    ({"mode": "source", "neighbours": True}, "--neighbours belongs to --mode dann"),
])
def test_contradictions(given, expected):
    with pytest.raises(UserError, match=expected):
        settings(**given)
