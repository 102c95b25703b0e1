"""``deploynas search``: the most accurate network within budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploynas.cli.console import Json, Quiet, SpaceName, open_data, print_json, progress, say


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("search")(search)


def search(
    latency_ms: Annotated[float | None, typer.Option(help="Latency budget.")] = None,
    max_flops: Annotated[float | None, typer.Option(help="MACs of one image.")] = None,
    max_params: Annotated[float | None, typer.Option(help="Parameters.")] = None,
    max_memory: Annotated[float | None, typer.Option(help="Peak memory in bytes.")] = None,
    strategy: Annotated[str, typer.Option(help="Search strategy.")] = "ofa",
    space_name: SpaceName = "mobile-small",
    profile: Annotated[Path | None, typer.Option(help="Device profile.")] = None,
    supernet: Annotated[Path | None, typer.Option(help="Run of a trained supernet.")] = None,
    data: Annotated[Path | None, typer.Option(help="Image folder or IDX files.")] = None,
    epochs: Annotated[
        float | None,
        typer.Option(
            help="Where a supernet must be trained; 4, more over a small data set.",
            show_default=False,
        ),
    ] = None,
    evaluations: Annotated[int, typer.Option(help="Subnets to evaluate.", min=4)] = 96,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Run directory.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Always on: training goes on.")] = True,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search a space under a profile's latency and other limits."""
    from deploynas.errors import UnknownNameError
    from deploynas.spaces import space, space_names
    from deploynas.workflows import steps

    budget = steps.budget_from(latency_ms, max_flops, max_params, max_memory)
    if not budget.model_dump(exclude_none=True):
        raise typer.BadParameter("give a budget, for example --latency-ms 10")
    from deploynas.search import STRATEGIES

    if strategy not in STRATEGIES:
        raise UnknownNameError("strategy", strategy, STRATEGIES)
    if space_name not in space_names():
        space(space_name)
    from deploynas.artifacts import PROFILES, RUNS, newest
    from deploynas.data import space_for
    from deploynas.device import open_attached
    from deploynas.profile import DeviceProfile, LatencyModel

    hint = "make one: deploynas profile --device cpu"
    path = profile or newest("*.json", PROFILES, "device profile", hint)
    device_profile = DeviceProfile.read(path)
    dataset = open_data(data)
    sides = space_for(space_name, dataset)
    import numpy as np

    # before any training: an impossible budget or an incomplete profile ends here
    model = LatencyModel(device_profile.restrict(sides), device_profile)
    budget.require_reachable(model, np.random.default_rng(seed))
    identity = device_profile.identity
    if not quiet:
        say(f"profile {path}: {identity.title}", as_json=True)
    run = output or RUNS / f"{space_name}-{dataset.name}"
    with progress(quiet) as on_progress:
        if supernet is not None:
            trained = steps.open_supernet(supernet, dataset)
        elif (run / "supernet.json").exists():
            say(f"supernet {run}, trained before", as_json=True)
            trained = steps.open_supernet(run, dataset)
        else:
            settings = steps.supernet_recipe(dataset, epochs, seed)
            trained = steps.train(sides, dataset, run, settings, on_progress)
        result = steps.search(
            trained, path, budget, run, device=open_attached(identity), strategy=strategy,
            seed=seed, num_evaluations=evaluations, on_progress=on_progress,
        )  # fmt: skip
    best = result.best
    if as_json:
        return print_json(
            {
                **best.model_dump(),
                "space": result.space["name"],
                "budget": budget.model_dump(exclude_none=True),
                "not_binding": list(result.not_binding),
                "strategy": strategy,
                "seed": seed,
                "run": str(run),
                "measured_latency_ms": result.measured_latency_ms,
                "random_best": result.random_best and result.random_best.model_dump(),
            }
        )
    for name in result.not_binding:
        say(f"the {name} budget does not bind: every network keeps it")
    say(
        f"predicted {best.predicted_latency_ms:.3f} ms +-{best.prediction_error:.1%}"
        f"{' (outside the calibrated range)' if best.extrapolated else ''}, "
        f"{best.macs / 1e6:.2f} M MACs, {best.params / 1e3:.0f} k params, "
        f"validation accuracy {best.accuracy:.2%}"
    )
    if result.random_best:
        say(f"random search, as many evaluations: {result.random_best.accuracy:.2%}")
    say(f"architecture: {best.architecture}")
    say(f"saved in {run}; next: deploynas export {run}")
    return None
