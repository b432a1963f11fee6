//! Writes containers field by field, legal or not (docs/bitstream.md). Checksums are right unless they are set.

use std::collections::BTreeSet;
use std::ops::Range;

use nwc_decode_core::Crc32;

use crate::naive::{self, frequencies};

/// The bit that marks a section as required.
pub const REQUIRED: u32 = 1 << 31;
/// Where every lane ends.
pub const END_STATE: u32 = 1 << 16;

/// Random numbers that are the same for ever (splitmix64).
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from `range`.
    pub fn within(&mut self, range: Range<i32>) -> i32 {
        range.start + (self.any() % (range.end - range.start) as u64) as i32
    }

    /// A number around 0, small ones more often.
    pub fn bell(&mut self, spread: i32) -> i32 {
        (0..4).map(|_| self.within(-spread..spread + 1)).sum::<i32>() / 4
    }

    /// Some bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.any() as u8).collect()
    }
}

/// Appends a varint (§1.2).
pub fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 128 {
        out.push((value % 128) as u8 + 128);
        value /= 128;
    }
    out.push(value as u8);
}

/// The zigzag map (§1.3).
pub fn zigzag(value: i64) -> u64 {
    if value >= 0 { 2 * value as u64 } else { (-2 * value - 1) as u64 }
}

/// A bit string (§1.5).
#[derive(Debug, Clone, Default)]
pub struct Bits(Vec<bool>);

impl Bits {
    fn push(&mut self, value: u32, count: u32) {
        self.0.extend((0..count).map(|place| value >> place & 1 == 1));
    }

    fn rice(&mut self, value: u32, k: u32) {
        self.0.extend((0..value >> k).map(|_| true));
        self.push(0, 1);
        self.push(value, k);
    }

    fn bytes(&self) -> Vec<u8> {
        self.0
            .chunks(8)
            .map(|bits| bits.iter().enumerate().map(|(place, &bit)| u8::from(bit) << place).sum())
            .collect()
    }
}

/// A table's fields (§4.2); of a weight table the first level is that of the escape.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Table {
    pub lo: i32,
    pub levels: Vec<i32>,
    pub rice: u32,
}

impl Table {
    /// A weight table whose values from `-reach` to `reach` are the more likely the smaller they are.
    pub fn weights(reach: i32, slope: i32, rice: u32) -> Self {
        let mut levels = vec![127 - (reach + 1) * slope];
        levels.extend((-reach..=reach).map(|value| 127 - value.abs() * slope));
        let levels = levels.into_iter().map(|level| level.max(0)).collect();
        Self { lo: -reach, levels, rice }
    }

    /// A side table of the values from `lo`, all about equally likely.
    pub fn side(lo: i32, count: usize) -> Self {
        Self { lo, levels: (0..count as i32).map(|i| 60 + i % 3).collect(), rice: 2 }
    }

    fn write(&self, bits: &mut Bits) {
        bits.push(self.lo as u32, 16);
        bits.push(self.levels.len() as u32 - 1, 8);
        bits.push(self.rice, 3);
        for (i, level) in self.levels.iter().enumerate() {
            let prediction = match self.levels[..i] {
                [] => 0,
                [first] => first,
                [.., before, last] => (2 * last - before).clamp(0, 127),
            };
            bits.rice(zigzag(i64::from(level - prediction)) as u32, self.rice);
        }
    }

    fn event(&self, lane: usize, symbol: usize, precision: u8) -> Event {
        let all = frequencies(&self.levels, u32::from(precision));
        Event::Symbol { lane, start: all[..symbol].iter().sum(), frequency: all[symbol] }
    }

    fn values(&self, first_symbol: i32) -> Range<i32> {
        self.lo..self.lo + self.levels.len() as i32 - first_symbol
    }
}

