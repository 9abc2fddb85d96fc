"""From an archive of scans to batches of tensors: read, preprocess, shard, index, order, load.

Knows numpy, zarr, webdataset and nibabel; torch only inside `loading/`. Never imports maetrain, cluster or Ray.
"""
