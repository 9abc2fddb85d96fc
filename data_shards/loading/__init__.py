"""Batches of tensors for pretraining and finetuning. The only part of data_shards that knows torch."""
