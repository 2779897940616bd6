import copy
import itertools
import math

import numpy as np
import pytest
import pytorch_optimizer
import torch
import torch.nn.functional as F
from torch import nn

from dynmia import Study
from dynmia.shadow.step import (
    DeviceData,
    TrainState,
    crop,
    draw_crops,
    frozen_statistics,
    learning_rate,
    make_optimizer,
    sam_ascend,
    sam_return,
    update,
)  # fmt: skip

RHO = 0.5  # large, so that the ascent shows
STEPS = 6
BATCH = 16


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    images = torch.tensor(rng.integers(0, 256, (64, 6, 6, 1)), dtype=torch.uint8)
    labels = torch.tensor(rng.integers(0, 3, 64))
    mean, scale = torch.tensor([127.5]), torch.tensor([1 / 74])
    return DeviceData(images, labels, images, labels, mean, scale)


def plain_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))


def norm_model(momentum=0.1):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, momentum=momentum)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def study_with(optimizer, **fields):
    return Study(**{"optimizer": optimizer, "rho": RHO, "precision": "float32", **fields})


def batches(steps=STEPS):
    return [torch.arange(BATCH * step, BATCH * (step + 1)) % 64 for step in range(steps)]


def trained(study, model, data, steps=STEPS):
    state = TrainState(model.train(), make_optimizer(study, model))
    for step, index in enumerate(batches(steps)):
        update(study, state, data, index, None, learning_rate(study, step / steps))
    return state


def reference(optimizer, model, data, steps=STEPS):
    """The same steps with an optimiser that takes a closure."""
    for index in batches(steps):

        def closure(index=index):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(data.normalise(data.images[index])), data.labels[index])
            loss.backward()
            return loss

        closure()
        optimizer.step(closure)


def largest_difference(first, second):
    return max((p - q).abs().max().item() for p, q in zip(first.parameters(), second.parameters()))


SGD = dict(lr=0.05, momentum=0.9, weight_decay=5e-4)
ADAMW = dict(lr=1e-3, betas=(0.9, 0.999), weight_decay=5e-4)
CASES = [
    ("sam-sgd", {}, torch.optim.SGD, SGD),
    ("sam-sgd", {"nesterov": True}, torch.optim.SGD, SGD | {"nesterov": True}),
    ("sam-adamw", {}, torch.optim.AdamW, ADAMW),
]


@pytest.mark.parametrize(("name", "fields", "base", "options"), CASES)
def test_sam_equals_pytorch_optimizer(data, name, fields, base, options):
    ours, theirs = plain_model(), plain_model()
    trained(study_with(name, **fields), ours, data)
    reference(pytorch_optimizer.SAM(theirs.parameters(), base, rho=RHO, **options), theirs, data)
    # weights below 1 in float32 (6e-8) over 6 steps of two passes; without the ascent they differ 1,000 times more
    assert largest_difference(ours, theirs) < 2e-6


@pytest.mark.parametrize(("name", "fields", "base", "options"), CASES)
def test_the_ascent_changes_the_step(data, name, fields, base, options):
    ours, plain = plain_model(), plain_model()
    trained(study_with(name, **fields), ours, data)
    reference(base(plain.parameters(), **options), plain, data)
    assert largest_difference(ours, plain) > 1e-3


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_sam_with_rho_zero_equals_its_base(data, base):
    sam, plain = norm_model(), norm_model()
    trained(study_with(f"sam-{base}", rho=0), sam, data)
    trained(study_with(base), plain, data)
    assert all(torch.equal(a, b) for a, b in zip(sam.state_dict().values(), plain.state_dict().values()))


@pytest.mark.parametrize(
    ("name", "base", "options"), [("sgd", torch.optim.SGD, SGD), ("adamw", torch.optim.AdamW, ADAMW)]
)
def test_plain_optimisers_equal_torch(data, name, base, options):
    ours, theirs = plain_model(), plain_model()
    trained(study_with(name), ours, data)
    reference(base(theirs.parameters(), **options), theirs, data)
    assert largest_difference(ours, theirs) < 2e-6


@pytest.mark.parametrize("name", ["sam-sgd", "sam-adamw"])
def test_running_statistics_are_those_of_the_first_pass_only(data, name):
    model = norm_model()
    once = copy.deepcopy(model).train()
    trained(study_with(name), model, data, steps=1)
    once(data.normalise(data.images[:BATCH]))
    for buffer in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(model[1], buffer), getattr(once[1], buffer))


def test_running_statistics_without_momentum_average_over_first_passes(data):
    model = norm_model(momentum=None)  # a cumulative average: a second count would change it
    once = copy.deepcopy(model).train()
    trained(study_with("sam-sgd", lr=0), model, data, steps=3)
    for index in batches(3):
        once(data.normalise(data.images[index]))
    torch.testing.assert_close(model[1].running_mean, once[1].running_mean)


def test_batches_are_counted_once_a_step(data):
    model = norm_model()
    trained(study_with("sam-sgd"), model, data)
    assert model[1].num_batches_tracked == STEPS


def test_frozen_statistics_still_normalise_by_the_batch():
    norm = nn.BatchNorm1d(1).train()
    with frozen_statistics(norm):
        got = norm(torch.tensor([[10.0], [30.0]]))
    torch.testing.assert_close(got, torch.tensor([[-1.0], [1.0]]))
    assert norm.running_mean.item() == 0


