//! The file: header, section table, sections (§2), and the attachments (§11).

use crate::bytes::Reader;
use crate::codec::{self, Codec};
use crate::directory::{self, Tensor, TensorIter};
use crate::seek::SeekPoints;
use crate::{Crc32, Error, FORMAT_VERSION, num};

const MAGIC: &[u8] = &[0x89, b'N', b'W', b'C', 0x0D, 0x0A, 0x1A, 0x0A];
const HEADER_BYTES: usize = 24;
const SECTION_ENTRY_BYTES: usize = 24;
const MAX_SECTIONS: usize = 32;
const SECTION_ALIGN: usize = 64;
const REQUIRED: u32 = 1 << 31;
/// A zlib stream cannot inflate to more than this for each of its bytes (§11.1).
const MAX_INFLATION: u64 = 1032;

/// The sections that this decoder knows (§2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum SectionKind {
    /// Names, shapes, codings and places of the tensors.
    Directory = 1,
    /// Quantisers, trellises and probability tables.
    Codecs = 2,
    /// The tensors' bytes.
    Data = 3,
    /// Files that travel with the weights.
    Attachments = 4,
    /// Places from which tiles can be decoded on.
    Seek = 5,
}

/// How much a caller is willing to take on. [`Container::open`] refuses what is larger, before it does the work.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Limits {
    /// Tensors in the directory. Opening takes time proportional to the directory's size.
    pub tensors: u32,
    /// Elements of one tensor.
    pub elements: u64,
    /// Probability tables of one codec; each takes up to 1 KB of words and 2^bits bytes of scratch.
    pub tables: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { tensors: 1 << 20, elements: 1 << 40, tables: 132 }
    }
}

impl Limits {
    /// Limits that also bound the elements of a tensor.
    #[must_use]
    pub const fn with_elements(mut self, elements: u64) -> Self {
        self.elements = elements;
        self
    }

    /// Limits that also bound the number of tensors.
    #[must_use]
    pub const fn with_tensors(mut self, tensors: u32) -> Self {
        self.tensors = tensors;
        self
    }
}

/// Where a section lies in the file, and its checksum.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Section {
    pub(crate) offset: usize,
    pub(crate) len: usize,
    crc: u32,
}

/// A checked view of a container.
///
/// Opening checks the header, the section table, every entry of the directory and every codec. The data itself is checked when
/// it is used: a stream's checksum when it is decoded, a raw tensor's when its bytes are asked for.
#[derive(Debug, Clone, Copy)]
pub struct Container<'a> {
    /// The file, or as much of its front as is in memory.
    front: &'a [u8],
    file_bytes: usize,
    directory: &'a [u8],
    codecs: &'a [u8],
    data: Section,
    attachments: Option<Section>,
    seek: Option<Section>,
}

/// The checked header (§2.1).
struct Header<'a> {
    /// The section table.
    table: &'a [u8],
    /// Length of the file as stated.
    file_bytes: u64,
}

impl<'a> Container<'a> {
    /// The first bytes of a file that [`front_bytes`](Self::front_bytes) looks at, at most.
    pub const HEADER_BYTES: usize = HEADER_BYTES + MAX_SECTIONS * SECTION_ENTRY_BYTES;

    /// Checks a container in memory and gives a view of it.
    ///
    /// # Errors
    /// What is wrong with the file, with the codes of §12, or [`Error::Limit`].
    pub fn open(file: &'a [u8], limits: &Limits) -> Result<Self, Error> {
        Self::check(file, u64::try_from(file.len()).ok(), limits)
    }

    /// How many bytes from the start of the file must be in memory for [`open_front`](Self::open_front): up to the end of the directory and the
    /// codecs. `start` are the first [`HEADER_BYTES`](Self::HEADER_BYTES) of the file, or all if it has fewer. The number is the file's claim:
    /// compare it with the memory that there is.
    ///
    /// # Errors
    /// What is wrong with the header.
    pub fn front_bytes(start: &[u8]) -> Result<usize, Error> {
        let header = Header::read(start)?;
        let mut table = Reader::new(header.table);
        let mut front = HEADER_BYTES.saturating_add(header.table.len());
        while let Some(entry) = SectionEntry::read(&mut table) {
            if matches!(entry.kind & !REQUIRED, 1 | 2) {
                let end = entry.offset.checked_add(entry.len).filter(|&end| end <= header.file_bytes);
                let end = end.and_then(|end| usize::try_from(end).ok()).ok_or(Error::Sections)?;
                front = front.max(end);
            }
        }
        Ok(front)
    }

    /// Checks a container of which only the front is in memory: [`front_bytes`](Self::front_bytes), or more. `file_bytes` is the length of the file, if
    /// it is known; else the length that it states is believed. Tensors whose bytes are not in memory decode through
    /// [`Tensor::remote`] and [`Tensor::read_raw`]. What lies between sections behind the front is not looked at.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Error::Source`] if less than the front is there.
    pub fn open_front(front: &'a [u8], file_bytes: Option<u64>, limits: &Limits) -> Result<Self, Error> {
        Self::check(front, file_bytes, limits)
    }