/// A codec's fields (§4.1).
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Codec {
    pub synthesis: u8,
    /// Written for synthesis 2 only.
    pub network: Vec<u8>,
    pub quantiser: u8,
    /// With `next`, written for quantiser 1 only.
    pub state_bits: u8,
    pub next: Vec<u8>,
    pub entropy_mode: u8,
    pub precision: u8,
    pub unions: u8,
    pub classes: u8,
    pub side: u8,
    /// Weight tables, then side tables.
    pub tables: Vec<Table>,
    /// What follows the tables' last byte.
    pub tail: Vec<u8>,
}

impl Codec {
    /// A scalar quantiser with these weight tables, one for a class.
    pub fn scalar(precision: u8, tables: Vec<Table>) -> Self {
        Self {
            synthesis: 0,
            network: Vec::new(),
            quantiser: 0,
            state_bits: 0,
            next: Vec::new(),
            entropy_mode: 0,
            precision,
            unions: 1,
            classes: tables.len() as u8,
            side: 0,
            tables,
            tail: Vec::new(),
        }
    }

    /// A trellis with weight tables for each class and union.
    pub fn trellis(next: Vec<u8>, precision: u8, unions: u8, tables: Vec<Table>) -> Self {
        let state_bits = next.len().ilog2() as u8 - 1;
        let classes = tables.len() as u8 / unions;
        Self { quantiser: 1, state_bits, next, unions, classes, ..Self::scalar(precision, tables) }
    }

    /// With side tables, by their bits.
    #[must_use]
    pub fn with_side(mut self, tables: [Option<Table>; 4]) -> Self {
        self.side = tables.iter().enumerate().map(|(bit, table)| u8::from(table.is_some()) << bit).sum();
        self.tables.extend(tables.into_iter().flatten());
        self
    }

    /// The stored form.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.synthesis];
        if self.synthesis == 2 {
            bytes.extend(&self.network);
        }
        bytes.push(self.quantiser);
        if self.quantiser == 1 {
            bytes.push(self.state_bits);
            bytes.extend(&self.next);
        }
        bytes.extend([self.entropy_mode, self.precision, self.unions, self.classes, self.side]);
        let mut bits = Bits::default();
        self.tables.iter().for_each(|table| table.write(&mut bits));
        bytes.extend(bits.bytes());
        bytes.extend(&self.tail);
        bytes
    }

    fn side_table(&self, kind: u32) -> &Table {
        let weights = usize::from(self.classes) * usize::from(self.unions);
        let before = self.side & ((1 << kind) - 1);
        &self.tables[weights + before.count_ones() as usize]
    }

    fn side_event(&self, lane: usize, kind: u32, value: i32) -> Event {
        let table = self.side_table(kind);
        assert!(table.values(0).contains(&value), "side value {value} is not in its table");
        table.event(lane, (value - table.lo) as usize, self.precision)
    }
}

/// Next states of the trellises with good codes (docs/bitstream.md leaves the choice to the encoder).
pub fn trellis(states: usize) -> Vec<u8> {
    let (feedback, input) = match states {
        8 => (0o13, 0o04),
        64 => (0o103, 0o024),
        _ => panic!("no code of {states} states"),
    };
    let mut next = Vec::new();
    for state in 0..states {
        for bit in [0, 1] {
            let mut to = state / 2;
            if state % 2 == 1 {
                to ^= feedback / 2;
            }
            if bit == 1 {
                to ^= input / 2;
            }
            next.push(to as u8);
        }
    }
    next
}

/// A step of decoding that takes something from the stream.
#[derive(Debug, Clone, Copy)]
enum Event {
    Symbol { lane: usize, start: u32, frequency: u32 },
    Word(u16),
}

/// A stream in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Lane states.
    pub states: Vec<u32>,
    /// Words in the order of reading.
    pub words: Vec<u16>,
}

impl Stream {
    /// The stream from which these events decode, and whose lanes end in `ends`.
    fn encode(events: &[Event], ends: Vec<u32>, precision: u8) -> Self {
        let mut states = ends;
        let mut words = Vec::new();
        for event in events.iter().rev() {
            match *event {
                Event::Word(word) => words.push(word),
                Event::Symbol { lane, start, frequency } => {
                    let state = &mut states[lane];
                    // The state before must not pass 32 bits: if it would, the decoder refills after this symbol.
                    let before = |state: u32| {
                        u64::from(state / frequency) << precision | u64::from(start + state % frequency)
                    };
                    if before(*state) >= 1 << 32 {
                        words.push(*state as u16);
                        *state >>= 16;
                    }
                    *state = before(*state) as u32;
                }
            }
        }
        words.reverse();
        Self { states, words }
    }

