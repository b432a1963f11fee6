//! The directory: names, shapes, codings and places of the tensors (§3).

use core::fmt;

use crate::bytes::Reader;
use crate::codec::SideTable;
use crate::coded::CodedTensor;
use crate::container::{Section, part_of};
use crate::geometry::Geometry;
use crate::remote::{ReadAt, RemoteTensor};
use crate::{Container, Crc32, DType, Error, Limits, Tables, num, remote};

const MAX_DIMS: usize = 8;
const MAX_FRAGMENTS: u64 = 16;
const MAX_GAP: usize = 63;
const MAX_ELEMENTS: u64 = 1 << 40;

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// Its bytes as they were.
    Raw,
    /// Quantised and entropy-coded.
    Coded,
    /// It is the tensor at this position of the directory.
    Alias(usize),
}

/// A tensor's name: fragments of a shared table, joined by dots (§3.2). Compare it, print it, or walk its fragments.
#[derive(Clone, Copy)]
pub struct Name<'a> {
    table: &'a [u8],
    count: u64,
    offsets: Reader<'a>,
}

impl<'a> Name<'a> {
    /// The fragments, without the dots between them.
    pub fn fragments(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let (table, mut offsets) = (self.table, self.offsets);
        (0..self.count).map_while(move |_| {
            let (_, from) = table.split_at_checked(offsets.varint_usize()?)?;
            let mut from = Reader::new(from);
            let len = from.u8().filter(|&len| len > 0)?;
            core::str::from_utf8(from.take(usize::from(len))?).ok()
        })
    }
}

impl PartialEq<str> for Name<'_> {
    fn eq(&self, other: &str) -> bool {
        let mut rest = Some(other);
        for (i, fragment) in self.fragments().enumerate() {
            rest = rest.and_then(|rest| if i == 0 { Some(rest) } else { rest.strip_prefix('.') });
            rest = rest.and_then(|rest| rest.strip_prefix(fragment));
        }
        rest == Some("")
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fragment) in self.fragments().enumerate() {
            if i > 0 {
                f.write_str(".")?;
            }
            f.write_str(fragment)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// What only a coded tensor's entry has (§3.7).
#[derive(Debug, Clone, Copy)]
pub(crate) struct CodedEntry {
    pub(crate) transposed: bool,
    pub(crate) batched: bool,
    pub(crate) direct: bool,
    pub(crate) codec: u8,
    pub(crate) lanes: u32,
    pub(crate) columns_per_lane: u32,
    pub(crate) tile_rows: u32,
    pub(crate) step: i32,
    pub(crate) class_base: u8,
    pub(crate) side: u8,
    pub(crate) row_shift: u32,
    pub(crate) column_shift: u32,
    pub(crate) content_crc: u32,
}

impl CodedEntry {
    /// The table of a kind of side information; `None` if the tensor has none of it.
    ///
    /// # Errors
    /// [`Error::Coding`] if it has, but these tables do not.
    pub(crate) fn table(&self, kind: SideTable, tables: &Tables<'_>) -> Result<Option<usize>, Error> {
        if self.side & kind.mask() == 0 {
            return Ok(None);
        }
        tables.side(kind).map(Some).ok_or(Error::Coding)
    }
}

/// A tensor of a container.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    name: Name<'a>,
    dtype: DType,
    dims: [u64; MAX_DIMS],
    dim_count: u8,
    elements: usize,
    kind: Kind,
    item: Item<'a>,
    entry_bytes: usize,
}

/// A tensor's bytes in DATA (§3.8).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Item<'a> {
    /// From the start of the file.
    pub(crate) offset: usize,
    pub(crate) len: usize,
    /// `None` if they are not in memory.
    bytes: Option<&'a [u8]>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Raw { crc: u32 },
    Coded(CodedEntry),
    Alias(usize),
}

