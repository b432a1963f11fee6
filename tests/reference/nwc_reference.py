#!/usr/bin/env python3
"""An independent reference decoder of the NWC format, written from docs/bitstream.md alone.

It aims to be obviously right, not fast.  Numbers in comments such as "3.7" are sections of that document.
Only the standard library is used.  Files are taken to be hostile: sizes are checked against the bytes that
are there before anything is built from them, and everything else grows only as far as decoding has come.

    nwc_reference.py list FILE                                 one line a tensor
    nwc_reference.py attachments FILE                          one line an attachment
    nwc_reference.py decode FILE INDEX [--dtype F32|F16|BF16]  the bytes of one tensor, to standard output
    nwc_reference.py check LEDGER                              compare vector files with a JSON ledger

Two rules are deliberately not checked, as the document lets a decoder choose: that names are unique (3.2)
and that gap bytes inside DATA are zero (3.8).
"""

import argparse
import json
import math
import os
import struct
import sys
import zlib
from array import array

# ---------------------------------------------------------------------------------------------- errors (12)

CODES = {
    1: "Truncated", 2: "Magic", 3: "Version", 4: "HeaderChecksum", 5: "Sections", 6: "SectionChecksum",
    7: "UnknownSection", 8: "Directory", 9: "Name", 10: "Shape", 11: "Geometry", 12: "Codec", 13: "Table",
    14: "Unsupported", 15: "StreamChecksum", 16: "LaneState", 17: "Overrun", 18: "Trailing",
    19: "FinalState", 20: "Scale", 21: "ContentChecksum", 22: "Attachment", 23: "Seek", 32: "Limit", 33: "Scratch",
    34: "Output", 35: "Index", 36: "Coding", 37: "Source",
}
(TRUNCATED, MAGIC_DIFFERS, VERSION, HEADER_CHECKSUM, SECTIONS, SECTION_CHECKSUM, UNKNOWN_SECTION, DIRECTORY,
 NAME, SHAPE, GEOMETRY, CODEC, TABLE, UNSUPPORTED, STREAM_CHECKSUM, LANE_STATE, OVERRUN, TRAILING,
 FINAL_STATE, SCALE, CONTENT_CHECKSUM, ATTACHMENT, SEEK) = range(1, 24)
LIMIT, SCRATCH, OUTPUT, INDEX, CODING = range(32, 37)


class NwcError(Exception):
    """A file that breaks the format (codes 1 to 23) or a call that cannot be served (from 32 up)."""

    def __init__(self, code, detail=""):
        self.code = code
        self.name = CODES[code]
        super().__init__("error %d %s%s" % (code, self.name, ": " + detail if detail else ""))


def require(condition, code, detail):
    if not condition:
        raise NwcError(code, detail)


# ------------------------------------------------------------------------------------------- primitives (1)

def crc32(*parts):
    """1.4: the CRC of the parts taken as one run."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc & 0xFFFFFFFF


def unzigzag(n):
    """1.3"""
    return n >> 1 if n & 1 == 0 else -((n + 1) >> 1)


class Reader:
    """Reads fields from a run of bytes; a read past its end, or a bad varint, is the error `code`."""

    def __init__(self, data, code):
        self.data, self.code, self.at = data, code, 0

    def left(self):
        return len(self.data) - self.at

    def take(self, count):
        require(count <= self.left(), self.code, "%d bytes wanted, %d left" % (count, self.left()))
        part = self.data[self.at:self.at + count]
        self.at += count
        return part

    def u8(self):
        return self.take(1)[0]

    def u32(self):
        return struct.unpack("<I", self.take(4))[0]

    def varint(self):
        """1.2"""
        value = 0
        for i in range(10):
            byte = self.u8()
            value |= (byte & 127) << (7 * i)
            if byte < 128:
                require(byte != 0 or i == 0, self.code, "a varint's last byte is zero")
                require(value < 1 << 63, self.code, "a varint is too large")
                return value
        raise NwcError(self.code, "a varint is too long")


class BitReader:
    """1.5: a bit string; every field is read lowest bit first."""

    def __init__(self, data):
        self.data, self.at, self.end = data, 0, 8 * len(data)

    def bit(self):
        require(self.at < self.end, TABLE, "the bit string ends inside a table")
        value = self.data[self.at >> 3] >> (self.at & 7) & 1
        self.at += 1
        return value

    def bits(self, count):
        value = 0
        for i in range(count):
            value |= self.bit() << i
        return value

    def rice(self, k):
        ones = 0
        while self.bit():
            ones += 1
            require(ones <= 1023, TABLE, "a Rice code's run of ones is too long")
        return (ones << k) + self.bits(k)

    def finish(self):
        require(self.end - self.at < 8, CODEC, "bytes are left after the last table")
        while self.at < self.end:
            require(self.bit() == 0, CODEC, "padding bits are not zero")


# ----------------------------------------------------------------------------- binary32, binary16, bfloat16

MAX32 = float((2**24 - 1) * 2**104)


def round32(x):
    """The binary32 number nearest to the double x (ties to even, subnormals kept), never infinite."""
    try:
        return struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:
        return math.copysign(MAX32, x)


def mul32(a, b):
    """10.3: a binary32 product.  Significands of 24 bits: the product of two is exact in a double, and its
    exponent is far inside a double's range, so this rounds once."""
    return round32(a * b)


def bits32(x):
    """The bits of x, which must be a binary32 number already."""
    return struct.unpack("<I", struct.pack("<f", x))[0]


