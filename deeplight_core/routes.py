"""Ways to pre-train and decoders to compare, with their settings. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "PRECISIONS",
    "ROUTES",
    "VARIANTS",
    "AutoencoderSettings",
    "ClipContrastSettings",
    "ClipEncoderSettings",
    "ClipSettings",
    "ClipSupervisedSettings",
    "ContrastRouteSettings",
    "ContrastSettings",
    "ConvEncoderSettings",
    "DeepLight3dSettings",
    "DeepLightSettings",
    "EfficientNetLite0Settings",
    "ImagesResNet18Settings",
    "ImagesSettings",
    "LayerGroup",
    "MedicalNetRouteSettings",
    "MedicalNetSettings",
    "MultitaskSettings",
    "PhotographSettings",
    "PretrainingSettings",
    "R3D18Settings",
    "ReadoutSettings",
    "ReconstructionSettings",
    "ResNet18Settings",
    "ResidualEncoderSettings",
    "ResidualSettings",
    "Route",
    "Routes",
    "SFCNRouteSettings",
    "SFCNSettings",
    "Section",
    "Share",
    "SupervisedSettings",
    "TrainingSettings",
    "Variant",
    "VariationalAutoencoderSettings",
    "VariationalSettings",
    "VideoSettings",
    "VolumeReconstructionSettings",
    "WeightsSettings",
    "WindowSettings",
]

Share = Annotated[float, Field(ge=0, lt=1)]
Width = Annotated[int, Field(ge=1)]
Precision = Literal["32-true", "bf16-mixed"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


class Section(BaseModel):
    """Base of all settings: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class DeepLightSettings(Section):
    """DeepLight's encoder: initialisation, dropout and widths (Thomas, Müller & Samek 2019, section 2.2)."""

    initialisation: Literal["glorot", "he"] = "glorot"
    """Normal initialisation of the convolutions: Glorot & Bengio (2010), as in the paper, or He et al. (2015)."""
    conv_dropout: tuple[Share, Share, Share] = (0.0, 0.2, 0.4)
    """Probability that a channel is dropped, for each group of four convolution layers."""
    lstm_dropout: Share = 0.5
    """Dropout on the slice features that enter the LSTM."""
    widths: tuple[Width, ...] = Field((16,) * 4 + (32,) * 4 + (64,) * 4, min_length=12, max_length=12)
    """Channels of the convolutions. The published weights (Thomas et al. 2021) have 8 in the first two layers, 16 in
    the next two, then 32 and 64."""


class DeepLight3dSettings(Section):
    """3D-DeepLight's encoder (Thomas et al. 2021)."""

    widths: tuple[Width, ...] = Field((8, 8, 8, 8, 16, 16, 32, 32, 64, 64, 128, 128), min_length=12, max_length=12)
    """Channels of the convolutions."""
    dropout: Share = 0.2
    """Probability that a channel is dropped after a convolution."""


class ReadoutSettings(Section):
    """An output layer on an encoder's features: classes or numbers."""

    dropout: Share = 0.5
    """Dropout on its input features (section 2.2), or on those of its hidden layer."""
    pooling: Literal["flatten", "mean", "scores"] = "flatten"
    """How features with places are read: as a list of all of them (the head then fits one grid); by their means over
    places; or at each place, and the mean over places of each class's scores above zero counts (3D-DeepLight)."""
    hidden: int | None = Field(None, ge=1)
    """Units of a hidden layer with ReLU (None = no such layer)."""
    class_weights: Literal["none", "balanced", "proportional"] = "none"
    """Weights of classes in the loss: all alike, inversely proportional to their frequency in training, or
    proportional, a fault that the page *Why theirs did not converge* plants on purpose."""
    probabilities: Literal["softmax", "shares"] = "softmax"
    """What becomes of scores: their softmax, or each one's share of their sum, which only scores above zero have."""

    @model_validator(mode="after")
    def _scores_are_readable(self) -> Self:
        if self.pooling == "scores" and self.hidden:
            raise ValueError("pooling: scores has no hidden layer; set hidden: null")
        if self.probabilities == "shares" and self.pooling != "scores":
            raise ValueError("probabilities: shares needs scores above zero; set pooling: scores")
        return self


