//! The one error of the decoder (§12).

use core::fmt;

/// Why a container could not be decoded. The discriminants are part of the format's promise: the same code on every device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Error {
    /// The file is shorter than its header or its stated length.
    Truncated = 1,
    /// The first eight bytes are not those of an NWC container.
    Magic = 2,
    /// A format version that this decoder does not know.
    Version = 3,
    /// The header's checksum differs.
    HeaderChecksum = 4,
    /// The section table is inconsistent, or a section is missing.
    Sections = 5,
    /// The checksum of the directory, the codecs or the attachments differs.
    SectionChecksum = 6,
    /// A section that is required, but not known to this decoder.
    UnknownSection = 7,
    /// The directory is inconsistent.
    Directory = 8,
    /// A tensor's name is malformed.
    Name = 9,
    /// A tensor's dimensions or view are out of range.
    Shape = 10,
    /// A tensor's tiling, its place, or its table of streams is out of range.
    Geometry = 11,
    /// A codec is malformed.
    Codec = 12,
    /// A probability table is malformed.
    Table = 13,
    /// A reserved synthesis, entropy mode or number of layers.
    Unsupported = 14,
    /// The checksum of a stream or of a raw tensor differs.
    StreamChecksum = 15,
    /// A lane starts below its range.
    LaneState = 16,
    /// A stream ends before its last symbol.
    Overrun = 17,
    /// A stream goes on after its last symbol.
    Trailing = 18,
    /// A lane does not end where its encoder began.
    FinalState = 19,
    /// A scale outside binary32's normal numbers.
    Scale = 20,
    /// The checksum of the decoded tensor differs.
    ContentChecksum = 21,
    /// The attachments are malformed.
    Attachment = 22,
    /// The seek points are malformed.
    Seek = 23,
    /// The container is larger than the caller's [`Limits`](crate::Limits) allow.
    Limit = 32,
    /// The caller's scratch memory is too small.
    Scratch = 33,
    /// The caller's output has the wrong length.
    Output = 34,
    /// There is no such tensor, tile, codec or seek point.
    Index = 35,
    /// The call does not suit the tensor's coding or dtype.
    Coding = 36,
    /// Bytes that are needed are not in memory, and the caller's source failed to deliver them or was not given.
    Source = 37,
}

impl Error {
    /// Every error there is, in the order of the codes.
    pub const ALL: [Self; 29] = [
        Self::Truncated,
        Self::Magic,
        Self::Version,
        Self::HeaderChecksum,
        Self::Sections,
        Self::SectionChecksum,
        Self::UnknownSection,
        Self::Directory,
        Self::Name,
        Self::Shape,
        Self::Geometry,
        Self::Codec,
        Self::Table,
        Self::Unsupported,
        Self::StreamChecksum,
        Self::LaneState,
        Self::Overrun,
        Self::Trailing,
        Self::FinalState,
        Self::Scale,
        Self::ContentChecksum,
        Self::Attachment,
        Self::Seek,
        Self::Limit,
        Self::Scratch,
        Self::Output,
        Self::Index,
        Self::Coding,
        Self::Source,
    ];

    /// The stable, non-zero code of this error.
    pub const fn code(self) -> u8 {
        crate::num::error_code(self)
    }

    /// True when the file is at fault, false when the call is.
    pub const fn is_file_fault(self) -> bool {
        self.code() < 32
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the file is cut short",
            Self::Magic => "not an NWC container",
            Self::Version => "unknown format version",
            Self::HeaderChecksum => "header checksum differs",
            Self::Sections => "inconsistent section table",
            Self::SectionChecksum => "section checksum differs",
            Self::UnknownSection => "unknown required section",
            Self::Directory => "inconsistent directory",
            Self::Name => "malformed tensor name",
            Self::Shape => "tensor dimensions out of range",
            Self::Geometry => "tensor tiling out of range",
            Self::Codec => "malformed codec",
            Self::Table => "malformed probability table",
            Self::Unsupported => "needs a feature that this decoder does not have",
            Self::StreamChecksum => "data checksum differs",
            Self::LaneState => "a stream starts in an impossible state",
            Self::Overrun => "a stream ends early",
            Self::Trailing => "a stream has words left over",
            Self::FinalState => "a stream ends in the wrong state",
            Self::Scale => "scale out of range",
            Self::ContentChecksum => "decoded tensor's checksum differs",
            Self::Attachment => "malformed attachments",
            Self::Seek => "malformed seek points",
            Self::Limit => "larger than the caller's limits",
            Self::Scratch => "scratch memory too small",
            Self::Output => "output has the wrong length",
            Self::Index => "no such tensor, tile, codec or seek point",
            Self::Source => "bytes are not in memory and no source delivered them",
            Self::Coding => "the tensor is not coded in the way that the call needs",
        })
    }
}

impl core::error::Error for Error {}
