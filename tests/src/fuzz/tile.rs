//! Tiles of containers that are sound but for their streams.
//!
//! Here the fuzzer chooses numbers, not bytes: a codec, a tiling, and what the streams hold. So every input gets as far as the
//! entropy decoder, with every combination of side information, view and trellis.

use arbitrary::Arbitrary;

use super::{differential, repaired, walk};
use crate::builder::{Codec, Coded, Content, END_STATE, File, Rng, Stream, Table};
use crate::naive;
use nwc_decode_core::{Checks, Container, DType, Limits};
use nwc_encode_host::restore::{Decoder, TableMemory};

/// Weights of the tensor at most: what is rare needs many tensors, not large ones.
const MAX_WEIGHTS: u64 = 1024;

/// A container of one tensor.
#[derive(Debug, Arbitrary)]
pub struct Job {
    codec: CodecFields,
    tensor: TensorFields,
    streams: Streams,
}

#[derive(Debug, Arbitrary)]
struct CodecFields {
    /// State bits of the trellis; 0 and what is too large for the scalar quantiser.
    state_bits: u8,
    unions: bool,
    /// States, in turn.
    next: Vec<u8>,
    /// From 10.
    precision: u8,
    classes: u8,
    weights: Vec<Alphabet>,
    side: [Alphabet; 4],
    /// Which of the side tables are there.
    side_mask: u8,
}

/// A table's alphabet.
#[derive(Debug, Clone, Default, Arbitrary)]
struct Alphabet {
    lo: i8,
    rice: u8,
    levels: Vec<u8>,
}

#[derive(Debug, Arbitrary)]
struct TensorFields {
    dtype: u8,
    transposed: bool,
    /// 0 for none.
    batch: u8,
    out: u8,
    input: u16,
    lanes: u8,
    per_lane: u8,
    tile_rows: u8,
    /// In units that also leave the legal range.
    step: i16,
    class_base: u8,
    side_mask: u8,
    row_shift: u8,
    column_shift: u8,
}

#[derive(Debug, Arbitrary)]
enum Streams {
    /// What an encoder could write.
    Coded { seed: u32, spread: u8 },
    /// What an encoder could write, with a few words changed, added or taken off.
    Damaged { seed: u32, spread: u8, damage: Vec<Damage> },
    /// Words at random; the states are those of the words' beginning, brought into range.
    Words(Vec<Vec<u16>>),
}

#[derive(Debug, Arbitrary)]
struct Damage {
    stream: u8,
    place: u16,
    what: Change,
}

#[derive(Debug, Arbitrary)]
enum Change {
    Word(u16),
    State(u32),
    Cut,
    Grow(u8),
    Swap,
}

impl Alphabet {
    /// A table of at least `least` symbols, with values that are legal.
    fn table(&self, least: usize) -> Table {
        let mut levels: Vec<i32> =
            self.levels.iter().take(256).map(|&level| i32::from(level) % 128).collect();
        // Equal levels cost a bit each, with which even the longest table is short.
        let last = levels.last().copied().unwrap_or(64);
        levels.resize(levels.len().max(least), last);
        Table { lo: i32::from(self.lo), levels, rice: u32::from(self.rice) % 8 }
    }
}

impl CodecFields {
    fn codec(&self) -> Codec {
        let trellis = (1..=8).contains(&self.state_bits);
        let unions = if trellis && self.unions { 2 } else { 1 };
        let classes = usize::from(self.classes) % 8 + 1;
        let nothing = Alphabet::default();
        let turn = |number: usize| self.weights.get(number % self.weights.len().max(1)).unwrap_or(&nothing);
        let tables = (0..classes * usize::from(unions)).map(|number| turn(number).table(2)).collect();
        let precision = 10 + self.precision % 5;
        let codec = if trellis {
            let states = 1usize << self.state_bits;
            let state =
                |at: usize| self.next.get(at % self.next.len().max(1)).map_or(0, |&state| usize::from(state));
            let next = (0..2 * states).map(|at| (state(at) % states) as u8).collect();
            Codec::trellis(next, precision, unions, tables)
        } else {
            Codec::scalar(precision, tables)
        };
        let side = [0, 1, 2, 3].map(|kind| {
            let table = self.side[kind].table(1);
            (self.side_mask >> kind & 1 == 1).then_some(table)
        });
        codec.with_side(side)
    }
}

