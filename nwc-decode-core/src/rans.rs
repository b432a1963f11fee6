//! Streams of 16-bit words, and lanes of 32-bit states that read them (§6).

use crate::bytes::Reader;
use crate::{Error, Tables};

/// The bottom of a lane's range; also the state in which every lane ends.
pub(crate) const LOWER_BOUND: u32 = 1 << 16;

/// The words of a stream that have not been read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Result<u16, Error> {
        let (word, rest) = self.0.split_first_chunk::<2>().ok_or(Error::Overrun)?;
        self.0 = rest;
        Ok(u16::from_le_bytes(*word))
    }

    /// Brings a lane back into its range (§6.3).
    #[inline(always)]
    pub(crate) fn refill(&mut self, x: &mut u32) -> Result<(), Error> {
        if *x < LOWER_BOUND {
            *x = (*x << 16) | u32::from(self.next()?);
        }
        Ok(())
    }

    /// Checks that the words are used up but for one zero word of padding (§5.3).
    pub(crate) fn finish(&self) -> Result<(), Error> {
        if matches!(self.0, [] | [0, 0]) { Ok(()) } else { Err(Error::Trailing) }
    }

    /// Bytes that are left.
    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }

    /// The same stream with only its last `len` bytes left.
    pub(crate) fn rewind_to(whole: &'a [u8], len: usize) -> Option<Self> {
        let start = whole.len().checked_sub(len)?;
        whole.get(start..).map(Self)
    }
}

/// Reads the initial states of a stream's lanes (§5.3, §6.1); returns its words.
pub(crate) fn start<'a>(stream: &'a [u8], lanes: &mut [u32]) -> Result<Words<'a>, Error> {
    let mut reader = Reader::new(stream);
    for lane in lanes {
        *lane = reader.u32().ok_or(Error::Geometry)?;
        if *lane < LOWER_BOUND {
            return Err(Error::LaneState);
        }
    }
    Ok(Words(reader.rest))
}

/// Decodes the scale and class values of rows from a row stream (§7).
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowReader<'a> {
    state: u32,
    words: Words<'a>,
    scale_table: Option<usize>,
    class_table: Option<usize>,
}

/// A row reader's place in its stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RowPlace {
    state: u32,
    bytes_left: usize,
}

impl<'a> RowReader<'a> {
    /// `stream` is `None` when the tensor has no row side information: every value is 0 then.
    pub(crate) fn new(
        stream: Option<&'a [u8]>,
        scale_table: Option<usize>,
        class_table: Option<usize>,
    ) -> Result<Self, Error> {
        let mut state = [LOWER_BOUND];
        let words = match stream {
            Some(stream) => start(stream, &mut state)?,
            None => Words(&[]),
        };
        let [state] = state;
        Ok(Self { state, words, scale_table, class_table })
    }

    fn value(&mut self, tables: &Tables<'_>, table: Option<usize>) -> Result<i32, Error> {
        let Some(table) = table else { return Ok(0) };
        let (_, value) = tables.decode(table, &mut self.state)?;
        self.words.refill(&mut self.state)?;
        Ok(value)
    }

    /// The next row's scale and class values.
    pub(crate) fn next(&mut self, tables: &Tables<'_>) -> Result<(i32, i32), Error> {
        Ok((self.value(tables, self.scale_table)?, self.value(tables, self.class_table)?))
    }

    /// Checks that the stream ended as it must (§6.4).
    pub(crate) fn finish(&self) -> Result<(), Error> {
        if self.state != LOWER_BOUND {
            return Err(Error::FinalState);
        }
        self.words.finish()
    }

    pub(crate) const fn place(&self) -> RowPlace {
        RowPlace { state: self.state, bytes_left: self.words.len() }
    }

    pub(crate) fn resume(&mut self, stream: Option<&'a [u8]>, place: RowPlace) -> Result<(), Error> {
        self.state = place.state;
        self.words = Words::rewind_to(stream.unwrap_or(&[]), place.bytes_left).ok_or(Error::Index)?;
        Ok(())
    }
}
