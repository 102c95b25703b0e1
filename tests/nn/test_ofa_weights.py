"""Published weights: every subnet computes what the package ``ofa`` computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deploynas import spaces
from deploynas.errors import InvalidInputError, MissingFileError
from deploynas.nn import StaticNetwork, Supernet

pytestmark = pytest.mark.slow

SIDE = 64  # small: weights and wiring do not depend on it


@pytest.mark.long
@pytest.mark.parametrize("name", ["ofa-mbv3-w1.0", "ofa-mbv3-w1.2", "ofa-proxyless-w1.3"])
@torch.no_grad()
def test_every_subnet_equals_the_package(name, published_supernet, tmp_path):
    theirs = published_supernet(name)
    path = tmp_path / "published.pth"
    torch.save({"state_dict": theirs.state_dict()}, path)
    space = spaces.space(name, resolutions=[SIDE])
    ours = Supernet(space)
    ours.load_ofa(path)
    archs = np.concatenate([space.smallest(), space.sample(49, np.random.default_rng(0))])
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    for arch, choices in zip(archs, space.decode(archs), strict=True):
        theirs.set_active_subnet(
            ks=choices["kernel_sizes"], e=choices["expand_ratios"], d=choices["depths"]
        )
        subnet = theirs.get_active_subnet(preserve_weight=True).eval()
        expected = subnet(images)
        assert (expected[0] - expected[1]).std() > 1e-4  # the images are told apart
        assert (ours.extract(arch)(images) - expected).abs().max() <= 1e-5
    # a specialised network's own weights, as they are published beside its net.config
    torch.save(subnet.state_dict(), path)
    static = StaticNetwork(space.layers(archs[-1]))
    static.load_ofa(path)
    assert (static.eval()(images) - expected).abs().max() <= 1e-5


@pytest.fixture(scope="module")
def checkpoint(published_supernet):
    return published_supernet("ofa-mbv3-w1.0").state_dict()


def refusal(state, tmp_path, name="ofa-mbv3-w1.0"):
    """What loading ``state`` is refused with; the supernet stays as it was."""
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    supernet = Supernet(spaces.space(name, resolutions=[SIDE]))
    before = {k: v.clone() for k, v in supernet.state_dict().items()}
    with pytest.raises(InvalidInputError) as caught:
        supernet.load_ofa(path)
    assert all(torch.equal(v, before[k]) for k, v in supernet.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
def test_weights_of_another_space(checkpoint, tmp_path):
    assert "weights of another network" in refusal(checkpoint, tmp_path, "ofa-mbv3-w1.2")
    assert "weights of another network" in refusal(checkpoint, tmp_path, "ofa-proxyless-w1.3")


def test_a_missing_and_a_superfluous_tensor_are_named(checkpoint, tmp_path):
    state = dict(checkpoint)
    state["invented"] = state.pop("classifier.linear.linear.bias", None)
    if state["invented"] is None:
        state["invented"] = state.pop("classifier.linear.bias")
    assert "2 tensors do not fit, such as invented, slots.22.full.classifier.bias" in refusal(
        state, tmp_path
    )


def test_nan(checkpoint, tmp_path):
    key = "first_conv.conv.weight"
    state = checkpoint | {key: torch.full_like(checkpoint[key], float("nan"))}
    assert "NaN" in refusal(state, tmp_path)


class Evil:
    """Runs code where a pickle is trusted."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle ran code')",))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    assert "not a checkpoint of tensors" in refusal({"state_dict": Evil()}, tmp_path)


def test_no_file_and_no_checkpoint(tmp_path):
    supernet = Supernet(spaces.space("ofa-mbv3-w1.0", resolutions=[SIDE]))
    with pytest.raises(MissingFileError):
        supernet.load_ofa(tmp_path / "nothing.pth")
    path = tmp_path / "text.pth"
    path.write_text("not a checkpoint")
    with pytest.raises(InvalidInputError, match="not a checkpoint of tensors"):
        supernet.load_ofa(path)
