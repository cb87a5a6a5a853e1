"""FusionFrames (arXiv 2311.13073) for ComfyUI: the engine is in ``ff_kernels``."""
