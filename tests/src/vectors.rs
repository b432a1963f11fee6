//! The conformance vectors, made anew from fixed seeds.

use nwc_decode_core::{Crc32, Error};

use crate::builder::{
    Attachment, Body, Codec, Coded, File, REQUIRED, Rng, Section, SeekTile, Stream, Table, VERSION,
    reseal_header, trellis, write,
};
use crate::ledger::{Tensor, Vector};
use crate::naive::{self, DTYPE_SIZES, DTYPES, Kind, Point};

const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;
const I32: u8 = 5;
const U8: u8 = 11;

/// A file and its line of the ledger.
pub type Made = (Vector, Vec<u8>);

/// The line of a legal container, by the naive decoder.
pub fn line(file: &str, bytes: &[u8]) -> Vector {
    let parsed = naive::File::parse(bytes);
    let tensors = parsed.tensors.iter().enumerate().map(|(index, tensor)| {
        let dtypes = match &parsed.resolve(index).kind {
            Kind::Raw(_) => tensor.dtype..tensor.dtype + 1,
            _ => 0..3,
        };
        let crc = dtypes.map(|dtype| {
            let crc = Crc32::of(&parsed.decode(index, Some(dtype)));
            (DTYPES[dtype].to_owned(), format!("{crc:08x}"))
        });
        Tensor { name: tensor.name.clone(), crc: crc.collect() }
    });
    Vector { file: file.to_owned(), tensors: tensors.collect(), ..Vector::default() }
}

/// Every vector that is made from nothing.
pub fn all() -> Vec<Made> {
    let mut made = Vec::new();
    for (name, file) in valid() {
        let bytes = file.sealed().bytes();
        let name = format!("{name}.nwc");
        let mut line = line(&name, &bytes);
        line.small = name.starts_with("small-");
        made.push((line, bytes));
    }
    for (error, name, bytes) in invalid() {
        let file = format!("bad-{:02}-{name}.nwc", error.code());
        let small = SMALL_INVALID.contains(&name);
        made.push((Vector { file, small, error: Some(error.code()), ..Vector::default() }, bytes));
    }
    made
}

/// Calls that the decoder must refuse, whatever the file.
pub fn calls() -> Vec<Vector> {
    [
        ("limits-tiny", Error::Limit),
        ("scratch-small", Error::Scratch),
        ("output-short", Error::Output),
        ("tile-out-of-range", Error::Index),
        ("raw-of-coded", Error::Coding),
        ("not-in-memory", Error::Source),
    ]
    .map(|(call, error)| Vector {
        file: "small-sides.nwc".to_owned(),
        small: true,
        call: Some(call.to_owned()),
        error: Some(error.code()),
        tensors: Vec::new(),
    })
    .to_vec()
}

// ---------------------------------------------------------------------------------------------------- valid

/// A trellis without any merit.
fn odd_trellis(state_bits: u32, rng: &mut Rng) -> Vec<u8> {
    (0..2usize << state_bits).map(|_| (rng.any() % (1 << state_bits)) as u8).collect()
}

/// Side tables of all four kinds.
fn four_sides() -> [Option<Table>; 4] {
    [Table::side(-9, 20), Table::side(-3, 7), Table::side(-40, 60), Table::side(-4, 9)].map(Some)
}

/// A trellis of eight states, two unions, three classes, all side tables.
fn sides_codec(precision: u8) -> Codec {
    let tables = [3, 5, 8, 4, 12, 20].map(|reach| Table::weights(reach, 40 / reach, 1));
    Codec::trellis(trellis(8), precision, 2, tables.to_vec()).with_side(four_sides())
}

/// One trellis tensor with all side information, raw tensors, an alias, attachments: a little of everything.
pub fn small_sides() -> File {
    let mut rng = Rng(2);
    let mut file = File { codecs: vec![sides_codec(10)], ..File::default() };
    let coded = Coded {
        lanes: 2,
        per_lane: 2,
        tile_rows: 18,
        step: -700,
        class_base: 1,
        side: 15,
        resolution: 0x43,
        ..Coded::plain(19, 5)
    };
    file.random("layer.0.weight", F16, &[19, 5], coded, 12, &mut rng);
    file.raw("layer.0.bias", BF16, &[5], rng.bytes(10));
    file.alias("tied", 0);
    file.raw("scale", F32, &[], rng.bytes(4));
    file.attachments = Some(vec![
        Attachment::stored("config.json", b"{\"dim\": 5}"),
        Attachment::zlib("notes.txt", b"a zlib stream of two stored blocks"),
    ]);
    file
}

/// One scalar tensor of a few tiles.
pub fn small_scalar() -> File {
    let mut file =
        File { codecs: vec![Codec::scalar(10, vec![Table::weights(4, 14, 1)])], ..File::default() };
    let coded = Coded { lanes: 4, per_lane: 1, tile_rows: 3, step: -2000, ..Coded::plain(5, 7) };
    file.random("weight", F32, &[5, 7], coded, 8, &mut Rng(1));
    file
}

fn valid() -> Vec<(&'static str, File)> {
    vec![
        ("small-scalar", small_scalar()),
        ("small-sides", small_sides()),
        ("small-raw", small_raw()),
        ("small-empty", File::default()),
        ("small-batched", small_batched()),
        ("trellis8", trellis8()),
        ("trellis64", trellis64()),
        ("trellis-odd", trellis_odd()),
        ("escapes", escapes()),
        ("carry-over", carry_over()),
        ("lanes", lanes()),
        ("views", views()),
        ("raw-dtypes", raw_dtypes()),
        ("aliases", aliases()),
        ("attachments", attachments()),
        ("unknown-sections", unknown_sections()),
        ("saturation", saturation()),
        ("subnormal", subnormal()),
        ("alphabets", alphabets()),
        ("levels", levels()),
        ("one-symbol", one_symbol()),
        ("resolutions", resolutions()),
        ("scale-range", scale_range()),
        ("classes", classes()),
        ("names", names()),
        ("codecs", codecs()),
        ("gaps", gaps()),
        ("shapes", shapes()),
        ("spare-words", spare_words()),
        ("densest", densest()),
        ("warps", warps()),
        ("small-hadamard", small_hadamard()),
        ("hadamard", hadamard()),
        ("small-learned", small_learned()),
        ("learned", learned()),
        ("small-seek", small_sides().with_seek_points(1)),
        ("seek", seek()),
        ("seek-nothing", File { seek: Some(Vec::new()), ..small_sides() }),
    ]
}

fn small_raw() -> File {
    let mut file = File::default();
    file.raw("bytes", U8, &[3], vec![1, 2, 250]);
    file.raw("number", F32, &[], vec![0, 0, 128, 63]);
    file.raw("nothing", F16, &[3, 0, 2], Vec::new());
    file
}

fn small_batched() -> File {
    let codec = Codec::trellis(trellis(8), 11, 1, vec![Table::weights(6, 9, 2)]);
    let mut file = File { codecs: vec![codec], ..File::default() };
    let coded = Coded { view: 3, lanes: 3, per_lane: 1, tile_rows: 2, step: -3000, ..Coded::plain(3, 4) };
    file.random("experts", BF16, &[2, 4, 3], coded, 9, &mut Rng(5));
    file
}

fn trellis8() -> File {
    let mut rng = Rng(6);
    let mut file = File { codecs: vec![sides_codec(12)], ..File::default() };
    for (name, side) in
        [("all", 15), ("row.scale", 1), ("row.class", 2), ("column.scale", 4), ("column.class", 8)]
    {
        let resolution = match side {
            15 => 0x52,
            1 => 0x03,
            4 => 0x40,
            _ => 0,
        };
        let coded = Coded {
            lanes: 8,
            per_lane: 2,
            tile_rows: 20,
            step: -1234,
            class_base: 1,
            side,
            resolution,
            ..Coded::plain(37, 21)
        };
        file.random(name, F16, &[37, 21], coded, 25, &mut rng);
    }
    file
}

fn trellis64() -> File {
    let tables = vec![Table::weights(5, 10, 0), Table::weights(15, 4, 1)];
    let codec = Codec::trellis(trellis(64), 13, 1, tables).with_side([
        Some(Table::side(-30, 61)),
        None,
        None,
        Some(Table::side(0, 2)),
    ]);
    let mut file = File { codecs: vec![codec], ..File::default() };
    let coded = Coded {
        lanes: 16,
        per_lane: 3,
        tile_rows: 24,
        step: -2222,
        side: 9,
        resolution: 4,
        ..Coded::plain(40, 60)
    };
    file.random("weight", BF16, &[40, 60], coded, 20, &mut Rng(7));
    file
}

/// Trellises of one and of eight state bits, whose next states follow no rule.
fn trellis_odd() -> File {
    let mut rng = Rng(8);
    let small = odd_trellis(1, &mut rng);
    let large = odd_trellis(8, &mut rng);
    let tables = || vec![Table::weights(3, 20, 0), Table::weights(7, 9, 1)];
    let mut file = File {
        codecs: vec![Codec::trellis(small, 12, 2, tables()), Codec::trellis(large, 12, 2, tables())],
        ..File::default()
    };
    for codec in [0, 1] {
        let coded = Coded { codec, lanes: 3, per_lane: 3, step: -900, ..Coded::plain(33, 8) };
        file.random(["two.states", "many.states"][usize::from(codec)], F32, &[33, 8], coded, 9, &mut rng);
    }
    file
}

