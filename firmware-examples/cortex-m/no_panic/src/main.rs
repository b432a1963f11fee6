//! Calls every public function of the decoder. The panic handler calls a function that does not exist: the program links only if nothing
//! that it calls can panic. It is never run.
//!
//! `cargo xtask no-panic` links it and checks that no public function is missing here. With the feature `self_test` it has something that
//! panics, and marks that show that the compiler took every call for possible.
#![no_std]
#![no_main]

use core::fmt::{self, Write};
use core::hint::black_box;
use core::panic::PanicInfo;

use half::{bf16, f16};
use nwc_decode_core::{
    Attachment, Checks, Chunk, Codec, CodedTensor, Coding, Container, Crc32, DType, Element, Error, Geometry,
    Limits, MAX_LANES, Name, Network, RowEngine, RowValue, Rows, Scratch, ScratchSize, SectionKind,
    SeekPoint, SideTable, Synthesis, Table, Tables, Tensor, Tile, TileDecoder, frequencies, scale,
};

unsafe extern "C" {
    /// Defined nowhere. The linker's complaint about it is what `cargo xtask no-panic` looks for.
    safe fn the_decoder_can_panic() -> !;
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    the_decoder_can_panic()
}

/// Takes text and keeps none of it.
struct Sink(usize);

impl Write for Sink {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 = black_box(self.0.wrapping_add(text.len()));
        Ok(())
    }
}

/// Something that the compiler knows nothing about.
fn any<T>(value: T) -> T {
    black_box(value)
}

/// A slice whose length the compiler does not know either: with an empty array, what follows could be left out as unreachable.
fn slice<T>() -> &'static mut [T] {
    black_box::<&'static mut [T]>(&mut [])
}

fn text() -> &'static str {
    black_box::<&'static str>("name")
}

fn see<T>(value: T) {
    let _ = black_box(value);
}

/// Marks the end of a function. With the feature `self_test` it calls what is not defined either, and the linker must complain about each
/// mark: it would not if the compiler had found that the calls before it always fail, and left out the rest.
macro_rules! end {
    ($mark:ident) => {
        #[cfg(feature = "self_test")]
        {
            unsafe extern "C" {
                safe fn $mark();
            }
            $mark();
        }
    };
}

/// The linker's way in.
#[unsafe(no_mangle)]
pub extern "C" fn _start() {
    let file: &'static [u8] = slice();
    see(remote(file));
    if let Err(error) = container(file) {
        see(error.code());
        see(error.is_file_fault());
        see(write!(Sink(0), "{error}"));
    }
    see(Error::ALL);
    free_standing();
    #[cfg(feature = "self_test")]
    see(file[any(0)]);
}

fn container(file: &'static [u8]) -> Result<(), Error> {
    let limits = Limits::default().with_elements(any(0)).with_tensors(any(0));
    let container = Container::open(file, &any(limits))?;
    see(container.len());
    see(container.is_empty());
    see((container.file().len(), container.file_bytes()));
    for (tensor, tile, point) in any(container.seek_points()?) {
        see((tensor, tile));
        point_calls(&point);
    }
    see(container.section_bytes(any(SectionKind::Data)));
    see(container.codec_count());
    for attachment in any(container.attachments()?) {
        let Attachment { name, zlib, len, crc, stored } = attachment;
        see((name, zlib, len, crc, stored));
    }
    let found = container.find(text());
    see(found.is_some());
    let mut tensors = container.tensors();
    see((tensors.len(), tensors.is_empty(), tensors.size_hint()));
    see(tensors.next().is_some());
    let tensor = container.tensor(any(0))?;
    let codec = container.codec(any(0))?;
    // Through `any`, because a tensor that has raw bytes is not coded.
    describe(&any(tensor), &container)?;
    let coded = any(tensor).coded()?;
    codec_calls(&codec, &coded)?;
    end!(end_of_container);
    Ok(())
}

