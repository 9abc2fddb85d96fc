"""`maetrain config`: recipes and what they resolve to."""

import click

from cluster.arguments import OVERRIDES, examples


@click.group()
def config() -> None:
    """Look at recipes and settings."""


@config.command("show", epilog=examples("maetrain config show small", "maetrain config show demo pretrain.steps=400"))
@click.argument("recipe")
@OVERRIDES
def config_show(recipe: str, overrides: tuple[str, ...]) -> None:
    """Print the full configuration that RECIPE and overrides resolve to, with meaning and unit of each setting."""
    from maetrain.recipes.load import explained, load_recipe

    click.echo(explained(load_recipe(recipe, overrides)), nl=False)


@config.command("list", epilog=examples("maetrain config list"))
def config_list() -> None:
    """List the shipped recipes."""
    from maetrain.recipes.load import purpose, recipe_names

    for name in recipe_names():
        click.echo(f"{name:<10} {purpose(name)}")
