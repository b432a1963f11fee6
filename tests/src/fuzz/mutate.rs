//! Mutations that know how a container is framed.
//!
//! Bytes put in or taken out anywhere shift everything behind them, and a file whose frames no longer fit ends at the first
//! check. So one frame is mutated by itself (a section, a codec, an entry, a stream), and all that states its length or place
//! is written anew. What lies inside a frame is the fuzzer's own business: this module knows nothing of fields.

use std::ops::Range;

use nwc_decode_core::{Coding, Container, Limits};

use super::checksums;
use crate::builder::{REQUIRED, Rng, Section, varint, write};

const DIRECTORY: u32 = 1 | REQUIRED;
const CODECS: u32 = 2 | REQUIRED;
const DATA: u32 = 3 | REQUIRED;
const RECORD_BYTES: usize = 8;

/// Mutates the first `size` bytes of `data` to at most `max_size` bytes; returns the new size. The same seed gives the same
/// mutation. `plain` mutates bytes of which nothing is known, with the same three arguments.
pub fn container(
    data: &mut [u8],
    size: usize,
    max_size: usize,
    seed: u32,
    mut plain: impl FnMut(&mut [u8], usize, usize) -> usize,
) -> usize {
    let mut rng = Rng(seed.into());
    let frames = if rng.any().is_multiple_of(4) { None } else { Frames::of(&data[..size]) };
    let mutated = frames.map(|mut frames| {
        frames.mutate(&mut rng, &mut plain);
        frames.bytes()
    });
    let size = match mutated.filter(|file| file.len() <= max_size) {
        Some(file) => {
            data[..file.len()].copy_from_slice(&file);
            file.len()
        }
        None => plain(data, size, max_size),
    };
    checksums::repair(&mut data[..size]);
    size
}

/// A container in parts that can change their size.
struct Frames {
    version: u16,
    sections: Vec<Section>,
    /// What is in DIRECTORY, CODECS and DATA, if it could be told apart; their sections are empty then.
    inside: Option<Inside>,
}

struct Inside {
    names: Vec<u8>,
    tensors: Vec<Tensor>,
    codecs: Vec<Vec<u8>>,
}

#[derive(Clone)]
struct Tensor {
    entry: Vec<u8>,
    /// Gap and item.
    data: Vec<u8>,
    gap: usize,
    /// Of a coded tensor; 0 for others.
    streams: usize,
}

impl Frames {
    /// The parts of a file whose section table can be followed.
    fn of(file: &[u8]) -> Option<Self> {
        let number = |at: usize, len: usize| {
            let bytes = file.get(at..at + len)?;
            Some(bytes.iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte)))
        };
        let count = number(10, 2)?;
        let version = number(8, 2)? as u16;
        let mut sections = Vec::new();
        for at in (0..count.min(32) as usize).map(|i| 24 + 24 * i) {
            let (offset, len) = (number(at + 8, 8)? as usize, number(at + 16, 8)? as usize);
            let bytes = file.get(offset..offset.checked_add(len)?)?.to_vec();
            let kind = number(at, 4)? as u32;
            sections.push(Section { kind, bytes, crc: None, offset: None, len: None, gap: None });
        }
        let container = Container::open(file, &Limits::default()).ok();
        let inside = container.and_then(|container| Inside::of(&container, &sections));
        if inside.is_some() {
            sections
                .iter_mut()
                .filter(|section| is_core(section.kind))
                .for_each(|section| section.bytes.clear());
        }
        Some(Self { version, sections, inside })
    }

    fn bytes(mut self) -> Vec<u8> {
        if let Some(inside) = self.inside {
            let [directory, codecs, data] = inside.sections();
            for section in &mut self.sections {
                match section.kind {
                    DIRECTORY => section.bytes.clone_from(&directory),
                    CODECS => section.bytes.clone_from(&codecs),
                    DATA => section.bytes.clone_from(&data),
                    _ => {}
                }
            }
        }
        write(self.version, &self.sections)
    }

    fn mutate(&mut self, rng: &mut Rng, plain: &mut impl FnMut(&mut [u8], usize, usize) -> usize) {
        if let Some(inside) = self.inside.as_mut().filter(|_| !rng.any().is_multiple_of(8)) {
            inside.mutate(rng, plain);
            return;
        }
        let Some(at) = pick(rng, self.sections.len()) else { return };
        match rng.any() % 8 {
            0 if self.sections.len() < 32 => {
                let mut other = self.sections[at].clone();
                other.kind = (rng.any() as u32 % 6) | (rng.any() as u32 & REQUIRED);
                self.sections.insert(at, other);
            }
            1 => {
                self.sections[at].kind ^=
                    if rng.any().is_multiple_of(2) { REQUIRED } else { 1 << (rng.any() % 8) }
            }
            2 => {
                let other = rng.any() as usize % self.sections.len();
                self.sections.swap(at, other);
            }
            3 => drop(self.sections.remove(at)),
            // Sections that are put together anew would lose the mutation.
            _ if self.inside.is_some() && is_core(self.sections[at].kind) => {}
            _ => change(&mut self.sections[at].bytes, plain),
        }
    }
}

