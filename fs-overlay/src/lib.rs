//! Seal and rewind of the files of a container on an overlay root.