class ConvEncoderSettings(Section):
    """Encoder of the convolutional autoencoder (Atanaszov & Ritter 2019, section 2.2.1)."""

    widths: tuple[Width, ...] = Field((8, 16, 32, 16), min_length=2, max_length=16)
    """Channels of the convolutions. All but the last, which makes the code, are followed by pooling."""
    activation: Literal["relu", "elu"] = "relu"
    """ReLU, as in the report, or ELU, as in its code."""
    normalisation: Literal["none", "batch"] = "none"
    """Batch normalisation between convolution and activation; the report has none."""


class ResidualEncoderSettings(Section):
    """Encoder of the strided residual autoencoder (section 2.2.2); the numbers are those of its code."""

    widths: tuple[Width, ...] = Field((8, 16, 16), min_length=1, max_length=16)
    """Channels that leave each block, by a convolution of stride 2."""
    hidden: Width = 7
    """Channels of the convolution inside each block."""
    dropout: Share = 0.1
    """Probability that one of these channels is dropped."""
    activation: Literal["relu", "elu"] = "elu"
    """Activation after every convolution; the report names none, its code has ELU."""


class PhotographSettings(Section):
    """How a network for photographs or video sees a volume. Malik & Bzdok (2022) state none of it in their abstract."""

    window: tuple[float, float] | None = None
    """Values shown in black and in white, as in a photograph (None = 0 and 1 of structural images, -4 and 4 of
    z-scores)."""
    size: int | None = Field(None, ge=8)
    """Pixels of a slice's edge, or of a volume's longest axis, after resizing (None = as they are)."""
    planes: list[Literal["axial", "coronal", "sagittal"]] = Field(["axial"], min_length=1)
    """Planes of the slices."""
    slices: int = Field(9, ge=1)
    """Slices in each plane, evenly spaced."""
    together: Literal["mean", "attention", "lstm"] = "mean"
    """How slices' features become a volume's: their mean, a weighted mean that is learnt, or DeepLight's LSTM."""
    inflated: bool = False
    """The network in 3D, on whole volumes: kernels are repeated along the third axis (Carreira & Zisserman 2017)."""

    @model_validator(mode="after")
    def _white_is_brighter(self) -> Self:
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError(f"window {list(self.window)} must name black's value first, and white's above it")
        return self


class ResNet18Settings(PhotographSettings):
    """ResNet-18 (He et al. 2016)."""

    widths: tuple[Width, ...] = Field((64, 128, 256, 512), min_length=4, max_length=4)
    """Channels of the four stages; published weights have these."""


class EfficientNetLite0Settings(PhotographSettings):
    """EfficientNet-Lite0 (Tan & Le 2019)."""

    widths: tuple[Width, ...] = Field((32, 16, 24, 40, 80, 112, 192, 320, 1280), min_length=9, max_length=9)
    """Channels of the stem, of the seven stages, and of the last convolution; published weights have these."""


class R3D18Settings(Section):
    """3D ResNet-18 for video (Tran et al. 2018)."""

    window: tuple[float, float] | None = None
    """Values shown in black and in white (see PhotographSettings)."""
    size: int | None = Field(None, ge=8)
    """Pixels of a volume's longest axis after resizing (None = as they are)."""
    widths: tuple[Width, ...] = Field((64, 128, 256, 512), min_length=4, max_length=4)
    """Channels of the four stages; published weights have these."""


class MedicalNetSettings(R3D18Settings):
    """MedicalNet's 3D ResNet-18 (Chen et al. 2019)."""


class SFCNSettings(Section):
    """SFCN, a simple fully convolutional network for brain age (Peng et al. 2021)."""

    window: tuple[float, float] | None = None
    """Values shown in black and in white (see PhotographSettings)."""
    size: int | None = Field(None, ge=8)
    """Voxels of a volume's longest axis after resizing (None = as they are); published weights expect FSL's MNI152 at
    1 mm, whose longest axis has 218."""
    crop: tuple[Width, Width, Width] | None = None
    """Voxels (X, Y, Z) of the middle that is looked at, after resizing (None = all); published weights expect
    160, 192, 160."""
    widths: tuple[Width, ...] = Field((32, 64, 128, 256, 256, 64), min_length=6, max_length=6)
    """Channels of the convolutions. Published weights for age have these, those for sex 28 and 58 in the first two."""


