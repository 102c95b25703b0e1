"""``deploynas spaces``: names, sizes, choices."""

from __future__ import annotations

from typing import Annotated

import typer

from deploynas.cli.console import Json, Quiet, print_json, say, warn


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("spaces")(spaces)


def spaces(
    action: Annotated[str | None, typer.Argument(help="'show' for one space's choices.")] = None,
    name: Annotated[str | None, typer.Argument(help="Space to show.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the search spaces, or show the choices of one."""
    from deploynas.spaces import PLUGINS, all_spaces, space

    if action not in (None, "show") or (action == "show" and name is None):
        raise typer.BadParameter("type 'deploynas spaces' or 'deploynas spaces show NAME'")
    if name is None:
        rows = [{"name": n, "architectures": one.size} for n, one in all_spaces().items()]
        for text in PLUGINS.broken.values():
            warn(text)
        if as_json:
            return print_json({"spaces": rows})
        for row in rows:
            say(f"{row['name']:20} {row['architectures']:.2e} architectures")
        return None
    chosen = space(name)
    choices = {c.name: list(c.options) for c in chosen.choices}
    if as_json:
        return print_json({"name": name, "architectures": chosen.size, "choices": choices})
    say(f"{name}: {chosen.size:.2e} architectures, {len(chosen.layer_table)} distinct layers")
    for key, options in choices.items():
        say(f"  {key:28} {', '.join(map(str, options))}")
    return None