/// Escapes of the extreme values, of several lanes at once, and of values that have symbols.
fn escapes() -> File {
    let mut rng = Rng(9);
    let codecs = vec![
        Codec::scalar(12, vec![Table::weights(2, 16, 1)]),
        Codec::trellis(trellis(8), 12, 2, vec![Table::weights(2, 16, 1), Table::weights(3, 16, 1)]),
    ];
    let mut file = File { codecs, ..File::default() };
    for (name, codec, dtype) in [("scalar", 0, F32), ("trellis", 1, F32), ("half", 1, F16)] {
        let dims = [18, 10];
        let coded = Coded { codec, lanes: 4, per_lane: 3, step: -2560, ..Coded::plain(18, 10) };
        let tables = file.codecs[usize::from(codec)].clone();
        let mut content = coded.random(&dims, &tables, 3, &mut rng);
        let extremes = [i16::MIN, i16::MAX, -32767, 32766, -4, 4, 255, -256];
        for (place, value) in content.values.iter_mut().enumerate().filter(|(place, _)| place % 7 < 3) {
            *value = i32::from(extremes[place % extremes.len()]);
        }
        content.escaped.extend((0..180).filter(|place| place % 11 == 5));
        let coded = coded.with(&dims, &tables, &content);
        file.coded(name, dtype, &dims, coded);
    }
    file
}

/// Lanes walk several columns; the last groups have fewer columns than lanes.
fn carry_over() -> File {
    let mut rng = Rng(10);
    let mut file = File { codecs: vec![sides_codec(11)], ..File::default() };
    for (number, (columns, lanes, per_lane)) in
        [(18, 4, 5), (22, 4, 3), (7, 7, 1), (9, 2, 4), (33, 32, 2)].into_iter().enumerate()
    {
        let coded =
            Coded { lanes, per_lane, tile_rows: 17, side: 8, class_base: 1, ..Coded::plain(17, columns) };
        file.random(&format!("t{number}"), F16, &[17, columns], coded, 15, &mut rng);
    }
    file
}

/// Every number of lanes.
fn lanes() -> File {
    let mut rng = Rng(11);
    let codec = Codec::trellis(trellis(8), 10, 2, vec![Table::weights(3, 20, 1), Table::weights(4, 16, 1)]);
    let mut file = File { codecs: vec![codec], ..File::default() };
    for lanes in 1..=32u8 {
        let per_lane = 35u64.div_ceil(u64::from(lanes)).min(3);
        let coded = Coded { lanes, per_lane, step: -512, ..Coded::plain(3, 35) };
        file.random(&format!("lanes{lanes}"), BF16, &[3, 35], coded, 6, &mut rng);
    }
    file
}

/// Transposed, batched, both and neither.
fn views() -> File {
    let mut rng = Rng(12);
    let mut file = File { codecs: vec![sides_codec(12)], ..File::default() };
    for view in 0..4u8 {
        for (number, dims) in [vec![3, 10, 2, 3], vec![4, 9]].into_iter().enumerate() {
            let (_, rest) = dims.split_at(usize::from(view / 2));
            let (out, input) = (rest[0], rest[1..].iter().product::<u64>());
            let (rows, columns) = if view & 1 == 0 { (out, input) } else { (input, out) };
            let coded = Coded {
                view,
                lanes: 3,
                per_lane: (columns.div_ceil(3)).min(2),
                tile_rows: rows.div_ceil(2),
                side: 15,
                class_base: 2,
                ..Coded::plain(rows, columns)
            };
            let dtype = [F16, F32][number];
            file.random(&format!("view{view}.{number}"), dtype, &dims, coded, 18, &mut rng);
        }
    }
    file
}

fn raw_dtypes() -> File {
    let mut rng = Rng(13);
    let mut file = File::default();
    for (dtype, name) in DTYPES.iter().enumerate() {
        let size = DTYPE_SIZES[dtype];
        let dtype = dtype as u8;
        file.raw(&format!("{name}.matrix"), dtype, &[2, 3], rng.bytes(6 * size));
        file.raw(&format!("{name}.scalar"), dtype, &[], rng.bytes(size));
        file.raw(&format!("{name}.empty"), dtype, &[0], Vec::new());
        file.raw(&format!("{name}.deep"), dtype, &[1, 1, 1, 1, 1, 1, 1, 2], rng.bytes(2 * size));
    }
    // Not numbers, not even canonical ones: raw bytes stay as they are.
    file.raw("nan", F32, &[2], vec![1, 0, 0x80, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF]);
    file
}

fn aliases() -> File {
    let mut rng = Rng(14);
    let mut file = small_scalar();
    file.raw("raw", I32, &[2, 2], rng.bytes(16));
    file.alias("alias.of.coded", 0);
    file.alias("alias.of.raw", 1);
    file.alias("another.of.coded", 0);
    file
}

fn attachments() -> File {
    let long: Vec<u8> = (0..500u32).map(|i| (i * i % 251) as u8).collect();
    File {
        attachments: Some(vec![
            Attachment::stored("empty", b""),
            Attachment::stored("stored.txt", b"as it is"),
            Attachment::zlib("zlib.bin", &long),
            // Fixed and dynamic codes, as other programs write them.
            Attachment {
                method: 1,
                stored: vec![0x78, 0x9C, 0x4B, 0x4C, 0xA4, 0x3D, 0x00, 0x00, 0x7A, 0x47, 0x25, 0xE5],
                ..Attachment::stored("fixed", &[b'a'; 100])
            },
            Attachment {
                method: 1,
                stored: DYNAMIC.to_vec(),
                ..Attachment::stored("dynamic", DYNAMIC_CONTENT.as_bytes())
            },
            Attachment::stored("größe/../x", b"names are for tools to judge"),
            Attachment::stored("", b"even an empty one"),
        ]),
        ..small_scalar()
    }
}

const DYNAMIC_CONTENT: &str = "bbaacabhcaaaabcaacaaaaaccfhaagaaaaaaaechcaaacaaaaabgcacacaabbbbcaaabacabaaabaaaabceaabcfaccfabababcdaacaaaaaaagcdaabecbgfbbbaacabaegabhacaaaaacaaahbabafcaabahab";

/// What zlib makes of that text.
const DYNAMIC: &[u8] = &[
    0x78, 0xDA, 0x35, 0x8D, 0x8B, 0x0D, 0x00, 0x31, 0x08, 0x42, 0x67, 0x05, 0xCE, 0xCF, 0xFE, 0x13, 0x1C,
    0xB4, 0x29, 0xA6, 0x36, 0x6A, 0x78, 0x90, 0x80, 0xC0, 0x15, 0x2C, 0x2A, 0x43, 0x24, 0xF5, 0x02, 0x83,
    0xAB, 0xD2, 0xB9, 0xDF, 0x13, 0x47, 0x48, 0x81, 0x56, 0x56, 0x0C, 0xE0, 0xFC, 0x07, 0x51, 0x69, 0x1D,
    0x82, 0x37, 0x2E, 0x7D, 0xCF, 0x69, 0x60, 0x06, 0x96, 0x38, 0x6D, 0xF3, 0x49, 0x46, 0x8D, 0xE3, 0x5F,
    0xAC, 0xDF, 0xC6, 0xD5, 0xE1, 0x63, 0xC1, 0x1F, 0x4C, 0xDE, 0x3D, 0x68,
];

fn unknown_sections() -> File {
    File {
        attachments: Some(Vec::new()),
        others: vec![
            (0, 0x7FFF_FF00, b"before the directory".to_vec()),
            (2, 0x7FFF_FF34, Vec::new()),
            (6, 0x7FFF_FFFF, vec![7; 65]),
        ],
        ..small_sides()
    }
}

/// Beyond the largest finite numbers, in each dtype and after each of the two multiplications.
fn saturation() -> File {
    let mut rng = Rng(15);
    let tables = vec![Table::weights(9, 5, 1)];
    let codec = Codec::scalar(12, tables).with_side([None, None, Some(Table::side(-20, 41)), None]);
    let mut file = File { codecs: vec![codec], ..File::default() };
    for (name, dtype, step) in [
        ("f32.product", F32, 64 * 1024 - 1),
        ("f32.scales", F32, 64 * 1024 - 700),
        ("f16", F16, 13 * 512),
        ("f16.at.the.edge", F16, 15 * 512 - 1),
        ("bf16", BF16, 127 * 512 + 511),
        ("bf16.at.the.edge", BF16, 127 * 512 + 509),
        ("f16.of.huge", F16, 120 * 512),
    ] {
        let side = if name == "f32.product" || name.ends_with("edge") { 0 } else { 4 };
        let coded = Coded { lanes: 5, per_lane: 2, step, side, ..Coded::plain(6, 9) };
        file.random(name, dtype, &[6, 9], coded, 20, &mut rng);
    }
    file
}

/// Subnormal numbers of each dtype, ties among them, and products that round to zeros of both signs.
fn subnormal() -> File {
    let mut rng = Rng(16);
    let codec = Codec::scalar(12, vec![Table::weights(9, 5, 1)]).with_side([
        None,
        None,
        Some(Table::side(-40, 41)),
        None,
    ]);
    let mut file = File { codecs: vec![codec], ..File::default() };
    for (name, dtype, step, side) in [
        ("f32", F32, -64512, 4),
        ("f32.normal", F32, -64512, 0),
        ("f16", F16, -15 * 512, 4),
        ("f16.ties", F16, -25 * 512, 0),
        ("f16.to.zero", F16, -30 * 512, 0),
        ("bf16", BF16, -64512, 4),
        ("bf16.ties", BF16, -125 * 512, 4),
    ] {
        let coded = Coded { lanes: 5, per_lane: 2, step, side, ..Coded::plain(7, 9) };
        file.random(name, dtype, &[7, 9], coded, 24, &mut rng);
    }
    file
}

