//! Decoder for NWC containers: neural-network weights, compressed with an entropy-coded (trellis) quantiser.
//!
//! `no_std`, no allocation, no unsafe code, no panics, no recursion. Everything a decoder needs is either in the
//! container, in a fixed-size struct, or in memory that the caller gives after asking how much it must be
//! ([`Codec::required_scratch`], [`Tensor::elements`], [`Tile::elements`]).
//!
//! The format is specified in `docs/bitstream.md` of the repository; comments of the form "§8.2" cite its sections.
//!
//! # From bytes to weights
//!
//! [`Container::open`] checks the header, the directory and the codecs. [`Container::tensors`] walks the directory;
//! a [`Tensor`] is raw bytes, an alias of another tensor, or coded. A coded tensor is cut into tiles that decode
//! on their own, given the [`Tables`] of its codec:
//!
//! ```
//! use nwc_decode_core::{Checks, Coding, Container, Limits, Scratch, Table, Tables};
//!
//! # fn main() -> Result<(), nwc_decode_core::Error> {
//! # let file = include_bytes!("../testdata/example.nwc");
//! let container = Container::open(file, &Limits::default())?;
//! for tensor in container.tensors() {
//!     if tensor.coding() != Coding::Coded {
//!         continue;
//!     }
//!     let coded = tensor.coded()?;
//!     let codec = container.codec(coded.codec_index())?;
//!
//!     // A direct look-up is fastest; fewer bits take less memory and search (§6.2 does not say how to find a symbol).
//!     let need = codec.required_scratch(codec.precision());
//!     let mut memory = vec![Table::default(); need.tables];
//!     let mut words = vec![0; need.words];
//!     let scratch = Scratch { tables: &mut memory, words: &mut words };
//!     let tables = Tables::expand(&codec, codec.precision(), scratch)?;
//!
//!     let mut weights = vec![0f32; tensor.elements()];
//!     coded.decode(&tables, Checks::All, &mut weights)?;
//!     println!("{} begins with {}", tensor.name(), weights[0]);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Weights that are not in memory
//!
//! Where the file lies in external flash, only its front is loaded: [`Container::front_bytes`] says how much that is, and
//! [`Container::open_front`] checks it. Tensors then decode through [`ReadAt`] and a window of [`WINDOW_BYTES`]:
//!
//! ```
//! use nwc_decode_core::{Checks, Container, Limits, ReadAt, Scratch, Table, Tables, WINDOW_BYTES};
//!
//! # fn main() -> Result<(), nwc_decode_core::Error> {
//! # let file = include_bytes!("../testdata/example.nwc");
//! let mut flash: &[u8] = file; // or a driver that implements `ReadAt`
//! let mut start = [0; Container::HEADER_BYTES];
//! flash.read_at(0, &mut start)?;
//! let mut front = vec![0; Container::front_bytes(&start)?];
//! flash.read_at(0, &mut front)?;
//! let container = Container::open_front(&front, None, &Limits::default())?;
//!
//! let tensor = container.tensor(0)?.remote(&mut flash)?;
//! let codec = container.codec(tensor.geometry().codec_index())?;
//! let need = codec.required_scratch(6);
//! let (mut tables, mut words) = (vec![Table::default(); need.tables], vec![0; need.words]);
//! let scratch = Scratch { tables: &mut tables, words: &mut words };
//! let tables = Tables::expand(&codec, 6, scratch)?;
//!
//! let mut window = [0; WINDOW_BYTES];
//! for number in 0..tensor.geometry().tiles() {
//!     let tile = tensor.tile(&mut flash, number)?;
//!     let mut weights = vec![0f32; tile.elements()];
//!     tile.decode(&tables, Checks::All, &mut flash, &mut window, &mut weights)?;
//!     println!("{:?} begins with {}", tile.region(), weights[0]);
//! }
//! # Ok(())
//! # }
//! ```
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::as_conversions
    )
)]

#[cfg(test)]
extern crate std;

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;

mod bytes;
mod codec;
mod coded;
mod container;
mod crc;
mod directory;
mod dtype;
mod engine;
mod error;
mod geometry;
mod num;
mod rans;
mod remote;
mod scale;
mod seek;
mod synthesis;
mod tables;
mod tile;

pub use codec::{Codec, Quantiser, SideTable};
pub use coded::{Checks, CodedTensor, Tile};
pub use container::{Attachment, Attachments, Container, Limits, SectionKind};
pub use crc::Crc32;
pub use directory::{Coding, Name, Tensor, TensorIter};
pub use dtype::DType;
pub use engine::{RowEngine, Rows};
pub use error::Error;
pub use geometry::{Geometry, TileRegion};
pub use num::Element;
pub use rans::RowValue;
pub use remote::{ReadAt, RemoteDecoder, RemoteTensor, RemoteTile, WINDOW_BYTES};
pub use scale::{SCALE_CODE_MAX, SCALE_CODE_MIN, scale};
pub use seek::SeekPoints;
pub use synthesis::{Network, NetworkLayer, NetworkParts, Synthesis};
pub use tables::{MAX_LEVEL, Scratch, ScratchSize, Table, Tables, frequencies};
pub use tile::{CHUNK_ROWS, Chunk, MAX_LANES, SeekPoint, TileDecoder};

/// The container version that this decoder reads (§2.1).
pub const FORMAT_VERSION: u16 = 1;
