//! A decoder that is as plain as it can be: no look-ups, no scratch memory, numbers rounded by hand in binary64.
//!
//! It takes its input to be legal, and shares nothing with the decoder that it is compared with.

use std::collections::VecDeque;

/// Names of the dtypes, by their codes (§3.4).
pub const DTYPES: [&str; 15] = [
    "F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "F8_E4M3",
    "F8_E5M2",
];
/// Bytes of an element, by the codes of the dtypes.
pub const DTYPE_SIZES: [usize; 15] = [4, 2, 2, 8, 8, 4, 2, 1, 8, 4, 2, 1, 1, 1, 1];

/// Reads fields one after the other.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        self.at += count;
        &self.bytes[self.at - count..self.at]
    }

    fn number(&mut self, bytes: usize) -> u64 {
        self.take(bytes).iter().rev().fold(0, |number, &byte| number * 256 + u64::from(byte))
    }

    fn u8(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn varint(&mut self) -> u64 {
        let byte = self.u8();
        let low = u64::from(byte % 128);
        if byte < 128 { low } else { low + 128 * self.varint() }
    }

    fn size(&mut self) -> usize {
        self.varint() as usize
    }

    fn zigzag(&mut self) -> i64 {
        unzigzag(self.varint())
    }
}

fn unzigzag(n: u64) -> i64 {
    if n.is_multiple_of(2) { (n / 2) as i64 } else { -((n / 2) as i64) - 1 }
}

/// Frequencies of a table's levels (§4.3).
pub fn frequencies(levels: &[i32], precision: u32) -> Vec<u32> {
    const EIGHTHS: [u128; 8] = [256, 279, 304, 332, 362, 395, 431, 470];
    let weights: Vec<u128> =
        levels.iter().map(|&level| EIGHTHS[(level % 8) as usize] * 2u128.pow((level / 8) as u32)).collect();
    let sum: u128 = weights.iter().sum();
    let total = 2u128.pow(precision);
    let spare = total - levels.len() as u128;
    let mut all: Vec<u32> = weights.iter().map(|weight| 1 + (weight * spare / sum) as u32).collect();
    let largest = *weights.iter().max().expect("a table has a symbol");
    let first = weights.iter().position(|&weight| weight == largest).expect("it is one of them");
    all[first] += total as u32 - all.iter().sum::<u32>();
    all
}

#[derive(Debug, Clone)]
struct Table {
    lo: i32,
    frequencies: Vec<u32>,
}

#[derive(Debug, Clone)]
enum Synthesis {
    Identity,
    Hadamard,
    Learned(Network),
}

/// A learned synthesis (§9.3).
#[derive(Debug, Clone)]
struct Network {
    places: u32,
    matrix: Vec<Vec<i64>>,
    layers: Vec<Layer>,
    output: Vec<Vec<i64>>,
}

#[derive(Debug, Clone)]
struct Layer {
    shift: u32,
    biases: Vec<i64>,
    weights: Vec<Vec<i64>>,
}

impl Network {
    fn parse(fields: &mut Cursor<'_>) -> Self {
        let table = |fields: &mut Cursor<'_>, rows: usize, columns: usize| -> Vec<Vec<i64>> {
            (0..rows).map(|_| (0..columns).map(|_| i64::from(fields.u8() as i8)).collect()).collect()
        };
        let places = u32::from(fields.u8());
        let matrix = table(fields, 16, 16);
        let mut width = 16;
        let count = fields.u8();
        let layers: Vec<Layer> = (0..count)
            .map(|_| {
                let before = width;
                width = usize::from(fields.u8());
                let shift = u32::from(fields.u8());
                let biases =
                    (0..width).map(|_| i64::from(i16::from_le_bytes([fields.u8(), fields.u8()]))).collect();
                Layer { shift, biases, weights: table(fields, width, before) }
            })
            .collect();
        let output = table(fields, if count > 0 { 16 } else { 0 }, width);
        Self { places, matrix, layers, output }
    }

    fn latent(&self, indices: &[i64], j: usize) -> f64 {
        let sum =
            |weights: &[i64], inputs: &[i64]| weights.iter().zip(inputs).map(|(w, x)| w * x).sum::<i64>();
        let mut total = sum(&self.matrix[j], indices);
        let mut x: Vec<i64> = indices.iter().map(|&index| index.clamp(-128, 127)).collect();
        for Layer { shift, biases, weights } in &self.layers {
            let unit = |(bias, weights): (&i64, &Vec<i64>)| {
                (bias + sum(weights, &x)).div_euclid(2i64.pow(*shift)).clamp(0, 127)
            };
            x = biases.iter().zip(weights).map(unit).collect();
        }
        if !self.layers.is_empty() {
            total += sum(&self.output[j], &x);
        }
        total as f64 / 2f64.powi(self.places as i32)
    }
}