/// The largest and the smallest alphabets at the lowest and the highest precision.
fn alphabets() -> File {
    let mut rng = Rng(17);
    let wide = |slope| Table { lo: -127, levels: (0..256).map(|i| i * slope % 128).collect(), rice: 5 };
    let narrow = Table { lo: 0, levels: vec![0, 127], rice: 7 };
    let low = Table { lo: i32::from(i16::MIN), levels: vec![40, 50, 60], rice: 3 };
    let high = Table { lo: i32::from(i16::MAX) - 1, levels: vec![40, 50, 60], rice: 3 };
    let even = Table { lo: -128, levels: vec![127; 256], rice: 0 };
    let mut file = File::default();
    for (number, precision) in [10, 14].into_iter().enumerate() {
        let tables = vec![wide(1), narrow.clone(), low.clone(), high.clone(), wide(37), even.clone()];
        file.codecs.push(Codec::scalar(precision, tables));
        for class_base in 0..6 {
            let coded = Coded {
                codec: number as u8,
                class_base,
                lanes: 4,
                per_lane: 3,
                step: -4000,
                ..Coded::plain(5, 10)
            };
            let name = format!("p{precision}.class{class_base}");
            if class_base != 2 && class_base != 3 {
                file.random(&name, F32, &[5, 10], coded, 200, &mut rng);
                continue;
            }
            let codec = file.codecs[number].clone();
            let mut content = coded.random(&[5, 10], &codec, 2, &mut rng);
            for value in &mut content.values {
                let edge = if class_base == 2 { i16::MIN } else { i16::MAX };
                *value = i32::from(edge.saturating_add(*value as i16));
            }
            let coded = coded.with(&[5, 10], &codec, &content);
            file.coded(&name, F32, &[5, 10], coded);
        }
    }
    file
}

/// Levels that predictions overshoot, with every Rice parameter.
fn levels() -> File {
    let mut rng = Rng(18);
    let tables = (0..8).map(|rice| {
        let levels = (0..24).map(|i| if i % (rice + 2) == 0 { 127 } else { rng.within(0..128) }).collect();
        Table { lo: -11, levels, rice: rice as u32 }
    });
    let codec = Codec::scalar(13, tables.collect());
    let mut file = File { codecs: vec![codec], ..File::default() };
    for class_base in 0..8 {
        let coded = Coded { class_base, lanes: 2, per_lane: 4, ..Coded::plain(4, 8) };
        file.random(&format!("k{class_base}"), F16, &[4, 8], coded, 14, &mut rng);
    }
    file
}

/// Side tables of one symbol, which take no bits.
fn one_symbol() -> File {
    let mut rng = Rng(19);
    let side = [-200, 1, 17, -1].map(|lo| Some(Table { lo, levels: vec![9], rice: 4 }));
    let codec = Codec::scalar(14, vec![Table::weights(4, 12, 1), Table::weights(9, 5, 1)]).with_side(side);
    let mut file = File { codecs: vec![codec], ..File::default() };
    let coded =
        Coded { lanes: 4, per_lane: 2, tile_rows: 5, side: 15, resolution: 0x21, ..Coded::plain(9, 11) };
    file.random("weight", F32, &[9, 11], coded, 9, &mut rng);
    file
}

/// Every resolution of row and column scales.
fn resolutions() -> File {
    let mut rng = Rng(20);
    let codec = Codec::scalar(12, vec![Table::weights(4, 12, 1)]).with_side([
        Some(Table::side(-40, 81)),
        None,
        Some(Table::side(-50, 101)),
        None,
    ]);
    let mut file = File { codecs: vec![codec], ..File::default() };
    for shift in 0..10u8 {
        let resolution = shift | (9 - shift) << 4;
        let coded = Coded { lanes: 3, per_lane: 1, side: 5, resolution, step: 77, ..Coded::plain(6, 3) };
        file.random(&format!("shift{shift}"), F32, &[6, 3], coded, 6, &mut rng);
    }
    file
}

/// Step codes that only their rows' scales bring into the range, and the ends of the range.
fn scale_range() -> File {
    let mut rng = Rng(21);
    let codec = Codec::scalar(12, vec![Table::weights(4, 12, 1)]).with_side([
        Some(Table::side(-4096, 2)),
        None,
        Some(Table::side(-126, 254)),
        None,
    ]);
    let high = Codec::scalar(12, vec![Table::weights(4, 12, 1)]).with_side([
        Some(Table::side(4094, 2)),
        None,
        None,
        None,
    ]);
    let mut file = File { codecs: vec![codec, high], ..File::default() };
    for (name, codec, step, side, resolution) in [
        ("largest.step", 0, 65535, 1, 5),
        ("least.step", 1, -65536, 1, 4),
        ("largest.scale", 0, 65535, 0, 0),
        ("least.scale", 0, -64512, 0, 0),
        ("columns", 0, 0, 4, 0),
    ] {
        let coded = Coded { codec, lanes: 2, per_lane: 4, step, side, resolution, ..Coded::plain(9, 7) };
        file.random(name, F32, &[9, 7], coded, 6, &mut rng);
    }
    file
}

/// As many classes as there can be, clamped at both ends.
fn classes() -> File {
    let mut rng = Rng(22);
    let tables = (0..128).map(|i| Table { lo: i % 5 - 3, levels: vec![60, 90 - i / 2, 100, 70], rice: 3 });
    let codec = Codec::trellis(trellis(8), 12, 2, tables.collect()).with_side([
        Some(Table::side(0, 2)),
        Some(Table::side(-70, 140)),
        Some(Table::side(0, 2)),
        Some(Table::side(-25, 50)),
    ]);
    let mut file = File { codecs: vec![codec], ..File::default() };
    for class_base in [0, 30, 63] {
        let coded =
            Coded { lanes: 8, per_lane: 2, tile_rows: 12, side: 15, class_base, ..Coded::plain(20, 19) };
        file.random(&format!("base{class_base}"), F16, &[20, 19], coded, 4, &mut rng);
    }
    file
}

/// Names of many fragments, long ones, and fragments inside others.
fn names() -> File {
    let mut file = File::default();
    let pieces: Vec<u64> = (0..16).map(|i| file.fragment(&format!("part{i}"))).collect();
    let long = file.fragment(&"x".repeat(255));
    let dotted = file.fragment("dots.in.a.fragment");
    let greek = file.fragment("ὄνομα");
    // A byte of this fragment is the length of the one that begins in it.
    let outer = file.fragment("a\u{3}bcdef");
    let names =
        [pieces, vec![long], vec![dotted, greek], vec![outer], vec![outer + 2], vec![greek, greek, long]];
    for (number, name) in names.into_iter().enumerate() {
        file.raw("", U8, &[1], vec![number as u8]);
        file.names.pop(); // the empty fragment, which no name may have
        file.entries.last_mut().expect("just pushed").name = name;
    }
    file
}

/// Several codecs, one of them not used.
fn codecs() -> File {
    let mut rng = Rng(23);
    let mut file = File {
        codecs: vec![
            Codec::scalar(10, vec![Table::weights(2, 20, 0)]),
            Codec::scalar(14, vec![Table::weights(12, 4, 2)]),
            sides_codec(13),
        ],
        ..File::default()
    };
    for codec in [2, 0, 2] {
        let coded = Coded { codec, lanes: 2, per_lane: 2, ..Coded::plain(7, 4) };
        let name = format!("t{}", file.entries.len());
        file.random(&name, F16, &[7, 4], coded, 5, &mut rng);
    }
    file
}

/// Items with and without gaps.
fn gaps() -> File {
    let mut rng = Rng(24);
    let mut file = small_scalar();
    file.raw("odd", U8, &[3], rng.bytes(3));
    file.entries[1].gap = Some(63);
    file.raw("next", U8, &[2], rng.bytes(2));
    let coded = Coded { lanes: 1, per_lane: 4, ..Coded::plain(7, 4) };
    file.random("aligned", F32, &[7, 4], coded, 5, &mut rng);
    file.raw("empty", U8, &[0], Vec::new());
    file.raw("last", U8, &[1], rng.bytes(1));
    file.entries[5].gap = Some(1);
    file
}

/// Vectors, single weights, single rows and columns, many dimensions.
fn shapes() -> File {
    let mut rng = Rng(25);
    let mut file = File { codecs: vec![sides_codec(12)], ..File::default() };
    let shapes: [(&[u64], u8, u64, u64); 9] = [
        (&[1], 0, 1, 1),
        (&[1, 1], 0, 1, 1),
        (&[50], 0, 50, 1),
        (&[50], 1, 1, 50),
        (&[1, 50], 0, 1, 50),
        (&[50, 1], 0, 50, 1),
        (&[2, 50], 2, 50, 1),
        (&[2, 3, 1, 2, 1, 1, 5, 1], 2, 3, 10),
        (&[4, 3, 1, 2, 1, 1, 2, 1], 1, 12, 4),
    ];
    for (number, (dims, view, rows, columns)) in shapes.into_iter().enumerate() {
        let lanes = columns.min(32) as u8;
        let per_lane = columns.div_ceil(u64::from(lanes));
        let coded = Coded { view, lanes, per_lane, tile_rows: rows, side: 10, ..Coded::plain(rows, columns) };
        file.random(&format!("t{number}"), F32, dims, coded, 9, &mut rng);
    }
    // More lanes than columns rest all the time.
    let coded = Coded { lanes: 32, per_lane: 1, ..Coded::plain(5, 3) };
    file.random("resting", F16, &[5, 3], coded, 9, &mut rng);
    file
}