    /// The stored form: words are filled up to a multiple of four bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.states.iter().flat_map(|state| state.to_le_bytes()).collect();
        bytes.extend(self.words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
}

/// What decoding a coded tensor gives, before scales are applied.
#[derive(Debug, Clone, Default)]
pub struct Content {
    /// Value of each weight by matrix, row and column as coded.
    pub values: Vec<i32>,
    /// Positions in `values` that are coded as escapes although their tables have them.
    pub escaped: BTreeSet<usize>,
    /// Scale and class values of each row, by matrix and row.
    pub rows: Vec<[i32; 2]>,
    /// Scale and class values of each column, by block of rows (of all matrices) and column.
    pub columns: Vec<[i32; 2]>,
}

/// Fields of a coded tensor's entry (§3.7), and its streams.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Coded {
    pub view: u8,
    pub layers: u8,
    pub codec: u8,
    pub lanes: u8,
    pub per_lane: u64,
    pub tile_rows: u64,
    pub step: i64,
    pub class_base: u8,
    pub side: u8,
    pub resolution: u8,
    /// The real length if it is `None`.
    pub len: Option<u64>,
    /// The right one if it is `None`.
    pub content_crc: Option<u32>,
    pub streams: Vec<Stream>,
    /// The ends that records state, instead of the right ones.
    pub ends: Option<Vec<u32>>,
}

/// How a matrix is cut (§5.1).
#[derive(Debug, Clone, Copy)]
struct Tiling {
    batch: usize,
    rows: usize,
    columns: usize,
    lanes: usize,
    tile_columns: usize,
    tile_rows: usize,
}

impl Coded {
    /// A tensor of one tile with one lane, no side information and step 0.
    pub fn plain(rows: u64, columns: u64) -> Self {
        Self {
            view: 0,
            layers: 1,
            codec: 0,
            lanes: 1,
            per_lane: columns,
            tile_rows: rows,
            step: 0,
            class_base: 0,
            side: 0,
            resolution: 0,
            len: None,
            content_crc: None,
            streams: Vec::new(),
            ends: None,
        }
    }

    fn tiling(&self, dims: &[u64]) -> Tiling {
        let (batch, dims) = if self.view & 2 == 0 { (1, dims) } else { (dims[0], &dims[1..]) };
        let (out, input) = (dims[0], dims[1..].iter().product::<u64>());
        let (rows, columns) = if self.view & 1 == 0 { (out, input) } else { (input, out) };
        Tiling {
            batch: batch as usize,
            rows: rows as usize,
            columns: columns as usize,
            lanes: usize::from(self.lanes),
            tile_columns: usize::from(self.lanes) * self.per_lane as usize,
            tile_rows: self.tile_rows as usize,
        }
    }

    /// Content at random: side values from their tables, weights around 0 with the given spread.
    pub fn random(&self, dims: &[u64], codec: &Codec, spread: i32, rng: &mut Rng) -> Content {
        let tiling = self.tiling(dims);
        let mut side = |kinds: [u32; 2]| {
            kinds.map(|kind| {
                let has = self.side >> kind & 1 == 1;
                if has { rng.within(codec.side_table(kind).values(0)) } else { 0 }
            })
        };
        let row_blocks = tiling.rows.div_ceil(tiling.tile_rows);
        let rows = (0..tiling.batch * tiling.rows).map(|_| side([0, 1])).collect();
        let columns = (0..tiling.batch * row_blocks * tiling.columns).map(|_| side([2, 3])).collect();
        let weights = tiling.batch * tiling.rows * tiling.columns;
        let values = (0..weights).map(|_| rng.bell(spread)).collect();
        Content { values, escaped: BTreeSet::new(), rows, columns }
    }