#[derive(Debug, Clone)]
struct Codec {
    synthesis: Synthesis,
    next: Option<Vec<u8>>,
    precision: u32,
    unions: usize,
    classes: usize,
    weights: Vec<Table>,
    side: [Option<Table>; 4],
}

impl Codec {
    fn parse(bytes: &[u8]) -> Self {
        let mut fields = Cursor { bytes, at: 0 };
        let synthesis = match fields.u8() {
            0 => Synthesis::Identity,
            1 => Synthesis::Hadamard,
            _ => Synthesis::Learned(Network::parse(&mut fields)),
        };
        let next = (fields.u8() == 1).then(|| {
            let state_bits = fields.u8();
            fields.take(2 << state_bits).to_vec()
        });
        fields.u8();
        let precision = u32::from(fields.u8());
        let (unions, classes, side) = (usize::from(fields.u8()), usize::from(fields.u8()), fields.u8());
        let mut bits: VecDeque<u32> = bytes[fields.at..]
            .iter()
            .flat_map(|byte| (0..8).map(move |i| u32::from(byte >> i & 1)))
            .collect();
        let weights = (0..unions * classes).map(|_| Table::parse(&mut bits, precision)).collect();
        let side = [0, 1, 2, 3].map(|i| (side >> i & 1 == 1).then(|| Table::parse(&mut bits, precision)));
        Self { synthesis, next, precision, unions, classes, weights, side }
    }
}

impl Table {
    fn parse(bits: &mut VecDeque<u32>, precision: u32) -> Self {
        let mut field = |count: u32| -> u32 {
            (0..count).map(|place| bits.pop_front().expect("the string is whole") << place).sum()
        };
        let lo = field(16) as i32;
        let lo = if lo >= 32768 { lo - 65536 } else { lo };
        let symbols = field(8) + 1;
        let k = field(3);
        let mut levels: Vec<i32> = Vec::new();
        for _ in 0..symbols {
            let mut quotient = 0;
            while field(1) == 1 {
                quotient += 1;
            }
            let error = unzigzag(u64::from(quotient * 2u32.pow(k) + field(k))) as i32;
            let prediction = match levels[..] {
                [] => 0,
                [first] => first,
                [.., before, last] => (2 * last - before).clamp(0, 127),
            };
            levels.push(prediction + error);
        }
        Self { lo, frequencies: frequencies(&levels, precision) }
    }
}

/// A tensor of a container.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Code of its dtype.
    pub dtype: usize,
    /// Its dimensions.
    pub dims: Vec<usize>,
    /// What its bytes are.
    pub kind: Kind,
}

/// How a tensor is stored.
#[derive(Debug, Clone)]
pub enum Kind {
    /// Its bytes.
    Raw(Vec<u8>),
    /// Another tensor's.
    Alias(usize),
    /// A coded item.
    Coded(Coded),
}

/// The fields of §3.7.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Coded {
    pub transposed: bool,
    pub batched: bool,
    pub direct: bool,
    pub codec: usize,
    pub lanes: usize,
    pub per_lane: usize,
    pub tile_rows: usize,
    pub step: i64,
    pub class_base: i64,
    pub side: u8,
    pub row_shift: u32,
    pub column_shift: u32,
    pub content_crc: u32,
    pub item: Vec<u8>,
}

/// A parsed container.
#[derive(Debug, Clone)]
pub struct File {
    codecs: Vec<Codec>,
    /// The directory.
    pub tensors: Vec<Tensor>,
}