class ReconstructionSettings(Section):
    """A decoder that reconstructs volumes, and auxiliary targets (sections 3.1.2 and 3.2)."""

    output: Literal["sigmoid", "linear"] = "sigmoid"
    """Last non-linearity: sigmoid for values from 0 to 1, linear for z-scores."""
    noise: float = Field(0.0, ge=0)
    """SD of the Gaussian noise added to the input in training, in its own units; the target is without."""
    auxiliary: list[str] = Field([])
    """Columns of the manifest that the code is trained to tell, too, such as sex, age, diagnosis."""
    alpha: float = Field(0.7, ge=0, le=1)
    """Share of the reconstruction's error in the loss if there are auxiliary targets; they have the rest."""


class VariationalSettings(ReconstructionSettings):
    """A decoder of a random code (Kingma & Welling 2014), which the report wishes for."""

    kl: float = Field(0.01, ge=0)
    """Weight of the KL divergence beside the sum of squared errors: twice the variance of a voxel's noise."""
    warm_up_steps: int = Field(500, ge=0)
    """Steps in which the weight of the KL divergence grows from 0."""


class ClipEncoderSettings(Section):
    """Encoder of clips, with time as channels (after Wang et al. 2020)."""

    frames: int = Field(27, ge=1)
    """Frames of a clip: channels that the first convolution reads."""
    widths: tuple[Width, ...] = Field((3, 24, 32, 64, 64, 128), min_length=6, max_length=6)
    """Channels after the first convolution, after the second, and after each of the four stages."""
    features: Width = 64
    """Channels of the last convolution, which covers all that is left of the grid."""


class ContrastSettings(Section):
    """Projection and loss of temporal contrast (Shi et al. 2023); all values are choices made here."""

    units: int = Field(64, ge=2)
    """Units of the projection that windows are compared by."""
    hidden: int | None = Field(None, ge=1)
    """Units of the layer before it (None = as many as the encoder has features)."""
    temperature: float = Field(0.1, gt=0)
    """Similarities are divided by it before the softmax."""
    margin: float | None = Field(None, gt=0, le=2)
    """By how much the positive pair must be more similar than a negative one (None = softmax instead)."""
    negatives: Literal["series", "batch"] = "series"
    """What a window's end is told from: the beginning of the same series, as in the paper, or also all windows of the
    batch's other series."""


class LayerGroup(Section):
    """Layers that learn at their own rate, or in some epochs only (discriminative rates, gradual unfreezing)."""

    layers: str
    """Name of a module, e.g. encoder or encoder.convolutions.0"""
    rate: float = Field(1.0, ge=0)
    """Factor on the learning rate (0 = frozen throughout)."""
    from_epoch: int = Field(1, ge=1)
    """First epoch in which they learn."""
    until_epoch: int | None = Field(None, ge=1)
    """Last epoch in which they learn (None = the training's last)."""

    @model_validator(mode="after")
    def _epochs_are_in_order(self) -> "LayerGroup":
        if self.until_epoch is not None and self.until_epoch < self.from_epoch:
            raise ValueError(f"until_epoch {self.until_epoch} is before from_epoch {self.from_epoch}")
        return self

    def fits(self, name: str) -> bool:
        """Whether the weight of this name belongs to the layers."""
        return self.layers in ("", name) or name.startswith(f"{self.layers}.")

    def learns(self, epoch: int) -> bool:
        """Whether the layers learn in an epoch (from 1)."""
        return self.rate > 0 and self.from_epoch <= epoch <= (self.until_epoch or epoch)


