//! Writing containers (docs/bitstream.md §2, §3, §11), and where a container's bytes went.

use std::collections::HashMap;
use std::io::{self, Write};

use flate2::Compression;
use flate2::write::ZlibEncoder;
use nwc_decode_core::{Coding, Container, DType, FORMAT_VERSION, SectionKind};
use serde::Serialize;

use crate::latents::{NETWORK_ATTACHMENT, TENSORS_ATTACHMENT, attachment_bytes};
use crate::{Error, Result, seek};

const MAGIC: [u8; 8] = [0x89, b'N', b'W', b'C', 0x0D, 0x0A, 0x1A, 0x0A];
const HEADER_BYTES: usize = 24;
const SECTION_ENTRY_BYTES: usize = 24;
const SECTION_ALIGN: u64 = 64;
const REQUIRED: u32 = 1 << 31;
/// Items of this size and more start at multiples of 64, smaller ones at multiples of 4: the padding stays below 0.2 % of the item.
const ALIGNED_ITEM: u64 = 16 << 10;
const MAX_FRAGMENTS: usize = 16;
const MAX_FRAGMENT_BYTES: usize = 255;

/// A tensor of the directory.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its dtype.
    pub dtype: DType,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub kind: EntryKind,
}

/// How a tensor is stored.
#[derive(Debug, Clone)]
pub enum EntryKind {
    /// As it was.
    Raw {
        /// CRC-32 of its bytes.
        crc: u32,
        /// Number of its bytes.
        len: u64,
    },
    /// It is the tensor of this index.
    Alias(usize),
    /// Quantised and entropy-coded.
    Coded(CodedEntry),
}

/// What a coded tensor's entry says (§3.7).
#[derive(Debug, Clone)]
#[allow(missing_docs)] // The fields are those of the table there.
pub struct CodedEntry {
    pub transposed: bool,
    pub batched: bool,
    pub direct: bool,
    pub codec: u8,
    pub lanes: u8,
    pub columns_per_lane: u64,
    pub tile_rows: u64,
    pub step: i32,
    pub class_base: u8,
    pub side: u8,
    pub row_shift: u8,
    pub column_shift: u8,
    pub len: u64,
    pub content_crc: u32,
}

/// A container's parts but for the items of its DATA section, laid out.
#[derive(Debug)]
pub struct Layout<'a> {
    directory: Vec<u8>,
    codecs: Vec<u8>,
    /// Zeros of the right number until [`set_seek_points`](Self::set_seek_points).
    seek: Vec<u8>,
    attachments: &'a [u8],
    /// Zero bytes before the item of each entry.
    gaps: Vec<u64>,
    data_len: u64,
    /// Bytes of raw tensors and of the entries of raw tensors and aliases.
    raw_bytes: u64,
}

impl<'a> Layout<'a> {
    /// Lays out a container, with a seek point at least every `seek_rows` rows of a group of columns; none if it is 0.
    ///
    /// # Errors
    /// A name that the format cannot hold.
    pub fn new(
        entries: &[Entry],
        codecs: &[Vec<u8>],
        attachments: &'a [u8],
        seek_rows: usize,
    ) -> Result<Self> {
        let seek = vec![0; seek::section_bytes(entries, codecs, seek_rows) as usize];
        let mut names = NameTable::default();
        let mut fields = Vec::new();
        let mut gaps = Vec::with_capacity(entries.len());
        let (mut data_len, mut raw_bytes) = (0u64, 0u64);
        for entry in entries {
            let before = fields.len();
            let len = match &entry.kind {
                EntryKind::Raw { len, .. } => *len,
                EntryKind::Alias(_) => 0,
                EntryKind::Coded(coded) => coded.len,
            };
            let align = if len >= ALIGNED_ITEM { SECTION_ALIGN } else { 4 };
            // Nothing follows the last item, so an item's padding lies before it; an empty one needs none.
            let gap = if len == 0 { 0 } else { data_len.next_multiple_of(align) - data_len };
            gaps.push(gap);
            data_len += gap + len;
            write_entry(&mut fields, &mut names, entry, gap)?;
            if !matches!(entry.kind, EntryKind::Coded(_)) {
                raw_bytes += len + (fields.len() - before) as u64;
            }
        }
        let mut directory = Vec::with_capacity(8 + names.bytes.len() + fields.len());
        directory.extend((entries.len() as u32).to_le_bytes());
        directory.extend((names.bytes.len() as u32).to_le_bytes());
        directory.extend(names.bytes);
        directory.extend(fields);
        let mut section = vec![u8::try_from(codecs.len()).map_err(|_| Error::input("more than 255 codecs"))?];
        for codec in codecs {
            section.extend((codec.len() as u32).to_le_bytes());
            section.extend(codec);
        }
        Ok(Self { directory, codecs: section, seek, attachments, gaps, data_len, raw_bytes })
    }

