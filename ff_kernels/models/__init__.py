"""The networks: text encoder, keyframe and interpolation U-Nets, MoVQ. State-dict names are the releases' own."""