/// Streams with an odd number of words, and with an even one.
fn spare_words() -> File {
    let mut rng = Rng(26);
    let mut file = File { codecs: vec![sides_codec(12)], ..File::default() };
    for odd in [0, 1] {
        let coded = Coded { lanes: 3, per_lane: 1, side: 15, ..Coded::plain(9, 3) };
        let codec = file.codecs[0].clone();
        let coded = std::iter::repeat_with(|| {
            let content = coded.random(&[9, 3], &codec, 9, &mut rng);
            coded.clone().with(&[9, 3], &codec, &content)
        })
        .find(|coded| coded.streams.iter().all(|stream| stream.words.len() % 2 == odd))
        .expect("chance brings it");
        file.coded(["even", "odd"][odd], F32, &[9, 3], coded);
    }
    file
}

/// 32 lanes side by side, whose last rows are no whole chunk, coded as they are and transposed.
fn warps() -> File {
    let mut rng = Rng(29);
    let tables = vec![Table::weights(6, 12, 1), Table::weights(14, 5, 1)];
    let mut file = File { codecs: vec![Codec::trellis(trellis(64), 12, 1, tables)], ..File::default() };
    for (rows, tile_rows) in [(33, 33), (40, 20)] {
        for view in [0, 1] {
            let coded =
                Coded { view, lanes: 32, per_lane: 2, tile_rows, step: -1500, ..Coded::plain(rows, 64) };
            let dims = if view == 0 { [rows, 64] } else { [64, rows] };
            let dtype = if rows == 33 { F16 } else { BF16 };
            file.random(&format!("rows{rows}view{view}"), dtype, &dims, coded, 20, &mut rng);
        }
    }
    file
}

/// As many weights as its bytes allow (§5.4).
fn densest() -> File {
    let likely = Table { lo: 0, levels: vec![0, 127], rice: 0 };
    let codec = Codec::scalar(14, vec![likely]);
    let dims = [1024, 512];
    let coded = Coded { per_lane: 512, ..Coded::plain(1024, 512) };
    let content = coded.random(&dims, &codec, 0, &mut Rng(0));
    let mut file = File { codecs: vec![codec], ..File::default() };
    let coded = coded.with(&dims, &file.codecs[0], &content);
    file.coded("zeros", F16, &dims, coded);
    file
}

/// A whole chunk of rows and a few more.
pub fn small_hadamard() -> File {
    let codec = Codec { synthesis: 1, ..Codec::scalar(10, vec![Table::weights(4, 14, 1)]) };
    let mut file = File { codecs: vec![codec], ..File::default() };
    let coded = Coded { lanes: 2, per_lane: 1, step: -2000, ..Coded::plain(19, 3) };
    file.random("weight", F32, &[19, 3], coded, 8, &mut Rng(27));
    file
}

/// Tiles of no, of only and of some whole chunks; all side information; indices of all magnitudes; results beyond what a dtype holds.
fn hadamard() -> File {
    let mut rng = Rng(28);
    let escapes = Codec::trellis(trellis(8), 12, 2, vec![Table::weights(2, 16, 1), Table::weights(3, 16, 1)]);
    let codecs = vec![
        Codec { synthesis: 1, ..sides_codec(12) },
        Codec { synthesis: 1, ..escapes },
        Codec { synthesis: 1, ..Codec::scalar(12, vec![Table::weights(9, 5, 1)]) },
    ];
    let mut file = File { codecs, ..File::default() };
    for (number, (rows, tile_rows)) in
        [(15, 15), (16, 16), (17, 17), (31, 31), (32, 32), (70, 24), (64, 16), (40, 7)]
            .into_iter()
            .enumerate()
    {
        let coded = Coded {
            view: number as u8 & 1,
            lanes: 3,
            per_lane: 2,
            tile_rows,
            step: -3000,
            side: 15,
            class_base: 1,
            ..Coded::plain(rows, 8)
        };
        let dims = if number & 1 == 0 { [rows, 8] } else { [8, rows] };
        file.random(&format!("rows{rows}"), [F16, F32][number & 1], &dims, coded, 18, &mut rng);
    }
    for (name, codec, dtype, step) in [
        ("extremes", 1, F32, -2560),
        ("extremes.of.scalar", 2, F32, -2560),
        ("largest", 1, F32, 65535),
        ("largest.half", 1, F16, 0),
        ("least", 2, F32, -64512),
        ("ties", 2, F16, -25 * 512),
        ("least.half", 2, BF16, -64512),
    ] {
        let extremes: &[i16] = if name == "ties" { &[] } else { &EXTREMES };
        of_extremes(&mut file, name, dtype, (codec, step), extremes, &mut rng);
    }
    file
}

/// Values of indices as large as they can be, and others around the ends of bytes.
const EXTREMES: [i16; 8] = [i16::MIN, i16::MAX, -32767, 32766, -4, 4, 255, -256];

/// Adds a tensor with two whole chunks of rows and one row more, three of five values from `extremes`, if there are any; and a chunk of which all are the least index, whose sum has the
/// largest magnitude.
fn of_extremes(
    file: &mut File,
    name: &str,
    dtype: u8,
    (codec, step): (u8, i64),
    extremes: &[i16],
    rng: &mut Rng,
) {
    let coded = Coded { codec, lanes: 4, per_lane: 2, step, ..Coded::plain(33, 6) };
    let tables = file.codecs[usize::from(codec)].clone();
    let mut content = coded.random(&[33, 6], &tables, 3, rng);
    for (place, value) in content.values.iter_mut().enumerate().filter(|(place, _)| place % 5 < 3) {
        *value = extremes.get(place % extremes.len().max(1)).map_or(*value, |&extreme| i32::from(extreme));
    }
    content.values[..16 * 6].iter_mut().step_by(6).for_each(|value| *value = i32::from(i16::MIN));
    let coded = coded.with(&[33, 6], &tables, &content);
    file.coded(name, dtype, &[33, 6], coded);
}

/// A stored network (§9.3) of random weights, with layers of these widths.
fn network(places: u8, widths: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![places];
    // No row of sixteen gains more than 4.
    let most = ((4i32 << places) / 16).min(127);
    let entry = |rng: &mut Rng, most: i32| rng.within(-most..most + 1) as i8 as u8;
    bytes.extend((0..256).map(|_| entry(rng, most)));
    bytes.push(widths.len() as u8);
    let mut inputs = 16;
    for &width in widths {
        bytes.extend([width, 5 + width / 16]);
        bytes.extend((0..width).flat_map(|_| (rng.within(-1000..1001) as i16).to_le_bytes()));
        bytes.extend((0..usize::from(width) * inputs).map(|_| entry(rng, 127)));
        inputs = usize::from(width);
    }
    if !widths.is_empty() {
        bytes.extend((0..16 * inputs).map(|_| entry(rng, 127)));
    }
    bytes
}

/// A whole chunk of rows and a few more, with a hidden layer.
pub fn small_learned() -> File {
    let network = network(6, &[3], &mut Rng(30));
    let codec = Codec { synthesis: 2, network, ..Codec::scalar(10, vec![Table::weights(4, 14, 1)]) };
    let mut file = File { codecs: vec![codec], ..File::default() };
    let coded = Coded { lanes: 2, per_lane: 1, step: -2000, ..Coded::plain(19, 3) };
    file.random("weight", F32, &[19, 3], coded, 8, &mut Rng(31));
    file
}

/// Matrices alone, one and two hidden layers, of the least and the largest width; tiles of no, of only and of some whole chunks; direct tensors; indices of
/// all magnitudes, so that sums need more than 24 bits.
fn learned() -> File {
    let mut rng = Rng(32);
    let escapes = Codec::trellis(trellis(8), 12, 2, vec![Table::weights(2, 16, 1), Table::weights(3, 16, 1)]);
    let codecs: Vec<Codec> = [(7, &[][..]), (0, &[]), (6, &[32]), (8, &[64, 64]), (12, &[1, 48]), (5, &[17])]
        .into_iter()
        .enumerate()
        .map(|(number, (places, widths))| {
            let network = network(places, widths, &mut rng);
            let codec = if number % 2 == 0 { sides_codec(12) } else { escapes.clone() };
            Codec { synthesis: 2, network, ..codec }
        })
        .collect();
    let mut file = File { codecs, ..File::default() };
    for codec in 0..6u8 {
        for (rows, tile_rows) in [(15, 15), (16, 16), (49, 49), (70, 24), (64, 32)] {
            let coded = Coded {
                view: rows as u8 & 1,
                codec,
                lanes: 3,
                per_lane: 2,
                tile_rows,
                step: -3000,
                side: if codec % 2 == 0 { 15 } else { 0 },
                class_base: 1 - codec % 2,
                ..Coded::plain(rows, 8)
            };
            let dims = if rows & 1 == 0 { [rows, 8] } else { [8, rows] };
            let dtype = [F16, F32, BF16][usize::from(codec) % 3];
            file.random(&format!("codec{codec}.rows{rows}"), dtype, &dims, coded, 18, &mut rng);
        }
        let direct = Coded { view: 4, codec, lanes: 3, per_lane: 2, step: -3000, ..Coded::plain(33, 5) };
        file.random(&format!("codec{codec}.direct"), F32, &[33, 5], direct, 18, &mut rng);
        if codec % 2 == 1 {
            let name = format!("codec{codec}.extremes");
            of_extremes(&mut file, &name, F32, (codec, -2560), &EXTREMES, &mut rng);
        }
    }
    file
}

