"""``deploynas strategies``: the ways to search, and what each can be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploynas.cli.console import Json, print_json, say, warn

if TYPE_CHECKING:
    from deploynas.search.strategy import Strategy


def register(app: typer.Typer) -> None:
    """Add the verb and what goes below it."""
    group = typer.Typer(help="The ways to search, and their options.", invoke_without_command=True)
    group.callback()(strategies)
    group.command("show")(show)
    app.add_typer(group, name="strategies")


def strategies(
    context: typer.Context,
    space_name: Annotated[
        str | None, typer.Option("--space", metavar="NAME", help="Say which fit it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the ways to search."""
    if context.invoked_subcommand is not None:
        return
    from deploynas.search.strategy import DEFAULT, STRATEGIES
    from deploynas.spaces import space

    every = STRATEGIES.all()
    for text in STRATEGIES.broken.values():
        warn(text)
    chosen = None if space_name is None else space(space_name)
    if as_json:
        print_json(
            {
                "strategies": [
                    described(one) | ({} if chosen is None else {"misfit": one.misfit(chosen)})
                    for one in every.values()
                ],
                "default": DEFAULT,
            }
        )
        return
    width = max(map(len, every))
    for name, one in every.items():
        misfit = None if chosen is None else one.misfit(chosen)
        say(f"{name:{width}}  {one.help}" + (f"  [does not fit: {misfit}]" if misfit else ""))
    say(f"\n{DEFAULT} is the default. Options of one: deploynas strategies show NAME")


def show(
    name: Annotated[str, typer.Argument(help="Of a strategy.")], as_json: Json = False
) -> None:
    """Show a strategy, the spaces that it fits, and its options."""
    from deploynas.search.strategy import STRATEGIES

    found = described(STRATEGIES.load(name))
    if as_json:
        print_json(found)
        return
    say(f"{found['name']}: {found['help']}")
    say(f"fits: {', '.join(found['fits'])}")
    say(f"searched where no --space is named: {found['space']}")
    if not found["options"]:
        say("it has no options")
        return
    say("\noptions, as --set NAME=VALUE:")
    for one in found["options"]:
        limits = f" [{one['range']}]" if one["range"] else ""
        say(f"  {one['name']}={_shown(one['default'])}{limits}  {one['help']}")


def described(strategy: Strategy) -> dict[str, Any]:
    """A strategy as a JSON object."""
    from deploynas.spaces import all_spaces

    return {
        "name": strategy.name,
        "help": strategy.help,
        "fits": [n for n, space in all_spaces().items() if strategy.misfit(space) is None],
        "space": strategy.home,
        "weights": strategy.weights,
        "options": strategy.options.described(),
    }


def _shown(default: object) -> str:
    if default is None:
        return "none"
    return ",".join(map(str, default)) if isinstance(default, list) else str(default)
