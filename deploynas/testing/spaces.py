"""What every search space promises, whatever its family."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import torch

from deploynas import spaces
from deploynas.errors import InvalidInputError
from deploynas.nn import mixture_of, recalibrate, supernet_of
from deploynas.spaces import Archs, Node, Resolution, SearchSpace, resolutions_of
from deploynas.spaces import layers as layer_costs
from deploynas.spaces.layers import kind_of
from deploynas.testing.layers import perturb, require_parity
from deploynas.testing.report import promises, require
from deploynas.train.schedules import SCHEDULES

MAX_COUNTED = 20_000  # architectures of a space that is counted one by one
WIDE = Resolution(24, 40)  # what every space can be made for


@promises
def check_space(space: SearchSpace) -> None:
    """Check all that :func:`check_rows`, :func:`check_costs` and :func:`check_networks` do.

    Takes seconds for a small space; a large one is quicker at one small resolution.

    Raises:
        AssertionError: The space breaks a promise; says which.
    """
    check_rows(space)
    check_costs(space)
    check_networks(space)


def check_rows(space: SearchSpace) -> None:
    """Check architectures as rows: files, canonical form, draws, moves, resolutions, the spec.

    Raises:
        AssertionError: The space breaks a promise; says which.
    """
    drawn = space.sample(200, _rng(1))
    _check_files(space, drawn)
    _check_canonical(space)
    _check_draws(space, drawn)
    _check_resolutions(space, drawn[:20])
    _check_size(space)
    for wrong in (
        np.zeros((1, 1 + len(space.choices)), int),
        np.full((1, len(space.choices)), -1),
    ):
        for function in (space.macs, space.layer_ids, space.canonical, space.decode):
            _require_refused(space, function, wrong)
    text = json.dumps(space.spec)
    again = spaces.space(**json.loads(text))
    require(again.spec == space.spec, f"{space.name}: its spec makes another space: {text}")
    require(
        (again.choices, again.layer_table) == (space.choices, space.layer_table),
        f"{space.name}: its spec makes a space of other choices or layers",
    )


def check_costs(space: SearchSpace) -> None:
    """Check the shape walk and all that is summed over it.

    Raises:
        AssertionError: The space breaks a promise; says which.
    """
    archs = np.concatenate([space.smallest(), space.largest(), space.sample(40, _rng(2))])
    table = space.layer_table
    require(
        len({layer.key for layer in table}) == len(set(table)) == len(table),
        f"{space.name}: its layer table holds a layer, or a key, twice",
    )
    used = {int(i) for slot in space.slots for i in slot.layer_ids.ravel() if i >= 0}
    require(used == set(range(len(table))), f"{space.name}: a layer of its table stands nowhere")
    values = _rng(3).random(len(table))
    index = {layer: i for i, layer in enumerate(table)}
    sums, most = space.sum_over_layers(archs, values), space.max_over_layers(archs, values)
    for row, arch in enumerate(archs):
        nodes = space.layers(arch)
        _check_shapes(space, arch, nodes)
        own = values[[index[node.layer] for node in nodes]]
        require(
            np.isclose(sums[row], own.sum()) and most[row] == own.max(),
            f"{space.name}: sum_over_layers or max_over_layers is not that over layers()",
        )
    networks = [space.layers(arch) for arch in archs]
    for cost in (layer_costs.macs, layer_costs.params, layer_costs.weight_bytes):
        name = cost.__name__
        expected = [sum(cost(node.layer) for node in nodes) for nodes in networks]
        found = getattr(space, name)(archs)
        require(found.tolist() == expected, f"{space.name}: {name} is not that of its layers")
    peaks = [layer_costs.peak_memory_bytes(nodes) for nodes in networks]
    require(
        space.peak_memory_bytes(archs).tolist() == peaks,
        f"{space.name}: peak_memory_bytes is not that of its layers",
    )
    ends = space.sum_over_layers(space.ends(values), values)
    require(
        ends[0] <= sums.min() + 1e-9 and sums.max() <= ends[1] + 1e-9,
        f"{space.name}: ends() are not the least and the most of a sum over layers",
    )
    _check_features(space, archs)


def check_networks(space: SearchSpace) -> None:
    """Check the torch networks: shared weights, what is extracted of them, and their operators.

    Raises:
        AssertionError: The space breaks a promise; says which.
    """
    unknown = set(space.schedules) - SCHEDULES.keys()
    require(
        space.schedules and not unknown,
        f"{space.name}: no schedules, or unknown ones: {sorted(unknown)}",
    )
    drawn = space.sample(2, _rng(4))
    _check_networks(space, np.concatenate([space.smallest(), space.largest(), drawn]))
    _check_networks(space.with_resolutions([WIDE]), space.largest())


def _check_networks(space: SearchSpace, archs: Archs) -> None:
    resolution = space.resolutions[0]
    archs = space.with_resolution(archs, resolution)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = supernet_of(space)
        perturb(network)
        x = torch.randn(4, space.in_channels, *resolution.size)
        for arch in archs:
            name = f"{space.name}, {space.decode(arch[None])[0]}"
            alone = network.extract(arch)
            require(not alone.training, f"{name}: extract() gives a network in training mode")
            require(
                [node.layer for node in alone.nodes] == [n.layer for n in space.layers(arch)],
                f"{name}: extract() gives other layers than layers()",
            )
            num = sum(parameter.numel() for parameter in alone.parameters())
            require(
                num == space.params(arch[None])[0],
                f"{name}: {num} parameters, params() says {space.params(arch[None])[0]}",
            )
            expected = network.train()(x, arch)
            require(
                tuple(expected.shape) == (len(x), space.num_classes),
                f"{name}: logits of shape {tuple(expected.shape)}",
            )
            require(
                torch.allclose(alone.train()(x), expected, rtol=1e-3, atol=1e-3),
                f"{name}: what extract() gives computes something else",
            )
            recalibrate(alone, [x])
            require_parity(alone, x, name)
        if space.mixture is not None and len(space.resolutions) == 1:
            _check_mixture(space, x)


def _check_mixture(space: SearchSpace, x: torch.Tensor) -> None:
    network = mixture_of(space)
    rows, names = list(network.rows), network.row_names
    require(
        [len(row) for row in rows] == [len(candidates) for _, candidates in names],
        f"{space.name}: its mixture has names for other candidates than it has",
    )
    logits = network.train().forward_mixed(x, network.mixtures("softmax"))
    require(
        tuple(logits.shape) == (len(x), space.num_classes),
        f"{space.name}: its mixture gives logits of shape {tuple(logits.shape)}",
    )
    require(
        network.costs_of(np.ones(len(space.layer_table))).rows.shape
        == tuple(network.present.shape),
        f"{space.name}: its mixture has costs of other candidates than it has",
    )


def _check_files(space: SearchSpace, drawn: Archs) -> None:
    for rows in (drawn, space.smallest(), space.canonical(space.largest()), space.uniform()):
        dicts = json.loads(json.dumps(space.decode(rows)))
        same = np.array_equal(space.encode(dicts), rows)
        require(same, f"{space.name}: encode(decode(rows)) is not rows")
        require(space.decode(space.encode(dicts)) == dicts, f"{space.name}: a dict form changes")
    for resolution in (None, 7):
        wrong = {**space.decode(space.smallest())[0], "resolution": resolution}
        _require_refused(space, space.encode, [wrong])


def _check_canonical(space: SearchSpace) -> None:
    size = (60, len(space.choices))
    rows = space.as_rows(_rng(5).integers(0, space.num_options, size=size))
    before = rows.copy()
    canonical = space.canonical(rows)
    require(np.array_equal(rows, before), f"{space.name}: canonical() changes its argument")
    require(
        np.array_equal(space.canonical(canonical), canonical),
        f"{space.name}: canonical() is not idempotent",
    )
    for row, same in zip(rows, canonical, strict=True):
        require(
            space.layers(row) == space.layers(same),
            f"{space.name}: canonical() makes another network of {row.tolist()}",
        )
    near = np.repeat(rows[:1], 100, axis=0)  # each changes one choice
    column = _rng(6).integers(0, near.shape[1], len(near))
    near[np.arange(len(near)), column] = _rng(7).integers(0, space.num_options[column])
    near = space.canonical(near)
    keys = [row.tobytes() for row in near]
    networks = [tuple(space.layers(row)) for row in near]
    num = len(set(zip(networks, keys, strict=True)))
    require(
        len(set(networks)) == len(set(keys)) == num,
        f"{space.name}: two canonical rows are one network, or the reverse",
    )


def _check_draws(space: SearchSpace, drawn: Archs) -> None:
    half = len(drawn) // 2
    first, second = drawn[:half], drawn[half:]
    moves: dict[str, Callable[[np.random.Generator], Archs]] = {
        "sample": lambda rng: space.sample(half, rng),
        "sample_spread": lambda rng: space.sample_spread(half, rng),
        "sample_open": lambda rng: space.sample_open(half, rng, {}),
        "mutate": lambda rng: space.mutate(first, 0.3, rng),
        "crossover": lambda rng: space.crossover(first, second, rng),
        "change_one": lambda rng: space.change_one(first, rng),
    }
    for name, move in moves.items():
        rows = move(_rng(8))
        require(rows.shape == first.shape, f"{space.name}: {name} gives {rows.shape}")
        require(
            bool((rows < space.num_options).all()) and np.array_equal(space.canonical(rows), rows),
            f"{space.name}: {name} gives rows that are not canonical",
        )
        require(np.array_equal(move(_rng(8)), rows), f"{space.name}: {name} is not its seed's")
    unmoved = space.mutate(first, 0.0, _rng(9))
    require(np.array_equal(unmoved, first), f"{space.name}: mutate changes with probability 0")
    same = space.crossover(first, first, _rng(9))
    require(np.array_equal(same, first), f"{space.name}: twins have other children")
    seen = space.sample(3_000, _rng(10))
    for column, (choice, num) in enumerate(zip(space.choices, space.num_options, strict=True)):
        found = len(np.unique(seen[:, column]))
        require(
            found == num or num > 100,
            f"{space.name}: sample draws {found} of the {num} options of {choice.name}",
        )


def _check_resolutions(space: SearchSpace, archs: Archs) -> None:
    ordered = resolutions_of(space.resolutions) == space.resolutions
    require(ordered, f"{space.name}: its resolutions are not different ones in ascending order")
    for resolution in (*space.resolutions, WIDE):
        narrow = space.with_resolutions([resolution.plain])
        require(
            narrow.resolutions == (resolution,),
            f"{space.name}: with_resolutions({[resolution]}) gives {list(narrow.resolutions)}",
        )
        same = narrow.with_resolution(archs, resolution)
        _check_resolution_of(narrow, same, resolution)
        networks = [narrow.layers(row) for row in same[:5]]
        for row, nodes in zip(same, networks, strict=False):
            first = nodes[0].layer
            require(
                first.size == resolution,
                f"{space.name}: the first layer at {resolution} px reads {first.size}",
            )
            _check_shapes(narrow, row, nodes)
        if resolution not in space.resolutions:
            continue
        rows = space.with_resolution(archs, resolution)
        _check_resolution_of(space, rows, resolution)
        require(
            [space.layers(row) for row in rows[:5]] == networks,
            f"{space.name}: with_resolutions({[resolution]}) makes another network of a row",
        )
    _require_refused(space, lambda wrong: space.with_resolution(wrong, 7), archs)


def _check_resolution_of(space: SearchSpace, rows: Archs, resolution: Resolution) -> None:
    require(
        space.resolution_of(rows).tolist() == [resolution] * len(rows),
        f"{space.name}: resolution_of is not what with_resolution set",
    )


def _check_size(space: SearchSpace) -> None:
    if space.size > MAX_COUNTED:
        return
    rows = space.everything()
    distinct = np.unique(rows, axis=0)
    require(
        len(rows) == len(distinct) == space.size,
        f"{space.name}: size {space.size}, everything() gives {len(rows)} rows, "
        f"{len(distinct)} of them distinct",
    )
    require(
        np.array_equal(space.canonical(rows), rows),
        f"{space.name}: everything() gives rows that are not canonical",
    )
    total = int(np.prod(space.num_options.astype(object)))
    if total <= MAX_COUNTED:
        grid = np.indices(tuple(space.num_options)).reshape(len(space.choices), -1).T
        counted = len(np.unique(space.canonical(space.as_rows(grid)), axis=0))
        require(counted == space.size, f"{space.name}: size {space.size}, there are {counted}")


def _check_shapes(space: SearchSpace, arch: Archs, nodes: list[Node]) -> None:
    """Every layer reads what those before it make, and the last gives the logits."""
    shapes = {-1: (space.in_channels, *space.resolution_of(arch[None])[0].size)}
    for i, node in enumerate(nodes):
        layer = node.layer
        require(
            len(node.inputs) == layer.num_inputs and max(node.inputs) < i,
            f"{space.name}: {layer.key} reads the layers {node.inputs}",
        )
        entering = {shapes[source] for source in node.inputs}
        require(
            entering == {(layer.in_channels, layer.height, layer.width)},
            f"{space.name}: {layer.key} is given {sorted(entering)}",
        )
        shapes[i] = (layer.out_channels, layer.out_height, layer.out_width)
        if space.is_chain:
            require(
                node.inputs == (i - 1,), f"{space.name}: a chain, and {layer.key} is not in it"
            )
    last = nodes[-1].layer
    require(
        kind_of(last).ends_network and shapes[len(nodes) - 1] == (space.num_classes, 1, 1),
        f"{space.name}: it ends in {last.key}, not in {space.num_classes} logits",
    )


def _check_features(space: SearchSpace, archs: Archs) -> None:
    features = space.features(archs)
    require(
        features.ndim == 2 and len(features) == len(archs) and bool(np.isfinite(features).all()),
        f"{space.name}: features are {features.shape}, or not finite",
    )
    require(
        np.array_equal(space.features(archs[::-1]), features[::-1]),
        f"{space.name}: features depend on the rows beside",
    )
    graphs = space.graphs(archs)
    if graphs is not None:
        n, num, _ = graphs.nodes.shape
        require(
            graphs.edges.shape == (n, num, num) and n == len(archs) == len(graphs.sides),
            f"{space.name}: graphs of {graphs.nodes.shape} nodes, {graphs.edges.shape} edges",
        )


def _require_refused(space: SearchSpace, function: Callable[..., object], value: object) -> None:
    try:
        function(value)
    except InvalidInputError:
        return
    name = getattr(function, "__name__", "with_resolution")
    raise AssertionError(f"{space.name}: {name} takes what is no architecture of it: {value!r}")


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