class TrainingSettings(Section):
    """One training (sections 2.2, 3.1 and 3.2)."""

    epochs: int = Field(40, ge=1)
    """Number of epochs."""
    steps_per_epoch: int | None = Field(None, ge=1)
    """Batches per epoch (None = one pass over the training data)."""
    min_steps: int = Field(0, ge=0)
    """Least number of steps, however small the training data: epochs are added to reach it."""
    evaluations: int | None = Field(None, ge=1)
    """Number of times the held-out examples are measured: evenly spaced, always after the last epoch (None = after
    every epoch)."""
    batch_size: int = Field(24, ge=1)
    """Volumes per batch."""
    learning_rate: float = Field(1e-4, gt=0)
    """Adam's step size."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the training: constant, or warm-up over 5% of the steps and cosine decay to zero."""
    weight_decay: float = Field(0.0, ge=0)
    """Each step subtracts this times the learning rate times the weight (AdamW, Loshchilov & Hutter 2019)."""
    l1: float = Field(0.0, ge=0)
    """Add this times the sum of all weights' absolute values to the loss."""
    groups: list[LayerGroup] = Field([])
    """Layers with their own learning rate or epochs; if several groups fit a weight, the last one counts."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many epochs without a lower validation loss (None = never)."""
    keep: Literal["last", "best"] = "last"
    """Final weights: the last epoch's, or those with the lowest validation loss."""
    snapshots: bool = False
    """Keep the weights after every measurement of the held-out examples, in `epoch-<n>.safetensors`."""
    shuffled_runs: int | None = Field(None, ge=1)
    """Shuffle volumes within a sliding window of this many runs, so that a store larger than memory is read run by run
    (None = shuffle over all runs)."""
    precision: Precision = "32-true"
    """Lightning Fabric's precision; bf16-mixed computes convolutions in bfloat16."""
    threads: int = Field(2, ge=1)
    """CPU threads of each process; fixed here because the last bits of a sum depend on it."""
    deterministic: bool | None = None
    """Refuse operations whose last bits vary between trainings (None = on a CPU only, where this costs nothing)."""
    compile: bool = False
    """Compile the model (torch.compile): slow to start; meant for GPUs."""


class WeightsSettings(Section):
    """Weights that others have published."""

    source: str
    """package (EfficientNet-Lite0's, in a package), a file (.safetensors or torch's .pth), or
    hub:<owner>/<name>@<revision> of the Hugging Face hub, the revision being a commit's 40 digits."""
    licence: str = ""
    """The licence that the source states, for the record ("" = as far as it is known for the source)."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """The file must have this sha256 (None = any)."""


class PretrainingSettings(TrainingSettings):
    """Training by a route, on all or some of the training units."""

    weights: WeightsSettings | None = None
    """Published weights of the encoder take the place of a training, whose settings then count for nothing (None =
    train)."""

    n_units: int | None = Field(None, ge=1)
    """Number of training units to train on, drawn by the seed (None = all)."""


class SupervisedSettings(Section):
    """Pre-training by supervision on the source's states or numbers (sections 2.2 and 3.1)."""

    encoder: DeepLightSettings = DeepLightSettings()
    head: ReadoutSettings = ReadoutSettings()
    pretraining: PretrainingSettings = PretrainingSettings(epochs=40)


class ClipSettings(Section):
    """Clips of consecutive volumes of one block."""

    length_s: float = Field(gt=0)
    """Length of a clip in seconds."""
    step_s: float = Field(gt=0)
    """Seconds from the beginning of a clip to that of the next one."""
    frames: int | None = Field(None, ge=1)
    """Frames of a clip that are encoded, evenly spaced (None = all of them)."""

    def in_frames(self, tr_s: float) -> dict[str, Any]:
        """Arguments of `training.examples.clips` for a TR in seconds.

        Raises
        ------
        ValueError
            If a clip is shorter than a volume takes, or has fewer frames than are to be encoded.
        """
        length = round(self.length_s / tr_s)
        if length < (self.frames or 1):
            raise ValueError(
                f"length_s {self.length_s:g} is {length} frame(s) at a TR of {tr_s:g} s, and {self.frames or 1} are to "
                "be encoded; raise length_s, or lower frames"
            )
        return {"length": length, "step": max(1, round(self.step_s / tr_s)), "encoded": self.frames or length}


