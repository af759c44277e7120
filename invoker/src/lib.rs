//! The program rewind: a Kafka-fed OpenWhisk invoker whose containers are rolled back after every activation.

pub mod activation;
pub mod bus;
pub mod check;
pub mod cli;
pub mod container;
pub mod dispatch;
pub mod errors;
pub mod feed;
pub mod health;
pub mod http;
pub mod id;
pub mod journal;
pub mod metrics;
pub mod pool;
pub mod privileges;
pub mod settings;
pub mod shutdown;
pub mod start;
