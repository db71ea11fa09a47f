"""The two container images: what goes into them, their lock files, and a proof of both without a container engine.

`python -m infra.images` lists what it can do.
"""
