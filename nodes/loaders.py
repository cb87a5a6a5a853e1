"""Loader nodes: files of the model folders to MODEL, CLIP and VAE."""

from ..ff_kernels.checkpoints.folder import TOKENIZER_NAME
from ..ff_kernels.errors import CheckpointError, InputError
from ..ff_kernels.stages.tokenizer import Tokenizer
from ._api import io
from ._compat import DTYPES, file_names, file_path
from .adapters.clip import load_clip
from .adapters.files import open_first_projection, open_weights
from .adapters.folded import AS_RELEASED, FOLDED, LAYERS
from .adapters.model import load_model
from .adapters.networks import NETWORKS
from .adapters.vae import MoVQVAE
from .widgets import ALIASES, dtype_input

# Folders a projection can be in: with the text encoders (release 1.1) or inside the keyframe U-Net (1.0).
PROJECTION_FOLDERS = ("text_encoders", "diffusion_models")
NO_PROJECTION = "none"


class LoadModel(io.ComfyNode):
    """Keyframe or interpolation U-Net to MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="FusionFramesLoadModel",
            display_name="FusionFrames Load Model",
            category="FusionFrames/loaders",
            description="Loads a FusionFrames (Kandinsky Video 1.0 or 1.1) U-Net: the one that samples keyframes or "
            "the one that interpolates between them. Which one it is, is found from the file.",
            search_aliases=ALIASES,
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=file_names("diffusion_models"),
                    tooltip="File in models/diffusion_models, .safetensors or the authors' .pt. The demo files come "
                    "with the pack.",
                ),
                dtype_input("what suits the device, as in core's loaders"),
                io.Combo.Input(
                    "layers",
                    options=LAYERS,
                    default=AS_RELEASED,
                    optional=True,
                    tooltip="folded: linear layers behind each other become one, the same function with less work; "
                    "takes no LoRA and no merging. as released: takes both. A file of folded layers is folded either "
                    "way. Saving writes the weights of the file.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="Keyframe U-Net for FusionFrames Keyframe Sampler, KSampler or SamplerCustomAdvanced; "
                    "interpolation U-Net for FusionFrames Interpolate.",
                )
            ],
        )

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str = "default", layers: str = AS_RELEASED) -> io.NodeOutput:
        """Load the file."""
        if layers not in LAYERS:
            raise InputError(f"layers expected one of {', '.join(LAYERS)}, got {layers!r}: choose one of them")
        path = file_path("diffusion_models", model_name)
        weights = open_weights(path, tuple(NETWORKS), "model_name")
        return io.NodeOutput(load_model(weights, DTYPES[weight_dtype], is_folded=layers == FOLDED))


class LoadTextEncoder(io.ComfyNode):
    """T5 text encoder with projection to CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        # A name may be in both folders.
        projections = list(dict.fromkeys(name for folder in PROJECTION_FOLDERS for name in file_names(folder)))
        return io.Schema(
            node_id="FusionFramesLoadTextEncoder",
            display_name="FusionFrames Load Text Encoder",
            category="FusionFrames/loaders",
            description="Loads the T5 text encoder (Flan-UL2 for the released models) with the projection that the "
            "U-Nets were trained with. spiece.model must lie beside the encoder.",
            search_aliases=ALIASES,
            inputs=[
                io.Combo.Input(
                    "text_encoder_name",
                    options=file_names("text_encoders"),
                    tooltip="File in models/text_encoders; of a model in several files choose any one. spiece.model "
                    "must be in the same folder.",
                ),
                io.Combo.Input(
                    "projection_name",
                    options=[NO_PROJECTION, *projections],
                    default=NO_PROJECTION,
                    optional=True,
                    tooltip="Where the text projection is: the keyframe U-Net (release 1.0, demo) or t5_projections "
                    "(release 1.1). With none the node says which file it misses.",
                ),
                dtype_input("as stored, bfloat16 in place of float16, which overflows at the size of Flan-UL2"),
            ],
            outputs=[
                io.Clip.Output(
                    display_name="clip", tooltip="For FusionFrames Text Encode or CLIPTextEncode; 128 tokens."
                )
            ],
        )

    @classmethod
    def execute(
        cls, text_encoder_name: str, projection_name: str = NO_PROJECTION, weight_dtype: str = "default"
    ) -> io.NodeOutput:
        """Load encoder, projection and tokenizer."""
        path = file_path("text_encoders", text_encoder_name)
        weights = open_weights(path, ("text_encoder",), "text_encoder_name")
        paths = [path]
        if projection_name != NO_PROJECTION:
            folders = [folder for folder in PROJECTION_FOLDERS if projection_name in file_names(folder)]
            paths = [file_path(folder, projection_name) for folder in folders]
        projection = open_first_projection(paths, "projection_name")
        tokenizer = path.parent / TOKENIZER_NAME
        if not tokenizer.is_file() and weights.tokenizer is None:
            raise CheckpointError(
                f"text_encoder_name expected {TOKENIZER_NAME} beside '{path.name}' in '{path.parent}', found none: "
                "take it from huggingface.co/google/flan-ul2"
            )
        words = Tokenizer(tokenizer if tokenizer.is_file() else weights.tokenizer)
        return io.NodeOutput(load_clip(weights, projection, words, DTYPES[weight_dtype]))


class LoadMoVQ(io.ComfyNode):
    """MoVQ to VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node."""
        return io.Schema(
            node_id="FusionFramesLoadMoVQ",
            display_name="FusionFrames Load MoVQ",
            category="FusionFrames/loaders",
            description="Loads a MoVQ autoencoder: the image decoder of both releases or the video decoder of 1.1. The "
            "result works in core's VAE Decode, VAE Decode (Tiled) and VAE Encode.",
            search_aliases=ALIASES,
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=file_names("vae"),
                    tooltip="File in models/vae: movq or video_movq. Ordinary Stable Diffusion autoencoders belong "
                    "into core's Load VAE.",
                )
            ],
            outputs=[io.Vae.Output(display_name="vae", tooltip="8 x 8 pixels per latent position (demo: 4 x 4).")],
        )

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        """Load the file."""
        return io.NodeOutput(MoVQVAE(open_weights(file_path("vae", vae_name), ("movq", "video_movq"), "vae_name")))
