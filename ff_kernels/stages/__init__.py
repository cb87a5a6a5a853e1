"""The sampling stages between tensors: text to keyframes, keyframes to video; no files, no sizes in pixels.

The one floor that both hosts call, the pipeline and the nodes. Every stage takes networks, tensors and a noise source,
so that it can be run alone, checked against reference numbers, or wrapped by a host.
"""
