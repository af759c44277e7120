//! The program rewind: a Kafka-fed OpenWhisk invoker whose containers are rolled back after every activation.

pub mod metrics;
pub mod pool;