    /// Codes the content; the fields that cut the tensor must be set.
    #[must_use]
    pub fn with(self, dims: &[u64], codec: &Codec, content: &Content) -> Self {
        self.ending(dims, codec, content, END_STATE)
    }

    /// As [`with`](Self::with), the last lane of every stream ending in the state `end`.
    #[must_use]
    pub fn ending(mut self, dims: &[u64], codec: &Codec, content: &Content, end: u32) -> Self {
        let tiling = self.tiling(dims);
        let row_blocks = tiling.rows.div_ceil(tiling.tile_rows);
        let (mut row_streams, mut tile_streams) = (Vec::new(), Vec::new());
        for band in 0..tiling.batch * row_blocks {
            let first_row = band % row_blocks * tiling.tile_rows;
            let rows = first_row..(first_row + tiling.tile_rows).min(tiling.rows);
            let base = band / row_blocks * tiling.rows;
            let mut events = Vec::new();
            for values in &content.rows[base + rows.start..base + rows.end] {
                for kind in [0, 1] {
                    if self.side >> kind & 1 == 1 {
                        events.push(codec.side_event(0, kind, values[kind as usize]));
                    }
                }
            }
            if self.side & 3 != 0 {
                row_streams.push(Stream::encode(&events, vec![end], codec.precision));
            }
            for first in (0..tiling.columns).step_by(tiling.tile_columns) {
                let columns = first..(first + tiling.tile_columns).min(tiling.columns);
                let lanes = tiling.lanes.min(columns.len());
                let events = self.tile_events(tiling, codec, content, (band, row_blocks), &columns);
                let mut ends = vec![END_STATE; lanes];
                ends[lanes - 1] = end;
                tile_streams.push(Stream::encode(&events, ends, codec.precision));
            }
        }
        self.streams = row_streams;
        self.streams.extend(tile_streams);
        self
    }

    /// What a tile's decoder takes from its stream (§8.2), in order.
    fn tile_events(
        &self,
        tiling: Tiling,
        codec: &Codec,
        content: &Content,
        (band, row_blocks): (usize, usize),
        columns: &Range<usize>,
    ) -> Vec<Event> {
        let (batch, first_row) = (band / row_blocks, band % row_blocks * tiling.tile_rows);
        let mut states = vec![0usize; tiling.lanes];
        let mut events = Vec::new();
        for first in columns.clone().step_by(tiling.lanes) {
            let group = first..(first + tiling.lanes).min(columns.end);
            let side = &content.columns[band * tiling.columns..][group.clone()];
            for kind in [2, 3] {
                if self.side >> kind & 1 == 1 {
                    let values = side.iter().map(|values| values[kind as usize - 2]).enumerate();
                    events.extend(values.map(|(lane, value)| codec.side_event(lane, kind, value)));
                }
            }
            for row in first_row..(first_row + tiling.tile_rows).min(tiling.rows) {
                let row = batch * tiling.rows + row;
                let mut escapes = Vec::new();
                for (lane, column) in group.clone().enumerate() {
                    let place = row * tiling.columns + column;
                    let value = content.values[place];
                    let class = i32::from(self.class_base) + content.rows[row][1] + side[lane][1];
                    let class = class.clamp(0, i32::from(codec.classes) - 1) as usize;
                    let union = if codec.unions == 2 { states[lane] % 2 } else { 0 };
                    let table = &codec.tables[class * usize::from(codec.unions) + union];
                    let symbol = if table.values(1).contains(&value) && !content.escaped.contains(&place) {
                        (value - table.lo + 1) as usize
                    } else {
                        escapes.push(Event::Word(value as i16 as u16));
                        0
                    };
                    events.push(table.event(lane, symbol, codec.precision));
                    if codec.quantiser == 1 {
                        states[lane] = usize::from(codec.next[2 * states[lane] + (value & 1) as usize]);
                    }
                }
                events.append(&mut escapes);
            }
        }
        events
    }