/// Points of tiles with and without row streams, side information and a trellis; of many groups, bands and matrices.
fn seek() -> File {
    let mut rng = Rng(29);
    let mut file = File {
        codecs: vec![
            sides_codec(12),
            Codec { synthesis: 1, ..sides_codec(11) },
            Codec::scalar(12, vec![Table::weights(4, 12, 1)]),
        ],
        ..File::default()
    };
    let sides = |codec: u8, side: u8| Coded {
        codec,
        lanes: 3,
        per_lane: 2,
        tile_rows: 40,
        side,
        class_base: 1,
        ..Coded::plain(90, 14)
    };
    file.random("all", F16, &[90, 14], sides(0, 15), 20, &mut rng);
    file.raw("between", U8, &[3], rng.bytes(3));
    file.random("rows", F32, &[90, 14], sides(0, 1), 20, &mut rng);
    file.alias("again", 2);
    file.random("columns", BF16, &[90, 14], sides(1, 4), 20, &mut rng);
    file.random("classes", F16, &[90, 14], sides(1, 10), 20, &mut rng);
    file.random("none", F16, &[14, 90], Coded { view: 1, class_base: 0, ..sides(2, 0) }, 20, &mut rng);
    file.random("batched", F16, &[2, 90, 14], Coded { view: 2, ..sides(0, 15) }, 20, &mut rng);
    // One chunk high, so that its points are at the starts of groups only; and a tile without any.
    file.random("low", F16, &[16, 7], Coded { tile_rows: 16, ..sides(0, 15) }, 20, &mut rng);
    file.random("tiny", F16, &[3, 3], Coded { tile_rows: 3, per_lane: 1, ..sides(0, 15) }, 20, &mut rng);
    let mut file = file.with_seek_points(2);
    // Nobody promises points for every tile.
    file.seek.as_mut().expect("just made").remove(1);
    file
}

// -------------------------------------------------------------------------------------------------- invalid

/// Of the invalid vectors one for each error is enough on an interpreted machine.
const SMALL_INVALID: [&str; 23] = [
    "cut-in-table",
    "first-byte",
    "newer",
    "length",
    "gap-not-zero",
    "directory",
    "kind",
    "dtype",
    "not-utf8",
    "nine-dimensions",
    "no-lanes",
    "bytes-left",
    "level-128",
    "layers",
    "tile-stream",
    "tile-lane",
    "tile",
    "two-spare-words",
    "tile-state",
    "row",
    "coded",
    "method",
    "tile-without-points",
];