fn describe<'a>(tensor: &Tensor<'a>, container: &Container<'a>) -> Result<(), Error> {
    name_calls(&tensor.name());
    see(write!(Sink(0), "{}", tensor.dtype()));
    see(tensor.shape().len());
    see(tensor.elements());
    see((tensor.stored_bytes(), tensor.offset()));
    see(tensor.geometry().is_ok());
    see(tensor.entry_bytes());
    see(tensor.content_crc());
    see(tensor.raw(any(Checks::All))?.len());
    see(matches!(tensor.coding(), Coding::Alias(target) if any(target) > 0));
    see(tensor.resolve(container)?.elements());
    end!(end_of_describe);
    Ok(())
}

fn name_calls(name: &Name<'_>) {
    see(name.fragments().count());
    see(*name == *text());
    see(write!(Sink(0), "{name}"));
    see(write!(Sink(0), "{name:?}"));
    end!(end_of_name_calls);
}

fn codec_calls(codec: &Codec<'static>, coded: &CodedTensor<'_>) -> Result<(), Error> {
    see((codec.quantiser(), codec.precision(), codec.unions(), codec.classes()));
    see(Codec::new(slice())?.classes());
    synthesis_calls(codec.synthesis());
    see((codec.side_tables(), codec.stored_bytes(), codec.table_bytes()));
    see(any(SideTable::RowScale).mask());
    let need: ScratchSize = codec.required_scratch(any(8));
    see(need.total_bytes());
    let tables = Tables::expand(codec, any(8), Scratch { tables: slice(), words: slice() })?;
    see((tables.precision(), tables.unions(), tables.classes(), tables.next_states().len()));
    see(any(Table::EMPTY));
    see(tables.weight_symbols(any(0), any(0)).count());

    see((coded.codec_index(), coded.shape(), coded.is_transposed(), coded.elements(), coded.tiles()));
    see(coded.is_direct());
    see((coded.side_bytes(), coded.record_bytes(), coded.bands(), coded.column_blocks()));
    see(coded.tile_of(any(0), any(0), any(0))?);
    geometry_calls(coded.geometry())?;
    let tile = coded.tile(any(0))?;
    tile_calls(&tile, &tables)?;
    output::<f32>(coded, &tile, &tables)?;
    output::<f16>(coded, &tile, &tables)?;
    output::<bf16>(coded, &tile, &tables)?;
    end!(end_of_codec_calls);
    Ok(())
}

fn synthesis_calls(synthesis: Synthesis<'static>) {
    see((synthesis.name(), synthesis.fraction_bits()));
    let mut chunk = Chunk::default();
    synthesis.apply(&mut chunk.latents, any(0));
    synthesis.apply_abreast::<MAX_LANES>(&mut chunk.latents, any(0));
    see(chunk);
    if let Some(network) = Network::new(slice()) {
        see((network.parts(), network.multiplications()));
        see(Synthesis::Learned(network));
    }
    end!(end_of_synthesis_calls);
}

fn tile_calls(tile: &Tile<'_>, tables: &Tables<'_>) -> Result<(), Error> {
    see((tile.region(), tile.rows(), tile.elements(), tile.stream(), tile.row_stream()));
    let values: &mut [RowValue] = slice();
    tile.row_values(tables, values)?;
    let mut decoder: TileDecoder<'_> = tile.decoder(tables, any(Checks::All))?;
    let mut chunk = Chunk::default();
    see(decoder.next_chunk(&mut chunk)?);
    let point = decoder.seek_point();
    point_calls(&point);
    let mut decoder = tile.decoder_at(tables, any(Checks::All), &any(point))?;
    see(decoder.next_chunk(&mut chunk)?);
    see(decoder.next_chunk_by(&any(*tables), values, &mut chunk)?);
    see(&chunk);
    see(any(*tables).decode_rows(Rows {
        words: slice(),
        rans: any(&mut [0; MAX_LANES]),
        trellis: any(&mut [0; MAX_LANES]),
        class: any(&[0; MAX_LANES]),
        row_class: slice(),
        lanes: any(0),
        latents: &mut chunk.latents,
    })?);
    end!(end_of_tile_calls);
    Ok(())
}