    /// The item (§5.2), and where its streams are in it.
    fn item(&self) -> (Vec<u8>, Vec<Range<usize>>) {
        let streams: Vec<Vec<u8>> = self.streams.iter().map(Stream::bytes).collect();
        let mut places = Vec::new();
        let mut at = 8 * streams.len();
        for stream in &streams {
            places.push(at..at + stream.len());
            at += stream.len();
        }
        let mut item = Vec::new();
        for (number, (stream, place)) in streams.iter().zip(&places).enumerate() {
            let end = ((place.end - 8 * streams.len()) / 4) as u32;
            let end = self.ends.as_ref().map_or(end, |ends| ends[number]);
            item.extend(end.to_le_bytes());
            item.extend(Crc32::of(stream).to_le_bytes());
        }
        item.extend(streams.concat());
        (item, places)
    }
}

/// How a tensor is stored.
#[derive(Debug, Clone)]
pub enum Body {
    /// Bytes, and their CRC if it is not the right one.
    Raw(Vec<u8>, Option<u32>),
    /// Another entry.
    Alias(u64),
    /// A coded item.
    Coded(Box<Coded>),
}

/// An entry of the directory (§3.3).
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Entry {
    pub coding: u8,
    /// Offsets of its fragments.
    pub name: Vec<u64>,
    pub dtype: u8,
    pub dims: Vec<u64>,
    pub body: Body,
    /// The least that suits if it is `None`; not used for an alias.
    pub gap: Option<u64>,
}

/// An attached file (§11.1).
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Attachment {
    pub name: Vec<u8>,
    pub method: u8,
    pub len: u64,
    pub crc: u32,
    pub stored: Vec<u8>,
}

impl Attachment {
    /// A file stored as it is.
    pub fn stored(name: &str, content: &[u8]) -> Self {
        Self {
            name: name.into(),
            method: 0,
            len: content.len() as u64,
            crc: Crc32::of(content),
            stored: content.to_vec(),
        }
    }

    /// A file in a zlib stream of stored blocks.
    pub fn zlib(name: &str, content: &[u8]) -> Self {
        let mut stream = vec![0x78, 0x01];
        let blocks: Vec<&[u8]> = content.chunks(20).collect();
        for (number, block) in blocks.iter().enumerate() {
            stream.push(u8::from(number + 1 == blocks.len()));
            stream.extend((block.len() as u16).to_le_bytes());
            stream.extend((!(block.len() as u16)).to_le_bytes());
            stream.extend(*block);
        }
        let (mut a, mut b) = (1u32, 0u32);
        for &byte in content {
            a = (a + u32::from(byte)) % 65521;
            b = (b + a) % 65521;
        }
        stream.extend((b << 16 | a).to_be_bytes());
        Self { method: 1, stored: stream, ..Self::stored(name, content) }
    }
}

/// Stored seek points of a tile (§13.1).
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct SeekTile {
    pub tensor: u32,
    pub tile: u32,
    /// The number of points if it is `None`.
    pub count: Option<u32>,
    /// As the naive decoder makes them.
    pub points: Vec<naive::Point>,
    pub has_row_stream: bool,
}

impl SeekTile {
    fn write(&self, out: &mut Vec<u8>) {
        let mut put = |value: usize| out.extend((value as u32).to_le_bytes());
        put(self.tensor as usize);
        put(self.tile as usize);
        put(self.count.map_or(self.points.len(), |count| count as usize));
        for point in &self.points {
            let mut put = |value: usize| out.extend((value as u32).to_le_bytes());
            put(point.group);
            put(point.row);
            put(point.words);
            if self.has_row_stream {
                put(point.row_words);
                put(point.row_state as usize);
            }
            point.lanes.iter().for_each(|&lane| put(lane as usize));
            out.extend(point.trellis.iter().map(|&state| state as u8));
            let sides = point.column_scales.iter().chain(&point.column_classes);
            out.extend(sides.flat_map(|&value| (value as i16).to_le_bytes()));
        }
    }
}

