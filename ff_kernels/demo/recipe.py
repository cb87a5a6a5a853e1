"""Sizes of the demo networks and how long each stage trains; NOTES.md says how the shipped weights differ."""

from dataclasses import replace

from ..models.configs import MoVQConfig, TextConfig, UNetConfig
from ..training.loop import TrainConfig

CONTEXT_DIM = 64
VOCABULARY = 160

TEXT = TextConfig(vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
MOVQ = MoVQConfig(ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(), resolution=64, groups=8)
VIDEO_MOVQ = replace(MOVQ, temporal=True, temporal_kernel_size=(3, 1, 1), temporal_attention_block=True)
KEYFRAMES = UNetConfig(
    "1.0", "keyframe", 4, 4, model_channels=48, init_channels=32, time_embed_dim=96, context_dim=CONTEXT_DIM,
    groups=8, head_dim=16, dim_mult=(1, 2), num_blocks=(2, 2), add_cross_attention=(False, True),
    add_self_attention=(False, True), num_frames=5, timestep_offset=20,
)  # fmt: skip
# One level only: the networks halve their sides before the skip connection, and twelve noisy channels do not fit
# through a halved level of this width. The context of the 1.0 interpolation is the null text always, so text
# attention could learn nothing.
INTERPOLATION = replace(
    KEYFRAMES, stage="interpolation", num_channels=20, out_channels=12, time_embed_dim=96, model_channels=64,
    init_channels=64, dim_mult=(1,), num_blocks=(2,), add_cross_attention=(False,), add_self_attention=(True,),
    expansion_ratio=2, num_frames=None,
)  # fmt: skip
# The paper's baseline at the same sizes; used by the comparison only.
MASKED = replace(INTERPOLATION, stage="masked", num_channels=9, out_channels=4, num_frames=5)

# Frames that the range of the latents is read from.
RANGE_FRAMES = 2000
# Captions that the spread of contexts is measured on.
CONTEXT_CAPTIONS = 1500
# Clips whose latents are worked out once and kept.
KEYFRAME_CLIPS = 5000
# Layouts that are encoded with every shape.
TWINS = 450
GAP_CLIPS = 2000

MOVQ_TRAINING = TrainConfig(steps=1300, batch=16, learning_rate=2e-3)
DECODER_TRAINING = TrainConfig(steps=1700, batch=16, learning_rate=1.5e-3)
DECODER_SQUARED = 10.0
# It starts as the image decoder, and is better than that only once the rate has fallen.
VIDEO_MOVQ_TRAINING = TrainConfig(steps=600, batch=4, learning_rate=5e-4)
TEXT_TRAINING = TrainConfig(steps=1000, batch=64, learning_rate=2e-3)
READING_TRAINING = TrainConfig(steps=600, batch=64, learning_rate=2e-3, warmup=50)
# No weight decay in the stages of the keyframe network: it would wear down the path of the noise (noise_path.py).
LESSON_TRAINING = TrainConfig(steps=1200, batch=8, weight_decay=0, ema_decay=0.99, slow="text.", cosine=False)
KEYFRAME_TRAINING = TrainConfig(steps=4800, batch=16, weight_decay=0, slow="text.")
FINISH_TRAINING = TrainConfig(
    steps=4500, batch=16, learning_rate=8e-4, warmup=50, weight_decay=0, ema_decay=0.995, slow="text."
)
INTERPOLATION_TRAINING = TrainConfig(steps=10_700, batch=6, learning_rate=2e-3)
