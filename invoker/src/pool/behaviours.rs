//! The behaviours of upstream's pool and proxy tests (contract 10.1) that concern the pool, one test each.
