//! Helpers that the tests share: containers built field by field, a second decoder, the vectors and their ledger.
//!
//! What is wrong here is wrong with a test, so these helpers panic where a program would report an error.
#![allow(clippy::missing_panics_doc)]

pub mod builder;
pub mod decode;
#[cfg(feature = "host")]
pub mod fuzz;
pub mod inflate;
pub mod ledger;
pub mod naive;
pub mod vectors;