impl<'a> Tensor<'a> {
    /// Its name.
    pub const fn name(&self) -> Name<'a> {
        self.name
    }

    /// The type of its elements in the model that was compressed.
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// Its dimensions, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[u64] {
        self.dims.get(..usize::from(self.dim_count)).unwrap_or(&[])
    }

    /// The product of the dimensions.
    pub const fn elements(&self) -> usize {
        self.elements
    }

    /// How it is stored.
    pub const fn coding(&self) -> Coding {
        match self.kind {
            Kind::Raw { .. } => Coding::Raw,
            Kind::Coded(_) => Coding::Coded,
            Kind::Alias(target) => Coding::Alias(target),
        }
    }

    /// Bytes that its data takes in the container, without its directory entry; 0 for an alias.
    pub const fn stored_bytes(&self) -> usize {
        self.item.len
    }

    /// Where in the file its data begins; 0 for an alias.
    pub const fn offset(&self) -> usize {
        self.item.offset
    }

    /// Bytes that its directory entry takes, names' fragments apart.
    pub const fn entry_bytes(&self) -> usize {
        self.entry_bytes
    }

    /// The bytes of a raw tensor, row-major, little endian.
    ///
    /// # Errors
    /// [`Error::Coding`] if it is not raw, [`Error::StreamChecksum`] if its bytes have changed, [`Error::Source`] if they are not in memory.
    pub fn raw(&self, checks: crate::Checks) -> Result<&'a [u8], Error> {
        let Kind::Raw { crc } = self.kind else { return Err(Error::Coding) };
        let bytes = self.item.bytes.ok_or(Error::Source)?;
        if checks == crate::Checks::All && !Crc32::fits(bytes, crc) {
            return Err(Error::StreamChecksum);
        }
        Ok(bytes)
    }

    /// Reads bytes of a raw tensor from `at` on, row-major, little endian. They are not checked: see [`check_raw`](Self::check_raw).
    ///
    /// # Errors
    /// [`Error::Coding`] if it is not raw, [`Error::Index`] if it has no such bytes, or the source's.
    pub fn read_raw(&self, source: &mut impl ReadAt, at: usize, buffer: &mut [u8]) -> Result<(), Error> {
        let Kind::Raw { .. } = self.kind else { return Err(Error::Coding) };
        if at.checked_add(buffer.len()).is_none_or(|end| end > self.item.len) {
            return Err(Error::Index);
        }
        remote::read(source, self.item.offset, at, buffer)
    }

    /// Compares the checksum of a raw tensor's bytes, which are read through `window`; it may have any length but 0.
    ///
    /// # Errors
    /// [`Error::Coding`] if it is not raw, [`Error::StreamChecksum`] if its bytes have changed, [`Error::Scratch`] without a window, or the source's.
    pub fn check_raw(&self, source: &mut impl ReadAt, window: &mut [u8]) -> Result<(), Error> {
        let Kind::Raw { crc } = self.kind else { return Err(Error::Coding) };
        remote::check(source, self.item.offset, 0..self.item.len, crc, window)
    }

    /// The CRC-32 of a raw tensor's bytes, or of a coded tensor's decoded bytes in its own dtype.
    pub const fn content_crc(&self) -> Option<u32> {
        match self.kind {
            Kind::Raw { crc } => Some(crc),
            Kind::Coded(entry) => Some(entry.content_crc),
            Kind::Alias(_) => None,
        }
    }

    /// The tensor whose data this one has: itself, or what it is an alias of. Takes time proportional to that one's position.
    ///
    /// # Errors
    /// [`Error::Directory`] if the alias does not match its target.
    pub fn resolve(&self, container: &Container<'a>) -> Result<Tensor<'a>, Error> {
        let Kind::Alias(target) = self.kind else { return Ok(*self) };
        let target = container.tensor(target).map_err(|_| Error::Directory)?;
        let same = target.dtype == self.dtype && target.shape() == self.shape();
        if same && !matches!(target.kind, Kind::Alias(_)) { Ok(target) } else { Err(Error::Directory) }
    }

    /// The view through which a coded tensor decodes.
    ///
    /// # Errors
    /// [`Error::Coding`] if it is not coded, [`Error::Geometry`] if its table of streams is inconsistent, [`Error::Source`] if its bytes are not in
    /// memory.
    pub fn coded(&self) -> Result<CodedTensor<'a>, Error> {
        let Kind::Coded(entry) = self.kind else { return Err(Error::Coding) };
        CodedTensor::new(entry, self.dtype, self.shape(), self.item.bytes.ok_or(Error::Source)?)
    }

    /// The view through which a coded tensor decodes from a source that is not in memory. Reads 8 bytes.
    ///
    /// # Errors
    /// [`Error::Coding`] if it is not coded, [`Error::Geometry`] if its table of streams is inconsistent, or the source's.
    pub fn remote(&self, source: &mut impl ReadAt) -> Result<RemoteTensor, Error> {
        RemoteTensor::new(self.geometry()?, self.item.offset, source)
    }

    /// Shape and tiling of a coded tensor.
    ///
    /// # Errors
    /// [`Error::Coding`] if it is not coded.
    pub fn geometry(&self) -> Result<Geometry, Error> {
        let Kind::Coded(entry) = self.kind else { return Err(Error::Coding) };
        Geometry::new(entry, self.dtype, self.shape(), self.item.len)
    }
}

