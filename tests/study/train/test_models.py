"""The models and their tasks, against plain torch written out by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tied
from tied.study.train import AutoencoderPlan, LanguagePlan, PlanError, Samples
from tied.study.train.autoencoder import AutoencoderTask
from tied.study.train.job import task_of
from tied.study.train.language import LanguageTask
from tied.study.train.reading import read_samples
from tied.study.train.task import draw, generator
from tied.study.train.text import Corpus, read_corpus


def images(*shape: int) -> Samples:
    return Samples.of(np.random.default_rng(0).random((12, *shape)))


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def corpus(vocabulary: int = 7, count: int = 400) -> Corpus:
    tokens = torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(0))
    return Corpus(tokens[:300], tokens[300:], tuple("abcdefg"[:vocabulary]), "characters", "made up")


# Autoencoders


def test_dense_by_hand():
    task = AutoencoderTask(AutoencoderPlan(sizes=(9, 4), loops=2), images(6, 5))
    model = task.model().double()
    x = torch.rand(3, 1, 6, 5, dtype=torch.float64)
    first, second = (layer.weight for layer in (model.body.encoder[0], model.body.encoder[2]))
    bias = [layer.bias for layer in (*model.body.encoder, *model.body.decoder) if isinstance(layer, nn.Linear)]
    code = F.gelu(F.linear(F.gelu(F.linear(x.flatten(1), first, bias[0])), second, bias[1]))
    block = model.loop[0].layer
    for _ in range(2):
        code = code + F.gelu(F.linear(code, block.weight, block.bias))
    expected = F.linear(F.gelu(F.linear(code, second.T, bias[2])), first.T, bias[3]).reshape(x.shape)
    torch.testing.assert_close(model(x), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(model.encode(x), code, atol=1e-12, rtol=0)
    torch.testing.assert_close(task.losses(model, x, x), (expected - x).square().mean((1, 2, 3)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(8, 8), (7, 5), (6, 9, 3), (1, 1)])
def test_convolutions_by_hand_for_any_size(shape):
    task = AutoencoderTask(AutoencoderPlan(conv=True, sizes=(5, 4), loops=1), images(*shape))
    model = task.model().double()
    x = task.held_out.double()
    (one, _, two, _), (back, _, last) = model.body.encoder, model.body.decoder
    inner = F.gelu(F.conv2d(x, one.weight, one.bias, 2, 1))
    code = F.gelu(F.conv2d(inner, two.weight, two.bias, 2, 1))
    block = model.loop[0].layer
    code = code + F.gelu(F.conv2d(code, block.weight, block.bias, padding=1))
    up = F.gelu(adjoint(code, two.weight, inner.shape) + back.bias[:, None, None])
    expected = adjoint(up, one.weight, x.shape) + last.bias[:, None, None]
    torch.testing.assert_close(model(x), expected, atol=1e-12, rtol=0)
    assert model.encode(x).shape == (len(x), code[0].numel())


def adjoint(code, weight, shape):
    """The adjoint of the strided convolution, by autograd: the gradient of ⟨conv(x), code⟩ for x."""
    x = torch.zeros(shape, dtype=code.dtype, requires_grad=True)
    (result,) = torch.autograd.grad((F.conv2d(x, weight, None, 2, 1) * code).sum(), x)
    return result


@pytest.mark.parametrize("conv", [False, True])
def test_tied_has_about_half_the_parameters_and_untied_is_its_twin(conv):
    plan = AutoencoderPlan(conv=conv, sizes=(6, 4), loops=3)
    twin = AutoencoderPlan(conv=conv, sizes=(6, 4), loops=3, tie=False)
    model, untied = AutoencoderTask(plan, images(8, 8)).model(), AutoencoderTask(twin, images(8, 8)).model()
    assert {str(tie) for tie in tied.ties(model)} >= {"loop.2.layer.weight = loop.0.layer.weight"}
    assert tied.ties(untied) == ()
    shared = [parameter.numel() for parameter in model.body.parameters() if parameter.dim() > 1]
    block = sum(parameter.numel() for parameter in model.loop[0].parameters())
    assert size(untied) == size(model) + sum(shared) + 2 * block
    first, last = model.filters()
    assert torch.equal(first, last)
    assert first.shape == ((6, 1, 3, 3) if conv else (6, 1, 8, 8))
    first, last = untied.filters()
    assert first.shape == last.shape
    assert not torch.equal(first, last)


def test_rows_are_flat_and_convolutions_on_them_are_refused():
    rows = Samples.of(np.random.default_rng(0).random((12, 5)))
    task = task_of(AutoencoderPlan(sizes=(3,)), rows)
    assert task.unit == "rows"
    assert task.model().filters()[0].shape == (3, 5)
    with pytest.raises(PlanError, match="--conv must be left out for rows of numbers"):
        task_of(AutoencoderPlan(conv=True), rows)
    with pytest.raises(TypeError, match="LanguagePlan does not go with Samples"):
        task_of(LanguagePlan(), rows)


def test_noise_drops_a_part_of_the_values_and_the_target_stays_clean():
    task = AutoencoderTask(AutoencoderPlan(denoise=0.3), read_samples("digits"))
    batch = task.training[:200] + 1
    noisy = task.inputs(batch, generator("a"))
    assert torch.equal(noisy, task.inputs(batch, generator("a")))
    assert not torch.equal(noisy, task.inputs(batch, generator("b")))
    assert float((noisy == 0).double().mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.equal(noisy[noisy != 0], batch[noisy != 0])
    model = nn.Identity()
    torch.testing.assert_close(task.losses(model, noisy, batch), (noisy - batch).square().mean((1, 2, 3)))
    assert AutoencoderTask(AutoencoderPlan(), read_samples("digits")).inputs(batch, generator("a")) is batch


def test_baselines_by_numpy():
    task = AutoencoderTask(AutoencoderPlan(sizes=(9, 4)), read_samples("digits"))
    training, held_out = (part.flatten(1).double().numpy() for part in (task.training, task.held_out))
    rest = held_out - training.mean(0)
    directions = np.linalg.svd(training - training.mean(0), full_matrices=False)[2][:4]
    assert task.baselines["the mean sample"] == pytest.approx((rest**2).mean(), rel=1e-5)
    off = rest - rest @ directions.T @ directions
    assert task.baselines["PCA with 4 components"] == pytest.approx((off**2).mean(), rel=1e-5)
    assert list(AutoencoderTask(AutoencoderPlan(conv=True), read_samples("digits")).baselines) == ["the mean sample"]


# Language models


@pytest.mark.parametrize("network", ["lstm", "transformer"])
@pytest.mark.parametrize("tie", [True, False])
def test_a_token_sees_only_those_before_it(network, tie):
    plan = LanguagePlan(network=network, width=8, layers=2, context=6, tie=tie)
    model = LanguageTask(plan, corpus()).model().double().eval()
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    other = torch.tensor([[1, 2, 3, 0, 0, 0]])
    torch.testing.assert_close(model(tokens)[:, :3], model(other)[:, :3], atol=1e-12, rtol=0)
    assert not torch.allclose(model(tokens)[:, 3:], model(other)[:, 3:])
    assert model(tokens).shape == (1, 6, 7)


def test_tied_lstm_by_hand():
    plan = LanguagePlan(width=8, context=6)
    model = LanguageTask(plan, corpus()).model().double().eval()
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    table = model.embed.weight
    hidden = model.core.cells(F.embedding(tokens, table) * math.sqrt(8))[0]
    torch.testing.assert_close(model(tokens), F.linear(hidden, table, model.embed.head.bias), atol=1e-12, rtol=0)


def test_sizes_of_tied_and_untied():
    tied_model, untied = (LanguageTask(LanguagePlan(width=8, tie=t), corpus()).model() for t in (True, False))
    assert size(untied) - size(tied_model) == 7 * 8
    looped = LanguagePlan(network="transformer", width=8, loops=3)
    single = LanguagePlan(network="transformer", width=8, layers=1)
    task = LanguageTask(looped, corpus())
    assert size(task.model()) - size(LanguageTask(single, corpus()).model()) == 2 * 4 * 8  # norms of two more layers
    assert len(task.model().core.layers) == 3


def test_first_loss_of_an_lstm_is_near_ln_of_the_vocabulary():
    """A tied transformer starts higher: its residual stream holds the token's own embedding, which the head finds."""
    task = LanguageTask(LanguagePlan(width=64), corpus())
    torch.manual_seed(0)
    model = task.model().eval()
    loss = float(task.losses(model, task.inputs(task.training, generator()), task.training).mean().detach())
    assert loss < math.log(7) + 1


