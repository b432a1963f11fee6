//! Decodes a whole model on a Cortex-M4, in fixed memory: walks the directory of the container in flash, decodes each tensor tile by tile,
//! and compares the CRC-32 of its weights with the host's. Then it says what that took, see `docs/firmware.md`.
#![no_std]
#![no_main]

mod meter;
mod stack;

use core::cell::{Cell, RefCell};
use core::hint::black_box;
use core::panic::PanicInfo;

use cortex_m::Peripherals;
use cortex_m_rt::entry;
use defmt_semihosting as _; // where the log goes
use half::f16;
use heapless::{String, Vec};
use nwc_decode_core::{
    Checks, Chunk, Codec, CodedTensor, Coding, Container, Crc32, DType, Element, Error, Limits, Name,
    RowEngine, RowValue, Rows, Scratch, Table, Tables, Tensor, TileDecoder,
};

use meter::Meter;

/// The container in flash.
#[unsafe(no_mangle)] // by this name its size is known apart from the code's
static MODEL: Aligned<{ include_bytes!("../../../models/clip-mini.nwc").len() }> =
    Aligned(*include_bytes!("../../../models/clip-mini.nwc"));

/// A matrix of normal weights with as many lanes as there can be.
#[unsafe(no_mangle)]
static WIDE_SCALAR: Aligned<{ include_bytes!("../../../models/wide-scalar.nwc").len() }> =
    Aligned(*include_bytes!("../../../models/wide-scalar.nwc"));
#[unsafe(no_mangle)]
static WIDE_TRELLIS: Aligned<{ include_bytes!("../../../models/wide-trellis8.nwc").len() }> =
    Aligned(*include_bytes!("../../../models/wide-trellis8.nwc"));

/// Sections of a container begin at multiples of this.
#[repr(C, align(64))]
struct Aligned<const N: usize>([u8; N]);

/// Weights of the largest tensor, the matrix with all lanes.
const OUTPUT: usize = 512 * 256;
/// What the decoder takes on this device whatever it is asked for.
const LOOKUP_BITS: u32 = 6;
/// Memory for the tables of the model's largest codec.
const SCRATCH_TABLES: usize = 18;
const SCRATCH_WORDS: usize = 726;
/// The same for the matrix with all lanes.
const WIDE_TABLES: usize = 2;
const WIDE_WORDS: usize = 288;

type Output = Vec<f16, OUTPUT>;
/// For one of the measurements only; decoding needs no such buffer.
type RowValues = Vec<RowValue, 512>;

/// What the whole model took, in instructions.
#[derive(Default)]
struct Totals {
    weights: u32,
    engine: u32,
    entropy: u32,
    whole: u32,
    checked: u32,
    /// To expand the tables of all codecs.
    expand: u32,
    /// Depth of the stack.
    stack: usize,
    expand_stack: usize,
}

impl Totals {
    fn a_weight(&self, instructions: u32) -> f32 {
        let hundredths = u64::from(instructions) * 100 / u64::from(self.weights.max(1));
        hundredths as f32 / 100.0
    }
}

#[entry]
fn main() -> ! {
    let code = match run() {
        Ok(()) => 0,
        Err(error) => {
            defmt::error!("error {=u8}", error.code());
            1
        }
    };
    semihosting::process::exit(code)
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    defmt::error!("panic");
    semihosting::process::exit(2)
}