def narrow(bits, stored_bits, exponent_bits):
    """10.4: the bits of a finite binary32 number, rounded to a 16-bit format with that many significand and
    exponent bits, all in integers."""
    sign = bits >> 31 << 15
    exponent, significand = bits >> 23 & 255, bits & 0x7FFFFF
    if exponent:
        significand |= 1 << 23
    else:
        exponent = 1
    # The magnitude is significand * 2^(exponent - 150).  `field` is the biased exponent in the narrow format
    # for a significand with its leading bit at bit 23; below 1 the step stays that of the subnormals.
    field = exponent - 127 + (1 << (exponent_bits - 1)) - 1
    drop = 23 - stored_bits
    if field < 1:
        drop += 1 - field
        field = 1
    kept, rest, half = significand >> drop, significand & ((1 << drop) - 1), 1 << (drop - 1)
    if rest > half or (rest == half and kept & 1):
        kept += 1
    # A carry out of the significand moves into the exponent field by itself; for a subnormal, kept has no
    # leading bit and field 1 less that bit is the exponent field 0.
    magnitude = ((field - 1) << stored_bits) + kept
    largest = (((1 << exponent_bits) - 1) << stored_bits) - 1
    return sign | min(magnitude, largest)


def float_bytes(words, dtype):
    """10.4: the output bytes of a tensor given by the binary32 bits of its weights (array 'I')."""
    if dtype == "F32":
        unit, values = "<%dI", words
    else:
        stored, exponent = (10, 5) if dtype == "F16" else (7, 8)
        cache = {}
        values = array("H")
        for word in words:
            value = cache.get(word)
            if value is None:
                if len(cache) > 1 << 16:
                    cache.clear()
                value = cache[word] = narrow(word, stored, exponent)
            values.append(value)
        unit = "<%dH"
    step = 1 << 16
    out = bytearray()
    for at in range(0, len(values), step):
        part = values[at:at + step]
        out += struct.pack(unit % len(part), *part)
    return bytes(out)


# ---------------------------------------------------------------------------------------------- scales (10)

H = (0x40000000, 0x42D561B4, 0x45CAE0F2, 0x48E1E9BA, 0x4C1BF829, 0x4F7A9930, 0x52FF6B55, 0x56AC1F75,
     0x5A82799A, 0x5E8451D0, 0x62B39509, 0x6712460B, 0x6BA27E65, 0x70666F76, 0x75606374, 0x7A92BE8B)
G = (0x80000000, 0x802C6437, 0x8058D7D3, 0x80855AD9, 0x80B1ED50, 0x80DE8F3C, 0x810B40A2, 0x81380188,
     0x8164D1F4, 0x8191B1EA, 0x81BEA171, 0x81EBA08D, 0x8218AF43, 0x8245CD9B, 0x8272FB98, 0x82A03940,
     0x82CD8699, 0x82FAE3A8, 0x83285072, 0x8355CCFD, 0x8383594F, 0x83B0F56D, 0x83DEA15C, 0x840C5D21,
     0x843A28C4, 0x84680448, 0x8495EFB3, 0x84C3EB0C, 0x84F1F656, 0x85201199, 0x854E3CD9, 0x857C781C)