    /// Fills in the seek points, which are known when everything else is written.
    pub(crate) fn set_seek_points(&mut self, section: Vec<u8>) {
        assert_eq!(self.seek.len(), section.len(), "the size of the section is known beforehand");
        self.seek = section;
    }

    /// Kind, offset and length of each section.
    fn sections(&self) -> Vec<(u32, u64, u64)> {
        let mut parts = vec![
            (SectionKind::Directory as u32 | REQUIRED, self.directory.len() as u64),
            (SectionKind::Codecs as u32 | REQUIRED, self.codecs.len() as u64),
        ];
        if !self.seek.is_empty() {
            parts.push((SectionKind::Seek as u32, self.seek.len() as u64));
        }
        parts.push((SectionKind::Data as u32 | REQUIRED, self.data_len));
        if !self.attachments.is_empty() {
            parts.push((SectionKind::Attachments as u32, self.attachments.len() as u64));
        }
        let mut end = (HEADER_BYTES + SECTION_ENTRY_BYTES * parts.len()) as u64;
        let place = |(kind, len)| {
            let offset = end.next_multiple_of(SECTION_ALIGN);
            end = offset + len;
            (kind, offset, len)
        };
        parts.into_iter().map(place).collect()
    }

    /// Size of the file.
    pub fn file_bytes(&self) -> u64 {
        self.sections().last().map_or(0, |(_, offset, len)| offset + len)
    }

    /// Bytes that decoding the coded weights needs: the whole file without raw tensors and attachments.
    pub fn counted_bytes(&self) -> u64 {
        self.file_bytes() - self.raw_bytes - self.attachments.len() as u64
    }

