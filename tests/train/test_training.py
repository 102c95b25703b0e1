"""The training loop on real digits: it learns, and goes on after a kill as if nothing had been."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch

from deploynas import spaces
from deploynas.data.sources import load_digits
from deploynas.errors import InvalidInputError, OutputError
from deploynas.nn import Loan, Supernet, build
from deploynas.train import (
    Batches,
    Recipe,
    ScalarLog,
    SupernetEvaluator,
    SupernetRecipe,
    TrainingProgress,
    accuracy,
    loop,
    train_network,
    train_supernet,
)
from deploynas.train.checkpoint import Together

RECIPE = SupernetRecipe(epochs=0.5, batch_size=64)


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def digits():
    return load_digits((), seed=0, max_size=64)


@pytest.fixture
def space(digits):
    return spaces.space("mobile-small", digits.num_classes, digits.channels, [20])


def new_supernet(space):
    torch.manual_seed(0)
    return Supernet(space)


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(v, second[k]) for k, v in first.items())


@pytest.mark.long
@pytest.mark.parametrize(("schedule", "last"), [("sandwich", 4), ("progressive", 15)])
def test_a_killed_training_goes_on(schedule, last, digits, space, tmp_path, monkeypatch):
    """Killed in the progressive schedule after its teacher was taken and channels sorted."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    recipe = RECIPE.model_copy(update={"schedule": schedule, "epochs": last / 10 / 0.8})
    whole = new_supernet(space)
    train_supernet(whole, digits, recipe)

    def kill(progress):
        if progress.step == last:
            raise Killed

    killed = new_supernet(space)
    path = tmp_path / "checkpoint"
    with pytest.raises(Killed):
        train_supernet(killed, digits, recipe, checkpoint=path, on_progress=kill)
    steps = []
    resumed = Supernet(space)  # other weights: the checkpoint's must replace them
    train_supernet(
        resumed, digits, recipe, checkpoint=path, on_progress=lambda p: steps.append(p.step)
    )
    assert steps[0] == last  # the step in hand was lost, no other
    assert steps[-1] > last
    assert not path.with_suffix(".teacher.safetensors").exists()
    assert_same(state(whole), state(resumed))


