"""Recipes load, explain themselves, and a mistake in one is named with the nearest right word."""

from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from data_shards.errors import InputError
from maetrain.recipes.config import RunConfig
from maetrain.recipes.load import explained, load_recipe, purpose, recipe_names


def fields(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str | None]]:
    """(dotted name, description) of every setting of a tree of models."""
    found = []
    for name, field in model.model_fields.items():
        found.append((f"{prefix}{name}", field.description))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += fields(field.annotation, f"{prefix}{name}.")
    return found


def message(recipe: str, *overrides: str) -> str:
    with pytest.raises(InputError) as error:
        load_recipe(recipe, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_recipes_are_shipped() -> None:
    assert {"demo", "small"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_loads_and_begins_with_its_purpose(name: str) -> None:
    assert isinstance(load_recipe(name), RunConfig)
    first = (files("maetrain.recipes") / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ") and len(first) > 20 and purpose(name) == first[2:]


def test_every_setting_of_the_whole_tree_has_a_description() -> None:
    tree = fields(RunConfig)
    assert len(tree) > 80
    assert [name for name, description in tree if not description] == []


@pytest.mark.parametrize("name", recipe_names())
def test_explained_is_a_recipe_of_the_same_configuration_with_every_field_and_its_meaning(
    name: str, tmp_path: Path
) -> None:
    config = load_recipe(name, ("title='Größe: 100 # %'", "shards.preprocess.spacing_mm=[1, 1.5, 1]"))
    text = explained(config)
    (tmp_path / "full.yaml").write_text(text)
    assert load_recipe(str(tmp_path / "full.yaml")) == config
    plain = yaml.safe_load(text)
    for dotted, description in fields(RunConfig):
        value = plain
        for key in dotted.split("."):
            assert key in value, dotted
            value = value[key]
        assert any(
            line.split(":")[0].strip() == dotted.split(".")[-1] and line.endswith(f"  # {description}")
            for line in text.splitlines()
        ), dotted


def test_overrides_reach_every_depth_and_keep_the_rest() -> None:
    config = load_recipe("demo", ("pretrain.mae.ratio=0.6", "sweep.budgets=[1, 3]", "finetune.augment.enabled=false"))
    plain = load_recipe("demo")
    assert config.pretrain.mae.ratio == 0.6 and config.sweep.budgets == (1, 3) and not config.finetune.augment.enabled
    assert config.pretrain.steps == plain.pretrain.steps and config.model == plain.model
    assert load_recipe("demo", ("pretrain.learning_rate=1e-4",)).pretrain.learning_rate == 1e-4
    assert load_recipe("demo", ("title=a=b",)).title == "a=b"
    assert load_recipe("demo", ("pretrain.steps=1", "pretrain.steps=2")).pretrain.steps == 2, "the last one wins"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("pretrain.setps=3", ("'pretrain.setps'", "did you mean 'steps'?")),
        ("pretran.steps=3", ("'pretran'", "did you mean 'pretrain'?")),
        ("pretrain.mae.ration=0.5", ("'pretrain.mae.ration'", "did you mean 'ratio'?")),
        ("evaluate.zzz=3", ("'evaluate.zzz'", "known: tolerance_mm")),
        ("pretrain.steps.more=3", ("steps is a value, not a group",)),
        ("pretrain.steps=abc", ("pretrain.steps", "'abc'", "integer")),
        ("pretrain.steps=-1", ("pretrain.steps", "-1", "greater than or equal to 0")),
        ("pretrain=5", ("pretrain", "5")),
        ("pretrain.crop_DHW=[16, 16]", ("pretrain.crop_DHW",)),
        ("pretrain.crop_DHW=[16, 16, x]", ("pretrain.crop_DHW.2", "'x'")),
        ("sweep.budgets=[4, 1]", ("sweep", "budgets = [4, 1] must be rising")),
        ("sweep.budgets=[0, 4]", ("sweep.budgets", "greater than or equal to 1")),
        (f"sweep.budgets=[1{400 * '0'}]", ("sweep.budgets", "less than or equal to 1000000")),
        ("sweep.budgets=[]", ("sweep.budgets", "[]")),
        ("sweep.budgets=4", ("sweep.budgets = 4", "a list is wanted, such as [1,2,4]")),
        ("evaluate.tolerance_mm=.inf", ("evaluate.tolerance_mm", "finite number")),
        ("finetune.learning_rate=.inf", ("finetune.learning_rate", "finite number")),
        ("pretrain.learning_rate=.nan", ("pretrain.learning_rate", "nan")),
        ("sweep.arms=[mae, Magic]", ("sweep.arms.1", "'Magic'")),  # any name in small letters is one
        ("shards.format=tar", ("shards.format", "'tar'", "'zarr' or 'webdataset'")),
        ("model.num_heads=[3, 2, 4]", ("num_heads[0] = 3", "use 2")),
        ("pretrain.precision=fp16", ("pretrain.precision", "'fp16'")),
        ("pretrain.steps", ("'pretrain.steps'", "write key=value")),
        ("=3", ("'=3'", "write key=value")),
        ("title=[1", ("'title=[1'", "not YAML")),
        ("pretrain..steps=3", ("pretrain",)),
    ],
)
def test_a_wrong_override_is_named_with_key_value_and_way_out(override: str, parts: tuple[str, ...]) -> None:
    said = message("demo", override)
    for part in parts:
        assert part in said, said


def test_an_unknown_recipe_names_the_nearest_or_all() -> None:
    assert message("smal").endswith("did you mean 'small'?")
    assert "known: " in message("zzzzzz") and "demo" in message("zzzzzz")
    assert "no such file" in message("folder/mine.yaml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"pretrain: [1", "not YAML"),
        (b"- a list", "mapping of settings, this is a list"),
        (b"just words", "mapping of settings, this is a str"),
        (b"pretrain: {stepz: 3}", "did you mean 'steps'?"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"1: 2", "1"),
    ],
)
def test_a_wrong_recipe_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert said in message(str(path)) and str(path) in message(str(path))


def test_an_empty_recipe_is_all_defaults_and_an_empty_group_too(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("")
    assert load_recipe(str(tmp_path / "mine.yaml")) == RunConfig()
    (tmp_path / "mine.yaml").write_text("pretrain:\n")
    assert load_recipe(str(tmp_path / "mine.yaml"), ("pretrain.steps=7",)).pretrain.steps == 7