class WindowSettings(ClipSettings):
    """Beginning, middle and end of a piece of a run."""

    length_s: float = Field(14.4, gt=0)
    """Length of each of the three windows in seconds."""
    step_s: float = Field(7.2, gt=0)
    """Seconds from one beginning to the next."""
    gap_s: float = Field(0.0, ge=0)
    """Seconds between windows."""
    control: Literal["none", "order", "run"] = "none"
    """What a control changes: the three windows come in random order, or the beginning comes from another run."""

    def in_frames(self, tr_s: float) -> dict[str, Any]:
        """Arguments of `training.examples.windows` for a TR in seconds; see `ClipSettings.in_frames`."""
        return {**super().in_frames(tr_s), "gap": round(self.gap_s / tr_s), "control": self.control}


_REPORT = PretrainingSettings(epochs=50, batch_size=16, learning_rate=1e-3)  # section 3; epochs are our choice


class AutoencoderSettings(Section):
    """Pre-training by reconstruction with the convolutional autoencoder (Atanaszov & Ritter 2019, section 2.2.1)."""

    encoder: ConvEncoderSettings = ConvEncoderSettings()
    head: ReconstructionSettings = ReconstructionSettings()
    pretraining: PretrainingSettings = _REPORT


class MultitaskSettings(AutoencoderSettings):
    """The same with auxiliary targets (section 3.1.2)."""

    head: ReconstructionSettings = ReconstructionSettings(auxiliary=["diagnosis"])


class VariationalAutoencoderSettings(Section):
    """Pre-training by a variational autoencoder (section 3.2)."""

    encoder: ConvEncoderSettings = ConvEncoderSettings()
    head: VariationalSettings = VariationalSettings()
    pretraining: PretrainingSettings = _REPORT


class ResidualSettings(Section):
    """Pre-training by reconstruction with the strided residual autoencoder (section 2.2.2)."""

    encoder: ResidualEncoderSettings = ResidualEncoderSettings()
    head: ReconstructionSettings = ReconstructionSettings()
    pretraining: PretrainingSettings = _REPORT


class VolumeReconstructionSettings(Section):
    """Pre-training of DeepLight's encoder by reconstruction of fMRI volumes, which are z-scores."""

    encoder: DeepLightSettings = DeepLightSettings()
    head: ReconstructionSettings = ReconstructionSettings(output="linear")
    pretraining: PretrainingSettings = _REPORT.model_copy(update={"epochs": 40})


class ContrastRouteSettings(Section):
    """Pre-training of DeepLight's encoder by temporal contrast (Shi et al. 2023); frames of a window are averaged."""

    encoder: DeepLightSettings = DeepLightSettings()
    head: ContrastSettings = ContrastSettings()
    example: WindowSettings = WindowSettings()
    pretraining: PretrainingSettings = PretrainingSettings(epochs=40)

    @model_validator(mode="after")
    def _batches_have_negatives(self) -> Self:
        if self.head.negatives == "batch" and self.pretraining.batch_size == 1:
            raise ValueError("negatives: batch needs a batch_size of at least 2: a batch of one has no other series")
        return self


class ClipSupervisedSettings(Section):
    """Pre-training of the encoder of clips by supervision on the source's states (Wang et al. 2020)."""

    encoder: ClipEncoderSettings = ClipEncoderSettings()
    head: ReadoutSettings = ReadoutSettings(hidden=64)
    example: ClipSettings = ClipSettings(length_s=19.44, step_s=9.72, frames=27)
    pretraining: PretrainingSettings = PretrainingSettings(epochs=40)


class ClipContrastSettings(ContrastRouteSettings):
    """The same with an encoder of clips."""

    encoder: ClipEncoderSettings = ClipEncoderSettings(frames=20)  # type: ignore[assignment]
    example: WindowSettings = WindowSettings(frames=20)

    @model_validator(mode="after")
    def _windows_have_its_frames(self) -> Self:
        if self.example.frames != self.encoder.frames:
            raise ValueError(
                f"the encoder takes clips of {self.encoder.frames} frames, windows have example.frames "
                f"{self.example.frames}; set both to the same"
            )
        return self