def test_losses_by_hand():
    task = LanguageTask(LanguagePlan(width=8, context=5), corpus())
    model = task.model().eval()
    batch = task.training[:3]
    logits = model(batch[:, :-1]).log_softmax(-1)
    expected = [-sum(logits[i, t, batch[i, t + 1]] for t in range(5)) / 5 for i in range(3)]
    torch.testing.assert_close(task.losses(model, task.inputs(batch, generator()), batch), torch.stack(expected))
    assert task.figure(math.log(20)) == pytest.approx(20)
    assert task.figure(1e9) < math.inf


def test_baseline_of_frequencies_by_hand():
    data = corpus()
    counts = [1 + int((data.training == token).sum()) for token in range(7)]
    mean = -sum(math.log(counts[token] / sum(counts)) for token in data.held_out.tolist()) / len(data.held_out)
    task = LanguageTask(LanguagePlan(), data)
    assert task.baselines == {"the words' frequencies alone": pytest.approx(math.exp(mean))}


def test_writing_on_is_drawn_from_the_model():
    task = LanguageTask(LanguagePlan(width=8, context=4), corpus())
    model = task.model().eval()
    written = model.continued([1, 2, 3], 20, context=4, generator=generator("x"))
    assert len(written) == 20
    assert set(written) <= set(range(7))
    assert written == model.continued([1, 2, 3], 20, context=4, generator=generator("x"))
    assert written != model.continued([1, 2, 3], 20, context=4, generator=generator("y"))


def test_corpus_task_has_whole_windows():
    data = read_corpus("pydoc", kind="characters", context=32)
    task = LanguageTask(LanguagePlan(tokens="characters", context=32), data)
    assert task.training.shape[1] == task.held_out.shape[1] == 33
    assert task.units_per_sample == 32


# Seeds


def test_seeds_are_the_same_everywhere_and_all_different():
    assert draw("order", 0, 1) == 4510031520011825583  # another number here, and no old run can be resumed
    drawn = {draw(what, seed, step) for what in ("order", "noise") for seed in range(5) for step in range(50)}
    assert len(drawn) == 500
    assert all(0 <= seed < 2**63 for seed in drawn)