/// A section as it is written.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Section {
    pub kind: u32,
    pub bytes: Vec<u8>,
    /// The right one if it is `None`.
    pub crc: Option<u32>,
    /// What the table says of its place, if not the truth.
    pub offset: Option<u64>,
    pub len: Option<u64>,
    /// Bytes before it, if not the fewest zeros that suit.
    pub gap: Option<Vec<u8>>,
}

/// A checksum and the bytes that it covers.
#[derive(Debug, Clone)]
pub struct Seal {
    /// Where it is.
    pub field: usize,
    /// What it is of.
    pub covers: Vec<Range<usize>>,
}

/// Makes checksums right again, in the order in which they cover one another.
pub fn reseal(file: &mut [u8], seals: &[Seal]) {
    for seal in seals {
        let mut crc = Crc32::new();
        seal.covers.iter().for_each(|part| crc.update(&file[part.clone()]));
        file[seal.field..seal.field + 4].copy_from_slice(&crc.value().to_le_bytes());
    }
}

/// A container's parts.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct File {
    pub names: Vec<u8>,
    pub entries: Vec<Entry>,
    pub codecs: Vec<Codec>,
    pub attachments: Option<Vec<Attachment>>,
    pub seek: Option<Vec<SeekTile>>,
    /// Sections of other kinds, each with the number of sections before it.
    pub others: Vec<(usize, u32, Vec<u8>)>,
}

impl File {
    /// Adds a fragment of names; returns its offset.
    pub fn fragment(&mut self, text: &str) -> u64 {
        let offset = self.names.len() as u64;
        self.names.push(text.len() as u8);
        self.names.extend(text.bytes());
        offset
    }

    fn push(&mut self, name: &str, coding: u8, dtype: u8, dims: &[u64], body: Body) {
        let name = vec![self.fragment(name)];
        self.entries.push(Entry { coding, name, dtype, dims: dims.to_vec(), body, gap: None });
    }

    /// Adds a raw tensor.
    pub fn raw(&mut self, name: &str, dtype: u8, dims: &[u64], bytes: Vec<u8>) {
        self.push(name, 0, dtype, dims, Body::Raw(bytes, None));
    }

    /// Adds an alias of the tensor at `target`.
    pub fn alias(&mut self, name: &str, target: usize) {
        let Entry { dtype, dims, .. } = self.entries[target].clone();
        self.push(name, 2, dtype, &dims, Body::Alias(target as u64));
    }

    /// Adds a coded tensor.
    pub fn coded(&mut self, name: &str, dtype: u8, dims: &[u64], coded: Coded) {
        self.push(name, 1, dtype, dims, Body::Coded(Box::new(coded)));
    }

    /// Adds a coded tensor with random content of its codec, which must be there already.
    pub fn random(&mut self, name: &str, dtype: u8, dims: &[u64], coded: Coded, spread: i32, rng: &mut Rng) {
        let codec = &self.codecs[usize::from(coded.codec)];
        let content = coded.random(dims, codec, spread, rng);
        let coded = coded.with(dims, codec, &content);
        self.coded(name, dtype, dims, coded);
    }

    /// The coded tensor at `index`, to be changed.
    pub fn coded_mut(&mut self, index: usize) -> &mut Coded {
        match &mut self.entries[index].body {
            Body::Coded(coded) => coded,
            _ => panic!("tensor {index} is not coded"),
        }
    }

