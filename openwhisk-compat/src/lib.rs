//! OpenWhisk's wire, as plain data: messages, entities, response mapping, limits, configuration, stores.
//!
//! This crate alone knows OpenWhisk's JSON. It knows nothing of containers, processes or files of a
//! container: what reaches it is bytes, and what leaves it is values or bytes. Section numbers in the
//! documentation ("contract 2.6") point at the contract of the classic invoker, summarised in
//! `docs/contract.md`.
//!
//! In reading order:
//! - [`message`]: what travels through Kafka;
//! - [`entity`]: what lies in the store: actions and activation records;
//! - [`protocol`], [`response`], [`logs`]: what is said to an action container, what its answers mean, and
//!   what its output becomes;
//! - [`limits`], [`crypt`], [`manifest`], [`name`]: checks, encrypted parameters, runtimes, names;
//! - [`config`]: every setting, declared once;
//! - [`store`]: the CouchDB client;
//! - [`size`], [`duration`]: the two units everybody writes differently.

pub mod config;
pub mod crypt;
pub mod duration;
pub mod entity;
mod json;
pub mod limits;
pub mod logs;
pub mod manifest;
pub mod message;
pub mod name;
pub mod protocol;
pub mod response;
pub mod size;
pub mod store;
