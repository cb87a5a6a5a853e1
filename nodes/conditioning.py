"""Nodes that prepare sampling: prompts, empty latents, a first frame."""

import torch
from torch import Tensor

from ..ff_kernels.errors import InputError
from ..ff_kernels.media.pictures import fit_covering, to_rgb
from ..ff_kernels.models.configs import KEYFRAME_V10, LatentSpace, check_sides
from ..ff_kernels.models.text_encoder import null_context
from ..ff_kernels.sampling.schedule import TRAIN_STEPS
from ..ff_kernels.stages.releases import MOTION_SCORES, V10, V11
from ..ff_kernels.stages.tokenizer import MAX_TOKENS
from ._api import io, ui
from ._compat import mm, show_text
from .adapters.clip import KEY, CoreTextModel
from .adapters.latent import CHANNELS, FIRST_FRAME, MOTION_SCORE, NOISE_LEVEL, Conditioning, with_values
from .adapters.text import MARKS, mark
from .adapters.vae import movq_of
from .widgets import ALIASES

PROMPT = "a large purple triangle moves up on a white background"
# How much of a negative prompt is read.
AS_RELEASED, WHOLE = "as released", "whole"
# Pixels per latent position and side, in both releases.
FACTOR = LatentSpace.factor
# Width, height and factor of the released sizes; the first entry leaves the choice to the widgets above it.
AS_GIVEN = "width and height above"
PRESETS = {
    AS_GIVEN: None,
    "512 x 512, square": (512, 512, FACTOR),
    "640 x 384, wide": (640, 384, FACTOR),
    "384 x 640, tall": (384, 640, FACTOR),
    "64 x 64, demo": (64, 64, 4),
}
# Width and height that the nodes begin with, in pixels.
SIDE = 512
NOISE_MAX = TRAIN_STEPS - 1
MOTION = {f"{score}: {word}": score for word, score in MOTION_SCORES.items()}
SLOW = next(label for label, score in MOTION.items() if score == V11.motion_score)


def _size_inputs(keyframes: int) -> list[io.Int.Input]:
    pixels = "pixels; a multiple of 64 for the released models, of 8 for the demo model."
    return [
        io.Int.Input(
            "width", default=SIDE, optional=True, min=8, max=4096, step=8, tooltip=f"Width of the video in {pixels}"
        ),
        io.Int.Input(
            "height", default=SIDE, optional=True, min=8, max=4096, step=8, tooltip=f"Height of the video in {pixels}"
        ),
        io.Int.Input(
            "keyframes",
            default=keyframes,
            optional=True,
            min=1,
            max=256,
            tooltip="Frames of the storyline, 2 per second in the releases. Trained on "
            f"{V10.keyframes} (release 1.0), {V11.keyframes} (1.1), 5 (demo).",
        ),
    ]


def check_size(width: int, height: int, factor: int) -> None:
    """Refuse sizes that no released U-Net takes, naming the nearest one that it does.

    Args:
        width: pixels.
        height: pixels.
        factor: pixels per latent position.

    Raises:
        InputError: naming the input, the multiple and the nearest size.
    """
    # A smaller factor than the releases' belongs to a model that halves its latents fewer times.
    multiple = factor * KEYFRAME_V10.side_multiple if factor == FACTOR else 2 * factor
    check_sides(width, height, multiple)


class TextEncode(io.ComfyNode):
    """Prompt and negative prompt to conditionings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="FusionFramesTextEncode",
            display_name="FusionFrames Text Encode",
            category="FusionFrames/conditioning",
            description="Encodes prompt and negative prompt exactly as the releases do. An empty negative prompt is "
            "the checkpoint's learned null text. The node shows how many tokens were used and dropped.",
            search_aliases=ALIASES,
            inputs=[
                io.Clip.Input("clip", tooltip="From FusionFrames Load Text Encoder."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default=PROMPT,
                    optional=True,
                    tooltip="What the video shows, in English, up to 128 tokens. Parentheses are read as text.",
                ),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    optional=True,
                    tooltip="What it should not show. Empty: the model's own null text, as the releases use. Cut to "
                    "the length of the prompt, as release 1.0 does; the node says when that cuts it.",
                ),
                io.Combo.Input(
                    "negative_length",
                    options=[AS_RELEASED, WHOLE],
                    default=AS_RELEASED,
                    optional=True,
                    tooltip="as released: the negative prompt is cut to the prompt's length. whole: all of it is read.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, clip: object, prompt: str = PROMPT, negative_prompt: str = "", negative_length: str = AS_RELEASED
    ) -> io.NodeOutput:
        """Encode both."""
        if not isinstance(getattr(clip, "cond_stage_model", None), CoreTextModel):
            raise InputError(
                "clip expected a FusionFrames text encoder, got another model's: load one with FusionFrames Load Text "
                "Encoder"
            )
        if not prompt.strip():
            raise InputError("prompt expected a text, got an empty one: describe what the video shows")
        tokens = clip.tokenize(prompt)
        positive = clip.encode_from_tokens_scheduled(tokens)
        used, dropped = tokens[KEY].shape[1], tokens["dropped"]
        note = f"{used} of {MAX_TOKENS} tokens used" + (f", {dropped} dropped at the end" if dropped else "")
        if not negative_prompt.strip():
            negative = _null_like(positive)
        else:
            is_whole = negative_length == WHOLE
            unwanted = (
                clip.tokenize(negative_prompt) if is_whole else clip.tokenizer.tokenize_negative(negative_prompt, used)
            )
            negative = clip.encode_from_tokens_scheduled(unwanted)
            if unwanted["dropped"]:
                reason = "at the end" if is_whole else "as the prompt is shorter, as in the release"
                note += f"; negative prompt: {unwanted['dropped']} tokens dropped {reason}"
        show_text(cls.hidden.unique_id, note)
        return io.NodeOutput(positive, negative, ui=ui.PreviewText(note))


def _null_like(positive: Conditioning) -> Conditioning:
    """Return a null text as long as the prompt: its pooled vector depends on that length."""
    out = []
    for tensor, options in positive:
        context, mask = null_context(tensor.new_zeros(tensor.shape[-1] - MARKS), *tensor.shape[:2])
        out.append([mark(context, mask, is_null=True), {**options, "attention_mask": mask}])
    return out


class EmptyLatent(io.ComfyNode):
    """Size and keyframes to an empty LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="FusionFramesEmptyLatent",
            display_name="FusionFrames Empty Latent",
            category="FusionFrames/latent",
            description="An empty video latent of the wanted size and number of keyframes.",
            search_aliases=ALIASES,
            inputs=[
                *_size_inputs(V10.keyframes),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=AS_GIVEN,
                    optional=True,
                    tooltip="Sizes of the releases. Anything but the first entry overrides width and height.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Only needed for a model with other than 8 x 8 pixels per latent position: "
                    "its MoVQ. The demo preset knows its model's 4 x 4.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="[1, 4, keyframes, height / 8, width / 8]; the demo has 4 x 4 pixels per position.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        width: int = SIDE,
        height: int = SIDE,
        keyframes: int = V10.keyframes,
        preset: str = AS_GIVEN,
        vae: object = None,
    ) -> io.NodeOutput:
        """Make the latent."""
        width, height, factor = PRESETS[preset] or (width, height, FACTOR)
        factor = movq_of(vae).movq.config.factor if vae is not None else factor
        check_size(width, height, factor)
        latent = empty_latent(width, height, keyframes, factor)
        # Samplers fit an empty latent to a model of another factor by this key; one made for a MoVQ fits already.
        return io.NodeOutput(latent if vae is not None else {**latent, "downscale_ratio_spacial": factor})


