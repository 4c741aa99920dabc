"""Libraries that keep a gradient for each sample, and those that explain a model layer by layer: Opacus and Captum."""

import pytest
import torch
from battery.subjects import TIES, ByHand, inputs, oracle, tied_pair
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import tied

KINDS = pytest.mark.parametrize("kind", TIES)
TRANSFORMS = pytest.mark.parametrize("kind", [kind for kind in TIES if kind != "identity"])


REFUSED = """\
GradSampleModule takes gradients from each layer for its own Parameters, and would miss uses of a tied weight.
  found:    weight = {}
  expected: ties of a weight as it is, which count as plain sharing does
  fix:      torch.func.vmap(torch.func.grad(...)) over functional_call, which is right; or tied.untie(model) first
The model was not changed."""


def right(kind: str) -> Tensor:
    """Return the gradients of the source for each sample, by torch's own functions."""
    model = ByHand(kind)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    one = lambda p, x: functional_call(model, p, (x.unsqueeze(0),)).square().sum()  # noqa: E731
    return vmap(grad(one), in_dims=(None, 0))(parameters, inputs())["a.weight"]


@pytest.mark.filterwarnings("ignore")
class TestOpacus:
    """Which hooks layers, and keeps what it finds on their Parameters."""

    def wrapped(self, model: nn.Module) -> nn.Module:
        opacus = pytest.importorskip("opacus")
        model.spare.requires_grad_(False)  # no layer of its own, which opacus refuses
        return opacus.GradSampleModule(model, loss_reduction="sum")

    @pytest.mark.parametrize("make", [oracle, tied_pair])
    def test_an_identity_is_right(self, make: object) -> None:
        model = self.wrapped(make("identity"))  # type: ignore[operator]
        model(inputs()).square().sum().backward()
        torch.testing.assert_close(model._module.a.weight.grad_sample, right("identity"))

    @TRANSFORMS
    def test_a_transform_is_refused(self, kind: str) -> None:
        model = tied_pair(kind)
        model.b.bias = None  # no Parameter of its own, for which Opacus would hook the layer
        with pytest.raises(tied.KindError) as error:
            self.wrapped(model)
        assert str(error.value) == REFUSED.format(TIES[kind][0])

    @TRANSFORMS
    def test_the_ways_out_work(self, kind: str) -> None:
        model = tied_pair(kind)
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        one = lambda p, x: functional_call(model, p, (x.unsqueeze(0),)).square().sum()  # noqa: E731
        found = vmap(grad(one), in_dims=(None, 0))(parameters, inputs())["a.weight"]
        torch.testing.assert_close(found, right(kind))
        tied.untie(model)
        wrapped = self.wrapped(model)
        wrapped(inputs()).square().sum().backward()
        assert wrapped._module.b.weight.grad_sample.shape == (5, 4, 4)


class GradSampleModule(nn.Module):
    """A module of the package's name, where it is not installed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._module = model


@KINDS
def test_by_the_package_s_name(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    GradSampleModule(tied_pair(kind))
    monkeypatch.setattr(GradSampleModule, "__module__", "opacus.grad_sample.grad_sample_module")
    if kind == "identity":
        GradSampleModule(tied_pair(kind))
        return
    with pytest.raises(tied.KindError) as error:
        GradSampleModule(tied_pair(kind))
    assert str(error.value) == REFUSED.format(TIES[kind][0])


@pytest.mark.filterwarnings("ignore")
class TestCaptum:
    """Which attributes an output to inputs and layers; relevance propagation knows layers by their exact class."""

    @KINDS
    def test_a_layer_s_attribution_is_right(self, kind: str) -> None:
        attr = pytest.importorskip("captum.attr")
        found = []
        for make in (tied_pair, oracle):
            model = make(kind)
            by_layer = attr.LayerIntegratedGradients(model, model.a)
            by_layer_c = attr.LayerConductance(model, model.c)
            found.append(
                [
                    attr.IntegratedGradients(model).attribute(inputs(), target=0),
                    by_layer.attribute(inputs(), target=0),
                    by_layer_c.attribute(inputs(), target=0),
                    attr.LayerActivation(model, model.c).attribute(inputs()),
                ]
            )
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)

    @KINDS
    def test_relevance_is_right_or_captum_says_no(self, kind: str) -> None:
        attr = pytest.importorskip("captum.attr")
        found = []
        for make in (tied_pair, oracle):
            model = make("identity" if make is oracle else kind)
            row = nn.Sequential(model.a, nn.ReLU(), model.b, nn.ReLU(), model.c)
            if kind != "identity" and make is tied_pair:
                with pytest.raises(TypeError, match="no rule"):
                    attr.LRP(row).attribute(inputs(), target=0)
                return
            found.append(attr.LRP(row).attribute(inputs(), target=0))
        torch.testing.assert_close(*found)