    fn check(front: &'a [u8], file_bytes: Option<u64>, limits: &Limits) -> Result<Self, Error> {
        let header = Header::read(front)?;
        let known = file_bytes.unwrap_or(header.file_bytes);
        if known != header.file_bytes {
            return Err(if known > header.file_bytes { Error::Sections } else { Error::Truncated });
        }
        let file_bytes = usize::try_from(known).map_err(|_| Error::Truncated)?;

        let mut found: [Option<Section>; 6] = [None; 6];
        let mut end = HEADER_BYTES.saturating_add(header.table.len());
        let mut kinds = [None; MAX_SECTIONS];
        let mut table = Reader::new(header.table);
        for seen in 0..MAX_SECTIONS {
            let Some(entry) = SectionEntry::read(&mut table) else { break };
            let section = entry.place(front, file_bytes, end)?;
            end = section.offset.saturating_add(section.len);
            let (kind, required) = (entry.kind & !REQUIRED, entry.kind & REQUIRED != 0);
            if kinds.iter().take(seen).any(|&before| before == Some(kind)) {
                return Err(Error::Sections);
            }
            if let Some(place) = kinds.get_mut(seen) {
                *place = Some(kind);
            }
            match found.get_mut(num::index(kind)) {
                Some(slot @ None) if kind != 0 => {
                    if required != (kind <= 3) {
                        return Err(Error::Sections);
                    }
                    *slot = Some(section);
                }
                Some(_) => return Err(Error::Sections),
                None if required => return Err(Error::UnknownSection),
                None => {}
            }
        }
        if end != file_bytes {
            return Err(Error::Sections);
        }
        let [_, Some(directory), Some(codecs), Some(data), attachments, seek] = found else {
            return Err(Error::Sections);
        };
        if data.crc != 0 {
            return Err(Error::Sections);
        }
        let container = Self {
            front,
            file_bytes,
            directory: directory.checked(front)?,
            codecs: codecs.checked(front)?,
            data,
            attachments,
            seek,
        };
        codec::check(container.codecs, limits)?;
        directory::check(&container, limits)?;
        Ok(container)
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.tensors().len()
    }

    /// True when there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tensors in the order of the directory. Each step takes time proportional to one entry.
    pub fn tensors(&self) -> TensorIter<'a> {
        directory::iter(self)
    }

    /// The tensor at a position in the directory; takes time proportional to the position.
    ///
    /// # Errors
    /// [`Error::Index`] if there is none.
    pub fn tensor(&self, index: usize) -> Result<Tensor<'a>, Error> {
        self.tensors().nth(index).ok_or(Error::Index)
    }

    /// The tensor of this name; takes time proportional to the directory.
    pub fn find(&self, name: &str) -> Option<Tensor<'a>> {
        self.tensors().find(|tensor| tensor.name() == *name)
    }

    /// The number of codecs.
    pub fn codec_count(&self) -> usize {
        codec::count(self.codecs)
    }

    /// A codec by its number.
    ///
    /// # Errors
    /// [`Error::Index`] if there is none.
    pub fn codec(&self, index: usize) -> Result<Codec<'a>, Error> {
        codec::nth(self.codecs, index)
    }

    /// The attached files; takes time proportional to the attachments' stored size, for their checksum.
    ///
    /// # Errors
    /// [`Error::SectionChecksum`] or [`Error::Attachment`]; [`Error::Source`] if they are not in memory.
    pub fn attachments(&self) -> Result<Attachments<'a>, Error> {
        let Some(section) = self.attachments else {
            return Ok(Attachments { left: 0, reader: Reader::new(&[]) });
        };
        let mut reader = Reader::new(section.checked(self.front)?);
        let left = reader.u32().ok_or(Error::Attachment)?;
        let attachments = Attachments { left, reader };
        // Walk them once, so that the iterator that is handed out cannot fail.
        let mut walk = attachments.clone();
        for _ in 0..left {
            walk.read().ok_or(Error::Attachment)?;
        }
        if walk.reader.rest.is_empty() { Ok(attachments) } else { Err(Error::Attachment) }
    }

    /// The stored seek points; takes time proportional to their section and to the directory.
    ///
    /// # Errors
    /// [`Error::SectionChecksum`] or [`Error::Seek`]; [`Error::Source`] if they are not in memory.
    pub fn seek_points(&self) -> Result<SeekPoints<'a>, Error> {
        let section = self.seek.map(|section| section.checked(self.front)).transpose()?;
        SeekPoints::new(self, section)
    }

    /// The bytes of the file that are in memory: all of them, or its front.
    pub const fn file(&self) -> &'a [u8] {
        self.front
    }

    /// The size of the whole file in bytes.
    pub const fn file_bytes(&self) -> usize {
        self.file_bytes
    }

    /// The size in bytes of a section; 0 if it is not there.
    pub fn section_bytes(&self, kind: SectionKind) -> usize {
        match kind {
            SectionKind::Directory => self.directory.len(),
            SectionKind::Codecs => self.codecs.len(),
            SectionKind::Data => self.data.len,
            SectionKind::Attachments => self.attachments.map_or(0, |section| section.len),
            SectionKind::Seek => self.seek.map_or(0, |section| section.len),
        }
    }

    pub(crate) const fn directory(&self) -> &'a [u8] {
        self.directory
    }

    pub(crate) const fn data(&self) -> Section {
        self.data
    }
}