class ImagesSettings(Section):
    """Pre-training on photographs (after Malik & Bzdok 2022): EfficientNet-Lite0's weights, which a package holds."""

    encoder: EfficientNetLite0Settings = EfficientNetLite0Settings()
    head: ReadoutSettings = ReadoutSettings()
    pretraining: PretrainingSettings = PretrainingSettings(weights=WeightsSettings(source="package"))


class ImagesResNet18Settings(Section):
    """The same with ResNet-18, as in the paper; name its weights in `pretraining.weights`."""

    encoder: ResNet18Settings = ResNet18Settings()
    head: ReadoutSettings = ReadoutSettings()
    pretraining: PretrainingSettings = PretrainingSettings(weights=WeightsSettings(source="resnet18.safetensors"))


class VideoSettings(Section):
    """Pre-training on video with 3D ResNet-18, as in the paper; name its weights in `pretraining.weights`."""

    encoder: R3D18Settings = R3D18Settings()
    head: ReadoutSettings = ReadoutSettings()
    pretraining: PretrainingSettings = PretrainingSettings(weights=WeightsSettings(source="r3d_18.pth"))


class MedicalNetRouteSettings(Section):
    """Pre-training on medical volumes (Chen et al. 2019); name its weights in `pretraining.weights`."""

    encoder: MedicalNetSettings = MedicalNetSettings()
    head: ReadoutSettings = ReadoutSettings()
    pretraining: PretrainingSettings = PretrainingSettings(weights=WeightsSettings(source="resnet_18_23dataset.pth"))


class SFCNRouteSettings(Section):
    """Pre-training on T1-weighted images for age (Peng et al. 2021); name its weights in `pretraining.weights`."""

    encoder: SFCNSettings = SFCNSettings()
    head: ReadoutSettings = ReadoutSettings()
    pretraining: PretrainingSettings = PretrainingSettings(
        weights=WeightsSettings(source="run_20190719_00_epoch_best_mae.p")
    )


class Routes(Section):
    """The ways to pre-train, with their models and trainings: one section for each of `ROUTES`."""

    supervised: SupervisedSettings = SupervisedSettings()
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    multitask: MultitaskSettings = MultitaskSettings()
    variational: VariationalAutoencoderSettings = VariationalAutoencoderSettings()
    residual: ResidualSettings = ResidualSettings()
    reconstruction: VolumeReconstructionSettings = VolumeReconstructionSettings()
    contrast: ContrastRouteSettings = ContrastRouteSettings()
    clip_supervised: ClipSupervisedSettings = ClipSupervisedSettings()
    clip_contrast: ClipContrastSettings = ClipContrastSettings()
    images: ImagesSettings = ImagesSettings()
    images_resnet18: ImagesResNet18Settings = ImagesResNet18Settings()
    video: VideoSettings = VideoSettings()
    medicalnet: MedicalNetRouteSettings = MedicalNetRouteSettings()
    sfcn: SFCNRouteSettings = SFCNRouteSettings()


@dataclass(frozen=True)
class Route:
    """A way to pre-train an encoder.

    title : name in figures
    paper : who published it
    encoder, head : names in `models.ENCODERS` and `models.HEADS`; where the source is numbers, `numbers` replaces
        `classes`
    example : one example of its training: a volume, a clip, or a begin-middle-end window
    unlabelled : whether it also trains on volumes without a state

    Its section in `Routes` has its name and holds the settings: `encoder`, `head`, `pretraining` and, for clips and
    windows, `example`. Decoders of the target learn from volumes, or all of them from clips (`finetuning.clip`).
    """

    title: str
    paper: str
    encoder: str
    head: str
    example: Literal["volume", "clip", "window"]
    unlabelled: bool


