//! Streams of 16-bit words, and lanes of 32-bit states that read them (§6).

use crate::bytes::Reader;
use crate::{Error, Tables};

/// The bottom of a lane's range; also the state in which every lane ends.
pub(crate) const LOWER_BOUND: u32 = 1 << 16;

/// The words of a stream, and how many of them have been read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Words<'a> {
    words: &'a [[u8; 2]],
    /// May pass the end within a step; [`check`](Self::check) then reports it.
    read: usize,
}

impl Words<'_> {
    /// The next word; 0 beyond the end.
    #[inline(always)]
    fn peek(&self) -> u32 {
        self.words.get(self.read).map_or(0, |word| u32::from(u16::from_le_bytes(*word)))
    }

    /// Takes a word. Reading past the end gives 0, and an error from the next [`check`](Self::check).
    #[inline(always)]
    pub(crate) fn take(&mut self) -> u32 {
        let word = self.peek();
        self.read = self.read.wrapping_add(1);
        word
    }

    /// Brings a lane back into its range (§6.3). Without a branch: whether a lane needs a word is a matter of chance. Past the end as with
    /// [`take`](Self::take).
    #[inline(always)]
    pub(crate) fn refill(&mut self, x: u32) -> u32 {
        let word = self.peek();
        let low = x < LOWER_BOUND;
        self.read = self.read.wrapping_add(usize::from(low));
        if low { (x << 16) | word } else { x }
    }

    /// An error if more words were read than there are. To be called before what was read is used.
    #[inline(always)]
    pub(crate) const fn check(&self) -> Result<(), Error> {
        if self.read <= self.words.len() { Ok(()) } else { Err(Error::Overrun) }
    }

    /// Checks that the words are used up but for one zero word of padding (§5.3).
    pub(crate) fn finish(&self) -> Result<(), Error> {
        if matches!(self.words.get(self.read..), Some([] | [[0, 0]])) { Ok(()) } else { Err(Error::Trailing) }
    }

    /// Number of words read.
    pub(crate) const fn position(&self) -> usize {
        self.read
    }

    /// Goes to a position.
    pub(crate) const fn seek(&mut self, position: usize) -> Result<(), Error> {
        if position > self.words.len() {
            return Err(Error::Index);
        }
        self.read = position;
        Ok(())
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
    // Streams are multiples of 4 bytes long (§5.2).
    let (words, _) = reader.rest.as_chunks::<2>();
    Ok(Words { words, read: 0 })
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
    read: usize,
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
            None => Words { words: &[], read: 0 },
        };
        let [state] = state;
        Ok(Self { state, words, scale_table, class_table })
    }

    fn value(&mut self, tables: &Tables<'_>, table: Option<usize>) -> Result<i32, Error> {
        let Some(table) = table else { return Ok(0) };
        let (_, value) = tables.decode(table, &mut self.state)?;
        self.state = self.words.refill(self.state);
        self.words.check()?;
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
        RowPlace { state: self.state, read: self.words.position() }
    }

    pub(crate) const fn resume(&mut self, place: RowPlace) -> Result<(), Error> {
        self.state = place.state;
        self.words.seek(place.read)
    }
}
