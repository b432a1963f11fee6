//! The file: header, section table, sections (§2), and the attachments (§11).

use crate::bytes::Reader;
use crate::codec::{self, Codec};
use crate::directory::{self, Tensor, TensorIter};
use crate::{Crc32, Error, FORMAT_VERSION};

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

/// A section's bytes and where they begin in the file.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Section<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) offset: usize,
}

/// A checked view of a whole container in memory.
///
/// Opening checks the header, the section table, every entry of the directory and every codec. The data itself is checked when
/// it is used: a stream's checksum when it is decoded, a raw tensor's when its bytes are asked for.
#[derive(Debug, Clone, Copy)]
pub struct Container<'a> {
    file: &'a [u8],
    directory: Section<'a>,
    codecs: Section<'a>,
    data: Section<'a>,
    attachments: Option<Section<'a>>,
    attachments_crc: u32,
}

impl<'a> Container<'a> {
    /// Checks a container and gives a view of it.
    ///
    /// # Errors
    /// What is wrong with the file, with the codes of §12, or [`Error::Limit`].
    pub fn open(file: &'a [u8], limits: &Limits) -> Result<Self, Error> {
        let mut reader = Reader::new(file);
        let Some(magic) = reader.take(MAGIC.len()) else {
            // Whether a stub could have become a container decides which message helps.
            return Err(if MAGIC.starts_with(file) { Error::Truncated } else { Error::Magic });
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
        let stated_len = reader.u64().ok_or(Error::Truncated)?;
        if !(1..=MAX_SECTIONS).contains(&usize::from(sections)) {
            return Err(Error::Sections);
        }
        let table_bytes = usize::from(sections).saturating_mul(SECTION_ENTRY_BYTES);
        let table = reader.take(table_bytes).ok_or(Error::Truncated)?;
        let mut crc = Crc32::new();
        crc.update(file.get(..12).ok_or(Error::Truncated)?);
        crc.update(file.get(16..HEADER_BYTES).ok_or(Error::Truncated)?);
        crc.update(table);
        if !crc.is(stated_crc) {
            return Err(Error::HeaderChecksum);
        }
        match usize::try_from(stated_len) {
            Ok(len) if len == file.len() => {}
            Ok(len) if len < file.len() => return Err(Error::Sections),
            _ => return Err(Error::Truncated),
        }

        let mut found: [Option<(Section<'a>, u32)>; 5] = [None; 5];
        let mut end = HEADER_BYTES.saturating_add(table_bytes);
        let mut kinds = [None; MAX_SECTIONS];
        let mut table = Reader::new(table);
        for seen in 0..usize::from(sections) {
            let (kind, crc, section) = read_section(&mut table, file, end)?;
            if kinds.iter().take(seen).any(|&before| before == Some(kind & !REQUIRED)) {
                return Err(Error::Sections);
            }
            if let Some(place) = kinds.get_mut(seen) {
                *place = Some(kind & !REQUIRED);
            }
            end = section.offset.saturating_add(section.bytes.len());
            let required = kind & REQUIRED != 0;
            match found.get_mut(crate::num::index(kind & !REQUIRED)) {
                Some(slot @ None) if kind & !REQUIRED != 0 => {
                    if required != (kind & !REQUIRED <= 3) {
                        return Err(Error::Sections);
                    }
                    *slot = Some((section, crc));
                }
                Some(_) => return Err(Error::Sections),
                None if required => return Err(Error::UnknownSection),
                None => {}
            }
        }
        if end != file.len() {
            return Err(Error::Sections);
        }
        let [
            _,
            Some((directory, directory_crc)),
            Some((codecs, codecs_crc)),
            Some((data, data_crc)),
            attachments,
        ] = found
        else {
            return Err(Error::Sections);
        };
        if data_crc != 0 {
            return Err(Error::Sections);
        }
        if !Crc32::fits(directory.bytes, directory_crc) || !Crc32::fits(codecs.bytes, codecs_crc) {
            return Err(Error::SectionChecksum);
        }
        let container = Self {
            file,
            directory,
            codecs,
            data,
            attachments: attachments.map(|(section, _)| section),
            attachments_crc: attachments.map_or(0, |(_, crc)| crc),
        };
        codec::check(codecs.bytes, limits)?;
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
        codec::count(self.codecs.bytes)
    }

    /// A codec by its number.
    ///
    /// # Errors
    /// [`Error::Index`] if there is none.
    pub fn codec(&self, index: usize) -> Result<Codec<'a>, Error> {
        codec::nth(self.codecs.bytes, index)
    }

    /// The attached files; takes time proportional to the attachments' stored size, for their checksum.
    ///
    /// # Errors
    /// [`Error::SectionChecksum`] or [`Error::Attachment`].
    pub fn attachments(&self) -> Result<Attachments<'a>, Error> {
        let Some(section) = self.attachments else {
            return Ok(Attachments { left: 0, reader: Reader::new(&[]) });
        };
        if !Crc32::fits(section.bytes, self.attachments_crc) {
            return Err(Error::SectionChecksum);
        }
        let mut reader = Reader::new(section.bytes);
        let left = reader.u32().ok_or(Error::Attachment)?;
        let attachments = Attachments { left, reader };
        // Walk them once, so that the iterator that is handed out cannot fail.
        let mut walk = attachments.clone();
        for _ in 0..left {
            walk.read().ok_or(Error::Attachment)?;
        }
        if walk.reader.rest.is_empty() { Ok(attachments) } else { Err(Error::Attachment) }
    }

    /// The bytes of the whole file.
    pub const fn file(&self) -> &'a [u8] {
        self.file
    }

    /// The size in bytes of a section; 0 if it is not there.
    pub fn section_bytes(&self, kind: SectionKind) -> usize {
        match kind {
            SectionKind::Directory => self.directory.bytes.len(),
            SectionKind::Codecs => self.codecs.bytes.len(),
            SectionKind::Data => self.data.bytes.len(),
            SectionKind::Attachments => self.attachments.map_or(0, |section| section.bytes.len()),
        }
    }

    pub(crate) const fn directory(&self) -> &'a [u8] {
        self.directory.bytes
    }

    pub(crate) const fn data(&self) -> Section<'a> {
        self.data
    }
}

/// One entry of the section table (§2.2); `end` is where the section before it ends.
fn read_section<'a>(
    table: &mut Reader<'_>,
    file: &'a [u8],
    end: usize,
) -> Result<(u32, u32, Section<'a>), Error> {
    let mut field = || Some((table.u32()?, table.u32()?, table.u64()?, table.u64()?));
    let (kind, crc, offset, len) = field().ok_or(Error::Truncated)?;
    let offset = usize::try_from(offset).map_err(|_| Error::Sections)?;
    let len = usize::try_from(len).map_err(|_| Error::Sections)?;
    let stop = offset.checked_add(len).ok_or(Error::Sections)?;
    let gap = file.get(end..offset).ok_or(Error::Sections)?;
    let bytes = file.get(offset..stop).ok_or(Error::Sections)?;
    if offset % SECTION_ALIGN != 0 || gap.len() >= SECTION_ALIGN || gap.iter().any(|&byte| byte != 0) {
        return Err(Error::Sections);
    }
    Ok((kind, crc, Section { bytes, offset }))
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
