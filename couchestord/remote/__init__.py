"""Data outside this node: what keeps it, and how it is written there.

A backend keeps immutable objects under names, in a bucket of any S3-compatible store or in a folder. It knows nothing
of stores, extents and blobs; who calls it verifies what it gives.
"""