def test_frozen_statistics_thaw_after_an_error():
    norm = nn.BatchNorm1d(1).train()
    with pytest.raises(RuntimeError, match="stop"), frozen_statistics(norm):
        raise RuntimeError("stop")
    assert norm.track_running_stats


def test_norms_without_running_statistics_stay_without():
    norm = nn.BatchNorm1d(1, track_running_stats=False)
    with frozen_statistics(norm):
        pass
    assert not norm.track_running_stats


def with_gradients():
    model = plain_model()
    model(torch.randn(4, 1, 6, 6)).square().sum().backward()
    return model


def test_the_ascent_has_length_rho_along_the_gradient():
    model = with_gradients()
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    sam_ascend(model, 0.3)
    step = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    torch.testing.assert_close(step, 0.3 * gradient / gradient.norm(), rtol=0, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())


def test_the_return_restores_the_weights_to_the_bit():
    model = with_gradients()
    before = [p.detach().clone() for p in model.parameters()]
    saved = sam_ascend(model, 1e3)
    assert not any(torch.equal(p, w) for p, w in zip(model.parameters(), before))
    sam_return(saved)
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before))


def test_the_ascent_survives_a_zero_gradient():
    model = with_gradients()
    for p in model.parameters():
        p.grad.zero_()
    before = [p.detach().clone() for p in model.parameters()]
    sam_ascend(model, RHO)
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before))


def test_the_loss_is_that_before_the_step(data):
    study, model = study_with("sam-sgd"), plain_model()
    images, index = data.normalise(data.images[:BATCH]), torch.arange(BATCH)
    expected = F.cross_entropy(model(images), data.labels[:BATCH]).item()
    state = TrainState(model, make_optimizer(study, model))
    assert update(study, state, data, index, None, study.lr).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("schedule", "progress", "rate"),
    [
        ("cosine", 0.0, 0.2),
        ("cosine", 0.25, 0.1 * (1 + math.sqrt(0.5))),
        ("cosine", 0.5, 0.1),
        ("cosine", 2 / 3, 0.05),
        ("cosine", 1.0, 0.0),
        ("constant", 0.0, 0.2),
        ("constant", 0.9, 0.2),
    ],
)
def test_learning_rate(schedule, progress, rate):
    assert learning_rate(Study(lr=0.2, schedule=schedule), progress) == pytest.approx(rate, abs=1e-16)


def test_the_cosine_schedule_equals_torch():
    study = Study(lr=0.2, schedule="cosine")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for step in range(10):
        assert learning_rate(study, step / 10) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        schedule.step()


def test_a_step_takes_the_scheduled_rate(data):
    state = trained(study_with("sgd", lr=0.2, schedule="cosine"), plain_model(), data, steps=4)
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * (1 + math.cos(0.75 * math.pi)), rel=1e-12)


def crops_of(image):
    """Every crop of the zero-padded image and of its mirror image, by (top, left, flip)."""
    height, width, _ = image.shape
    pad = max(1, height // 8)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    found = {}
    for top, left, flip in itertools.product(range(2 * pad + 1), range(2 * pad + 1), (False, True)):
        crop = padded[top : top + height, left : left + width]
        found[top, left, flip] = crop[:, ::-1] if flip else crop
    return found


def crop_and_flip(images, generator):
    """As a step draws it: random crop after zero padding and random horizontal flip of a batch (B, H, W, C)."""
    return crop(images, draw_crops(images, len(images), generator))


@pytest.mark.parametrize("shape", [(8, 8, 1), (4, 6, 3), (16, 16, 2)])
def test_every_augmented_image_is_a_crop_that_may_be_flipped(shape):
    images = torch.tensor(np.random.default_rng(0).integers(1, 256, (40, *shape)), dtype=torch.uint8)
    got = crop_and_flip(images, torch.Generator().manual_seed(0))
    assert got.shape == images.shape
    assert got.dtype == torch.uint8
    for before, after in zip(images.numpy(), got.numpy()):
        assert any(np.array_equal(after, crop) for crop in crops_of(before).values())


def test_all_crops_are_equally_likely():
    image = np.random.default_rng(0).integers(1, 256, (8, 8, 1))
    images = torch.tensor(image, dtype=torch.uint8).expand(3600, -1, -1, -1)
    got = crop_and_flip(images, torch.Generator().manual_seed(0)).numpy()
    counts = [(got == crop).all((1, 2, 3)).sum() for crop in crops_of(image).values()]
    assert len(counts) == 18
    assert sum(counts) == 3600
    # 200 expected in each, standard error 13.7
    assert max(abs(count - 200) for count in counts) < 4 * 13.7


def test_images_of_32_pixels_are_padded_by_four():
    images = torch.full((2000, 32, 32, 1), 255, dtype=torch.uint8)
    got = crop_and_flip(images, torch.Generator().manual_seed(0))
    blank_rows = (got.amax((2, 3)) == 0).sum(1)
    assert blank_rows.unique().tolist() == [0, 1, 2, 3, 4]


def test_the_generator_alone_decides_the_crops():
    images = torch.tensor(np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)), dtype=torch.uint8)
    first, again, other = (crop_and_flip(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
