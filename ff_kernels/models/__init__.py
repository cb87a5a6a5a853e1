"""The networks: text encoder, keyframe and interpolation U-Nets, MoVQ. State-dict names are the releases' own.

Letters of all shapes: B clips, T frames of a clip, G gaps, N samples that run together. R rows: one prompt in one
guidance branch, which neighbouring samples share; A of them attend to their text. S steps, L tokens, D width of the
text, E width of the time vector, C channels, H and W sides, P = H * W positions, h and w latent sides.
"""
