//! Makes a container's checksums right again after a mutation (docs/bitstream.md §2, §3.5, §3.7, §5.2).
//!
//! Without this nearly every mutation ends at a checksum, and what lies behind it is never reached.

use half::{bf16, f16};
use nwc_decode_core::{
    Checks, CodedTensor, Coding, Container, Crc32, DType, Element, Limits, Scratch, SectionKind, Table,
    Tables, Tensor,
};

const HEADER_BYTES: usize = 24;
const SECTION_ENTRY_BYTES: usize = 24;
const RECORD_BYTES: usize = 8;

/// Recomputes the file's length and every CRC, as far as the file can be understood.
pub fn repair(file: &mut [u8]) {
    repair_front(file);
    // Checksums of streams first: those of contents are only asked for where the streams decode.
    let patches = Container::open(file, &Limits::default()).map(|container| item_patches(&container));
    for (at, crc) in patches.unwrap_or_default() {
        if let Some(place) = file.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
            *place = crc.to_le_bytes();
        }
    }
    repair_front(file);
}

/// The length, and the CRCs of sections and header.
fn repair_front(file: &mut [u8]) {
    let len = file.len();
    if len < HEADER_BYTES {
        return;
    }
    file[16..24].copy_from_slice(&(len as u64).to_le_bytes());
    let sections = usize::from(u16::from_le_bytes([file[10], file[11]])).min(32);
    let end = HEADER_BYTES + SECTION_ENTRY_BYTES * sections;
    if end > len {
        return;
    }
    for at in (HEADER_BYTES..end).step_by(SECTION_ENTRY_BYTES) {
        let Some((kind, range)) = section(file, at) else { continue };
        let crc = if kind == SectionKind::Data as u32 { 0 } else { Crc32::of(&file[range]) };
        file[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
    }
    let mut crc = Crc32::new();
    crc.update(&file[..12]);
    crc.update(&file[16..end]);
    file[12..16].copy_from_slice(&crc.value().to_le_bytes());
}

/// Kind and bytes of the section whose entry lies at `at`; `None` if they leave the file.
fn section(file: &[u8], at: usize) -> Option<(u32, std::ops::Range<usize>)> {
    let entry: &[u8; SECTION_ENTRY_BYTES] = file.get(at..)?.first_chunk()?;
    let kind = u32::from_le_bytes(*entry.first_chunk()?) & !(1 << 31);
    let offset = usize::try_from(u64::from_le_bytes(*entry[8..].first_chunk()?)).ok()?;
    let len = usize::try_from(u64::from_le_bytes(*entry[16..].first_chunk()?)).ok()?;
    let range = offset..offset.checked_add(len)?;
    file.get(range.clone())?;
    Some((kind, range))
}

/// Where CRCs of items lie, and what they should be.
fn item_patches(container: &Container<'_>) -> Vec<(usize, u32)> {
    let file = container.file();
    let mut patches = Vec::new();
    let Some(directory) = (0..)
        .map_while(|i| section(file, HEADER_BYTES + SECTION_ENTRY_BYTES * i))
        .find_map(|(kind, range)| (kind == SectionKind::Directory as u32).then_some(range))
    else {
        return patches;
    };
    let names = u32::from_le_bytes(*file[directory.start + 4..].first_chunk().expect("it was opened"));
    let mut entry_end = directory.start + 8 + names as usize;
    let mut left = super::MAX_ELEMENTS;
    for tensor in container.tensors() {
        entry_end += tensor.entry_bytes();
        // Entries of raw and of coded tensors both end in the CRC of their content.
        match tensor.coding() {
            Coding::Raw => {
                if let Ok(bytes) = tensor.raw(Checks::SkipChecksums) {
                    patches.push((entry_end - 4, Crc32::of(bytes)));
                }
            }
            Coding::Coded => {
                let Ok(coded) = tensor.coded() else { continue };
                patches.extend(stream_patches(file, &coded));
                if tensor.elements() <= left {
                    left -= tensor.elements();
                    patches.extend(content_crc(container, &tensor, &coded).map(|crc| (entry_end - 4, crc)));
                }
            }
            Coding::Alias(_) => {}
        }
    }
    patches
}

/// The CRCs in a coded tensor's records, of those streams that can be reached.
fn stream_patches(file: &[u8], coded: &CodedTensor<'_>) -> Vec<(usize, u32)> {
    let place = |stream: &[u8]| stream.as_ptr() as usize - file.as_ptr() as usize;
    let streams = coded.record_bytes() / RECORD_BYTES;
    let row_streams = streams - coded.tiles();
    let column_blocks = coded.tiles() / row_streams.max(1);
    let mut found: Vec<(usize, &[u8])> = Vec::new();
    for number in 0..coded.tiles() {
        let Ok(tile) = coded.tile(number) else { continue };
        found.push((row_streams + number, tile.stream().0));
        if let Some((stream, _)) = tile.row_stream() {
            found.push((number / column_blocks, stream));
        }
    }
    // The first stream follows the records, which nothing else gives the place of.
    let Some(first) = found.iter().find(|(number, _)| *number == 0).map(|(_, stream)| place(stream)) else {
        return Vec::new();
    };
    let records = first - coded.record_bytes();
    found
        .into_iter()
        .map(|(number, stream)| (records + RECORD_BYTES * number + 4, Crc32::of(stream)))
        .collect()
}

/// The CRC of a coded tensor's content, if it decodes.
fn content_crc(container: &Container<'_>, tensor: &Tensor<'_>, coded: &CodedTensor<'_>) -> Option<u32> {
    fn decoded<T: Element>(tables: &Tables<'_>, coded: &CodedTensor<'_>) -> Option<u32> {
        let mut out = vec![T::default(); coded.elements()];
        coded.decode(tables, Checks::SkipChecksums, &mut out).ok()?;
        let mut crc = Crc32::new();
        for weight in &out {
            weight.update_crc(&mut crc);
        }
        Some(crc.value())
    }
    let codec = container.codec(coded.codec_index()).ok()?;
    let need = codec.required_scratch(codec.precision());
    let mut memory = vec![Table::default(); need.tables];
    let mut words = vec![0; need.words];
    let scratch = Scratch { tables: &mut memory, words: &mut words };
    let tables = Tables::expand(&codec, codec.precision(), scratch).ok()?;
    match tensor.dtype() {
        DType::F32 => decoded::<f32>(&tables, coded),
        DType::F16 => decoded::<f16>(&tables, coded),
        DType::BF16 => decoded::<bf16>(&tables, coded),
        _ => None,
    }
}