fn is_core(kind: u32) -> bool {
    [DIRECTORY, CODECS, DATA].contains(&kind)
}

impl Inside {
    fn of(container: &Container<'_>, sections: &[Section]) -> Option<Self> {
        let section =
            |kind: u32| sections.iter().find(|section| section.kind == kind).map(|section| &section.bytes);
        let (directory, data) = (section(DIRECTORY)?, section(DATA)?);
        let names_len = u32::from_le_bytes(*directory.get(4..)?.first_chunk()?) as usize;
        let names = directory.get(8..8 + names_len)?.to_vec();
        let (mut entry_at, mut data_at) = (8 + names_len, 0);
        let mut tensors = Vec::new();
        for tensor in container.tensors() {
            let entry = directory.get(entry_at..entry_at + tensor.entry_bytes())?.to_vec();
            entry_at += entry.len();
            // Entries with an item end in its gap, which takes a byte, its length if it is coded, and a CRC.
            let (gap, streams) = match tensor.coding() {
                Coding::Alias(_) => (0, 0),
                Coding::Raw => (usize::from(entry[entry.len() - 5]), 0),
                Coding::Coded => {
                    let length = length_field(&entry, tensor.stored_bytes());
                    let streams = tensor.coded().ok()?.record_bytes() / RECORD_BYTES;
                    (usize::from(entry[length.start - 1]), streams)
                }
            };
            let end = data_at + gap + tensor.stored_bytes();
            tensors.push(Tensor { entry, data: data.get(data_at..end)?.to_vec(), gap, streams });
            data_at = end;
        }
        let mut rest = section(CODECS)?.get(1..)?;
        let mut codecs = Vec::new();
        while let Some((len, after)) = rest.split_first_chunk() {
            let (codec, after) = after.split_at_checked(u32::from_le_bytes(*len) as usize)?;
            codecs.push(codec.to_vec());
            rest = after;
        }
        Some(Self { names, tensors, codecs })
    }

    /// DIRECTORY, CODECS and DATA.
    fn sections(&self) -> [Vec<u8>; 3] {
        let mut directory = (self.tensors.len() as u32).to_le_bytes().to_vec();
        directory.extend((self.names.len() as u32).to_le_bytes());
        directory.extend(&self.names);
        directory.extend(self.tensors.iter().flat_map(|tensor| &tensor.entry));
        let mut codecs = vec![self.codecs.len() as u8];
        for codec in &self.codecs {
            codecs.extend((codec.len() as u32).to_le_bytes());
            codecs.extend(codec);
        }
        [directory, codecs, self.tensors.iter().flat_map(|tensor| &tensor.data).copied().collect()]
    }

    fn mutate(&mut self, rng: &mut Rng, plain: &mut impl FnMut(&mut [u8], usize, usize) -> usize) {
        match rng.any() % 8 {
            0 => change(&mut self.names, plain),
            1 | 2 => shuffle(&mut self.codecs, rng, |codec| change(codec, plain)),
            3 | 4 => shuffle(&mut self.tensors, rng, |tensor| change(&mut tensor.entry, plain)),
            _ => {
                let coded: Vec<usize> =
                    (0..self.tensors.len()).filter(|&at| self.tensors[at].streams > 0).collect();
                match pick(rng, coded.len()) {
                    Some(at) => self.tensors[coded[at]].mutate_stream(rng, plain),
                    None => change(&mut self.names, plain),
                }
            }
        }
    }
}

