"""nnFormer: encoder, segmentation network, masked autoencoder."""