fn output<T: Element>(coded: &CodedTensor<'_>, tile: &Tile<'_>, tables: &Tables<'_>) -> Result<(), Error> {
    let out: &mut [T] = slice();
    coded.decode(tables, any(Checks::All), out)?;
    tile.decode(tables, any(Checks::All), out)?;
    tile.decode_strided(tables, any(Checks::All), out, any(0))?;
    coded.decode_output_row(tables, any(Checks::All), any(0), any(0), out)?;
    any(Chunk::default()).write(out, any(0), any(0))?;
    let mut crc = Crc32::new();
    T::from_f32(any(0.0)).update_crc(&mut crc);
    see(any(T::default()).to_f32());
    see(T::DTYPE);
    see(crc.value());
    end!(end_of_output);
    Ok(())
}

/// A container of which only the front is in memory.
fn remote(front: &'static [u8]) -> Result<(), Error> {
    see(Container::front_bytes(front)?);
    let container = Container::open_front(front, any(None), &any(Limits::default()))?;
    let tensor = container.tensor(any(0))?;
    let mut source: &[u8] = slice();
    // Through `any`, because a tensor that has raw bytes is not coded.
    let _ = any(any(tensor).check_raw(&mut source, slice()));
    let _ = any(any(tensor).read_raw(&mut source, any(0), slice()));
    let codec = container.codec(any(0))?;
    let tables = Tables::expand(&codec, any(8), Scratch { tables: slice(), words: slice() })?;
    let coded = any(tensor).remote(&mut source)?;
    geometry_calls(coded.geometry())?;
    let out: &mut [f16] = slice();
    coded.decode(&tables, any(Checks::All), &mut source, slice(), out)?;
    coded.decode_output_row(&tables, any(Checks::All), &mut source, slice(), any((0, 0)), out)?;
    let tile = coded.tile(&mut source, any(0))?;
    see((tile.region(), tile.elements()));
    tile.decode(&tables, any(Checks::All), &mut source, slice(), out)?;
    let mut chunk = Chunk::default();
    let mut decoder = tile.decoder(&tables, any(Checks::All), source, slice())?;
    see(decoder.next_chunk(&mut chunk)?);
    let point = any(decoder.seek_point());
    let mut decoder = tile.decoder_at(&tables, any(Checks::All), source, slice(), &point)?;
    see(decoder.next_chunk(&mut chunk)?);
    see(&chunk);
    end!(end_of_remote);
    Ok(())
}

fn geometry_calls(geometry: &Geometry) -> Result<(), Error> {
    see((geometry.bands(), geometry.column_blocks(), geometry.codec_index(), geometry.lanes()));
    see((geometry.shape(), geometry.is_transposed(), geometry.elements(), geometry.tiles()));
    see(geometry.is_direct());
    see(geometry.record_bytes());
    see(geometry.tile_of(any(0), any(0), any(0))?);
    end!(end_of_geometry_calls);
    Ok(())
}

fn point_calls(point: &SeekPoint) {
    see((point.row(), point.group(), point.words(), point.row_words(), point.row_state()));
    see((point.rans(), point.trellis(), point.column_class(), point.column_scale()));
    end!(end_of_point_calls);
}

fn free_standing() {
    let mut crc = any(Crc32::default());
    crc.update(slice());
    see(crc.value());
    see(Crc32::of(slice()));
    see(scale(any(0)));
    see(any(DType::F32).size());
    see(any(DType::F32).name());
    see(any(DType::F32).code());
    see(DType::from_code(any(0)));
    frequencies(any(0), any(0), |symbol| any(symbol as u8), |symbol, frequency| see((symbol, frequency)));
    end!(end_of_free_standing);
}
