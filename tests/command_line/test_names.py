from __future__ import annotations

import pytest

from wsis.command_line.parser import CLI

SMALL = "--data.train 4 --data.val 2 --data.salient 2 --model.backbone.weights none"


def build(words: str, place) -> CLI:
    return CLI("fit", [*words.split(), "--data", "shapes", "--data.root", str(place)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--model jtsm --model.pooling roi_pool --model.window region", "model.window has no"),
        ("--model jtsm --model.instances false --model.mask_heads 2", "model.mask_heads has no"),
        (
            "--model mask_rcnn --data.augment.recoloured 0.3",
            "data.augment.recoloured has no effect",
        ),
        (
            "--model mask_rcnn --data.augment.scales [0.5,2] --data.augment.crop 0.5",
            "data.augment.crop has no effect with augment.scales",
        ),
        (
            "--model mask_rcnn --data.proposals segments",
            "data.proposals has no effect with MaskRCNN, which needs no proposals",
        ),
        ("--model boxinst --data.max_test_proposals 9", "data.max_test_proposals has no effect"),
    ],
)
def test_what_was_typed_without_effect_is_noted(words, told, tmp_path, capsys):
    build(f"{words} {SMALL}", tmp_path)
    notes = [line for line in capsys.readouterr().out.splitlines() if "effect" in line]
    assert len(notes) == 1
    assert notes[0].startswith(f"note: {told}")


def test_proposals_of_a_method_that_needs_them_are_not_noted(tmp_path, capsys):
    build(f"--model jtsm --data.proposals segments {SMALL}", tmp_path)
    assert "effect" not in capsys.readouterr().out


def test_settings_of_a_recipe_are_not_noted(tmp_path, capsys):
    made = build(f"--model jtsm --model.instances false {SMALL}", tmp_path)
    assert "effect" not in capsys.readouterr().out
    assert made.config.model.mask_heads == 1  # the recipe's
    assert "mask_heads" in made.model.idle()