impl File {
    /// Reads a legal container.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut header = Cursor { bytes, at: 10 };
        let count = header.number(2);
        header.take(12);
        let mut sections = [[].as_slice(); 4];
        for _ in 0..count {
            let (kind, _) = (header.number(4) % 2u64.pow(31), header.number(4));
            let (offset, len) = (header.number(8) as usize, header.number(8) as usize);
            if (1..=4).contains(&kind) {
                sections[kind as usize - 1] = &bytes[offset..offset + len];
            }
        }
        let [directory, codecs, data, _] = sections;
        let mut fields = Cursor { bytes: codecs, at: 0 };
        let codecs = (0..fields.u8())
            .map(|_| {
                let len = fields.number(4) as usize;
                Codec::parse(fields.take(len))
            })
            .collect();
        Self { codecs, tensors: directory_of(directory, data) }
    }

    /// The tensor itself, or the one that it is an alias of.
    pub fn resolve(&self, index: usize) -> &Tensor {
        match self.tensors[index].kind {
            Kind::Alias(target) => &self.tensors[target],
            _ => &self.tensors[index],
        }
    }

    /// The bytes of a tensor in its own dtype (`None`) or in F32, F16 or BF16.
    pub fn decode(&self, index: usize, dtype: Option<usize>) -> Vec<u8> {
        let tensor = self.resolve(index);
        match &tensor.kind {
            Kind::Raw(bytes) => bytes.clone(),
            Kind::Alias(_) => panic!("an alias of an alias"),
            Kind::Coded(coded) => {
                let dtype = dtype.unwrap_or(tensor.dtype);
                let weights = self.weights(tensor, coded);
                weights.iter().flat_map(|&(weight, _)| float_bytes(weight, dtype)).collect()
            }
        }
    }

    /// Each weight of a coded tensor before it is rounded to a dtype, and its step; row-major in the tensor's own dimensions.
    pub fn weights_and_steps(&self, index: usize) -> Vec<(f64, f64)> {
        let tensor = self.resolve(index);
        match &tensor.kind {
            Kind::Coded(coded) => self.weights(tensor, coded),
            _ => panic!("tensor {index} is not coded"),
        }
    }

    /// Every seek point of a coded tensor that could be stored, by tile (§13.2).
    pub fn seek_points(&self, index: usize) -> Vec<Vec<Point>> {
        let tensor = self.resolve(index);
        match &tensor.kind {
            Kind::Coded(coded) => self.walk(tensor, coded).1,
            _ => panic!("tensor {index} is not coded"),
        }
    }

    fn weights(&self, tensor: &Tensor, coded: &Coded) -> Vec<(f64, f64)> {
        self.walk(tensor, coded).0
    }

    /// The weights of a coded tensor and their steps, each a binary32 number, and the seek points of each tile.
    fn walk(&self, tensor: &Tensor, coded: &Coded) -> (Vec<(f64, f64)>, Vec<Vec<Point>>) {
        let mut points = Vec::new();
        let codec = &self.codecs[coded.codec];
        let (batch, dims) =
            if coded.batched { (tensor.dims[0], &tensor.dims[1..]) } else { (1, &tensor.dims[..]) };
        let (out, input) = (dims[0], dims[1..].iter().product::<usize>());
        let (rows, columns) = if coded.transposed { (input, out) } else { (out, input) };
        let tile_columns = coded.lanes * coded.per_lane;
        let (row_blocks, column_blocks) = (rows.div_ceil(coded.tile_rows), columns.div_ceil(tile_columns));
        let row_streams = if coded.side.is_multiple_of(4) { 0 } else { batch * row_blocks };
        let streams = split_item(&coded.item, row_streams + batch * row_blocks * column_blocks);

        let mut weights = vec![(f64::NAN, f64::NAN); batch * rows * columns];
        for b in 0..batch {
            for i in 0..row_blocks {
                let block_rows = (rows - i * coded.tile_rows).min(coded.tile_rows);
                let band = b * row_blocks + i;
                let side = if row_streams > 0 {
                    codec.row_values(coded, streams[band], block_rows)
                } else {
                    vec![Row::default(); block_rows]
                };
                for j in 0..column_blocks {
                    let width = (columns - j * tile_columns).min(tile_columns);
                    let stream = streams[row_streams + band * column_blocks + j];
                    let (tile, tile_points) = codec.tile(coded, stream, width, &side);
                    points.push(tile_points);
                    for (place, weight) in tile.into_iter().enumerate() {
                        let (r, c) = (i * coded.tile_rows + place / width, j * tile_columns + place % width);
                        let (o, x) = if coded.transposed { (c, r) } else { (r, c) };
                        weights[(b * out + o) * input + x] = weight;
                    }
                }
            }
        }
        (weights, points)
    }
}

