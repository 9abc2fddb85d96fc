"""The order of samples as pure functions of (seed, epoch, sample): numbers in, numbers out, no disk, no torch."""