def scale(code):
    """10.1: an exact binary32 number, as a double."""
    require(-64512 <= code <= 65535, SCALE, "scale code %d" % code)
    e, k = divmod(code, 512)
    m = (H[k // 32] * G[k % 32] + (1 << 37)) >> 38
    return math.ldexp(m, e - 23)


# ---------------------------------------------------------------------------------------------- codecs (4)

E = (256, 279, 304, 332, 362, 395, 431, 470)


class Table:
    """4.2 to 4.4: the frequencies of n symbols and the integers that they stand for."""

    def __init__(self, bits, precision, is_weight):
        lo = bits.bits(16)
        lo -= (lo & 0x8000) << 1
        n = bits.bits(8) + 1
        k = bits.bits(3)
        levels = []
        for i in range(n):
            error = unzigzag(bits.rice(k))
            if i == 0:
                predicted = 0
            elif i == 1:
                predicted = levels[0]
            else:
                predicted = max(0, min(127, 2 * levels[i - 1] - levels[i - 2]))
            level = error + predicted
            require(0 <= level <= 127, TABLE, "level %d" % level)
            levels.append(level)
        if is_weight:
            require(n >= 2, TABLE, "a weight table without a value")
            low, high = lo, lo + n - 2
            require(high <= 32767, TABLE, "values up to %d" % high)
            self.values = (None,) + tuple(range(low, high + 1))
        else:
            low, high = lo, lo + n - 1
            require(-4096 <= low and high <= 4095, TABLE, "side values %d to %d" % (low, high))
            self.values = tuple(range(low, high + 1))
        total = 1 << precision
        weights = [E[a % 8] << (a // 8) for a in levels]
        weight_sum = sum(weights)
        self.freq = [1 + w * (total - n) // weight_sum for w in weights]
        self.freq[weights.index(max(weights))] += total - sum(self.freq)
        self.start = [0] * n
        for i in range(1, n):
            self.start[i] = self.start[i - 1] + self.freq[i - 1]

    def symbols_by_slot(self):
        return b"".join(bytes((i,)) * f for i, f in enumerate(self.freq))


IDENTITY, HADAMARD, LEARNED = 0, 1, 2


class Network:
    """9.3"""

    def __init__(self, reader):
        self.places = reader.u8()
        require(self.places <= 12, CODEC, "%d binary places" % self.places)
        self.matrix = self.table(reader, 16, 16)
        for row in self.matrix:
            require(sum(map(abs, row)) <= 4 << self.places, CODEC, "a row of the matrix that gains too much")
        count = reader.u8()
        require(count <= 2, CODEC, "%d layers" % count)
        self.layers, width = [], 16
        for _ in range(count):
            inputs, width, shift = width, reader.u8(), reader.u8()
            require(1 <= width <= 64 and shift <= 15, CODEC, "a layer of width %d, shift %d" % (width, shift))
            biases = struct.unpack("<%dh" % width, reader.take(2 * width))
            self.layers.append((shift, biases, self.table(reader, width, inputs)))
        self.output = self.table(reader, 16, width) if count else []

    @staticmethod
    def table(reader, rows, columns):
        return [struct.unpack("%db" % columns, reader.take(columns)) for _ in range(rows)]

    def latents(self, chunk):
        """Sixteen latent values, of sixteen indices; in binary64, not yet rounded"""
        sums = [sum(map(int.__mul__, row, chunk)) for row in self.matrix]
        if self.layers:
            x = [min(max(i, -128), 127) for i in chunk]
            for shift, biases, weights in self.layers:
                x = [min(max((b + sum(map(int.__mul__, row, x))) >> shift, 0), 127)
                     for b, row in zip(biases, weights)]
            sums = [s + sum(map(int.__mul__, row, x)) for s, row in zip(sums, self.output)]
        return [s / (1 << self.places) for s in sums]


class Codec:
    def __init__(self, data):
        reader = Reader(data, CODEC)
        self.synthesis = reader.u8()
        require(self.synthesis in (IDENTITY, HADAMARD, LEARNED), UNSUPPORTED, "a reserved synthesis")
        self.network = Network(reader) if self.synthesis == LEARNED else None
        quantiser = reader.u8()
        require(quantiser <= 1, CODEC, "quantiser %d" % quantiser)
        self.trellis = quantiser == 1
        self.next = None
        if self.trellis:
            state_bits = reader.u8()
            require(1 <= state_bits <= 8, CODEC, "%d state bits" % state_bits)
            self.next = bytes(reader.take(2 << state_bits))
            require(max(self.next) < 1 << state_bits, CODEC, "a next state that does not exist")
        require(reader.u8() == 0, UNSUPPORTED, "a reserved entropy mode")
        self.precision = reader.u8()
        require(10 <= self.precision <= 14, CODEC, "precision %d" % self.precision)
        self.unions = reader.u8()
        require(self.unions == 1 or (self.unions == 2 and self.trellis), CODEC, "unions %d" % self.unions)
        self.classes = reader.u8()
        require(1 <= self.classes <= 64, CODEC, "%d classes" % self.classes)
        self.side = reader.u8()
        require(self.side < 16, CODEC, "side tables %d" % self.side)
        bits = BitReader(reader.take(reader.left()))
        self.weight_tables = [Table(bits, self.precision, True) for _ in range(self.classes * self.unions)]
        self.side_tables = [Table(bits, self.precision, False) if self.side >> i & 1 else None
                            for i in range(4)]
        bits.finish()


def parse_codecs(section):
    """4.1"""
    reader = Reader(section, CODEC)
    codecs = [Codec(reader.take(reader.u32())) for _ in range(reader.u8())]
    require(reader.left() == 0, CODEC, "bytes are left after the last codec")
    return codecs


# ------------------------------------------------------------------------------------------- directory (3)

DTYPES = (("F32", 4), ("F16", 2), ("BF16", 2), ("F64", 8), ("I64", 8), ("I32", 4), ("I16", 2), ("I8", 1),
          ("U64", 8), ("U32", 4), ("U16", 2), ("U8", 1), ("BOOL", 1), ("F8_E4M3", 1), ("F8_E5M2", 1))
FLOATS = ("F32", "F16", "BF16")
RAW, CODED, ALIAS = 0, 1, 2
CODINGS = ("raw", "coded", "alias")
ROW_SCALE, ROW_CLASS, COLUMN_SCALE, COLUMN_CLASS = 1, 2, 4, 8


class Tensor:
    """An entry of the directory; which further fields it has depends on its coding."""

    def name(self):
        """3.2: built when asked for, since sixteen short offsets can name four kilobytes."""
        return ".".join(str(self.names[at + 1:at + 1 + self.names[at]], "utf-8") for at in self.fragments)


def ceil_div(a, b):
    return -(-a // b)


def parse_name(reader, tensor, names):
    """3.2"""
    tensor.names = names
    count = reader.varint()
    require(1 <= count <= 16, NAME, "%d fragments" % count)
    tensor.fragments = [reader.varint() for _ in range(count)]
    for at in tensor.fragments:
        require(at < len(names), NAME, "a fragment outside the name table")
        size = names[at]
        require(size >= 1, NAME, "an empty fragment")
        require(at + 1 + size <= len(names), NAME, "a fragment that leaves the name table")
        try:
            str(names[at + 1:at + 1 + size], "utf-8")
        except UnicodeDecodeError:
            raise NwcError(NAME, "a fragment that is not UTF-8") from None


def parse_view(tensor, view):
    """3.7 and 3.9: sets batches, rows and columns."""
    require(view < 8, SHAPE, "view %d" % view)
    dims = tensor.shape
    require(len(dims) >= 1 and 0 not in dims, SHAPE, "a coded tensor of shape %r" % (dims,))
    tensor.transposed, tensor.direct = bool(view & 1), bool(view & 4)
    tensor.batches = 1
    if view & 2:
        require(len(dims) >= 2, SHAPE, "a batch of nothing")
        tensor.batches, dims = dims[0], dims[1:]
    tensor.out, tensor.inner = dims[0], math.prod(dims[1:])
    if tensor.transposed:
        tensor.rows, tensor.columns = tensor.inner, tensor.out
    else:
        tensor.rows, tensor.columns = tensor.out, tensor.inner
    require(max(tensor.rows, tensor.columns) < 1 << 31, SHAPE, "too many rows or columns")


def parse_coded(reader, tensor, codecs):
    """3.7, without gap, length and CRC"""
    require(tensor.dtype in FLOATS, DIRECTORY, "a coded tensor of dtype " + tensor.dtype)
    parse_view(tensor, reader.u8())
    require(reader.u8() == 1, UNSUPPORTED, "a reserved number of layers")
    codec = reader.u8()
    require(codec < len(codecs), DIRECTORY, "no codec %d" % codec)
    tensor.codec = codecs[codec]
    tensor.lanes = reader.u8()
    require(1 <= tensor.lanes <= 32, GEOMETRY, "%d lanes" % tensor.lanes)
    tensor.lane_columns = reader.varint()
    require(tensor.lane_columns >= 1 and (tensor.lane_columns - 1) * tensor.lanes < tensor.columns,
            GEOMETRY, "%d columns a lane" % tensor.lane_columns)
    tensor.tile_rows = reader.varint()
    require(1 <= tensor.tile_rows <= tensor.rows, GEOMETRY, "%d tile rows" % tensor.tile_rows)
    tensor.step = unzigzag(reader.varint())
    require(-65536 <= tensor.step <= 65535, DIRECTORY, "step code %d" % tensor.step)
    tensor.class_base = reader.u8()
    require(tensor.class_base < tensor.codec.classes, DIRECTORY, "class base %d" % tensor.class_base)
    tensor.side = reader.u8()
    require(tensor.side & ~tensor.codec.side == 0, DIRECTORY, "side %d" % tensor.side)
    resolution = reader.u8()
    tensor.row_shift, tensor.column_shift = resolution & 15, resolution >> 4
    for shift, bit in ((tensor.row_shift, ROW_SCALE), (tensor.column_shift, COLUMN_SCALE)):
        require(shift <= (9 if tensor.side & bit else 0), DIRECTORY, "resolution %d" % resolution)


def parse_directory(section, codecs, data_offset, data_length):
    """3.1 to 3.8.  Item offsets are counted from the start of the file."""
    reader = Reader(section, DIRECTORY)
    count = reader.u32()
    names = reader.take(reader.u32())
    tensors = []
    item_at, data_end = data_offset, data_offset + data_length
    for index in range(count):
        tensor = Tensor()
        tensor.coding = reader.u8()
        require(tensor.coding <= ALIAS, DIRECTORY, "coding %d" % tensor.coding)
        parse_name(reader, tensor, names)
        dtype = reader.u8()
        require(dtype < len(DTYPES), DIRECTORY, "dtype %d" % dtype)
        tensor.dtype, element_size = DTYPES[dtype]
        dimensions = reader.u8()
        require(dimensions <= 8, SHAPE, "%d dimensions" % dimensions)
        tensor.shape = [reader.varint() for _ in range(dimensions)]
        tensor.count = math.prod(tensor.shape)
        # A dimension of zero does not excuse the others.
        require(math.prod(d for d in tensor.shape if d) <= 1 << 40, SHAPE, "too many elements")
        if tensor.coding == ALIAS:
            tensor.target = reader.varint()
            require(tensor.target < index, DIRECTORY, "an alias of a later tensor")
        else:
            if tensor.coding == CODED:
                parse_coded(reader, tensor, codecs)
            gap = reader.varint()
            require(gap <= 63, GEOMETRY, "a gap of %d bytes" % gap)
            if tensor.coding == CODED:
                tensor.length = reader.varint()
            else:
                tensor.length = tensor.count * element_size
            tensor.crc = reader.u32()
            tensor.offset = item_at + gap
            item_at = tensor.offset + tensor.length
            require(item_at <= data_end, GEOMETRY, "an item that leaves DATA")
            if tensor.coding == CODED:
                require(tensor.offset % 4 == 0, GEOMETRY, "a coded item that is not aligned")
                check_size(tensor)
        tensors.append(tensor)
    require(reader.left() == 0, DIRECTORY, "bytes are left after the last entry")
    require(item_at == data_end, GEOMETRY, "the last item does not end where DATA ends")
    return tensors


# ------------------------------------------------------------------------------ entropy decoding (5.3, 6)

class Stream:
    """The words and lane states of one stream."""

    def __init__(self, data, lanes):
        # The caller has checked that 4 * lanes bytes are there.
        self.states = list(struct.unpack_from("<%dI" % lanes, data))
        require(min(self.states) >= 1 << 16, LANE_STATE, "a lane state below 2^16")
        self.words = memoryview(data)[4 * lanes:]
        self.at = 0

    def word(self):
        if self.at + 2 > len(self.words):
            raise NwcError(OVERRUN, "a word is needed that is not there")
        low, high = self.words[self.at], self.words[self.at + 1]
        self.at += 2
        return low | high << 8

    def finish(self):
        """6.4 and 5.3"""
        rest = self.words[self.at:]
        require(bytes(rest) in (b"", b"\0\0"), TRAILING, "words are left over")
        require(all(x == 1 << 16 for x in self.states), FINAL_STATE, "a lane does not end at 2^16")


class SymbolDecoder:
    """6.2 and 6.3 for one table."""

    def __init__(self, table, precision):
        self.values, self.freq, self.start = table.values, table.freq, table.start
        self.by_slot = table.symbols_by_slot()
        self.precision, self.mask = precision, (1 << precision) - 1

    def decode(self, stream, lane):
        """Takes a symbol from the lane, refills it, and returns the value of the symbol (None: escape)."""
        x = stream.states[lane]
        slot = x & self.mask
        s = self.by_slot[slot]
        x = self.freq[s] * (x >> self.precision) + slot - self.start[s]
        if x < 1 << 16:
            x = x << 16 | stream.word()
        stream.states[lane] = x
        return self.values[s]


# ------------------------------------------------------------------------------------ coded tensors (5 - 10)

MAX_WEIGHTS_PER_BYTE = 1 << 15  # 5.4

MAX_WEIGHTS = 1 << 28  # this decoder's own limit for one coded tensor: above it, error 32


def count_streams(tensor):
    """5.1 and 5.2: the number of row streams, of all streams, and of column blocks"""
    row_blocks = ceil_div(tensor.rows, tensor.tile_rows)
    column_blocks = ceil_div(tensor.columns, tensor.lanes * tensor.lane_columns)
    row_streams = tensor.batches * row_blocks if tensor.side & (ROW_SCALE | ROW_CLASS) else 0
    return row_streams, row_streams + tensor.batches * row_blocks * column_blocks, column_blocks


def check_size(tensor):
    """5.4, as far as it can be told from the directory"""
    require(8 * count_streams(tensor)[1] <= tensor.length, GEOMETRY, "more streams than the item has room for")
    require(tensor.count <= MAX_WEIGHTS_PER_BYTE * tensor.length, GEOMETRY,
            "more weights than the item's bytes allow")


def parse_streams(tensor, item):
    """5.2 and 5.4: a list of (bytes, lanes), the row streams first; every CRC is checked."""
    span = tensor.lanes * tensor.lane_columns
    row_streams, total, column_blocks = count_streams(tensor)
    records = struct.iter_unpack("<II", item[:8 * total])
    first, at = 8 * total, 8 * total
    streams = []
    for number, (end, crc) in enumerate(records):
        end = first + 4 * end
        require(at <= end <= len(item), GEOMETRY, "a stream's end")
        if number < row_streams:
            lanes = 1
        else:
            j = (number - row_streams) % column_blocks
            lanes = min(tensor.lanes, tensor.columns - j * span)
        require(end - at >= 4 * lanes, GEOMETRY, "a stream shorter than its lane states")
        streams.append((item[at:end], lanes, crc))
        at = end
    require(at == len(item), GEOMETRY, "the last stream does not end the item")
    for data, _, crc in streams:
        require(crc32(data) == crc, STREAM_CHECKSUM, "a stream's CRC")
    return streams[:row_streams], streams[row_streams:]


def hadamard(chunk):
    """9.2"""
    return [sum(-i if bin(j & k).count("1") % 2 else i for k, i in enumerate(chunk)) / 4 for j in range(16)]


def synthesise(codec, direct, indices, rows, lanes):
    """9: the latent values of a group of columns, [row][lane]; every one is a binary32 number"""
    latents = array("d", indices)
    if direct or codec.synthesis == IDENTITY:
        return latents
    transform = codec.network.latents if codec.network else hadamard
    for first in range(0, rows - 15, 16):
        for lane in range(lanes):
            places = range(first * lanes + lane, (first + 16) * lanes, lanes)
            for place, latent in zip(places, transform([indices[place] for place in places])):
                latents[place] = round32(latent)
    return latents


class CodedDecoder:
    """Decodes the weights of one coded tensor to binary32."""

    def __init__(self, tensor, item):
        self.tensor = tensor
        codec = self.codec = tensor.codec
        self.row_streams, self.tile_streams = parse_streams(tensor, item)
        require(tensor.count <= MAX_WEIGHTS, LIMIT, "%d weights" % tensor.count)
        self.weight_decoders = [SymbolDecoder(t, codec.precision) for t in codec.weight_tables]
        self.side_decoders = [SymbolDecoder(t, codec.precision) if t and tensor.side >> i & 1 else None
                              for i, t in enumerate(codec.side_tables)]

    def row_values(self, stream, rows):
        """7.1: the scale value and the class value of every row of a block"""
        row_scale, row_class = self.side_decoders[0], self.side_decoders[1]
        scales, classes = array("h"), array("h")
        for _ in range(rows):
            scales.append(row_scale.decode(stream, 0) if row_scale else 0)
            classes.append(row_class.decode(stream, 0) if row_class else 0)
        stream.finish()
        return scales, classes

    def tile(self, stream, rows, columns, row_classes):
        """8: the indices in the order of decoding (group, row, lane), and the columns' scale values"""
        tensor, codec = self.tensor, self.codec
        column_scale, column_class = self.side_decoders[2], self.side_decoders[3]
        trellis_next, unions, top_class = codec.next, codec.unions, codec.classes - 1
        decoders = self.weight_decoders
        trellis = [0] * min(tensor.lanes, columns)
        indices, column_scales = array("i"), array("h")
        for first in range(0, columns, tensor.lanes):  # groups; those past the tile's columns are empty
            lanes = range(min(tensor.lanes, columns - first))
            for lane in lanes:
                column_scales.append(column_scale.decode(stream, lane) if column_scale else 0)
            column_classes = [column_class.decode(stream, lane) if column_class else 0 for lane in lanes]
            for r in range(rows):
                base = tensor.class_base + row_classes[r]
                values = []
                for lane in lanes:
                    union = trellis[lane] & 1 if unions == 2 else 0
                    weight_class = max(0, min(top_class, base + column_classes[lane]))
                    values.append(decoders[weight_class * unions + union].decode(stream, lane))
                for lane in lanes:
                    j = values[lane]
                    if j is None:
                        j = stream.word()
                        j -= (j & 0x8000) << 1
                    if trellis_next is None:
                        indices.append(j)
                    else:
                        s = trellis[lane]
                        indices.append(2 * j + (s & 1))
                        trellis[lane] = trellis_next[2 * s + (j & 1)]
        stream.finish()
        return indices, column_scales

    def weights(self):
        """The binary32 bits of all weights, row-major in the tensor's own dimensions (array 'I').

        All streams are decoded before the result is set up, so nothing is built from the shape alone."""
        tensor = self.tensor
        span = tensor.lanes * tensor.lane_columns
        tile_streams = iter(self.tile_streams)
        row_streams = iter(self.row_streams)
        tiles = []
        for b in range(tensor.batches):
            for r0 in range(0, tensor.rows, tensor.tile_rows):
                rows = min(tensor.tile_rows, tensor.rows - r0)
                if self.row_streams:
                    data, lanes, _ = next(row_streams)
                    row_scales, row_classes = self.row_values(Stream(data, lanes), rows)
                else:
                    row_scales = row_classes = array("h", [0]) * rows
                for c0 in range(0, tensor.columns, span):
                    columns = min(span, tensor.columns - c0)
                    data, lanes, _ = next(tile_streams)
                    indices, column_scales = self.tile(Stream(data, lanes), rows, columns, row_classes)
                    tiles.append((b, r0, rows, c0, columns, row_scales, column_scales, indices))
        out = array("I", [0]) * tensor.count
        for tile in tiles:
            self.place(out, *tile)
        return out

    def place(self, out, b, r0, rows, c0, columns, row_scales, column_scales, indices):
        """9, 10 and 3.9 for one tile"""
        tensor = self.tensor
        row_unit, column_unit = 1 << (9 - tensor.row_shift), 1 << (9 - tensor.column_shift)
        row_factors = array("d", (scale(tensor.step + value * row_unit) for value in row_scales))
        if tensor.side & COLUMN_SCALE:
            column_factors = array("d", (scale(value * column_unit) for value in column_scales))
        else:
            column_factors = array("d", [1.0]) * columns
        if tensor.transposed:
            row_stride, column_stride = 1, tensor.inner
        else:
            row_stride, column_stride = tensor.inner, 1
        origin = b * tensor.out * tensor.inner + r0 * row_stride + c0 * column_stride
        at = 0
        for first in range(0, columns, tensor.lanes):
            group = range(first, min(first + tensor.lanes, columns))
            part = indices[at:at + rows * len(group)]
            latents = synthesise(self.codec, tensor.direct, part, rows, len(group))
            at += rows * len(group)
            for r in range(rows):
                row_factor = row_factors[r]
                for c in group:
                    v = latents[r * len(group) + c - first]
                    w = mul32(v, mul32(row_factor, column_factors[c]))
                    out[origin + r * row_stride + c * column_stride] = bits32(w)


# ------------------------------------------------------------------------------------------------- file (2)

MAGIC = bytes((0x89, 0x4E, 0x57, 0x43, 0x0D, 0x0A, 0x1A, 0x0A))
KIND_DIRECTORY, KIND_CODECS, KIND_DATA, KIND_ATTACHMENTS, KIND_SEEK = 1, 2, 3, 4, 5
REQUIRED = 1 << 31


class NwcFile:
    """An open file: everything but the items and the attachments has been checked."""

    def __init__(self, data):
        self.data = memoryview(data)
        self.sections = self.parse_sections()
        for kind in (KIND_DIRECTORY, KIND_CODECS):
            self.check_section(kind)
        self.codecs = parse_codecs(self.section(KIND_CODECS))
        _, data_offset, data_length = self.sections[KIND_DATA]
        self.tensors = parse_directory(self.section(KIND_DIRECTORY), self.codecs, data_offset, data_length)

    def parse_sections(self):
        """2.1 to 2.3, in the order that 2.3 gives"""
        data, size = self.data, len(self.data)
        require(size >= 8, TRUNCATED, "no magic")
        require(data[:8] == MAGIC, MAGIC_DIFFERS, "not an NWC file")
        require(size >= 24, TRUNCATED, "no header")
        version, n, header_crc, length = struct.unpack_from("<HHIQ", data, 8)
        require(version == 1, VERSION, "version %d" % version)
        require(1 <= n <= 32, SECTIONS, "%d sections" % n)
        table_end = 24 + 24 * n
        require(size >= table_end, TRUNCATED, "no section table")
        require(crc32(data[:12], data[16:table_end]) == header_crc, HEADER_CHECKSUM, "the header's CRC")
        require(size >= length, TRUNCATED, "%d bytes of %d" % (size, length))
        require(size == length, SECTIONS, "%d bytes, stated %d" % (size, length))
        sections, seen, end = {}, set(), table_end
        entries = struct.iter_unpack("<IIQQ", data[24:table_end])
        for number, (kind, crc, offset, count) in enumerate(entries):
            require(offset % 64 == 0 and end <= offset, SECTIONS, "a section's offset")
            require(offset - end < 64, SECTIONS, "the gap before a section")
            require(offset + count <= size, SECTIONS, "a section that leaves the file")
            require(not any(data[end:offset]), SECTIONS, "a gap that is not zero")
            end = offset + count
            if number == n - 1:
                require(end == size, SECTIONS, "the last section does not end the file")
            plain, required = kind & ~REQUIRED, bool(kind & REQUIRED)
            require(plain not in seen, SECTIONS, "a kind that occurs twice")
            seen.add(plain)
            if plain in (KIND_DIRECTORY, KIND_CODECS, KIND_DATA, KIND_ATTACHMENTS, KIND_SEEK):
                require(required == (plain <= KIND_DATA), SECTIONS, "a section's required bit")
                require(plain != KIND_DATA or crc == 0, SECTIONS, "a CRC for DATA")
                sections[plain] = (crc, offset, count)
            else:
                require(not required, UNKNOWN_SECTION, "section kind %d" % plain)
        for kind in (KIND_DIRECTORY, KIND_CODECS, KIND_DATA):
            require(kind in sections, SECTIONS, "section kind %d is missing" % kind)
        return sections

    def section(self, kind):
        _, offset, length = self.sections[kind]
        return self.data[offset:offset + length]

    def check_section(self, kind):
        require(crc32(self.section(kind)) == self.sections[kind][0], SECTION_CHECKSUM, "section %d" % kind)

    def tensor(self, index):
        """The entry itself, or the one that it is an alias of"""
        require(0 <= index < len(self.tensors), INDEX, "no tensor %d" % index)
        tensor = self.tensors[index]
        if tensor.coding != ALIAS:
            return tensor
        other = self.tensors[tensor.target]  # 3.6: its index was checked at once, the rest when it is used
        require(other.coding != ALIAS, DIRECTORY, "an alias of an alias")
        require((other.dtype, other.shape) == (tensor.dtype, tensor.shape), DIRECTORY,
                "an alias that differs from its tensor")
        return other

    def decode(self, index, dtypes=None):
        """The tensor's bytes in each of the dtypes (None: its own), as a list.

        The content CRC is always checked, whatever dtypes are asked for."""
        tensor = self.tensor(index)
        dtypes = [tensor.dtype] if dtypes is None else dtypes
        item = self.data[tensor.offset:tensor.offset + tensor.length]
        if tensor.coding == RAW:
            require(all(d == tensor.dtype for d in dtypes), CODING, "a raw tensor has its own dtype only")
            require(crc32(item) == tensor.crc, STREAM_CHECKSUM, "a raw item's CRC")
            return [bytes(item) for _ in dtypes]
        require(all(d in FLOATS for d in dtypes), CODING, "a coded tensor decodes to F32, F16 or BF16")
        words = CodedDecoder(tensor, item).weights()
        own = float_bytes(words, tensor.dtype)
        require(crc32(own) == tensor.crc, CONTENT_CHECKSUM, "the decoded tensor's CRC")
        return [own if d == tensor.dtype else float_bytes(words, d) for d in dtypes]

    def check_seek_points(self):
        """13.1 and 13.2: the form of the seek points; what they say is not compared with the streams."""
        if KIND_SEEK not in self.sections:
            return
        self.check_section(KIND_SEEK)
        reader = Reader(self.section(KIND_SEEK), SEEK)
        before = (-1, -1)
        for _ in range(reader.u32()):
            index, number, count = reader.u32(), reader.u32(), reader.u32()
            require(before < (index, number), SEEK, "tiles out of order")
            before = (index, number)
            require(count >= 1, SEEK, "a tile without points")
            require(index < len(self.tensors), SEEK, "no tensor %d" % index)
            tensor = self.tensors[index]
            require(tensor.coding == CODED, SEEK, "points of a tensor that is not coded")
            self.check_tile_points(reader, tensor, number, count)
        require(reader.left() == 0, SEEK, "bytes are left after the last point")

    def check_tile_points(self, reader, tensor, number, count):
        row_streams, streams, column_blocks = count_streams(tensor)
        require(number < streams - row_streams, SEEK, "no tile %d" % number)
        row_block = number // column_blocks % ceil_div(tensor.rows, tensor.tile_rows)
        rows = min(tensor.tile_rows, tensor.rows - row_block * tensor.tile_rows)
        span = tensor.lanes * tensor.lane_columns
        columns = min(span, tensor.columns - number % column_blocks * span)
        lanes = min(tensor.lanes, columns)
        before = (0, 0)
        for _ in range(count):
            group, row, _words = reader.u32(), reader.u32(), reader.u32()
            require(group * tensor.lanes < columns, SEEK, "no group %d" % group)
            require(row % 16 == 0 and row < rows, SEEK, "row %d" % row)
            require(before < (group, row), SEEK, "points out of order")
            before = (group, row)
            if row_streams:
                row_words, row_state = reader.u32(), reader.u32()
                if row == 0:
                    require(row_words == 0 and row_state == 0, SEEK, "a row stream that has begun")
                else:
                    require(row_words >= 2 and row_state >= 1 << 16, SEEK, "the row stream's state")
            for _ in range(lanes):
                require(reader.u32() >= 1 << 16, SEEK, "a lane state")
            if tensor.codec.trellis:
                states = len(tensor.codec.next) // 2
                require(max(reader.take(lanes)) < states, SEEK, "a trellis state")
            if row > 0:
                kinds = (tensor.side >> 2 & 1) + (tensor.side >> 3 & 1)
                reader.take(2 * kinds * min(tensor.lanes, columns - group * tensor.lanes))

    def attachments(self):
        """11.1: yields (name, content) pairs; the content is checked."""
        if KIND_ATTACHMENTS not in self.sections:
            return
        self.check_section(KIND_ATTACHMENTS)
        reader = Reader(self.section(KIND_ATTACHMENTS), ATTACHMENT)
        for _ in range(reader.u32()):
            try:
                name = str(reader.take(reader.varint()), "utf-8")
            except UnicodeDecodeError:
                raise NwcError(ATTACHMENT, "a name that is not UTF-8") from None
            method, length, stored_length, crc = reader.u8(), reader.varint(), reader.varint(), reader.u32()
            stored = reader.take(stored_length)
            require(method <= 1, ATTACHMENT, "method %d" % method)
            if method == 0:
                require(length == stored_length, ATTACHMENT, "the two lengths differ")
                content = bytes(stored)
            else:
                content = inflate(stored, length)
            require(crc32(content) == crc, ATTACHMENT, "an attachment's CRC")
            yield name, content
        require(reader.left() == 0, ATTACHMENT, "bytes are left after the last attachment")


def inflate(stored, length):
    """One whole zlib stream of exactly `length` bytes, and nothing after it"""
    require(length <= 1032 * len(stored), ATTACHMENT, "longer than deflate can make it")  # its best ratio
    engine = zlib.decompressobj()
    try:
        content = engine.decompress(stored, length + 1)  # stops there; 0 would mean no limit
    except zlib.error as error:
        raise NwcError(ATTACHMENT, str(error)) from None
    require(engine.eof and not engine.unused_data and len(content) == length, ATTACHMENT, "zlib length")
    return content


def open_file(path):
    with open(path, "rb") as f:
        return NwcFile(f.read())


# ------------------------------------------------------------------------------------------------- commands

def printable(text):
    return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode("ascii") for ch in text)


def command_list(path):
    nwc = open_file(path)
    for index, tensor in enumerate(nwc.tensors):
        crc = crc32(nwc.decode(index)[0])
        shape = "[" + ",".join(map(str, tensor.shape)) + "]"
        fields = (index, printable(tensor.name()), tensor.dtype, shape, CODINGS[tensor.coding], "%08x" % crc)
        print(*fields, sep="\t")
    return 0


def command_attachments(path):
    for name, content in open_file(path).attachments():
        print(printable(name), len(content), "%08x" % crc32(content), sep="\t")
    return 0


def command_decode(path, index, dtype):
    nwc = open_file(path)
    sys.stdout.buffer.write(nwc.decode(index, None if dtype is None else [dtype])[0])
    return 0


def decode_whole(path):
    """Open, every tensor in its own dtype, the seek points, every attachment"""
    nwc = open_file(path)
    for index in range(len(nwc.tensors)):
        nwc.decode(index)
    nwc.check_seek_points()
    for _ in nwc.attachments():
        pass


def check_good(path, expected):
    """None, or a line that says what differs"""
    nwc = open_file(path)
    if len(nwc.tensors) != len(expected):
        return "%d tensors, the ledger has %d" % (len(nwc.tensors), len(expected))
    for index, entry in enumerate(expected):
        name = nwc.tensors[index].name()
        if name != entry["name"]:
            return "tensor %d is named %r, the ledger has %r" % (index, name, entry["name"])
        dtypes = sorted(entry["crc"])
        for dtype, content in zip(dtypes, nwc.decode(index, dtypes)):
            crc = "%08x" % crc32(content)
            if crc != entry["crc"][dtype].lower():
                return "tensor %d (%r) as %s: %s, the ledger has %s" % (index, name, dtype, crc,
                                                                        entry["crc"][dtype])
    nwc.check_seek_points()
    for _ in nwc.attachments():
        pass
    return None


def check_vector(folder, vector):
    path = os.path.join(folder, vector["file"])
    error = vector.get("error")
    try:
        if error is None:
            return check_good(path, vector["tensors"])
        decode_whole(path)
    except NwcError as caught:
        return None if error == caught.code else "%s; the ledger has %s" % (caught, error)
    return "decoded without an error; the ledger has error %s %s" % (error, CODES.get(error, "?"))


def command_check(ledger):
    with open(ledger, encoding="utf-8") as f:
        vectors = json.load(f)["vectors"]
    folder = os.path.dirname(os.path.abspath(ledger))
    passed = failed = skipped = 0
    for vector in vectors:
        if vector.get("call", "decode") != "decode":
            skipped += 1
            continue
        try:
            problem = check_vector(folder, vector)
        except Exception as caught:  # a defect of this decoder or of the ledger: a failure, never a stop
            problem = "%s: %s" % (type(caught).__name__, caught)
        if problem is None:
            passed += 1
        else:
            failed += 1
            print("FAIL %s: %s" % (vector.get("file"), problem))
    print("%d skipped" % skipped)
    print("%d passed, %d failed" % (passed, failed))
    return 1 if failed else 0


def main(arguments=None):
    parser = argparse.ArgumentParser(description="reference decoder of the NWC format")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("list", "attachments", "decode"):
        command = commands.add_parser(name)
        command.add_argument("file")
        if name == "decode":
            command.add_argument("index", type=int)
            command.add_argument("--dtype", choices=FLOATS)
    commands.add_parser("check").add_argument("ledger")
    options = parser.parse_args(arguments)
    try:
        if options.command == "list":
            return command_list(options.file)
        if options.command == "attachments":
            return command_attachments(options.file)
        if options.command == "decode":
            return command_decode(options.file, options.index, options.dtype)
        return command_check(options.ledger)
    except NwcError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
