from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmq.errors import UsageError
from tvmq.plan.recipe import Recipe
from tvmq.spec import W8A8, Plan, Precision, SitePlan

OPTIONS = {
    "ignored": ["norm*"],
    "requantize": "pot",
    "observer": "mse",
    "preset": "fast",
    "seed": 3,
    "threads": 2,
}
PLAN = Plan(
    "17ab",
    (
        SitePlan("blocks.0.fc1", "linear", Precision(4, 8), 'saves "much"'),
        SitePlan("norm", "layer_norm", None, "slower in integers"),
        SitePlan("head", "linear", W8A8, "integer kernel"),
    ),
)


def test_a_recipe_survives_its_file(tmp_path: Path):
    recipe = Recipe.of(PLAN, {**OPTIONS, "target": "native", "bits": 8})
    recipe.save(tmp_path / "r.toml")
    assert Recipe.load(tmp_path / "r.toml") == recipe
    assert recipe.options == OPTIONS
    assert '"blocks.0.fc1" = { bits = "w4a8", why = "saves \\"much\\"" }' in recipe.text()


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), st.tuples(st.sampled_from([None, W8A8, Precision(2, 6)]), st.text())))
def test_any_names_and_reasons_survive(tmp_path_factory: pytest.TempPathFactory, sites):
    recipe = Recipe(
        {name: bits for name, (bits, _) in sites.items()}, {n: why for n, (_, why) in sites.items()}
    )
    path = tmp_path_factory.mktemp("recipe") / "r.toml"
    recipe.save(path)
    assert Recipe.load(path) == recipe


def test_people_may_write_less(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text('schema = 1\n[sites]\n"*" = "w4a8"\n"head" = { bits = "float" }\n')
    assert Recipe.load(path) == Recipe({"*": Precision(4, 8), "head": None})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("schema = ", "is no TOML"),
        ("", "is no recipe, it has no schema"),
        ("schema = 2", "schema is 2, 1 is what this tvmq reads"),
        ("schema = 1\nsite = 3", "unknown key 'site'; known keys: schema, model, options, sites"),
        ("schema = 1\nmodel = 3", "model: is 3, text in quotes is wanted"),
        ("schema = 1\nsites = 3", "sites: is 3, a table is wanted"),
        ("schema = 1\n[options]\nbits = 8", "options: unknown key 'bits'; known keys: ignored"),
        ("schema = 1\n[options]\nseed = true", "options.seed: is True, a whole number is wanted"),
        ("schema = 1\n[options]\nignored = [3]", "options.ignored: wanted a list of patterns"),
        ("schema = 1\n[sites]\nhead = 8", "sites.head: bits: is 8, text in quotes is wanted"),
        ('schema = 1\n[sites]\nhead = "w9a8"', "sites.head: bits='w9a8': no widths are called that"),
        ('schema = 1\n[sites]\nhead = { why = "x" }', "sites.head: bits: is None, text in quotes is wanted"),
        ('schema = 1\n[sites]\nhead = { bits = "8", ms = 3 }', "sites.head: unknown key 'ms'"),
    ],
)
def test_what_is_no_recipe_is_a_sentence(tmp_path: Path, text: str, said: str):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        Recipe.load(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_a_sentence(tmp_path: Path):
    with pytest.raises(UsageError, match=r"r.toml: cannot be read \(No such file"):
        Recipe.load(tmp_path / "r.toml")