    /// Writes everything from the start of the file up to the DATA section.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_front(&self, out: &mut impl Write) -> io::Result<()> {
        let sections = self.sections();
        let mut table = Vec::new();
        for &(kind, offset, len) in &sections {
            let crc = if kind & !REQUIRED == 3 { 0 } else { crc32fast::hash(self.section(kind)) };
            table.extend(kind.to_le_bytes());
            table.extend(crc.to_le_bytes());
            table.extend(offset.to_le_bytes());
            table.extend(len.to_le_bytes());
        }
        let mut first = MAGIC.to_vec();
        first.extend(FORMAT_VERSION.to_le_bytes());
        first.extend((sections.len() as u16).to_le_bytes());
        let len = self.file_bytes().to_le_bytes();
        let mut crc = crc32fast::Hasher::new();
        [first.as_slice(), &len, &table].into_iter().for_each(|part| crc.update(part));
        first.extend(crc.finalize().to_le_bytes());
        first.extend(len);
        first.extend(table);
        for &(kind, offset, _) in &sections {
            first.resize(offset as usize, 0);
            if kind & !REQUIRED == 3 {
                break;
            }
            first.extend(self.section(kind));
        }
        out.write_all(&first)
    }

    /// The bytes of a section other than DATA.
    fn section(&self, kind: u32) -> &[u8] {
        match kind & !REQUIRED {
            1 => &self.directory,
            2 => &self.codecs,
            4 => self.attachments,
            _ => &self.seek,
        }
    }

    /// Writes the padding before the item of an entry; the item's bytes must follow.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_gap(&self, out: &mut impl Write, entry: usize) -> io::Result<()> {
        out.write_all(&[0; SECTION_ALIGN as usize][..self.gaps[entry] as usize])
    }

    /// Writes what follows the DATA section.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_back(&self, out: &mut impl Write) -> io::Result<()> {
        if let [.., (_, data, data_len), (4, offset, _)] = self.sections()[..] {
            out.write_all(&vec![0; (offset - data - data_len) as usize])?;
            out.write_all(self.attachments)?;
        }
        Ok(())
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn zigzag_varint(out: &mut Vec<u8>, value: i64) {
    varint(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

fn write_entry(out: &mut Vec<u8>, names: &mut NameTable, entry: &Entry, gap: u64) -> Result<()> {
    out.push(match entry.kind {
        EntryKind::Raw { .. } => 0,
        EntryKind::Coded(_) => 1,
        EntryKind::Alias(_) => 2,
    });
    names.write(out, &entry.name)?;
    out.push(entry.dtype.code());
    let dims = u8::try_from(entry.shape.len()).ok().filter(|&dims| dims <= 8).ok_or_else(|| {
        Error::input(format!("{} dimensions, at most 8 can be stored", entry.shape.len())).tensor(&entry.name)
    })?;
    out.push(dims);
    entry.shape.iter().for_each(|&dim| varint(out, dim as u64));
    match &entry.kind {
        EntryKind::Raw { crc, .. } => {
            varint(out, gap);
            out.extend(crc.to_le_bytes());
        }
        EntryKind::Alias(target) => varint(out, *target as u64),
        EntryKind::Coded(coded) => {
            out.extend([
                u8::from(coded.transposed) | u8::from(coded.batched) << 1 | u8::from(coded.direct) << 2,
                1,
                coded.codec,
                coded.lanes,
            ]);
            varint(out, coded.columns_per_lane);
            varint(out, coded.tile_rows);
            zigzag_varint(out, i64::from(coded.step));
            out.extend([coded.class_base, coded.side, coded.row_shift | coded.column_shift << 4]);
            varint(out, gap);
            varint(out, coded.len);
            out.extend(coded.content_crc.to_le_bytes());
        }
    }
    Ok(())
}

/// The fragments that names share (§3.2).
#[derive(Default)]
struct NameTable {
    bytes: Vec<u8>,
    offsets: HashMap<String, u64>,
}

impl NameTable {
    fn write(&mut self, out: &mut Vec<u8>, name: &str) -> Result<()> {
        let fragments = fragments(name);
        if fragments.len() > MAX_FRAGMENTS
            || fragments.iter().any(|f| f.is_empty() || f.len() > MAX_FRAGMENT_BYTES)
        {
            return Err(Error::input("its name is empty or too long to be stored")
                .tensor(name)
                .remedy("rename the tensor to between 1 and 255 bytes"));
        }
        varint(out, fragments.len() as u64);
        for fragment in fragments {
            let offset = *self.offsets.entry(fragment.to_owned()).or_insert_with(|| {
                let offset = self.bytes.len() as u64;
                self.bytes.push(fragment.len() as u8);
                self.bytes.extend(fragment.as_bytes());
                offset
            });
            varint(out, offset);
        }
        Ok(())
    }
}

/// Cuts a name where many names agree before and after: around numbers between dots.
fn fragments(name: &str) -> Vec<&str> {
    let mut fragments = Vec::new();
    let (mut first, mut at) = (0, 0);
    for part in name.split('.') {
        let end = at + part.len();
        let number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if number && at > first {
            fragments.push(&name[first..at - 1]);
            first = at;
        }
        if number && end < name.len() {
            fragments.push(&name[first..end]);
            first = end + 1;
        }
        at = end + 1;
    }
    if first <= name.len() {
        fragments.push(&name[first..]);
    }
    // Uncommon names: whole if that is legal where the pieces are not.
    if fragments.iter().any(|fragment| fragment.is_empty()) || fragments.len() > MAX_FRAGMENTS {
        return vec![name];
    }
    fragments
}

/// The ATTACHMENTS section of some files (§11).
///
/// # Errors
/// Those of the compressor.
pub fn attachments_section(files: &[(String, Vec<u8>)]) -> io::Result<Vec<u8>> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let mut out = (files.len() as u32).to_le_bytes().to_vec();
    for (name, content) in files {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(content)?;
        let deflated = encoder.finish()?;
        let (method, stored) = if deflated.len() < content.len() { (1, &deflated) } else { (0, content) };
        varint(&mut out, name.len() as u64);
        out.extend(name.as_bytes());
        out.push(method);
        varint(&mut out, content.len() as u64);
        varint(&mut out, stored.len() as u64);
        out.extend(crc32fast::hash(content).to_le_bytes());
        out.extend(stored);
    }
    Ok(out)
}

/// Where a container's bytes went. The parts sum to the file's size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Split {
    /// Streams of tiles: lane states and words. What columns' classes cost is in here.
    pub payload: u64,
    /// Streams of rows' side information; deviations and levels that go with latents.
    pub side: u64,
    /// Probability tables.
    pub tables: u64,
    /// The rest of the codecs, and the network that makes weights of latents.
    pub codec: u64,
    /// Header, section table, directory, seek points, padding, and the ends and checksums of streams.
    pub directory: u64,
    /// Raw tensors with their directory entries.
    pub raw: u64,
    /// Attached files.
    pub attachments: u64,
}