type Bad = (Error, &'static str, Vec<u8>);

fn invalid() -> Vec<Bad> {
    let mut bad = Vec::new();
    headers(&mut bad);
    sections(&mut bad);
    directories(&mut bad);
    tensor_names(&mut bad);
    dimensions(&mut bad);
    geometries(&mut bad);
    codec_fields(&mut bad);
    tables(&mut bad);
    streams(&mut bad);
    scales(&mut bad);
    attached(&mut bad);
    seek_points(&mut bad);
    bad
}

/// A small legal container: coded (two row streams, four tiles), raw, alias.
fn base() -> File {
    let codec = Codec::scalar(10, vec![Table::weights(3, 18, 1), Table::weights(5, 12, 1)]).with_side([
        Some(Table::side(-3, 7)),
        None,
        Some(Table::side(-2, 5)),
        None,
    ]);
    let mut file = File { codecs: vec![codec], ..File::default() };
    let coded = Coded {
        lanes: 2,
        per_lane: 1,
        tile_rows: 16,
        side: 5,
        resolution: 0x11,
        class_base: 1,
        ..Coded::plain(24, 4)
    };
    file.random("w", F16, &[24, 4], coded, 9, &mut Rng(3));
    file.raw("b", U8, &[4], vec![1, 2, 3, 4]);
    file.alias("a", 1);
    file.sealed()
}

/// The base with a change to its parts.
fn changed(change: impl FnOnce(&mut File)) -> Vec<u8> {
    let mut file = base();
    change(&mut file);
    file.bytes()
}

/// The base with a change to its coded tensor.
fn recoded(change: impl FnOnce(&mut Coded)) -> Vec<u8> {
    changed(|file| change(file.coded_mut(0)))
}

/// The base with a change to its sections: 0 the directory, 1 the codecs, 2 the data.
fn cut(change: impl FnOnce(&mut Vec<Section>)) -> Vec<u8> {
    let mut sections = base().sections();
    change(&mut sections);
    write(VERSION, &sections)
}

/// The base with a change to its bytes.
fn bytes(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = base().bytes();
    change(&mut bytes);
    bytes
}

/// The base with a change to its header or section table, checksum made right.
fn header(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    bytes(|bytes| {
        change(bytes);
        reseal_header(bytes, 3);
    })
}

/// Takes the last byte away.
fn shorten(bytes: &mut Vec<u8>) {
    bytes.pop();
}

fn headers(bad: &mut Vec<Bad>) {
    bad.extend([
        (Error::Truncated, "empty", Vec::new()),
        (Error::Truncated, "cut-in-magic", bytes(|b| b.truncate(5))),
        (Error::Truncated, "cut-in-header", bytes(|b| b.truncate(20))),
        (Error::Truncated, "cut-in-table", bytes(|b| b.truncate(24 + 60))),
        (Error::Truncated, "cut-at-end", bytes(|b| b.truncate(b.len() - 1))),
        (Error::Truncated, "longer-stated", header(|b| b[16..24].copy_from_slice(&u64::MAX.to_le_bytes()))),
        (Error::Magic, "first-byte", bytes(|b| b[0] ^= 0x80)),
        (Error::Magic, "line-ends", bytes(|b| b[4] = b'\n')),
        (Error::Version, "draft", header(|b| b[8] = 0)),
        (Error::Version, "newer", header(|b| b[8] = 2)),
        (Error::Version, "high-byte", header(|b| b[9] = 1)),
        (Error::HeaderChecksum, "length", bytes(|b| b[16] ^= 1)),
        (Error::HeaderChecksum, "checksum", bytes(|b| b[12] ^= 1)),
        (Error::HeaderChecksum, "table", bytes(|b| b[24 + 24 * 3 - 1] ^= 1)),
    ]);
}

fn sections(bad: &mut Vec<Bad>) {
    let many = |count: usize| {
        cut(|s| {
            let other = Section { kind: 0, bytes: Vec::new(), crc: None, offset: None, len: None, gap: None };
            s.extend((0..count - 3).map(|i| Section { kind: 0x7FFF_FF00 + i as u32, ..other.clone() }));
        })
    };
    let kind = |place: usize, kind: u32| cut(|s| s[place].kind = kind);
    bad.extend([
        (Error::Sections, "none", write(VERSION, &[])),
        (Error::Sections, "33-sections", many(33)),
        (
            Error::Sections,
            "gap-not-zero",
            cut(|s| {
                let gap = 24 + 24 * 3;
                s[0].gap = Some((0..128 - gap).map(|i| u8::from(i == 9)).collect());
            }),
        ),
        (Error::Sections, "later-gap-not-zero", {
            let mut sections = base().sections();
            let end = 128 + sections[0].bytes.len();
            sections[1].gap = Some(vec![1; end.next_multiple_of(64) - end]);
            write(VERSION, &sections)
        }),
        (Error::Sections, "gap-of-64", cut(|s| s[0].gap = Some(vec![0; 128 + 64 - 96]))),
        (Error::Sections, "not-aligned", cut(|s| s[0].gap = Some(vec![0; 36]))),
        (Error::Sections, "in-the-header", cut(|s| s[0].offset = Some(64))),
        (Error::Sections, "overlap", cut(|s| s[1].offset = Some(128))),
        (Error::Sections, "beyond-the-end", cut(|s| s[2].len = Some(1 << 20))),
        (Error::Sections, "offset-overflows", cut(|s| s[2].offset = Some(u64::MAX - 63))),
        (Error::Sections, "length-overflows", cut(|s| s[2].len = Some(u64::MAX - 63))),
        (
            Error::Sections,
            "bytes-after-the-last",
            header(|b| {
                b.push(0);
                let len = b.len() as u64;
                b[16..24].copy_from_slice(&len.to_le_bytes());
            }),
        ),
        (Error::Sections, "longer-than-stated", bytes(|b| b.push(0))),
        (Error::Sections, "twice", cut(|s| s.insert(1, s[0].clone()))),
        (Error::Sections, "no-directory", cut(|s| drop(s.remove(0)))),
        (Error::Sections, "no-codecs", cut(|s| drop(s.remove(1)))),
        (Error::Sections, "no-data", cut(|s| drop(s.remove(2)))),
        (Error::Sections, "directory-not-required", kind(0, 1)),
        (Error::Sections, "codecs-not-required", kind(1, 2)),
        (Error::Sections, "data-not-required", kind(2, 3)),
        (Error::Sections, "attachments-required", {
            let mut sections = File { attachments: Some(Vec::new()), ..base() }.sections();
            sections[3].kind |= REQUIRED;
            write(VERSION, &sections)
        }),
        (Error::Sections, "data-checksum", cut(|s| s[2].crc = Some(1))),
        (Error::SectionChecksum, "directory", cut(|s| s[0].crc = Some(1))),
        (Error::SectionChecksum, "codecs", cut(|s| s[1].crc = Some(1))),
        (Error::SectionChecksum, "attachments", {
            let mut sections = File { attachments: Some(Vec::new()), ..base() }.sections();
            sections[3].crc = Some(1);
            write(VERSION, &sections)
        }),
        (Error::UnknownSection, "kind", changed(|f| f.others.push((3, 0x7FFF_FFFE | REQUIRED, vec![1])))),
        (Error::UnknownSection, "empty", changed(|f| f.others.push((0, 0x7FFF_FFFF | REQUIRED, Vec::new())))),
    ]);
}

/// The directory with bytes put in the place of some; found by their neighbours.
fn spliced(find: &[u8], replace: &[u8]) -> Vec<u8> {
    cut(|s| {
        let directory = &mut s[0].bytes;
        let at = directory.windows(find.len()).position(|window| window == find).expect("it is there");
        directory.splice(at..at + find.len(), replace.iter().copied());
    })
}

fn directories(bad: &mut Vec<Bad>) {
    let dims = [U8, 1, 4];
    let overlong = [U8, 1, 0x84, 0];
    let endless = [U8, 1, 0x84, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01];
    let no_alias = |target: u64| changed(|f| f.entries[2].body = Body::Alias(target));
    bad.extend([
        (Error::Directory, "empty", cut(|s| s[0].bytes.clear())),
        (Error::Directory, "names-too-long", cut(|s| s[0].bytes[4] = 200)),
        (Error::Directory, "one-entry-more", cut(|s| s[0].bytes[0] += 1)),
        (Error::Directory, "cut", cut(|s| shorten(&mut s[0].bytes))),
        (Error::Directory, "bytes-left", cut(|s| s[0].bytes.push(0))),
        (Error::Directory, "overlong-varint", spliced(&dims, &overlong)),
        (Error::Directory, "endless-varint", spliced(&dims, &endless)),
        (Error::Directory, "coding", changed(|f| f.entries[2].coding = 255)),
        (Error::Directory, "dtype", changed(|f| f.entries[1].dtype = 255)),
        (Error::Directory, "coded-integers", changed(|f| f.entries[0].dtype = I32)),
        (Error::Directory, "coded-f64", changed(|f| f.entries[0].dtype = 3)),
        (Error::Directory, "alias-of-itself", no_alias(2)),
        (Error::Directory, "alias-of-a-later", no_alias(3)),
        (Error::Directory, "alias-far-out", no_alias(1 << 40)),
        (Error::Directory, "alias-of-an-alias", changed(|f| f.alias("c", 2))),
        (Error::Directory, "alias-of-other-dtype", changed(|f| f.entries[2].dtype = I32)),
        (Error::Directory, "alias-of-other-shape", changed(|f| f.entries[2].dims = vec![2, 2])),
        (Error::Directory, "codec-index", recoded(|c| c.codec = 1)),
        (Error::Directory, "step-high", recoded(|c| c.step = 65536)),
        (Error::Directory, "step-low", recoded(|c| c.step = -65537)),
        (Error::Directory, "step-far-out", recoded(|c| c.step = 1 << 50)),
        (Error::Directory, "class-base", recoded(|c| c.class_base = 2)),
        (Error::Directory, "side-without-table", recoded(|c| c.side = 7)),
        (Error::Directory, "side-bit-4", recoded(|c| c.side = 5 | 16)),
        (Error::Directory, "row-shift", recoded(|c| c.resolution = 0x1A)),
        (Error::Directory, "column-shift", recoded(|c| c.resolution = 0xA1)),
        (Error::Directory, "row-shift-without-side", unused_shift(1)),
        (Error::Directory, "column-shift-without-side", unused_shift(0x10)),
    ]);
}

/// A resolution where there is no scale.
fn unused_shift(resolution: u8) -> Vec<u8> {
    let mut file = small_scalar().sealed();
    file.coded_mut(0).resolution = resolution;
    file.bytes()
}

fn tensor_names(bad: &mut Vec<Bad>) {
    let name = |offsets: Vec<u64>| changed(|f| f.entries[1].name = offsets);
    let fragment = |bytes: &[u8]| {
        changed(|f| {
            f.entries[1].name = vec![f.names.len() as u64];
            f.names.extend(bytes);
        })
    };
    bad.extend([
        (Error::Name, "no-fragments", name(Vec::new())),
        (Error::Name, "17-fragments", name(vec![0; 17])),
        (Error::Name, "offset-at-the-end", name(vec![6])),
        (Error::Name, "offset-far-out", name(vec![0, 1 << 40])),
        (Error::Name, "leaves-the-table", fragment(b"\x04abc")),
        (Error::Name, "empty-fragment", fragment(b"\x00")),
        (Error::Name, "not-utf8", fragment(b"\x02\xC3\x28")),
        (Error::Name, "cut-character", fragment(b"\x01\xC3\xBC")),
    ]);
}

fn dimensions(bad: &mut Vec<Bad>) {
    let raw = |dims: &[u64]| {
        changed(|f| {
            f.raw("n", U8, dims, Vec::new());
        })
    };
    bad.extend([
        (Error::Shape, "nine-dimensions", raw(&[0; 9])),
        (Error::Shape, "huge-beside-zero", raw(&[0, 1 << 20, (1 << 20) + 1])),
        (Error::Shape, "overflow-beside-zero", raw(&[1 << 40, 1 << 40, 0])),
        (Error::Shape, "coded-scalar", changed(|f| f.entries[0].dims.clear())),
        (Error::Shape, "coded-empty", changed(|f| f.entries[0].dims = vec![24, 4, 0])),
        (Error::Shape, "view-bit-3", recoded(|c| c.view = 8)),
        (Error::Shape, "batch-alone", {
            let mut file = File { codecs: base().codecs, ..File::default() };
            file.random("v", F32, &[7], Coded { step: 1, ..Coded::plain(7, 1) }, 4, &mut Rng(1));
            file.coded_mut(0).view = 2;
            file.bytes()
        }),
    ]);
}

fn geometries(bad: &mut Vec<Bad>) {
    // The streams: rows 0 and 1, then four tiles of two lanes.
    let ends = |change: &dyn Fn(&mut Vec<u32>)| {
        recoded(|c| {
            let mut ends = Vec::new();
            for stream in &c.streams {
                ends.push(ends.last().unwrap_or(&0) + stream.bytes().len() as u32 / 4);
            }
            change(&mut ends);
            c.ends = Some(ends);
        })
    };
    let plain = |rows: u64, columns: u64, stream: Stream| {
        let mut file = File { codecs: base().codecs, ..File::default() };
        let coded = Coded { streams: vec![stream], ..Coded::plain(rows, columns) };
        file.coded("w", F32, &[rows, columns], coded);
        file.bytes()
    };
    bad.extend([
        (Error::Geometry, "no-lanes", recoded(|c| c.lanes = 0)),
        (Error::Geometry, "33-lanes", recoded(|c| c.lanes = 33)),
        (Error::Geometry, "no-columns-a-lane", recoded(|c| c.per_lane = 0)),
        (Error::Geometry, "too-many-columns-a-lane", recoded(|c| c.per_lane = 3)),
        (Error::Geometry, "columns-a-lane-far-out", recoded(|c| c.per_lane = (1 << 32) + 1)),
        (Error::Geometry, "no-tile-rows", recoded(|c| c.tile_rows = 0)),
        (Error::Geometry, "too-many-tile-rows", recoded(|c| c.tile_rows = 25)),
        (Error::Geometry, "tile-rows-far-out", recoded(|c| c.tile_rows = (1 << 32) + 4)),
        (Error::Geometry, "gap-of-64", changed(|f| f.entries[1].gap = Some(64))),
        (Error::Geometry, "leaves-the-data", cut(|s| shorten(&mut s[2].bytes))),
        (Error::Geometry, "bytes-after-the-last", cut(|s| s[2].bytes.push(0))),
        (Error::Geometry, "data-without-items", {
            let mut sections = File::default().sections();
            sections[2].bytes = vec![0; 4];
            write(VERSION, &sections)
        }),
        (Error::Geometry, "length-far-out", recoded(|c| c.len = Some(1 << 40))),
        (Error::Geometry, "not-aligned", changed(|f| f.entries[0].gap = Some(2))),
        (Error::Geometry, "falling-ends", ends(&|ends| ends[3] = ends[2] - 1)),
        (Error::Geometry, "end-beyond-the-item", ends(&|ends| ends[3] += 100)),
        (Error::Geometry, "last-end-early", ends(&|ends| ends[5] -= 1)),
        (Error::Geometry, "last-end-late", ends(&|ends| ends[5] += 1)),
        (
            Error::Geometry,
            "no-room-for-records",
            recoded(|c| {
                c.tile_rows = 1;
                c.streams.truncate(1);
            }),
        ),
        (
            Error::Geometry,
            "tile-without-states",
            recoded(|c| {
                c.streams[3] = Stream { states: vec![1 << 16], words: Vec::new() };
            }),
        ),
        (
            Error::Geometry,
            "row-stream-without-state",
            recoded(|c| {
                c.streams[0] = Stream { states: Vec::new(), words: Vec::new() };
            }),
        ),
        (
            Error::Geometry,
            "more-weights-than-bytes",
            plain(1, 12 * 32768 + 1, Stream { states: vec![1 << 16], words: Vec::new() }),
        ),
    ]);
}

fn codec_fields(bad: &mut Vec<Bad>) {
    let codec = |change: &dyn Fn(&mut Codec)| changed(|f| change(&mut f.codecs[0]));
    let next = |change: &dyn Fn(&mut Codec)| {
        let mut file = small_batched().sealed();
        change(&mut file.codecs[0]);
        file.bytes()
    };
    let network = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut file = small_learned().sealed();
        change(&mut file.codecs[0].network);
        file.bytes()
    };
    let section = |change: &dyn Fn(&mut Vec<u8>)| cut(|s| change(&mut s[1].bytes));
    bad.extend([
        (Error::Codec, "empty-section", section(&Vec::clear)),
        (Error::Codec, "one-more-than-there", section(&|b| b[0] += 1)),
        (Error::Codec, "one-less-than-there", section(&|b| b[0] -= 1)),
        (Error::Codec, "longer-than-section", section(&|b| b[1] += 1)),
        (Error::Codec, "bytes-after-the-last", section(&|b| b.push(0))),
        (
            Error::Codec,
            "cut-in-fields",
            section(&|b| {
                b.truncate(1 + 4 + 6);
                b[1] = 6;
            }),
        ),
        (Error::Codec, "cut-in-next", {
            let mut sections = small_batched().sealed().sections();
            sections[1].bytes.truncate(1 + 4 + 3 + 15);
            sections[1].bytes[1] = 3 + 15;
            write(VERSION, &sections)
        }),
        (Error::Codec, "quantiser", codec(&|c| c.quantiser = 255)),
        (
            Error::Codec,
            "no-state-bits",
            next(&|c| {
                c.state_bits = 0;
                c.next = vec![0, 0];
            }),
        ),
        (
            Error::Codec,
            "nine-state-bits",
            next(&|c| {
                c.state_bits = 9;
                c.next = vec![0; 1024];
            }),
        ),
        (Error::Codec, "next-state", next(&|c| c.next[15] = 8)),
        (Error::Codec, "precision-9", codec(&|c| c.precision = 9)),
        (Error::Codec, "precision-15", codec(&|c| c.precision = 15)),
        (Error::Codec, "no-unions", codec(&|c| c.unions = 0)),
        (
            Error::Codec,
            "three-unions",
            next(&|c| {
                c.unions = 3;
                c.tables = vec![c.tables[0].clone(); 3];
            }),
        ),
        (
            Error::Codec,
            "two-unions-of-scalar",
            codec(&|c| {
                c.unions = 2;
                c.classes = 1;
            }),
        ),
        (
            Error::Codec,
            "no-classes",
            codec(&|c| {
                c.classes = 0;
                c.tables.drain(..2);
            }),
        ),
        (
            Error::Codec,
            "65-classes",
            codec(&|c| {
                c.classes = 65;
                c.tables.splice(..2, vec![Table { lo: 0, levels: vec![0, 0], rice: 0 }; 65]);
            }),
        ),
        (
            Error::Codec,
            "side-bit-4",
            codec(&|c| {
                c.side |= 16;
                c.tables.push(Table::side(0, 2));
            }),
        ),
        (Error::Codec, "bytes-left", codec(&|c| c.tail.push(0))),
        (Error::Codec, "network-of-13-places", network(&|n| n[0] = 13)),
        (Error::Codec, "network-that-gains", network(&|n| n[1..17].fill(17))),
        (Error::Codec, "network-of-three-layers", network(&|n| n[257] = 3)),
        (Error::Codec, "network-of-no-width", network(&|n| n[258] = 0)),
        (Error::Codec, "network-of-width-65", network(&|n| n[258] = 65)),
        (Error::Codec, "network-of-shift-16", network(&|n| n[259] = 16)),
        (Error::Codec, "cut-in-network", {
            let mut sections = small_learned().sealed().sections();
            sections[1].bytes.truncate(1 + 4 + 300);
            sections[1].bytes[1..5].copy_from_slice(&300u32.to_le_bytes());
            write(VERSION, &sections)
        }),
        (Error::Codec, "padding-not-zero", section(&|b| *b.last_mut().expect("a codec is there") |= 0x80)),
        (Error::Unsupported, "synthesis", codec(&|c| c.synthesis = 255)),
        (Error::Unsupported, "entropy-mode", codec(&|c| c.entropy_mode = 255)),
        (Error::Unsupported, "layers", recoded(|c| c.layers = 255)),
        (Error::Unsupported, "no-layers", recoded(|c| c.layers = 0)),
    ]);
}