def empty_latent(width: int, height: int, keyframes: int, factor: int, clips: int = 1) -> dict[str, Tensor]:
    """Return an all-zero LATENT."""
    if keyframes < 1:
        raise InputError(
            f"keyframes expected 1 or more, got {keyframes}: the releases have {V10.keyframes} and {V11.keyframes}"
        )
    samples = torch.zeros(
        clips, CHANNELS, keyframes, height // factor, width // factor, device=mm.intermediate_device()
    )
    return {"samples": samples}


def motion_score_of(label: str) -> int:
    """Return the motion score of a label, which it begins with; the words behind it have changed and may again.

    Raises:
        InputError: if it begins with none of the four.
    """
    score = str(label).partition(":")[0].strip()
    if score not in map(str, MOTION.values()):
        raise InputError(f"motion expected one of {', '.join(MOTION)}, got {label!r}: choose one of them")
    return int(score)


class ImageToVideo(io.ComfyNode):
    """A picture as first frame, release 1.1."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="FusionFramesImageToVideo",
            display_name="FusionFrames Image to Video",
            category="FusionFrames/conditioning",
            description="Gives release 1.1 a picture to start from. The picture is scaled until it covers the size and "
            "cropped in the middle: any aspect ratio, never black bars.",
            search_aliases=[*ALIASES, "image to video"],
            inputs=[
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Vae.Input("vae", tooltip="MoVQ that encodes the picture."),
                io.Image.Input(
                    "image", tooltip="The first frame, any size. Several pictures make a batch of clips, one each."
                ),
                *_size_inputs(V11.keyframes),
                io.Combo.Input(
                    "motion",
                    options=list(MOTION),
                    default=SLOW,
                    optional=True,
                    tooltip="How much moves, as the motion score 1 to 100 that the model was trained with.",
                ),
                io.Int.Input(
                    "noise_augmentation",
                    display_name="noise_level",
                    default=V11.noise_level,
                    optional=True,
                    min=0,
                    max=NOISE_MAX,
                    tooltip=f"Diffusion steps of noise on the picture, 0 to 999; the release uses {V11.noise_level}. "
                    "More lets the video leave the picture behind.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
                io.Latent.Output(display_name="latent"),
            ],
        )

    @classmethod
    def validate_inputs(cls, motion: str | None) -> bool | str:
        """Let labels of older workflows pass, which the list no longer holds; None comes through a link."""
        try:
            return motion is None or bool(motion_score_of(motion))
        except InputError as error:
            return str(error)

    @classmethod
    def execute(
        cls,
        positive: Conditioning,
        negative: Conditioning,
        vae: object,
        image: Tensor,
        width: int = SIDE,
        height: int = SIDE,
        keyframes: int = V11.keyframes,
        motion: str = SLOW,
        noise_augmentation: int = V11.noise_level,
    ) -> io.NodeOutput:
        """Encode the picture and add it to both conditionings."""
        if not 0 <= noise_augmentation <= NOISE_MAX:
            raise InputError(
                f"noise_level expected 0 to {NOISE_MAX} diffusion steps, got {noise_augmentation}: the release uses "
                f"{V11.noise_level}"
            )
        factor = movq_of(vae).movq.config.factor
        check_size(width, height, factor)
        frames = torch.stack([fit_covering(to_rgb(picture, "image"), width, height) for picture in image])
        # Pictures are stills of clips of their own: encoded one by one, they never share the time axis.
        latents = torch.cat([vae.encode(frame[None])[:, :, 0] for frame in frames])
        values = {FIRST_FRAME: latents, NOISE_LEVEL: noise_augmentation, MOTION_SCORE: motion_score_of(motion)}
        return io.NodeOutput(
            with_values(positive, **values),
            with_values(negative, **values),
            empty_latent(width, height, keyframes, factor, len(frames)),
        )
