//! The Docker Engine as backend, through its API (contract 6.5).