/// Iterator over the tensors of a container.
#[derive(Debug, Clone)]
pub struct TensorIter<'a> {
    names: &'a [u8],
    entries: Reader<'a>,
    front: &'a [u8],
    data: Section,
    /// Where the last item ended, from the start of DATA.
    end: usize,
    left: usize,
}

/// The checked directory's tensors.
pub(crate) fn iter<'a>(container: &Container<'a>) -> TensorIter<'a> {
    let empty = TensorIter {
        names: &[],
        entries: Reader::new(&[]),
        front: &[],
        data: Section::default(),
        end: 0,
        left: 0,
    };
    start(container).unwrap_or(empty)
}

fn start<'a>(container: &Container<'a>) -> Option<TensorIter<'a>> {
    let mut reader = Reader::new(container.directory());
    let left = num::index(reader.u32()?);
    let names_len = num::index(reader.u32()?);
    let names = reader.take(names_len)?;
    let (front, data) = (container.file(), container.data());
    Some(TensorIter { names, entries: reader, front, data, end: 0, left })
}

/// Checks every entry and its place, so that the iterator cannot fail afterwards.
pub(crate) fn check(container: &Container<'_>, limits: &Limits) -> Result<(), Error> {
    let mut iter = start(container).ok_or(Error::Directory)?;
    if iter.left > num::index(limits.tensors) {
        return Err(Error::Limit);
    }
    let mut index = 0usize;
    while iter.left > 0 {
        iter.left = iter.left.wrapping_sub(1);
        let tensor = iter.read()?;
        if u64::try_from(tensor.elements).map_err(|_| Error::Limit)? > limits.elements {
            return Err(Error::Limit);
        }
        match tensor.kind {
            Kind::Raw { .. } => {}
            // The target itself is looked at when the alias is resolved: here that would make opening quadratic.
            Kind::Alias(target) if target < index => {}
            Kind::Alias(_) => return Err(Error::Directory),
            Kind::Coded(entry) => {
                let codec = container.codec(usize::from(entry.codec)).map_err(|_| Error::Directory)?;
                if entry.class_base >= codec.classes() || entry.side & !codec.side_tables() != 0 {
                    return Err(Error::Directory);
                }
                match tensor.item.bytes {
                    Some(_) => tensor.coded().map(|_| ())?,
                    None => tensor.geometry().map(|_| ())?,
                }
            }
        }
        index = index.wrapping_add(1);
    }
    if !iter.entries.rest.is_empty() {
        return Err(Error::Directory);
    }
    if iter.end == container.data().len { Ok(()) } else { Err(Error::Geometry) }
}

impl<'a> TensorIter<'a> {
    fn read(&mut self) -> Result<Tensor<'a>, Error> {
        let before = self.entries.rest.len();
        let entries = &mut self.entries;
        let coding = entries.u8().ok_or(Error::Directory)?;
        let name = read_name(entries, self.names)?;
        let dtype = entries.u8().and_then(DType::from_code).ok_or(Error::Directory)?;
        let dim_count = entries.u8().ok_or(Error::Directory)?;
        let mut dims = [0; MAX_DIMS];
        let used = dims.get_mut(..usize::from(dim_count)).ok_or(Error::Shape)?;
        let mut elements = 1u64;
        let mut zero = false;
        for dim in used {
            *dim = entries.varint().ok_or(Error::Directory)?;
            zero |= *dim == 0;
            // A zero dimension must not hide an impossible one, so the product leaves it out.
            elements =
                elements.checked_mul((*dim).max(1)).filter(|&n| n <= MAX_ELEMENTS).ok_or(Error::Shape)?;
        }
        let elements = if zero { 0 } else { usize::try_from(elements).map_err(|_| Error::Limit)? };

