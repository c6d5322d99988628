from dataclasses import asdict, replace

import pytest

from tests import tiny_transformer as tiny
from tvmq.errors import UsageError
from tvmq.quantize.presets import DEFAULT, PRESETS, preset_of


def test_presets_have_three_names():
    assert list(PRESETS) == ["fast", DEFAULT, "best"]
    assert preset_of("best").adapt_steps > preset_of("default").adapt_steps == 0
    with pytest.raises(UsageError, match="'slow' is unknown; choose one of"):
        preset_of("slow")


def test_compile_takes_the_word_and_the_artifact_tells_it():
    fast = tiny.compiled(preset="fast")
    assert fast.manifest.description.recipe["preset"] == "fast"
    assert tiny.model().manifest.description.recipe["preset"] == DEFAULT
    x = tiny.inputs(1, seed=9)[0]
    assert (fast(x) != tiny.model()(x)).any()  # other numbers, not only another word
    with pytest.raises(UsageError, match="preset='slow'"):
        tiny.compiled(preset="slow")


@pytest.mark.slow
def test_a_preset_of_ones_own_is_recorded_whole():
    own = replace(preset_of("fast"), name="mine", steps=False)
    assert tiny.compiled(preset=own).manifest.description.recipe["preset"] == asdict(own)


def test_a_preset_that_sees_no_outputs_has_no_observer_of_outputs():
    with pytest.raises(UsageError, match="observer='cosine' looks at outputs, which preset='fast' does not"):
        tiny.compiled(preset="fast", observer="cosine")
    tiny.compiled(observer="cosine")