impl Split {
    /// Measures a container.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(container: &Container<'_>) -> Result<Self, nwc_decode_core::Error> {
        let mut split =
            Self { attachments: container.section_bytes(SectionKind::Attachments) as u64, ..Self::default() };
        for index in 0..container.codec_count() {
            split.tables += container.codec(index)?.table_bytes() as u64;
        }
        split.codec = container.section_bytes(SectionKind::Codecs) as u64 - split.tables;
        for tensor in container.tensors() {
            match tensor.coding() {
                Coding::Coded => {
                    let coded = tensor.coded()?;
                    let streams = tensor.stored_bytes() - coded.record_bytes();
                    // Where row streams end is only checked when a tile needs them.
                    let payload = streams.checked_sub(coded.side_bytes());
                    split.payload += payload.ok_or(nwc_decode_core::Error::Geometry)? as u64;
                    split.side += coded.side_bytes() as u64;
                }
                Coding::Raw | Coding::Alias(_) => {
                    split.raw += (tensor.stored_bytes() + tensor.entry_bytes()) as u64;
                }
            }
        }
        // A network that weights are restored with, and what it needs to know of each tensor, are no files of the user's. Attachments that cannot be read are all counted as such.
        for attachment in container.attachments().into_iter().flatten() {
            let part = match attachment.name {
                NETWORK_ATTACHMENT => &mut split.codec,
                TENSORS_ATTACHMENT => &mut split.side,
                _ => continue,
            };
            let bytes = attachment_bytes(&attachment);
            *part += bytes;
            split.attachments -= bytes;
        }
        let rest = split.payload + split.side + split.tables + split.codec + split.raw + split.attachments;
        split.directory = container.file_bytes() as u64 - rest;
        Ok(split)
    }

    /// Bytes of the whole file.
    pub fn bytes(&self) -> u64 {
        self.counted() + self.raw + self.attachments
    }

    /// Bytes that decoding the coded weights needs.
    pub fn counted(&self) -> u64 {
        self.payload + self.side + self.tables + self.codec + self.directory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_around_numbers_and_join_again() {
        for (name, pieces) in [
            (
                "model.layers.12.self_attn.q_proj.weight",
                vec!["model.layers", "12", "self_attn.q_proj.weight"],
            ),
            ("logit_scale", vec!["logit_scale"]),
            ("0.weight", vec!["0", "weight"]),
            ("a.0", vec!["a", "0"]),
            ("a.0.1.b", vec!["a", "0", "1", "b"]),
            ("a..b", vec!["a..b"]),
            ("a.0.", vec!["a.0."]),
            (".5", vec![".5"]),
        ] {
            assert_eq!(fragments(name), pieces);
            assert_eq!(fragments(name).join("."), name);
        }
    }
}