fn tables(bad: &mut Vec<Bad>) {
    let table = |number: usize, table: Table| changed(|f| f.codecs[0].tables[number] = table);
    let levels = |levels: Vec<i32>| table(0, Table { lo: 0, levels, rice: 1 });
    let scalar = |tables: &[u8]| {
        let mut codec = Codec::scalar(12, Vec::new());
        codec.classes = 1;
        codec.tail = tables.to_vec();
        File { codecs: vec![codec], ..File::default() }.bytes()
    };
    bad.extend([
        (Error::Table, "escape-alone", levels(vec![5])),
        (Error::Table, "level-128", levels(vec![127, 128])),
        (Error::Table, "level-below-0", levels(vec![0, 0, -1])),
        (Error::Table, "first-level-below-0", levels(vec![-1, 0])),
        (Error::Table, "value-32768", table(0, Table { lo: 32767, levels: vec![1, 2, 3], rice: 1 })),
        (Error::Table, "side-value-4096", table(2, Table { lo: 4095, levels: vec![1, 2], rice: 1 })),
        (Error::Table, "side-value-below", table(3, Table { lo: -4097, levels: vec![1, 2], rice: 1 })),
        (Error::Table, "side-value-far-below", table(3, Table { lo: -32768, levels: vec![1], rice: 1 })),
        (Error::Table, "no-bits", scalar(&[])),
        (Error::Table, "ends-in-lo", scalar(&[0])),
        (Error::Table, "ends-in-parameter", scalar(&[0, 0, 1])),
        // lo 0, two symbols, k = 7: 27 bits, and five of a Rice code's eight.
        (Error::Table, "ends-in-levels", scalar(&[0, 0, 1, 7])),
        // lo 0, two symbols, k = 0, and a run of 1024 ones.
        (
            Error::Table,
            "run-of-1024",
            scalar(&{
                let mut bits = vec![0, 0, 1, 0xF8];
                bits.resize(4 + 127, 0xFF);
                bits.extend([0x07, 0]);
                bits
            }),
        ),
    ]);
}

fn streams(bad: &mut Vec<Bad>) {
    // Where the streams of the base are, row streams first.
    let places: Vec<_> = base()
        .seals()
        .into_iter()
        .take(base().coded_mut(0).streams.len())
        .map(|seal| seal.covers[0].clone())
        .collect();
    let flipped = |stream: usize, byte: usize| bytes(|b| b[places[stream].start + byte] ^= 1);
    let stream = |number: usize, change: &dyn Fn(&mut Stream)| recoded(|c| change(&mut c.streams[number]));
    // Without its last words, in pairs so that none is filled up with zeros.
    let short = |stream: &mut Stream| {
        let len = stream.words.len();
        assert!(len > 0, "there is a word to take");
        stream.words.truncate((len - 1) / 2 * 2);
    };
    let long = |stream: &mut Stream| {
        let len = stream.words.len();
        stream.words.resize((len + 1).next_multiple_of(2) + if len.is_multiple_of(2) { 0 } else { 2 }, 0);
    };
    bad.extend([
        (Error::StreamChecksum, "tile-stream", flipped(3, 5)),
        (Error::StreamChecksum, "row-stream", flipped(1, 0)),
        (
            Error::StreamChecksum,
            "raw",
            changed(|f| {
                let Body::Raw(_, crc) = &mut f.entries[1].body else { panic!("it is raw") };
                *crc = Some(0);
            }),
        ),
        (Error::LaneState, "tile-lane", stream(2, &|s| s.states[1] = 0xFFFF)),
        (Error::LaneState, "row-lane", stream(1, &|s| s.states[0] = 0)),
        (Error::Overrun, "tile", stream(2, &short)),
        (Error::Overrun, "row-stream", stream(0, &short)),
        (Error::Overrun, "escape", escape_cut()),
        (Error::Trailing, "two-spare-words", stream(4, &long)),
        (Error::Trailing, "row-stream", stream(0, &long)),
        (
            Error::Trailing,
            "spare-word-not-zero",
            recoded(|c| {
                let odd =
                    c.streams.iter_mut().find(|s| s.words.len() % 2 == 1).expect("one has an odd number");
                odd.words.push(1);
            }),
        ),
        (Error::FinalState, "tile-state", tile_ending((1 << 16) + 1)),
        (Error::FinalState, "row-state", row_ending((1 << 16) + 1)),
        (Error::ContentChecksum, "coded", recoded(|c| c.content_crc = Some(c.content_crc.unwrap_or(0) ^ 1))),
        (Error::ContentChecksum, "other-tensor", changed(|f| f.coded_mut(0).step += 1)),
    ]);
}

/// The word of the last escape is missing.
fn escape_cut() -> Vec<u8> {
    let codec = Codec::scalar(12, vec![Table::weights(2, 16, 1)]);
    let mut file = File { codecs: vec![codec.clone()], ..File::default() };
    let dims = [4, 1];
    let coded = Coded::plain(4, 1);
    let mut content = coded.random(&dims, &codec, 2, &mut Rng(4));
    content.values[3] = 1000;
    content.values[2] = 1000;
    let mut coded = coded.with(&dims, &codec, &content);
    let words = &mut coded.streams[0].words;
    words.truncate((words.len() - 1) / 2 * 2);
    file.coded("w", F32, &dims, coded);
    file.bytes()
}

/// A scalar tensor's streams end in another state.
fn tile_ending(end: u32) -> Vec<u8> {
    let mut file = small_scalar();
    let codec = file.codecs[0].clone();
    let coded = file.coded_mut(0);
    let content = coded.random(&[5, 7], &codec, 8, &mut Rng(1));
    *coded = coded.clone().ending(&[5, 7], &codec, &content, end);
    file.bytes()
}

/// Only the row streams end in another state.
fn row_ending(end: u32) -> Vec<u8> {
    let mut file = base();
    let codec = file.codecs[0].clone();
    let coded = file.coded_mut(0);
    let content = coded.random(&[24, 4], &codec, 9, &mut Rng(3));
    let right = coded.clone().with(&[24, 4], &codec, &content);
    let wrong = coded.clone().ending(&[24, 4], &codec, &content, end);
    coded.streams = right.streams;
    coded.streams[..2].clone_from_slice(&wrong.streams[..2]);
    file.bytes()
}

