"""ComfyUI nodes of FusionFrames; the engine they call is ``ff_kernels``."""
