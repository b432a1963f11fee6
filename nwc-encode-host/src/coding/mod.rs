//! From numbers to streams: the quantisers, the probability tables and the entropy coder.
//!
//! Nothing here knows of tensors or files. A tile goes through [`transform`] (what is quantised), [`search`] (which index for which weight), [`table`] (what each symbol
//! costs) and [`rans`] (the words of the stream).

mod lanes;
pub mod rans;
pub mod search;
pub mod table;
pub mod transform;
pub mod trellis;