ROUTES = {
    "supervised": Route(
        "supervised on other tasks", "Thomas, Müller & Samek (2019)", encoder="deeplight", head="classes",
        example="volume", unlabelled=False,
    ),
    "autoencoder": Route(
        "autoencoding", "Atanaszov & Ritter (2019)", encoder="cae", head="reconstruction",
        example="volume", unlabelled=True,
    ),
    "multitask": Route(
        "autoencoding with auxiliary targets", "Atanaszov & Ritter (2019)", encoder="cae", head="reconstruction",
        example="volume", unlabelled=True,
    ),
    "variational": Route(
        "variational autoencoding", "Atanaszov & Ritter (2019), outlook", encoder="cae", head="variational",
        example="volume", unlabelled=True,
    ),
    "residual": Route(
        "strided residual autoencoding", "Atanaszov & Ritter (2019)", encoder="srcae", head="reconstruction",
        example="volume", unlabelled=True,
    ),
    "reconstruction": Route(
        "autoencoding of fMRI volumes", "after Atanaszov & Ritter (2019)", encoder="deeplight", head="reconstruction",
        example="volume", unlabelled=True,
    ),
    "contrast": Route(
        "temporal contrast", "after Shi et al. (2023)", encoder="deeplight", head="contrast",
        example="window", unlabelled=True,
    ),
    "clip_supervised": Route(
        "supervised on other tasks, clips", "after Wang et al. (2020)", encoder="clip", head="classes",
        example="clip", unlabelled=False,
    ),
    "clip_contrast": Route(
        "temporal contrast, clips", "after Shi et al. (2023)", encoder="clip", head="contrast",
        example="window", unlabelled=True,
    ),
    "images": Route(
        "photographs", "after Malik & Bzdok (2022)", encoder="efficientnet_lite0", head="classes",
        example="volume", unlabelled=False,
    ),
    "images_resnet18": Route(
        "photographs, ResNet-18", "Malik & Bzdok (2022)", encoder="resnet18", head="classes",
        example="volume", unlabelled=False,
    ),
    "video": Route(
        "video", "Malik & Bzdok (2022)", encoder="r3d_18", head="classes",
        example="volume", unlabelled=False,
    ),
    "medicalnet": Route(
        "medical volumes", "Chen et al. (2019)", encoder="medicalnet", head="classes",
        example="volume", unlabelled=False,
    ),
    "sfcn": Route(
        "brain age", "Peng et al. (2021)", encoder="sfcn", head="classes",
        example="volume", unlabelled=False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One way to get a decoder of the target.

    title : name in figures
    route : the route of its encoder and, unless its start is random, its pre-training
    learner : the route's deep model; a linear model of the in-mask voxels; or a linear readout (see
        `training.baselines.readout_answers`) of voxels, of regional means of grey matter, or of the frozen encoder
    start : the encoder's first weights: random, pre-trained, pre-trained but shuffled within each tensor (the same
        distribution, no features), or random with the statistics and scales of pre-trained batch normalisation
    initialisation : how random weights are drawn, if not as the profile says
    frozen : train the head only
    permuted : train on targets in random order
    """

    title: str
    route: str = "supervised"
    learner: Literal["deep", "logistic", "components", "svm", "decoder", "ridge", "voxels", "regional", "probe"] = (
        "deep"
    )
    start: Literal["random", "checkpoint", "shuffled", "statistics"] = "random"
    initialisation: Literal["glorot", "he"] | None = None
    frozen: bool = False
    permuted: bool = False


VARIANTS = {
    "pretrained": Variant("DeepLight, pre-trained", start="checkpoint"),
    "scratch": Variant("DeepLight, from scratch"),
    "linear": Variant("logistic regression", learner="logistic"),
    "linear-pretrained": Variant("logistic regression, pre-trained", learner="components"),
    "svm": Variant("linear SVM", learner="svm"),
    "decoder": Variant("nilearn Decoder", learner="decoder"),
    "ridge": Variant("ridge regression", learner="ridge"),
    "scratch-glorot": Variant("from scratch, Glorot", initialisation="glorot"),
    "scratch-he": Variant("from scratch, He", initialisation="he"),
    "shuffled": Variant("pre-trained, weights shuffled", start="shuffled"),
    "frozen": Variant("pre-trained, encoder frozen", start="checkpoint", frozen=True),
    "pretrained-permuted": Variant("DeepLight, pre-trained; labels permuted", start="checkpoint", permuted=True),
    "scratch-permuted": Variant("DeepLight, from scratch; labels permuted", permuted=True),
    "linear-permuted": Variant("logistic regression; labels permuted", learner="logistic", permuted=True),
    "reconstruction": Variant("DeepLight, pre-trained by autoencoding", "reconstruction", start="checkpoint"),
    "supervised-frozen": Variant("supervised features, linear", "supervised", "probe", start="checkpoint"),
    "reconstruction-frozen": Variant("autoencoding's features, linear", "reconstruction", "probe", start="checkpoint"),
    "cae-scratch": Variant("convolutional encoder, from scratch", "autoencoder"),
    "cae": Variant("convolutional autoencoder, pre-trained", "autoencoder", start="checkpoint"),
    "cae-permuted": Variant(
        "convolutional autoencoder, pre-trained; labels permuted", "autoencoder", start="checkpoint", permuted=True
    ),
    "cae-multitask": Variant("pre-trained with auxiliary targets", "multitask", start="checkpoint"),
    "cae-variational": Variant("pre-trained by a variational autoencoder", "variational", start="checkpoint"),
    "cae-frozen": Variant("autoencoder's features, linear", "autoencoder", "probe", start="checkpoint"),
    "cae-multitask-frozen": Variant("multi-task features, linear", "multitask", "probe", start="checkpoint"),
    "contrast": Variant("DeepLight, pre-trained by temporal contrast", "contrast", start="checkpoint"),
    "contrast-frozen": Variant("temporal contrast's features, linear", "contrast", "probe", start="checkpoint"),
    "random-frozen": Variant("random features, linear", "contrast", "probe"),
    "clip-scratch": Variant("encoder of clips, from scratch", "clip_supervised"),
    "clip": Variant("encoder of clips, pre-trained by supervision", "clip_supervised", start="checkpoint"),
    "clip-contrast": Variant("encoder of clips, pre-trained by contrast", "clip_contrast", start="checkpoint"),
    "images": Variant("pre-trained on photographs", "images", start="checkpoint"),
    "images-scratch": Variant("network for photographs, from scratch", "images"),
    "images-frozen": Variant("photographs' features, linear", "images", "probe", start="checkpoint"),
    "images-random-frozen": Variant("network for photographs, random features, linear", "images", "probe"),
    "images-shuffled": Variant("photographs, weights shuffled", "images", start="shuffled"),
    "images-shuffled-frozen": Variant("photographs, weights shuffled, features linear", "images", "probe", "shuffled"),
    "images-statistics": Variant("photographs, statistics only", "images", start="statistics"),
    "images-statistics-frozen": Variant(
        "photographs, statistics only, features linear", "images", "probe", "statistics"
    ),
    "resnet18": Variant("ResNet-18, pre-trained on photographs", "images_resnet18", start="checkpoint"),
    "resnet18-scratch": Variant("ResNet-18, from scratch", "images_resnet18"),
    "resnet18-frozen": Variant("ResNet-18's features, linear", "images_resnet18", "probe", start="checkpoint"),
    "video": Variant("3D ResNet-18, pre-trained on video", "video", start="checkpoint"),
    "video-scratch": Variant("3D ResNet-18, from scratch", "video"),
    "video-frozen": Variant("3D ResNet-18's features, linear", "video", "probe", start="checkpoint"),
    "medicalnet": Variant("MedicalNet, pre-trained on medical volumes", "medicalnet", start="checkpoint"),
    "medicalnet-scratch": Variant("MedicalNet, from scratch", "medicalnet"),
    "medicalnet-frozen": Variant("MedicalNet's features, linear", "medicalnet", "probe", start="checkpoint"),
    "sfcn": Variant("SFCN, pre-trained on brain age", "sfcn", start="checkpoint"),
    "sfcn-scratch": Variant("SFCN, from scratch", "sfcn"),
    "sfcn-frozen": Variant("SFCN's features, linear", "sfcn", "probe", start="checkpoint"),
    "voxels": Variant("linear model of voxels", "autoencoder", "voxels"),
    "regional": Variant("linear model of regional grey matter", "autoencoder", "regional"),
}
