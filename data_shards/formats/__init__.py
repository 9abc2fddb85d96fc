"""What a build leaves on disk: shards (zarr or webdataset tar) and the one index that describes them."""