impl<'a> Header<'a> {
    fn read(start: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(start);
        let Some(magic) = reader.take(MAGIC.len()) else {
            // Whether a stub could have become a container decides which message helps.
            return Err(if MAGIC.starts_with(start) { Error::Truncated } else { Error::Magic });
        };
        if magic != MAGIC {
            return Err(Error::Magic);
        }
        let version = reader.u16().ok_or(Error::Truncated)?;
        if version != FORMAT_VERSION {
            return Err(Error::Version);
        }
        let sections = reader.u16().ok_or(Error::Truncated)?;
        let stated_crc = reader.u32().ok_or(Error::Truncated)?;
        let file_bytes = reader.u64().ok_or(Error::Truncated)?;
        if !(1..=MAX_SECTIONS).contains(&usize::from(sections)) {
            return Err(Error::Sections);
        }
        let table_bytes = usize::from(sections).saturating_mul(SECTION_ENTRY_BYTES);
        let table = reader.take(table_bytes).ok_or(Error::Truncated)?;
        let mut crc = Crc32::new();
        crc.update(start.get(..12).ok_or(Error::Truncated)?);
        crc.update(start.get(16..HEADER_BYTES).ok_or(Error::Truncated)?);
        crc.update(table);
        if !crc.is(stated_crc) {
            return Err(Error::HeaderChecksum);
        }
        Ok(Self { table, file_bytes })
    }
}

/// One entry of the section table (§2.2).
struct SectionEntry {
    kind: u32,
    crc: u32,
    offset: u64,
    len: u64,
}

impl SectionEntry {
    fn read(table: &mut Reader<'_>) -> Option<Self> {
        Some(Self { kind: table.u32()?, crc: table.u32()?, offset: table.u64()?, len: table.u64()? })
    }

    /// Checks the section's place; `end` is where the section before it ends. Of the gap between them only what is in memory can be looked at.
    fn place(&self, front: &[u8], file_bytes: usize, end: usize) -> Result<Section, Error> {
        let offset = usize::try_from(self.offset).map_err(|_| Error::Sections)?;
        let len = usize::try_from(self.len).map_err(|_| Error::Sections)?;
        let stop = offset.checked_add(len).ok_or(Error::Sections)?;
        let gap = offset.checked_sub(end).ok_or(Error::Sections)?;
        let gap_in_memory = front.get(end.min(front.len())..offset.min(front.len())).unwrap_or(&[]);
        if stop > file_bytes
            || offset % SECTION_ALIGN != 0
            || gap >= SECTION_ALIGN
            || gap_in_memory.iter().any(|&byte| byte != 0)
        {
            return Err(Error::Sections);
        }
        Ok(Section { offset, len, crc: self.crc })
    }
}

impl Section {
    /// The section's bytes, compared with its checksum.
    fn checked<'a>(&self, front: &'a [u8]) -> Result<&'a [u8], Error> {
        let bytes = part_of(front, self.offset, self.len).ok_or(Error::Source)?;
        if Crc32::fits(bytes, self.crc) { Ok(bytes) } else { Err(Error::SectionChecksum) }
    }
}

/// A part of the file, if it is in memory. No bytes are always there.
pub(crate) fn part_of(front: &[u8], offset: usize, len: usize) -> Option<&[u8]> {
    if len == 0 { Some(&[]) } else { front.get(offset..offset.checked_add(len)?) }
}

/// A file that travels with the weights (§11.1).
#[derive(Debug, Clone, Copy)]
pub struct Attachment<'a> {
    /// Its name. Hostile until checked: refuse any that is not a plain file name.
    pub name: &'a str,
    /// True when `stored` is a zlib stream, false when it is the content itself.
    pub zlib: bool,
    /// Length of the content in bytes, as stated.
    pub len: u64,
    /// CRC-32 of the content.
    pub crc: u32,
    /// The stored bytes.
    pub stored: &'a [u8],
}

/// Iterator over the attached files.
#[derive(Debug, Clone)]
pub struct Attachments<'a> {
    left: u32,
    reader: Reader<'a>,
}

impl<'a> Attachments<'a> {
    fn read(&mut self) -> Option<Attachment<'a>> {
        let name_len = self.reader.varint_usize()?;
        let name = core::str::from_utf8(self.reader.take(name_len)?).ok()?;
        let method = self.reader.u8()?;
        let len = self.reader.varint()?;
        let stored_len = self.reader.varint_usize()?;
        let crc = self.reader.u32()?;
        let stored = self.reader.take(stored_len)?;
        let consistent = match method {
            0 => u64::try_from(stored_len).ok()? == len,
            1 => len <= u64::try_from(stored_len).ok()?.saturating_mul(MAX_INFLATION),
            _ => false,
        };
        consistent.then_some(Attachment { name, zlib: method == 1, len, crc, stored })
    }
}

impl<'a> Iterator for Attachments<'a> {
    type Item = Attachment<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        self.read()
    }
}
