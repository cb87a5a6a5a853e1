"""From a folder of weights and a prompt to a clip: files, sizes in pixels, seeds and progress around the stages."""