@pytest.mark.slow
def test_a_checkpoint_of_another_recipe_is_refused(digits, space, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    path = tmp_path / "checkpoint"
    train_supernet(new_supernet(space), digits, RECIPE, checkpoint=path)
    other = RECIPE.model_copy(update={"learning_rate": 0.1})
    with pytest.raises(InvalidInputError, match="another data set, space, recipe or start"):
        train_supernet(new_supernet(space), digits, other, checkpoint=path)


def test_a_checkpoint_from_another_start_is_refused(digits, space, tmp_path, monkeypatch):
    """Retraining from a supernet's weights is not gone on with as training from scratch."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    path, recipe = tmp_path / "checkpoint", Recipe(epochs=0.2, batch_size=64)
    arch = space.smallest()[0]

    def start(seed):
        torch.manual_seed(seed)
        return build(space, arch)

    train_network(start(0), digits, recipe, checkpoint=path)
    steps = []
    train_network(start(0), digits, recipe, checkpoint=path, on_progress=steps.append)
    assert not steps  # it was done
    with pytest.raises(InvalidInputError, match="another data set, space, recipe or start"):
        train_network(start(1), digits, recipe, checkpoint=path)


def test_a_training_that_diverges_says_so(digits, space):
    wild = Recipe(epochs=2, batch_size=64, learning_rate=1e12)
    network = build(space, space.smallest()[0])
    with pytest.raises(loop.DivergedError, match="lower learning rate"):
        train_network(network, digits, wild)


@pytest.mark.long
def test_fine_tuning_improves_on_the_supernet(digits, space):
    supernet = new_supernet(space)
    train_supernet(supernet, digits, SupernetRecipe(epochs=3, batch_size=64))
    network = SupernetEvaluator(supernet, digits).extract(space.smallest()[0])
    val = Batches(digits, digits.val, torch.device("cpu"))
    before, weights = accuracy(network, val, 20), state(supernet)
    train_network(network, digits, Recipe(epochs=4, batch_size=64, learning_rate=0.05))
    assert accuracy(network, val, 20) > before + 0.02
    assert not network.training
    assert_same(weights, state(supernet))  # the subnet had its own copy


def test_batch_norms_are_calibrated_after_training(digits, space):
    """The statistics are those of training images under the final weights."""
    network = build(space, space.smallest()[0])
    train_network(network, digits, Recipe(epochs=1, batch_size=64))
    seen = []
    norm = network.layers[0].bn
    norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        for batch in Batches(digits, digits.train, torch.device("cpu")).calibration(20, 2_048):
            network(batch)
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    np.testing.assert_allclose(norm.running_mean, mean, rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_progressive_shrinking_opens_phase_by_phase(digits, space, monkeypatch):
    """What each step trains, and that every subnet has learnt something in the end."""
    seen: list[set] = []
    lend = Supernet.lend

    def spy(self, arch, lender):
        seen[-1].add(tuple(arch))
        return lend(self, arch, lender)

    monkeypatch.setattr(Supernet, "lend", spy)
    supernet = new_supernet(space)
    recipe = SupernetRecipe(epochs=12, batch_size=64, schedule="progressive", augment_from=99)
    parts: list[int] = []
    seen.append(set())
    train_supernet(
        supernet, digits, recipe, on_progress=lambda p: (parts.append(p.step), seen.append(set()))
    )
    monkeypatch.undo()
    num = [len(step) for step in seen[:-1]]
    bounds = loop.ends_of([(p.share, p.rate) for p in recipe.phases], len(num))
    largest = tuple(space.largest()[0])
    for phase, first, end in zip(recipe.phases, [0, *bounds], bounds, strict=False):
        archs = np.array([arch for step in seen[first:end] for arch in step])
        if not phase.num_random:
            assert {tuple(arch) for arch in archs} == {largest}
            continue
        depths, kernels, ratios = space.unpacked(archs)
        assert len(np.unique(depths)) == min(3, phase.depths)
        assert set(np.unique(kernels)) - {0} == {3, 5, 7}
        opened = sorted(space.table.expand_ratios)[-phase.expand_ratios :]
        assert set(np.unique(ratios)) - {0} == set(opened)
    evaluator = SupernetEvaluator(supernet, digits)
    ends = np.concatenate([space.smallest(), space.largest()])
    assert (evaluator.final(ends) > 0.5).all()


@pytest.mark.slow
def test_a_log_that_tensorboard_reads(digits, space, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with ScalarLog(tmp_path / "log") as log:
        train_supernet(new_supernet(space), digits, RECIPE, on_progress=log.add)
    with ScalarLog(tmp_path / "log") as log:  # another process goes on from its checkpoint
        log.add(TrainingProgress(8, 11, 9.0, 1.0))
    read = events.EventAccumulator(str(tmp_path / "log"))
    read.Reload()
    losses = read.Scalars("loss")
    assert [event.step for event in losses] == list(range(1, 9))
    assert losses[-1].value == 9.0
    names = {"loss", "images per second"}
    ends = {f"validation accuracy/{end}" for end in ("largest", "smallest")}
    assert set(read.Tags()["scalars"]) == names | ends


def test_a_log_that_cannot_be_written_is_a_line(tmp_path, capfd):
    pytest.importorskip("tensorboard")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = TrainingProgress(1, 2, 0.5, 1.0)
    try:
        with ScalarLog(tmp_path / "log") as log:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
            with pytest.raises(OutputError, match="cannot write .*log: File too large"):
                log.add(state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "Traceback" not in capfd.readouterr().err


def test_accuracy_on_no_images_is_an_error(digits, space):
    network = build(space, space.smallest()[0]).eval()
    with pytest.raises(InvalidInputError, match="no images"):
        accuracy(network, Batches(digits, digits.val, torch.device("cpu")), 20, num_images=0)


def test_random_subnets_a_step(digits, space, monkeypatch):
    lent, lend = [], Supernet.lend
    monkeypatch.setattr(
        Supernet, "lend", lambda self, arch, lender: lent.append(arch) or lend(self, arch, lender)
    )
    recipe = RECIPE.model_copy(update={"epochs": 0.1, "num_random": 2})
    steps = []
    train_supernet(new_supernet(space), digits, recipe, on_progress=steps.append)
    assert len(lent) == 4 * len(steps) > 0
    with pytest.raises(ValueError, match="num_random"):
        SupernetRecipe(num_random=0)


def test_precision_is_a_gpus(digits):
    """What a CPU computes does not depend on it."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    for amp, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        recipe = Recipe(epochs=1, amp=amp)
        with recipe.autocast(cpu):
            assert not torch.is_autocast_enabled("cpu")
        assert not recipe.scaler(cpu).is_enabled()
        if torch.cuda.is_available():
            with recipe.autocast(gpu):
                assert torch.get_autocast_dtype("cuda") == dtype
    with pytest.raises(ValueError, match="amp"):
        Recipe(epochs=1, amp="int8")


def test_a_loss_scale_is_kept_beside_the_rest():
    class Others:
        kept = {"own": torch.ones(2)}

        def state(self):
            return dict(self.kept)

        def restore(self, state):
            self.kept = state

    scaler, fresh = (torch.amp.GradScaler("cpu") for _ in range(2))
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], 0.1)
    scaler.scale(weight * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert float(weight.detach()) == 1.0  # the step that overflowed was left out
    kept = Together({"scale": loop.LossScale(scaler), "own": Others()}).state()
    others = Others()
    Together({"scale": loop.LossScale(fresh), "own": others}).restore(kept)
    assert fresh.state_dict() == scaler.state_dict() != torch.amp.GradScaler("cpu").state_dict()
    assert others.kept.keys() == {"own"}


def plain_network(space):
    torch.manual_seed(0)
    return build(space, space.smallest()[0])


@pytest.mark.slow
def test_a_killed_training_by_other_means_goes_on(digits, space, tmp_path, monkeypatch):
    """AdamW, a running mean of weights, a rate for every layer, all kinds of augmentation."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    recipe = Recipe(
        epochs=0.4, batch_size=64, optimizer="adamw", learning_rate=1e-3, layer_decay=0.9, ema=0.9,
        clip=1.0, augment_from=0, operations=9, erased=0.3, mixup=0.2, cutmix=1.0,
    )  # fmt: skip
    whole = plain_network(space)
    train_network(whole, digits, recipe)

    def kill(progress):
        if progress.step == 3:
            raise Killed

    path, killed = tmp_path / "checkpoint", plain_network(space)
    with pytest.raises(Killed):
        train_network(killed, digits, recipe, checkpoint=path, on_progress=kill)
    resumed = plain_network(space)
    train_network(resumed, digits, recipe, checkpoint=path)
    assert_same(state(resumed), state(whole))


def test_what_a_training_leaves_is_the_mean_of_its_weights():
    weight = torch.nn.Parameter(torch.zeros(1))
    mean = loop.RunningMean([weight], 0.5)
    for step in range(1, 4):
        weight.data.fill_(float(step))
        mean.follow(step)
    expected = 0.0
    for step, kept in ((1, 2 / 11), (2, 3 / 12), (3, 4 / 13)):
        expected = kept * expected + (1 - kept) * step
    mean.settle()
    assert float(weight.detach()) == pytest.approx(expected)
    for step in range(4, 60):
        mean.follow(step)
    weight.data.fill_(0.0)
    before = float(next(iter(mean.state().values())))
    mean.follow(60)  # long after the start it keeps the share that was asked for
    assert float(next(iter(mean.state().values()))) == pytest.approx(0.5 * before)
    weight.data.fill_(5.0)
    mean.begin()  # channels were sorted, say
    mean.settle()
    assert float(weight.detach()) == 5.0
    weight.data.fill_(0.0)
    none = loop.RunningMean([weight], 0.0)
    none.follow(1)
    none.settle()
    assert float(weight.detach()) == 0.0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_earlier_layers_learn_more_slowly(optimizer, space):
    network = plain_network(space)
    recipe = Recipe(epochs=1, optimizer=optimizer, layer_decay=0.5, weight_decay=0.1)
    built = loop.optimizer_of(network, None, recipe)
    shares = {
        id(p): (group["share"], group["weight_decay"])
        for group in built.param_groups
        for p in group["params"]
    }
    last = len(network.layers) - 1
    assert len(shares) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        decay = 0.1 if parameter.dim() > 1 else 0.0
        assert shares[id(parameter)] == (0.5 ** (last - int(name.split(".")[1])), decay)
    some = list(network.parameters())[:3]
    few = loop.optimizer_of(network, some, Recipe(epochs=1))
    assert [p for group in few.param_groups for p in group["params"]] == some[:1] + some[1:]
    assert {group["share"] for group in few.param_groups} == {1.0}
    first = [p for n, p in network.named_parameters() if n.startswith(("layers.0.", "layers.1."))]
    part = loop.optimizer_of(network, first, recipe)  # what does not move is no layer
    assert {group["share"] for group in part.param_groups} == {0.5, 1.0}


@pytest.mark.slow
def test_gradients_are_clipped_to_a_norm(digits, space, monkeypatch):
    norms = []
    clip = torch.nn.utils.clip_grad_norm_

    def watched(parameters, most):
        norms.append((float(clip(parameters, most)), float(clip(parameters, most))))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
    train_network(plain_network(space), digits, Recipe(epochs=0.2, batch_size=64, clip=1e-3))
    assert norms
    assert all(before > 1e-3 for before, _ in norms)
    assert all(after == pytest.approx(1e-3, rel=1e-3) for _, after in norms)


def test_the_order_of_images_follows_from_seed_and_epoch():
    recipe = Recipe(epochs=2, batch_size=4, seed=3)
    steps = [loop.rows_of(10, recipe, step, 2) for step in range(4)]
    first, second = np.concatenate(steps[:2]), np.concatenate(steps[2:])
    assert len(set(first)) == len(set(second)) == 8
    assert not np.array_equal(first, second)
    for epoch, rows in enumerate((first, second)):
        order = np.random.default_rng([3, epoch, 1]).permutation(10)
        np.testing.assert_array_equal(rows, order[:8])


@pytest.mark.parametrize("when", [0, 1])
def test_a_loss_between_two_looks_is_not_missed(when):
    losses = [torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)]
    assert loop.last_seen(losses) == 3.0
    losses[when] = torch.tensor(float("inf"))
    assert np.isnan(loop.last_seen(losses))


@pytest.fixture
def narrow(monkeypatch):
    """A CPU that computes in bfloat16 wherever a GPU would."""
    monkeypatch.setattr(
        Recipe, "autocast", lambda self, device: torch.autocast("cpu", torch.bfloat16)
    )


def assert_wide(module):
    for tensor in (*module.parameters(), *module.buffers()):
        assert tensor.dtype in (torch.float32, torch.int64)
        assert torch.isfinite(tensor).all()


@pytest.mark.long
@pytest.mark.parametrize("schedule", ["sandwich", "progressive"])
def test_a_supernet_trains_in_bfloat16(schedule, narrow, digits, space):
    """Small kernels are made from large ones, layers are cut out of larger ones: all narrow."""
    seen, supernet = [], new_supernet(space)
    last = supernet.slots[-1]
    lend = last.lend

    def spy(layer, lender):
        loan = lend(layer, lender)

        def run(x):
            out = loan.run(x)
            seen.append(out.dtype)
            return out

        return Loan(run, loan.sources)

    last.lend = spy
    recipe = RECIPE.model_copy(update={"epochs": 0.6, "schedule": schedule})
    losses = []
    train_supernet(supernet, digits, recipe, on_progress=lambda p: losses.append(p.loss))
    assert set(seen) == {torch.bfloat16}
    assert np.isfinite(losses).all()
    assert_wide(supernet)
    evaluator = SupernetEvaluator(supernet, digits)
    for arch in (space.largest()[0], space.smallest()[0], space.sample(1, generator())[0]):
        assert 0 <= evaluator.accuracy(arch, 64, 64) <= 1


@pytest.mark.long
def test_bfloat16_learns_as_float32_does(digits, space, monkeypatch):
    accuracies = []
    for is_narrow in (False, True):
        if is_narrow:
            monkeypatch.setattr(
                Recipe, "autocast", lambda self, device: torch.autocast("cpu", torch.bfloat16)
            )
        torch.manual_seed(0)
        network = build(space, space.smallest()[0])
        train_network(network, digits, Recipe(epochs=4, batch_size=64))
        assert_wide(network)
        val = Batches(digits, digits.val, torch.device("cpu"))
        accuracies.append(accuracy(network, val, 20))
    assert accuracies[0] > 0.6
    assert abs(accuracies[0] - accuracies[1]) < 0.15


def test_a_network_trains_with_scaled_losses(digits, space, monkeypatch):
    """The loop as a GPU runs it in float16, in bfloat16 and with a CPU's scaler."""
    scalers = []

    def scaler(self, device):
        scalers.append(torch.amp.GradScaler("cpu"))
        return scalers[-1]

    monkeypatch.setattr(Recipe, "scaler", scaler)
    plain, scaled = (build(space, space.smallest()[0]) for _ in range(2))
    scaled.load_state_dict(plain.state_dict())
    recipe = Recipe(epochs=0.1, batch_size=64, amp="fp16")
    train_network(scaled, digits, recipe)
    assert [one.is_enabled() for one in scalers] == [True]
    assert scalers[0].get_scale() > 1
    monkeypatch.undo()
    train_network(plain, digits, recipe)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(scaled.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def generator():
    return np.random.default_rng(0)
