//! Checkpoint and rewind of a container's process tree: memory, threads and kernel objects.