fn run() -> Result<(), Error> {
    let peripherals = Peripherals::take().ok_or(Error::Index)?;
    let mut meter = Meter::start(peripherals.SYST);
    defmt::println!("calibration: a loop of 2000000 instructions counts {=u32}", meter.calibrate());

    let Memory { output, words, rows } = memory()?;
    let (open_stack, open, container) = open(&mut meter)?;

    let mut totals = Totals::default();
    // Codec by codec, so that the same memory serves the tables of each.
    for codec in 0..container.codec_count() {
        let mut slots = [Table::EMPTY; SCRATCH_TABLES];
        let scratch = Scratch { tables: &mut slots, words: &mut *words };
        let tables = expand(&mut meter, &container.codec(codec)?, scratch, &mut totals)?;
        for number in 0..container.len() {
            if coded_with(&container, number)? == Some(codec) {
                let crc = decode_one(&mut meter, (&container, number), &tables, (output, rows), &mut totals)?;
                print(&container, number, crc);
            }
        }
    }
    for number in 0..container.len() {
        if coded_with(&container, number)?.is_none() {
            print(&container, number, check_raw(&container, number)?);
        }
    }
    report(&totals, open, open_stack);
    wide(&mut meter, "scalar", &WIDE_SCALAR.0, output, rows)?;
    wide(&mut meter, "trellis8", &WIDE_TRELLIS.0, output, rows)?;
    Ok(())
}

/// What lies outside the stack.
struct Memory {
    output: &'static mut Output,
    words: &'static mut [u32; SCRATCH_WORDS],
    rows: &'static mut RowValues,
}

/// In a function of its own, because what is moved to a static lies on the stack before.
#[inline(never)]
fn memory() -> Result<Memory, Error> {
    let output = cortex_m::singleton!(: Output = Vec::new()).ok_or(Error::Output)?;
    output.resize_default(OUTPUT).map_err(|_| Error::Output)?;
    Ok(Memory {
        output,
        words: cortex_m::singleton!(: [u32; SCRATCH_WORDS] = [0; SCRATCH_WORDS]).ok_or(Error::Scratch)?,
        rows: cortex_m::singleton!(: RowValues = Vec::new()).ok_or(Error::Output)?,
    })
}

/// In a function of its own, so that its frame is gone when the weights are decoded.
#[inline(never)]
fn open(meter: &mut Meter) -> Result<(usize, u32, Container<'static>), Error> {
    let (stack, (instructions, container)) =
        stack::peak(|| meter.count(|| Container::open(&MODEL.0, &Limits::default())));
    Ok((stack, instructions, container?))
}

#[inline(never)]
fn expand<'a>(
    meter: &mut Meter,
    codec: &Codec<'a>,
    scratch: Scratch<'a>,
    totals: &mut Totals,
) -> Result<Tables<'a>, Error> {
    let (stack, (instructions, tables)) =
        stack::peak(|| meter.count(|| Tables::expand(codec, LOOKUP_BITS, scratch)));
    totals.expand += instructions;
    totals.expand_stack = totals.expand_stack.max(stack);
    tables
}

#[inline(never)]
fn tensor<'a>(container: &Container<'a>, number: usize) -> Result<Tensor<'a>, Error> {
    container.tensors().nth(number).ok_or(Error::Index)
}

#[inline(never)]
fn coded<'a>(container: &Container<'a>, number: usize) -> Result<CodedTensor<'a>, Error> {
    tensor(container, number)?.resolve(container)?.coded()
}