    /// DIRECTORY and DATA, with their inner seals.
    fn directory_and_data(&self) -> (Vec<u8>, Vec<u8>, Vec<Seal>, Vec<Seal>) {
        let (mut fields, mut data) = (Vec::new(), Vec::new());
        let (mut raw_seals, mut stream_seals) = (Vec::new(), Vec::new());
        let front = 8 + self.names.len();
        for entry in &self.entries {
            fields.push(entry.coding);
            varint(&mut fields, entry.name.len() as u64);
            entry.name.iter().for_each(|&offset| varint(&mut fields, offset));
            fields.push(entry.dtype);
            fields.push(entry.dims.len() as u8);
            entry.dims.iter().for_each(|&dim| varint(&mut fields, dim));
            match &entry.body {
                Body::Alias(target) => varint(&mut fields, *target),
                Body::Raw(bytes, crc) => {
                    let gap = entry.gap.unwrap_or(0);
                    varint(&mut fields, gap);
                    data.resize(data.len() + gap as usize, 0);
                    raw_seals.push(Seal {
                        field: front + fields.len(),
                        covers: std::iter::once(data.len()..data.len() + bytes.len()).collect(),
                    });
                    fields.extend(crc.unwrap_or_else(|| Crc32::of(bytes)).to_le_bytes());
                    data.extend(bytes);
                }
                Body::Coded(coded) => {
                    let (item, streams) = coded.item();
                    let aligned = data.len().next_multiple_of(4) - data.len();
                    let gap = entry.gap.unwrap_or(aligned as u64);
                    data.resize(data.len() + gap as usize, 0);
                    fields.extend([coded.view, coded.layers, coded.codec, coded.lanes]);
                    varint(&mut fields, coded.per_lane);
                    varint(&mut fields, coded.tile_rows);
                    varint(&mut fields, zigzag(coded.step));
                    fields.extend([coded.class_base, coded.side, coded.resolution]);
                    varint(&mut fields, gap);
                    varint(&mut fields, coded.len.unwrap_or(item.len() as u64));
                    fields.extend(coded.content_crc.unwrap_or(0).to_le_bytes());
                    for (number, stream) in streams.into_iter().enumerate() {
                        let covers = std::iter::once(data.len() + stream.start..data.len() + stream.end);
                        stream_seals
                            .push(Seal { field: data.len() + 8 * number + 4, covers: covers.collect() });
                    }
                    data.extend(item);
                }
            }
        }
        let mut directory = (self.entries.len() as u32).to_le_bytes().to_vec();
        directory.extend((self.names.len() as u32).to_le_bytes());
        directory.extend(&self.names);
        directory.extend(fields);
        (directory, data, raw_seals, stream_seals)
    }

    /// The sections in their usual order.
    pub fn sections(&self) -> Vec<Section> {
        let (directory, data, ..) = self.directory_and_data();
        let mut codecs = vec![self.codecs.len() as u8];
        for codec in &self.codecs {
            let bytes = codec.bytes();
            codecs.extend((bytes.len() as u32).to_le_bytes());
            codecs.extend(bytes);
        }
        let mut parts = vec![(1 | REQUIRED, directory), (2 | REQUIRED, codecs), (3 | REQUIRED, data)];
        if let Some(attachments) = &self.attachments {
            let mut bytes = (attachments.len() as u32).to_le_bytes().to_vec();
            for attachment in attachments {
                varint(&mut bytes, attachment.name.len() as u64);
                bytes.extend(&attachment.name);
                bytes.push(attachment.method);
                varint(&mut bytes, attachment.len);
                varint(&mut bytes, attachment.stored.len() as u64);
                bytes.extend(attachment.crc.to_le_bytes());
                bytes.extend(&attachment.stored);
            }
            parts.push((4, bytes));
        }
        if let Some(tiles) = &self.seek {
            let mut bytes = (tiles.len() as u32).to_le_bytes().to_vec();
            tiles.iter().for_each(|tile| tile.write(&mut bytes));
            parts.insert(2, (5, bytes));
        }
        for (place, kind, bytes) in &self.others {
            parts.insert(*place, (*kind, bytes.clone()));
        }
        let section = |(kind, bytes)| Section { kind, bytes, crc: None, offset: None, len: None, gap: None };
        parts.into_iter().map(section).collect()
    }