impl TensorFields {
    /// Dimensions, and a coded tensor without streams. All fields are legal, but scales may leave their range.
    fn coded(&self, codec: &Codec) -> (Vec<u64>, Coded) {
        let batch = u64::from(self.batch % 4);
        let out = u64::from(self.out) + 1;
        let input = (u64::from(self.input) % MAX_WEIGHTS + 1).min((MAX_WEIGHTS / out).max(1));
        let dims = if batch == 0 { vec![out, input] } else { vec![batch, out, input] };
        let (rows, columns) = if self.transposed { (input, out) } else { (out, input) };
        let lanes = self.lanes % 32 + 1;
        let side = self.side_mask & codec.side;
        let shift = |kind: u8, shift: u8| if side >> kind & 1 == 1 { shift % 10 } else { 0 };
        let coded = Coded {
            view: u8::from(self.transposed) | u8::from(batch > 0) << 1,
            lanes,
            per_lane: u64::from(self.per_lane) % columns.div_ceil(u64::from(lanes)) + 1,
            tile_rows: u64::from(self.tile_rows) % rows + 1,
            step: i64::from(self.step) * 2,
            class_base: self.class_base % codec.classes,
            side,
            resolution: shift(0, self.row_shift) | shift(2, self.column_shift) << 4,
            ..Coded::plain(rows, columns)
        };
        (dims, coded)
    }
}

impl Streams {
    /// Fills in the streams; says what they decode to if nothing was damaged.
    fn fill(&self, dims: &[u64], codec: &Codec, coded: Coded) -> (Coded, Option<Content>) {
        let content = |seed: u32, spread: u8| {
            coded.random(dims, codec, i32::from(spread) * 8 + 1, &mut Rng(seed.into()))
        };
        match self {
            Self::Coded { seed, spread } => {
                let content = content(*seed, *spread);
                (coded.with(dims, codec, &content), Some(content))
            }
            Self::Damaged { seed, spread, damage } => {
                let content = content(*seed, *spread);
                let mut coded = coded.with(dims, codec, &content);
                damage.iter().for_each(|damage| damage.apply(&mut coded.streams));
                (coded, None)
            }
            Self::Words(words) => {
                // Sound streams tell how many there must be, and of how many lanes.
                let mut coded = {
                    let content = content(0, 0);
                    coded.with(dims, codec, &content)
                };
                for (stream, words) in coded.streams.iter_mut().zip(words) {
                    let (states, rest) = words.split_at(words.len().min(stream.states.len()));
                    for (state, &word) in stream.states.iter_mut().zip(states) {
                        *state = END_STATE | u32::from(word) << 8;
                    }
                    stream.words = rest.to_vec();
                }
                (coded, None)
            }
        }
    }
}

impl Damage {
    fn apply(&self, streams: &mut [Stream]) {
        let (at, place) = (usize::from(self.stream) % streams.len(), usize::from(self.place));
        let next = (at + 1) % streams.len();
        let Stream { states, words } = &mut streams[at];
        match self.what {
            Change::Word(word) => {
                if let Some(old) = words.get_mut(place) {
                    *old = word;
                }
            }
            Change::State(state) => {
                let lanes = states.len();
                states[place % lanes] = state;
            }
            Change::Cut => words.truncate(place),
            Change::Grow(count) => words.resize(words.len() + usize::from(count), self.place),
            Change::Swap => streams.swap(at, next),
        }
    }
}

impl Job {
    /// The container, and what it holds if nothing was damaged.
    fn file(&self) -> (Vec<u8>, Option<Content>) {
        let codec = self.codec.codec();
        let (dims, coded) = self.tensor.coded(&codec);
        let (coded, content) = self.streams.fill(&dims, &codec, coded);
        let mut file = File { codecs: vec![codec], ..File::default() };
        file.coded("w", self.tensor.dtype % 3, &dims, coded);
        (repaired(&file.bytes()), content)
    }

    /// Decodes it in every way, and compares what is sound with the plainest decoder there is.
    pub fn run(&self) {
        let (file, content) = self.file();
        let container = match Container::open(&file, &Limits::default()) {
            Ok(container) => container,
            // So large a tensor in so few bytes is no container (§5.4).
            Err(error) => panic!("it is sound but for its streams: {error}"),
        };
        walk::walk(&file);
        differential::differential(&file);
        if content.is_some() {
            let mut memory = TableMemory::default();
            let host = Decoder::new(&container, &mut memory).expect("codecs were checked on opening");
            match host.decode_as(&host.tensors()[0], DType::F32, Checks::SkipChecksums) {
                Ok(decoded) => assert!(decoded == naive::File::parse(&file).decode(0, Some(0))),
                // All that can be wrong with what an encoder writes is a scale, which is the tensor's.
                Err(error) => assert_eq!(differential::code_of(&error), nwc_decode_core::Error::Scale.code()),
            }
        }
    }
}