/// The number of the codec that a tensor is coded with, none of one that is stored as it is.
#[inline(never)]
fn coded_with(container: &Container<'_>, number: usize) -> Result<Option<usize>, Error> {
    match coded(container, number) {
        Ok(coded) => Ok(Some(coded.codec_index())),
        Err(Error::Coding) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Decodes a tensor, measures it, compares its checksum with the host's, and gives it.
#[inline(never)]
fn decode_one(
    meter: &mut Meter,
    (container, number): (&Container<'_>, usize),
    tables: &Tables<'_>,
    (output, rows): (&mut Output, &mut RowValues),
    totals: &mut Totals,
) -> Result<u32, Error> {
    let coded = coded(container, number)?;
    let weights = output.get_mut(..coded.elements()).ok_or(Error::Output)?;
    measure(meter, &coded, tables, weights, totals)?;
    totals.engine += engine_only(meter, &coded, tables, rows)?;
    let mut crc = Crc32::new();
    weights.iter().for_each(|weight| weight.update_crc(&mut crc));
    compare(container, number, crc.value())
}

/// The same for a tensor that is stored as it is.
#[inline(never)]
fn check_raw(container: &Container<'_>, number: usize) -> Result<u32, Error> {
    let original = tensor(container, number)?.resolve(container)?;
    compare(container, number, Crc32::of(original.raw(Checks::SkipChecksums)?))
}

#[inline(never)]
fn compare(container: &Container<'_>, number: usize, crc: u32) -> Result<u32, Error> {
    let original = tensor(container, number)?.resolve(container)?;
    if original.coding() == Coding::Coded && original.dtype() != DType::F16 {
        return Err(Error::Coding);
    }
    if original.content_crc() != Some(crc) {
        defmt::error!("tensor {=usize}: crc {=u32:08x} differs from the host's", number, crc);
        return Err(Error::ContentChecksum);
    }
    Ok(crc)
}

#[inline(never)]
fn print(container: &Container<'_>, number: usize, crc: u32) {
    let Ok(tensor) = tensor(container, number) else { return };
    let coded = if matches!(tensor.coding(), Coding::Raw) { "raw" } else { "coded" };
    let name = text(&tensor.name());
    defmt::println!(
        "{=usize} {=str} {=str} {=usize} {=u32:08x}",
        number,
        &name,
        coded,
        tensor.elements(),
        crc
    );
}

#[inline(never)]
fn measure(
    meter: &mut Meter,
    coded: &CodedTensor<'_>,
    tables: &Tables<'_>,
    weights: &mut [f16],
    totals: &mut Totals,
) -> Result<(), Error> {
    let (entropy, result) = meter.count(|| entropy_only(coded, tables));
    result?;
    let (checked, result) = meter.count(|| coded.decode(tables, Checks::All, weights));
    result?;
    weights.fill(f16::ZERO);
    let (stack, (whole, result)) =
        stack::peak(|| meter.count(|| coded.decode(tables, Checks::SkipChecksums, weights)));
    result?;
    totals.stack = totals.stack.max(stack);
    totals.entropy += entropy;
    totals.whole += whole;
    totals.checked += checked;
    totals.weights += u32::try_from(coded.elements()).map_err(|_| Error::Output)?;
    Ok(())
}

/// Measures a matrix whose rows fill all lanes.
#[inline(never)]
fn wide(
    meter: &mut Meter,
    name: &str,
    file: &[u8],
    output: &mut Output,
    rows: &mut RowValues,
) -> Result<(), Error> {
    let container = Container::open(file, &Limits::default())?;
    let mut memory = [Table::EMPTY; WIDE_TABLES];
    let mut words = [0; WIDE_WORDS];
    let scratch = Scratch { tables: &mut memory, words: &mut words };
    let coded = coded(&container, 0)?;
    let tables = Tables::expand(&container.codec(coded.codec_index())?, LOOKUP_BITS, scratch)?;
    let weights = output.get_mut(..coded.elements()).ok_or(Error::Output)?;
    let mut totals = Totals::default();
    measure(meter, &coded, &tables, weights, &mut totals)?;
    totals.engine = engine_only(meter, &coded, &tables, rows)?;
    defmt::println!(
        "instructions a weight, 32 lanes, {=str}: range decoder alone {=f32}, with side information {=f32}, whole decode to f16 {=f32}",
        name,
        totals.a_weight(totals.engine),
        totals.a_weight(totals.entropy),
        totals.a_weight(totals.whole)
    );
    Ok(())
}

/// Counts the instructions of the engine, apart from those of the walk around it.
struct Counted<'m, 't> {
    meter: &'m RefCell<&'m mut Meter>,
    tables: &'m Tables<'t>,
    instructions: &'m Cell<u32>,
}

impl RowEngine for Counted<'_, '_> {
    fn decode_rows(&self, rows: Rows<'_>) -> Result<usize, Error> {
        let mut meter = self.meter.try_borrow_mut().map_err(|_| Error::Index)?;
        let (instructions, result) = meter.count(|| self.tables.decode_rows(rows));
        self.instructions.set(self.instructions.get() + instructions);
        result
    }
}

/// Decodes all indices of a tensor, drops them, and gives the instructions that the engine took. Its stack is not part of what is measured.
#[inline(never)]
fn engine_only(
    meter: &mut Meter,
    coded: &CodedTensor<'_>,
    tables: &Tables<'_>,
    rows: &mut RowValues,
) -> Result<u32, Error> {
    let (meter, instructions) = (RefCell::new(meter), Cell::new(0));
    let engine = Counted { meter: &meter, tables, instructions: &instructions };
    let mut chunk = Chunk::default();
    for number in 0..coded.tiles() {
        let tile = coded.tile(number)?;
        rows.resize_default(tile.rows()).map_err(|_| Error::Output)?;
        tile.row_values(tables, rows)?;
        let mut decoder = tile.decoder(tables, Checks::SkipChecksums)?;
        while decoder.next_chunk_by(&engine, rows, &mut chunk)? {
            black_box(&chunk);
        }
    }
    Ok(instructions.get())
}

/// Decodes all indices of a tensor and drops them.
#[inline(never)]
fn entropy_only(coded: &CodedTensor<'_>, tables: &Tables<'_>) -> Result<(), Error> {
    let mut chunk = Chunk::default();
    for number in 0..coded.tiles() {
        let mut decoder = coded.tile(number)?.decoder(tables, Checks::SkipChecksums)?;
        while decoder.next_chunk(&mut chunk)? {
            black_box(&chunk);
        }
    }
    Ok(())
}

/// A name as text; what does not fit is cut off.
fn text(name: &Name<'_>) -> String<96> {
    let mut text = String::new();
    for (place, fragment) in name.fragments().enumerate() {
        let dot = if place == 0 { "" } else { "." };
        if text.push_str(dot).and_then(|()| text.push_str(fragment)).is_err() {
            break;
        }
    }
    text
}

#[inline(never)]
fn report(totals: &Totals, open: u32, open_stack: usize) {
    defmt::println!("weights: {=u32}", totals.weights);
    defmt::println!("instructions: open and check the directory {=u32}", open);
    defmt::println!("instructions: expand the tables {=u32}", totals.expand);
    defmt::println!("instructions a weight: range decoder alone {=f32}", totals.a_weight(totals.engine));
    defmt::println!("instructions a weight: with side information {=f32}", totals.a_weight(totals.entropy));
    defmt::println!("instructions a weight: whole decode to f16 {=f32}", totals.a_weight(totals.whole));
    defmt::println!("instructions a weight: with all checksums {=f32}", totals.a_weight(totals.checked));

    let scratch = size_of::<[Table<'_>; SCRATCH_TABLES]>() + SCRATCH_WORDS * size_of::<u32>();
    let stack = open_stack.max(totals.expand_stack).max(totals.stack);
    let statics = static_ram() - size_of::<Output>() - size_of::<RowValues>();
    defmt::println!("bytes: output {=usize}", size_of::<Output>());
    defmt::println!("bytes: scratch of the tables {=usize}", scratch);
    defmt::println!("bytes: of the stack, tile decoder {=usize}", size_of::<TileDecoder<'_>>());
    defmt::println!("bytes: of the stack, chunk {=usize}", size_of::<Chunk>());
    defmt::println!("bytes: peak stack, open {=usize}", open_stack);
    defmt::println!("bytes: peak stack, expand {=usize}", totals.expand_stack);
    defmt::println!("bytes: peak stack, decode {=usize}", totals.stack);
    defmt::println!("bytes: static RAM without the output {=usize}", statics);
    defmt::println!("bytes: RAM besides the output {=usize}", statics + stack);
}

/// Bytes of all statics.
fn static_ram() -> usize {
    unsafe extern "C" {
        /// First and last address of what the runtime initialises, from its linker script.
        static __sdata: u32;
        static __ebss: u32;
    }
    (&raw const __ebss).addr() - (&raw const __sdata).addr()
}
