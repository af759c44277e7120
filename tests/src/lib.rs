//! Whole-system tests: real Kafka, store, containers; residue attacks; recorded scenarios.
