"""FusionFrames: two-stage latent text-to-video (arXiv 2311.13073), releases Kandinsky Video 1.0 and 1.1."""

__version__ = "0.2.0"