fn scales(bad: &mut Vec<Bad>) {
    let codec = Codec::scalar(12, vec![Table::weights(4, 12, 1)]).with_side([
        Some(Table::side(-1, 3)),
        None,
        Some(Table::side(-127, 256)),
        None,
    ]);
    // One row and one column out of the range; all weights 0, which does not help.
    let one = |step: i64, side: u8, row: i32, column: i32| {
        let mut file = File { codecs: vec![codec.clone()], ..File::default() };
        let coded = Coded { lanes: 2, per_lane: 2, step, side, ..Coded::plain(3, 4) };
        let mut content = coded.random(&[3, 4], &codec, 0, &mut Rng(1));
        content.rows = vec![[0; 2], [row, 0], [0; 2]];
        content.columns = vec![[0; 2], [0; 2], [column, 0], [0; 2]];
        let coded = coded.with(&[3, 4], &codec, &content);
        file.coded("w", F32, &[3, 4], coded);
        file.bytes()
    };
    bad.extend([
        (Error::Scale, "step-low", one(-64513, 0, 0, 0)),
        (Error::Scale, "row", one(65535, 1, 1, 0)),
        (Error::Scale, "row-low", one(-64512, 1, -1, 0)),
        (Error::Scale, "column", one(0, 4, 0, 128)),
        (Error::Scale, "column-low", one(0, 4, 0, -127)),
    ]);
}

fn attached(bad: &mut Vec<Bad>) {
    let files = |files: Vec<Attachment>| File { attachments: Some(files), ..File::default() }.bytes();
    let section = |change: &dyn Fn(&mut Vec<u8>)| {
        let file = File { attachments: Some(vec![Attachment::stored("a", b"content")]), ..File::default() };
        let mut sections = file.sections();
        change(&mut sections[3].bytes);
        write(VERSION, &sections)
    };
    let stored = |change: &dyn Fn(&mut Attachment)| {
        let mut file = Attachment::stored("a", b"content");
        change(&mut file);
        files(vec![Attachment::stored("before", b"good"), file])
    };
    let zlib = |change: &dyn Fn(&mut Attachment)| {
        let mut file = Attachment::zlib("a", b"content");
        change(&mut file);
        files(vec![file])
    };
    bad.extend([
        (Error::Attachment, "empty-section", section(&Vec::clear)),
        (Error::Attachment, "one-more-than-there", section(&|b| b[0] += 1)),
        (Error::Attachment, "one-less-than-there", section(&|b| b[0] -= 1)),
        (Error::Attachment, "cut", section(&shorten)),
        (Error::Attachment, "bytes-left", section(&|b| b.push(0))),
        (Error::Attachment, "overlong-varint", section(&|b| drop(b.splice(4..5, [0x81, 0x00])))),
        (Error::Attachment, "name-not-utf8", stored(&|a| a.name = vec![0xFF])),
        (Error::Attachment, "method", stored(&|a| a.method = 2)),
        (Error::Attachment, "lengths-differ", stored(&|a| a.len += 1)),
        (Error::Attachment, "content", stored(&|a| a.stored[0] ^= 1)),
        (Error::Attachment, "zlib-content", zlib(&|a| a.crc ^= 1)),
        (Error::Attachment, "zlib-header", zlib(&|a| a.stored[0] = 0x79)),
        (
            Error::Attachment,
            "zlib-dictionary",
            zlib(&|a| {
                // With a dictionary's checksum, and a header that is right for it.
                a.stored[1] = 0x20;
                a.stored[1] += 31 - ((u16::from(a.stored[0]) * 256 + 0x20) % 31) as u8;
                a.stored.splice(2..2, [0, 0, 0, 1]);
            }),
        ),
        (Error::Attachment, "zlib-block", zlib(&|a| a.stored[2] = 7)),
        (Error::Attachment, "zlib-cut", zlib(&|a| shorten(&mut a.stored))),
        (Error::Attachment, "zlib-checksum", zlib(&|a| *a.stored.last_mut().expect("it has bytes") ^= 1)),
        (Error::Attachment, "zlib-bytes-after", zlib(&|a| a.stored.push(0))),
        (Error::Attachment, "zlib-shorter", zlib(&|a| a.len += 1)),
        (
            Error::Attachment,
            "zlib-longer",
            zlib(&|a| {
                a.len -= 1;
                a.crc = Crc32::of(b"conten");
            }),
        ),
        (Error::Attachment, "zlib-bomb", zlib(&|a| a.len = 1032 * a.stored.len() as u64 + 1)),
    ]);
}

fn seek_points(bad: &mut Vec<Bad>) {
    // Two tiles of a tensor with row streams and a trellis, one of another with neither.
    let mut base = File {
        codecs: vec![sides_codec(10), Codec::scalar(10, vec![Table::weights(4, 14, 1)])],
        ..File::default()
    };
    let coded = Coded { lanes: 3, per_lane: 2, ..Coded::plain(33, 11) };
    base.random("w", F16, &[33, 11], Coded { side: 15, ..coded.clone() }, 9, &mut Rng(30));
    base.raw("b", U8, &[4], vec![1, 2, 3, 4]);
    let narrow = Coded { codec: 1, ..coded };
    base.random("v", F32, &[33, 5], narrow, 9, &mut Rng(30));
    base.alias("a", 0);
    let base = base.sealed().with_seek_points(1);
    let section = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut sections = base.sections();
        change(&mut sections[2].bytes);
        write(VERSION, &sections)
    };
    let tiles = |change: &dyn Fn(&mut Vec<SeekTile>)| {
        let mut file = base.clone();
        change(file.seek.as_mut().expect("it has points"));
        file.bytes()
    };
    // Points of the first tile: one inside a group of columns, one at its start.
    let find = |what: &dyn Fn(&Point) -> bool| {
        let points = &base.seek.as_ref().expect("it has points")[0].points;
        points.iter().position(what).expect("there is such a point")
    };
    let (tall, low) = (find(&|point| point.row > 0), find(&|point| point.row == 0));
    let point = |change: &dyn Fn(&mut Point)| tiles(&|tiles| change(&mut tiles[0].points[tall]));
    let start = |change: &dyn Fn(&mut Point)| tiles(&|tiles| change(&mut tiles[0].points[low]));
    bad.extend([
        (Error::Sections, "seek-required", {
            let mut sections = base.sections();
            sections[2].kind |= REQUIRED;
            write(VERSION, &sections)
        }),
        (Error::SectionChecksum, "seek", {
            let mut sections = base.sections();
            sections[2].crc = Some(1);
            write(VERSION, &sections)
        }),
        (Error::Seek, "empty-section", section(&Vec::clear)),
        (Error::Seek, "one-tile-more", section(&|b| b[0] += 1)),
        (Error::Seek, "one-tile-less", section(&|b| b[0] -= 1)),
        (Error::Seek, "cut", section(&shorten)),
        (Error::Seek, "bytes-left", section(&|b| b.push(0))),
        (
            Error::Seek,
            "tile-without-points",
            tiles(&|tiles| {
                tiles.truncate(1);
                tiles[0].points.clear();
            }),
        ),
        (
            Error::Seek,
            "one-point-more",
            tiles(&|tiles| tiles[2].count = Some(tiles[2].points.len() as u32 + 1)),
        ),
        (Error::Seek, "points-far-out", tiles(&|tiles| tiles[2].count = Some(u32::MAX))),
        (Error::Seek, "raw-tensor", tiles(&|tiles| tiles[2].tensor = 1)),
        (Error::Seek, "alias", tiles(&|tiles| tiles[2].tensor = 3)),
        (Error::Seek, "no-such-tensor", tiles(&|tiles| tiles[2].tensor = 4)),
        (Error::Seek, "tensor-far-out", tiles(&|tiles| tiles[2].tensor = u32::MAX)),
        (Error::Seek, "falling-tensors", tiles(&|tiles| tiles.swap(1, 2))),
        (Error::Seek, "falling-tiles", tiles(&|tiles| tiles.swap(0, 1))),
        (Error::Seek, "tile-twice", tiles(&|tiles| tiles[1].tile = tiles[0].tile)),
        (Error::Seek, "no-such-tile", tiles(&|tiles| tiles[2].tile = 1)),
        (Error::Seek, "the-start", start(&|point| point.group = 0)),
        (Error::Seek, "falling-points", tiles(&|tiles| tiles[2].points.reverse())),
        (Error::Seek, "point-twice", tiles(&|tiles| tiles[2].points[1] = tiles[2].points[0].clone())),
        (Error::Seek, "no-such-group", tiles(&|tiles| tiles[2].points[0].group = 2)),
        (Error::Seek, "group-far-out", tiles(&|tiles| tiles[2].points[0].group = u32::MAX as usize)),
        (Error::Seek, "no-such-row", point(&|point| point.row = 48)),
        (Error::Seek, "row-inside-a-chunk", point(&|point| point.row -= 1)),
        (Error::Seek, "lane-state", point(&|point| point.lanes[2] = 0xFFFF)),
        (Error::Seek, "trellis-state", point(&|point| point.trellis[0] = 8)),
        (Error::Seek, "one-row-word", point(&|point| point.row_words = 1)),
        (Error::Seek, "row-state", point(&|point| point.row_state = 0xFFFF)),
        (Error::Seek, "row-words-at-row-0", start(&|point| point.row_words = 2)),
        (Error::Seek, "row-state-at-row-0", start(&|point| point.row_state = 1 << 16)),
    ]);
}