        let (kind, item) = match coding {
            0 => {
                let gap = entries.varint_usize().ok_or(Error::Directory)?;
                let crc = entries.u32().ok_or(Error::Directory)?;
                let len = elements.checked_mul(dtype.size()).ok_or(Error::Limit)?;
                (Kind::Raw { crc }, place(self.front, &self.data, &mut self.end, gap, len)?)
            }
            1 => {
                let (entry, gap, len) = read_coded(entries)?;
                if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
                    return Err(Error::Directory);
                }
                if dim_count == 0 || zero {
                    return Err(Error::Shape);
                }
                let item = place(self.front, &self.data, &mut self.end, gap, len)?;
                if item.offset % 4 != 0 {
                    return Err(Error::Geometry);
                }
                (Kind::Coded(entry), item)
            }
            2 => (Kind::Alias(entries.varint_usize().ok_or(Error::Directory)?), Item::default()),
            _ => return Err(Error::Directory),
        };
        let entry_bytes = before.wrapping_sub(self.entries.rest.len());
        Ok(Tensor { name, dtype, dims, dim_count, elements, kind, item, entry_bytes })
    }

    /// The number of tensors that are left.
    pub const fn len(&self) -> usize {
        self.left
    }

    /// True when none is left.
    pub const fn is_empty(&self) -> bool {
        self.left == 0
    }
}

impl<'a> Iterator for TensorIter<'a> {
    type Item = Tensor<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        self.read().ok() // the directory was checked when the container was opened
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// Takes the next item out of DATA: `gap` bytes further than the last one's end (§3.8).
fn place<'a>(
    front: &'a [u8],
    data: &Section,
    end: &mut usize,
    gap: usize,
    len: usize,
) -> Result<Item<'a>, Error> {
    if gap > MAX_GAP {
        return Err(Error::Geometry);
    }
    let start = end.checked_add(gap).ok_or(Error::Geometry)?;
    let stop = start.checked_add(len).ok_or(Error::Geometry)?;
    if stop > data.len {
        return Err(Error::Geometry);
    }
    *end = stop;
    let offset = data.offset.saturating_add(start);
    Ok(Item { offset, len, bytes: part_of(front, offset, len) })
}

fn read_name<'a>(entries: &mut Reader<'a>, table: &'a [u8]) -> Result<Name<'a>, Error> {
    let count = entries.varint().ok_or(Error::Directory)?;
    if !(1..=MAX_FRAGMENTS).contains(&count) {
        return Err(Error::Name);
    }
    let name = Name { table, count, offsets: *entries };
    for _ in 0..count {
        entries.varint().ok_or(Error::Directory)?;
    }
    let mut resolved = 0u64;
    for _ in name.fragments() {
        resolved = resolved.wrapping_add(1);
    }
    if resolved == count { Ok(name) } else { Err(Error::Name) }
}

/// A field, or the error for a directory that ends early.
fn need<T>(field: Option<T>) -> Result<T, Error> {
    field.ok_or(Error::Directory)
}

/// The fields of §3.7: the entry, the gap and the length.
fn read_coded(entries: &mut Reader<'_>) -> Result<(CodedEntry, usize, usize), Error> {
    let view = need(entries.u8())?;
    let layers = need(entries.u8())?;
    let codec = need(entries.u8())?;
    let lanes = need(entries.u8())?;
    let columns = need(entries.varint())?;
    let tile_rows = need(entries.varint())?;
    let step = need(entries.zigzag())?;
    let class_base = need(entries.u8())?;
    let side = need(entries.u8())?;
    let resolution = need(entries.u8())?;
    let gap = need(entries.varint_usize())?;
    let len = need(entries.varint_usize())?;
    let content_crc = need(entries.u32())?;
    if layers != 1 {
        return Err(Error::Unsupported);
    }
    if view > 7 {
        return Err(Error::Shape);
    }
    if side > 15 {
        return Err(Error::Directory);
    }
    let (row_shift, column_shift) = (u32::from(resolution & 15), u32::from(resolution >> 4));
    let unused = (side & 1 == 0 && row_shift != 0) || (side & 4 == 0 && column_shift != 0);
    if row_shift > 9 || column_shift > 9 || unused {
        return Err(Error::Directory);
    }
    let step =
        i32::try_from(step).ok().filter(|step| (-65536..=65535).contains(step)).ok_or(Error::Directory)?;
    if !(1..=32).contains(&lanes) {
        return Err(Error::Geometry);
    }
    let entry = CodedEntry {
        transposed: view & 1 != 0,
        batched: view & 2 != 0,
        direct: view & 4 != 0,
        codec,
        lanes: u32::from(lanes),
        columns_per_lane: u32::try_from(columns).map_err(|_| Error::Geometry)?,
        tile_rows: u32::try_from(tile_rows).map_err(|_| Error::Geometry)?,
        step,
        class_base,
        side,
        row_shift,
        column_shift,
        content_crc,
    };
    Ok((entry, gap, len))
}