fn directory_of(directory: &[u8], data: &[u8]) -> Vec<Tensor> {
    let mut fields = Cursor { bytes: directory, at: 0 };
    let (count, names_len) = (fields.number(4), fields.number(4) as usize);
    let names = fields.take(names_len);
    let mut data = Cursor { bytes: data, at: 0 };
    let mut tensors = Vec::new();
    for _ in 0..count {
        let coding = fields.u8();
        let fragments = fields.varint();
        let name: Vec<&str> = (0..fragments)
            .map(|_| {
                let at = fields.size();
                std::str::from_utf8(&names[at + 1..][..usize::from(names[at])]).expect("names are UTF-8")
            })
            .collect();
        let dtype = usize::from(fields.u8());
        let dims: Vec<usize> = (0..fields.u8()).map(|_| fields.size()).collect();
        let kind = match coding {
            0 => {
                let gap = fields.size();
                fields.take(4);
                data.take(gap);
                Kind::Raw(data.take(dims.iter().product::<usize>() * DTYPE_SIZES[dtype]).to_vec())
            }
            1 => Kind::Coded(Coded::parse(&mut fields, &mut data)),
            _ => Kind::Alias(fields.size()),
        };
        tensors.push(Tensor { name: name.join("."), dtype, dims, kind });
    }
    tensors
}

impl Coded {
    fn parse(fields: &mut Cursor<'_>, data: &mut Cursor<'_>) -> Self {
        let view = fields.u8();
        fields.u8();
        let (codec, lanes) = (usize::from(fields.u8()), usize::from(fields.u8()));
        let (per_lane, tile_rows, step) = (fields.size(), fields.size(), fields.zigzag());
        let (class_base, side, resolution) = (i64::from(fields.u8()), fields.u8(), fields.u8());
        let (gap, len, content_crc) = (fields.size(), fields.size(), fields.number(4) as u32);
        data.take(gap);
        Self {
            transposed: view % 2 == 1,
            batched: view / 2 % 2 == 1,
            direct: view / 4 == 1,
            codec,
            lanes,
            per_lane,
            tile_rows,
            step,
            class_base,
            side,
            row_shift: u32::from(resolution % 16),
            column_shift: u32::from(resolution / 16),
            content_crc,
            item: data.take(len).to_vec(),
        }
    }
}

/// The streams of an item (§5.2).
fn split_item(item: &[u8], count: usize) -> Vec<&[u8]> {
    let mut records = Cursor { bytes: item, at: 0 };
    let mut start = 8 * count;
    (0..count)
        .map(|_| {
            let end = 8 * count + 4 * records.number(4) as usize;
            records.take(4);
            let stream = &item[start..end];
            start = end;
            stream
        })
        .collect()
}

/// The state of decoding before a row of a group (§13.2).
#[derive(Debug, Clone)]
#[allow(missing_docs)] // The fields are those of the table there.
pub struct Point {
    pub group: usize,
    pub row: usize,
    pub words: usize,
    pub row_words: usize,
    pub row_state: u64,
    pub lanes: Vec<u64>,
    pub trellis: Vec<usize>,
    pub column_scales: Vec<i64>,
    pub column_classes: Vec<i64>,
}

/// A row's values, and the row stream before they were read.
#[derive(Debug, Clone, Copy, Default)]
struct Row {
    scale: i64,
    class: i64,
    words: usize,
    state: u64,
}

/// A stream being decoded (§6).
struct Stream {
    lanes: Vec<u64>,
    words: VecDeque<u64>,
    read: usize,
}

impl Stream {
    fn new(bytes: &[u8], lanes: usize) -> Self {
        let mut fields = Cursor { bytes, at: 0 };
        let states = (0..lanes).map(|_| fields.number(4)).collect();
        let words = (0..(bytes.len() - 4 * lanes) / 2).map(|_| fields.number(2)).collect();
        Self { lanes: states, words, read: 0 }
    }

    fn word(&mut self) -> u64 {
        self.read += 1;
        self.words.pop_front().expect("a legal stream has the word")
    }