    /// The file with content checksums filled in; it must be legal but for them.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        let parsed = naive::File::parse(&self.bytes());
        for (index, entry) in self.entries.iter_mut().enumerate() {
            if let Body::Coded(coded) = &mut entry.body {
                coded.content_crc = Some(Crc32::of(&parsed.decode(index, None)));
            }
        }
        self
    }

    /// With every `apart`-th seek point of every tile that has some.
    #[must_use]
    pub fn with_seek_points(mut self, apart: usize) -> Self {
        let parsed = naive::File::parse(&self.bytes());
        let mut tiles = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let Body::Coded(coded) = &entry.body else { continue };
            for (tile, points) in parsed.seek_points(index).into_iter().enumerate() {
                let points: Vec<_> = points.into_iter().step_by(apart).collect();
                if !points.is_empty() {
                    tiles.push(SeekTile {
                        tensor: index as u32,
                        tile: tile as u32,
                        count: None,
                        points,
                        has_row_stream: coded.side & 3 != 0,
                    });
                }
            }
        }
        self.seek = Some(tiles);
        self
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> Vec<u8> {
        write(VERSION, &self.sections())
    }

    /// Every checksum that the bytes hold, but those of coded tensors' content.
    pub fn seals(&self) -> Vec<Seal> {
        let places = section_places(&self.sections());
        let (_, _, raw, streams) = self.directory_and_data();
        let place = |kind: u32| places.iter().find(|place| place.kind == kind | REQUIRED);
        let directory = place(1).expect("there is a directory").bytes.start;
        let data = place(3).expect("there is data").bytes.start;
        let shift = |seal: &Seal, by: usize| Seal {
            field: seal.field + by,
            covers: seal.covers.iter().map(|part| part.start + data..part.end + data).collect(),
        };
        let mut seals: Vec<Seal> = streams.iter().map(|seal| shift(seal, data)).collect();
        seals.extend(raw.iter().map(|seal| shift(seal, directory)));
        let table = 24..24 + 24 * places.len();
        for (number, place) in places.iter().enumerate() {
            if place.kind != 3 | REQUIRED {
                seals.push(Seal { field: 24 + 24 * number + 4, covers: vec![place.bytes.clone()] });
            }
        }
        seals.push(Seal { field: 12, covers: vec![0..12, 16..table.end] });
        seals
    }
}

/// Where a section comes to lie.
struct Place {
    kind: u32,
    bytes: Range<usize>,
}

fn section_places(sections: &[Section]) -> Vec<Place> {
    let mut end = 24 + 24 * sections.len();
    let mut places = Vec::new();
    for section in sections {
        let start = section.gap.as_ref().map_or(end.next_multiple_of(64), |gap| end + gap.len());
        end = start + section.bytes.len();
        places.push(Place { kind: section.kind, bytes: start..end });
    }
    places
}

/// The version of the format.
pub const VERSION: u16 = 1;

/// Writes header, section table and sections (§2).
pub fn write(version: u16, sections: &[Section]) -> Vec<u8> {
    let mut table = Vec::new();
    let mut body = Vec::new();
    let front = 24 + 24 * sections.len();
    for (section, place) in sections.iter().zip(section_places(sections)) {
        let crc = if section.kind == 3 | REQUIRED { 0 } else { Crc32::of(&section.bytes) };
        table.extend(section.kind.to_le_bytes());
        table.extend(section.crc.unwrap_or(crc).to_le_bytes());
        table.extend(section.offset.unwrap_or(place.bytes.start as u64).to_le_bytes());
        table.extend(section.len.unwrap_or(section.bytes.len() as u64).to_le_bytes());
        body.extend(section.gap.iter().flatten());
        body.resize(place.bytes.start - front, 0);
        body.extend(&section.bytes);
    }
    let mut file = b"\x89NWC\r\n\x1A\n".to_vec();
    file.extend(version.to_le_bytes());
    file.extend((sections.len() as u16).to_le_bytes());
    file.extend([0; 4]);
    file.extend(((front + body.len()) as u64).to_le_bytes());
    file.extend(table);
    file.extend(body);
    reseal_header(&mut file, sections.len());
    file
}

/// Makes the header's checksum right for a table of `sections` entries.
pub fn reseal_header(file: &mut [u8], sections: usize) {
    reseal(file, &[Seal { field: 12, covers: vec![0..12, 16..24 + 24 * sections] }]);
}