impl Tensor {
    /// Mutates one stream. Records and the length in the entry follow its size.
    fn mutate_stream(&mut self, rng: &mut Rng, plain: &mut impl FnMut(&mut [u8], usize, usize) -> usize) {
        let Some(number) = pick(rng, self.streams) else { return };
        let first = self.gap + RECORD_BYTES * self.streams;
        let end = |data: &[u8], number: usize| {
            let record = data[self.gap + RECORD_BYTES * number..].first_chunk().expect("it was opened");
            u32::from_le_bytes(*record) as usize
        };
        let ends: Vec<usize> = (0..self.streams).map(|number| end(&self.data, number)).collect();
        let place = if number == 0 { 0 } else { ends[number - 1] }..ends[number];
        // Records may be wrong, which is an error of their tiles only.
        let bytes = first.saturating_add(4 * place.start)..first.saturating_add(4 * place.end);
        let Some(stream) = self.data.get(bytes.clone()) else { return };
        let mut stream = stream.to_vec();
        change(&mut stream, plain);
        stream.resize(stream.len().next_multiple_of(4), 0);

        let length = length_field(&self.entry, self.data.len() - self.gap);
        for (later, end) in ends.iter().enumerate().skip(number) {
            let end = (end + stream.len() / 4).wrapping_sub(place.len()) as u32;
            let at = self.gap + RECORD_BYTES * later;
            self.data[at..at + 4].copy_from_slice(&end.to_le_bytes());
        }
        self.data.splice(bytes, stream);
        let mut stated = Vec::new();
        varint(&mut stated, (self.data.len() - self.gap) as u64);
        self.entry.splice(length, stated);
    }
}

/// Where a coded entry states the length of its item: just before the CRC at its end.
fn length_field(entry: &[u8], len: usize) -> Range<usize> {
    let mut stated = Vec::new();
    varint(&mut stated, len as u64);
    let end = entry.len() - 4;
    end - stated.len()..end
}

/// Changes one of the items, or which there are.
fn shuffle<T: Clone>(items: &mut Vec<T>, rng: &mut Rng, change: impl FnOnce(&mut T)) {
    let Some(at) = pick(rng, items.len()) else { return };
    match rng.any() % 8 {
        0 => items.insert(at, items[at].clone()),
        1 => drop(items.remove(at)),
        2 => {
            let other = rng.any() as usize % items.len();
            items.swap(at, other);
        }
        _ => change(&mut items[at]),
    }
}

/// Changes bytes of which nothing is known, and their number.
fn change(bytes: &mut Vec<u8>, plain: &mut impl FnMut(&mut [u8], usize, usize) -> usize) {
    let (size, room) = (bytes.len(), 2 * bytes.len() + 16);
    bytes.resize(room, 0);
    let size = plain(bytes, size, room);
    bytes.truncate(size);
}

/// One of `count` places, if there are any.
fn pick(rng: &mut Rng, count: usize) -> Option<usize> {
    (count > 0).then(|| (rng.any() % count as u64) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Ledger, read_vector};

    /// Legal vectors of a size that is quickly mutated.
    fn files() -> impl Iterator<Item = Vec<u8>> {
        let legal = Ledger::read().vectors.into_iter().filter(|vector| vector.error.is_none());
        legal.map(|vector| read_vector(&vector.file)).filter(|file| file.len() < 20_000)
    }

    #[test]
    fn a_file_taken_apart_and_put_together_is_the_same() {
        let mut whole = 0;
        for file in files() {
            let frames = Frames::of(&file).expect("it is legal");
            let inside = frames.inside.as_ref().expect("it is legal");
            let parts = inside.names.len() + inside.tensors.len() + inside.codecs.len();
            whole += usize::from(parts > 0);
            assert!(frames.bytes() == file);
        }
        assert!(whole > 10);
    }

    /// A mutator of bytes for tests: it sets, adds or removes one.
    fn plain(rng: &mut Rng) -> impl FnMut(&mut [u8], usize, usize) -> usize {
        move |data, size, max_size| {
            let at = rng.any() as usize % size.max(1);
            data[at] = rng.any() as u8;
            match rng.any() % 4 {
                0 if size < max_size => {
                    data.copy_within(at..size, at + 1);
                    size + 1
                }
                1 if size > 0 => {
                    data.copy_within(at + 1..size, at);
                    size - 1
                }
                _ => size,
            }
        }
    }

    #[test]
    fn mutated_containers_mostly_open_and_differ() {
        let (mut opened, mut changed, mut all) = (0, 0, 0);
        for (number, file) in files().enumerate() {
            for seed in 0..200 {
                let mut data = file.clone();
                data.resize(file.len() + 100, 0);
                let max_size = data.len();
                let mut rng = Rng(seed);
                let size = container(&mut data, file.len(), max_size, seed as u32, plain(&mut rng));
                assert!(size <= max_size, "file {number}, seed {seed}");
                opened += usize::from(Container::open(&data[..size], &Limits::default()).is_ok());
                changed += usize::from(data[..size] != file);
                all += 1;
            }
        }
        assert!(2 * opened > all, "{opened} of {all} open");
        assert!(4 * changed > 3 * all, "{changed} of {all} differ");
    }
}