    fn symbol(&mut self, lane: usize, table: &Table, precision: u32) -> usize {
        let x = self.lanes[lane];
        let total = 2u64.pow(precision);
        let (mut symbol, mut start) = (0, 0);
        while x % total >= start + u64::from(table.frequencies[symbol]) {
            start += u64::from(table.frequencies[symbol]);
            symbol += 1;
        }
        let mut x = u64::from(table.frequencies[symbol]) * (x / total) + x % total - start;
        assert!(x < 1 << 32);
        if x < 1 << 16 {
            x = x * 65536 + self.word();
        }
        self.lanes[lane] = x;
        symbol
    }

    /// A side value, 0 if there is no table.
    fn side(&mut self, lane: usize, codec: &Codec, coded: &Coded, kind: usize) -> i64 {
        if coded.side >> kind & 1 == 0 {
            return 0;
        }
        let table = codec.side[kind].as_ref().expect("a legal tensor's codec has the table");
        i64::from(table.lo) + self.symbol(lane, table, codec.precision) as i64
    }

    fn finish(mut self) {
        assert!(self.lanes.iter().all(|&state| state == 1 << 16));
        if !self.words.is_empty() {
            assert_eq!(self.word(), 0);
        }
        assert!(self.words.is_empty());
    }
}

impl Codec {
    /// Scale and class values of a block's rows (§7).
    fn row_values(&self, coded: &Coded, stream: &[u8], rows: usize) -> Vec<Row> {
        let mut stream = Stream::new(stream, 1);
        let values = (0..rows)
            .map(|row| {
                let (words, state) = if row == 0 { (0, 0) } else { (stream.read + 2, stream.lanes[0]) };
                let (scale, class) = (stream.side(0, self, coded, 0), stream.side(0, self, coded, 1));
                Row { scale, class, words, state }
            })
            .collect();
        stream.finish();
        values
    }

    /// The latent value of a weight, from the indices of its group of columns (§9).
    fn latent(&self, coded: &Coded, indices: &[Vec<i64>], r: usize, lane: usize) -> f64 {
        let first = r / 16 * 16;
        if coded.direct || first + 16 > indices.len() {
            return indices[r][lane] as f64;
        }
        let chunk: Vec<i64> = (0..16).map(|k| indices[first + k][lane]).collect();
        let sign = |k: usize| if ((r % 16) & k).count_ones().is_multiple_of(2) { 1 } else { -1 };
        match &self.synthesis {
            Synthesis::Identity => indices[r][lane] as f64,
            Synthesis::Hadamard => (0..16).map(|k| sign(k) * chunk[k]).sum::<i64>() as f64 / 4.0,
            Synthesis::Learned(network) => network.latent(&chunk, r % 16),
        }
    }

    /// A tile's weights and their steps, row-major in rows and columns as coded (§8 to §10), and its seek points.
    fn tile(
        &self,
        coded: &Coded,
        stream: &[u8],
        width: usize,
        rows: &[Row],
    ) -> (Vec<(f64, f64)>, Vec<Point>) {
        let mut points = Vec::new();
        let lanes = coded.lanes.min(width);
        let mut stream = Stream::new(stream, lanes);
        let mut states = vec![0usize; lanes];
        let mut weights = vec![(f64::NAN, f64::NAN); rows.len() * width];
        for first in (0..width).step_by(coded.lanes) {
            let active = (width - first).min(coded.lanes);
            let point =
                |row: usize, stream: &Stream, states: &[usize], scales: &[i64], classes: &[i64]| Point {
                    group: first / coded.lanes,
                    row,
                    words: stream.read,
                    row_words: rows[row].words,
                    row_state: rows[row].state,
                    lanes: stream.lanes.clone(),
                    trellis: if self.next.is_some() { states.to_vec() } else { Vec::new() },
                    column_scales: if coded.side >> 2 & 1 == 1 { scales.to_vec() } else { Vec::new() },
                    column_classes: if coded.side >> 3 & 1 == 1 {
                        classes.iter().map(|class| coded.class_base + class).collect()
                    } else {
                        Vec::new()
                    },
                };
            if first > 0 {
                points.push(point(0, &stream, &states, &[], &[]));
            }
            let scales: Vec<i64> = (0..active).map(|lane| stream.side(lane, self, coded, 2)).collect();
            let classes: Vec<i64> = (0..active).map(|lane| stream.side(lane, self, coded, 3)).collect();
            let mut indices: Vec<Vec<i64>> = Vec::new();
            for (r, row) in rows.iter().enumerate() {
                if r > 0 && r.is_multiple_of(16) {
                    points.push(point(r, &stream, &states, &scales, &classes));
                }
                let symbols: Vec<(usize, &Table)> = (0..active)
                    .map(|lane| {
                        let class = coded.class_base + row.class + classes[lane];
                        let class = class.clamp(0, self.classes as i64 - 1) as usize;
                        let union = if self.unions == 2 { states[lane] % 2 } else { 0 };
                        let table = &self.weights[class * self.unions + union];
                        (stream.symbol(lane, table, self.precision), table)
                    })
                    .collect();
                let row = symbols.into_iter().enumerate().map(|(lane, (symbol, table))| {
                    let j = match symbol {
                        0 => i64::from(stream.word() as u16 as i16),
                        symbol => i64::from(table.lo) + symbol as i64 - 1,
                    };
                    match &self.next {
                        None => j,
                        Some(next) => {
                            let s = states[lane];
                            states[lane] = usize::from(next[2 * s + j.rem_euclid(2) as usize]);
                            2 * j + (s % 2) as i64
                        }
                    }
                });
                indices.push(row.collect());
            }
            for (r, row) in rows.iter().enumerate() {
                let row_factor = scale(coded.step + row.scale * 2i64.pow(9 - coded.row_shift));
                for lane in 0..active {
                    let latent = round(self.latent(coded, &indices, r, lane), F32);
                    let column_factor = if coded.side & 4 == 0 {
                        1.0
                    } else {
                        scale(scales[lane] * 2i64.pow(9 - coded.column_shift))
                    };
                    let factor = round(row_factor * column_factor, F32);
                    weights[r * width + first + lane] = (round(latent * factor, F32), factor);
                }
            }
        }
        stream.finish();
        (weights, points)
    }
}

/// 2^n for an n within the normal numbers.
fn power(n: i64) -> f64 {
    f64::from_bits(((1023 + n) as u64) << 52)
}

/// The number of §10.1. Its constants are powers of two, rounded, so they can be computed.
pub fn scale(code: i64) -> f64 {
    assert!((-64512..=65535).contains(&code), "scale code {code}");
    let (e, k) = (code.div_euclid(512), code.rem_euclid(512));
    let coarse = (30.0 + (k / 32) as f64 / 16.0).exp2().round() as u64;
    let fine = (31.0 + (k % 32) as f64 / 512.0).exp2().round() as u64;
    let mantissa = (coarse * fine + 2u64.pow(37)) / 2u64.pow(38);
    mantissa as f64 * power(e - 23)
}

/// A binary format: bits of its exponent, and of its significand as stored.
type Format = (u32, u32);
const F32: Format = (8, 23);
const FORMATS: [Format; 3] = [F32, (5, 10), (8, 7)];

/// The exponent of the smallest normal number.
fn least_exponent(format: Format) -> i64 {
    2 - 2i64.pow(format.0 - 1)
}

/// floor(log2(x)), but at least the exponent of the smallest normal number.
fn exponent(x: f64, format: Format) -> i64 {
    ((x.abs().to_bits() >> 52) as i64 - 1023).max(least_exponent(format))
}

/// Rounds to the nearest number of a format, ties to even; never to infinity (§10.3, §10.4).
fn round(x: f64, format: Format) -> f64 {
    let quantum = power(exponent(x, format) - i64::from(format.1));
    let nearest = (x / quantum).round_ties_even() * quantum;
    let largest = (2.0 - power(-i64::from(format.1))) * power(2i64.pow(format.0 - 1) - 1);
    nearest.clamp(-largest, largest)
}

/// The bytes of a weight in a dtype, rounded first.
fn float_bytes(x: f64, dtype: usize) -> Vec<u8> {
    let format = FORMATS[dtype];
    let x = round(x, format);
    let e = exponent(x, format);
    // In units of the last place; at least 2^stored for a normal number, whose leading one is not stored.
    let units = (x.abs() / power(e - i64::from(format.1))) as u64;
    let implied = 2u64.pow(format.1);
    let magnitude = if units < implied {
        units
    } else {
        ((e - least_exponent(format) + 1) as u64) * implied + units - implied
    };
    let sign = u64::from(x.is_sign_negative()) << (format.0 + format.1);
    (sign | magnitude).to_le_bytes()[..DTYPE_SIZES[dtype]].to_vec()
}
