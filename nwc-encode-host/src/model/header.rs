//! Reads the header of one safetensors file and says precisely what is wrong with a bad one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::ops::Range;

use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::error::{Error, Result};
use nwc_decode_core::DType;

/// Bytes of the little-endian length before the header.
pub(super) const LENGTH_BYTES: usize = 8;

/// The longest header, in bytes, that readers of the format accept.
pub(super) const MAX_HEADER_BYTES: usize = 100_000_000;

/// The key of the header that is not a tensor.
pub(super) const METADATA_KEY: &str = "__metadata__";

/// What to do about a damaged file.
const FETCH_AGAIN: &str = "download or export the file again";

/// One tensor of a header.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    /// Position of the values in the file, in bytes from its start.
    pub(super) range: Range<usize>,
}

/// A parsed and validated header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: Option<BTreeMap<String, String>>,
    /// In order of data offset.
    pub(super) entries: Vec<Entry>,
}

/// Parses the header of the safetensors file whose whole content is `file`.
///
/// The errors name the tensor where there is one; the caller adds the file.
pub(super) fn parse(file: &[u8]) -> Result<Header> {
    if file.starts_with(b"version https://git-lfs") {
        return Err(Error::input("this is a Git LFS pointer, not the file it stands for")
            .remedy("run \"git lfs pull\" in the folder, or download the file itself"));
    }
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(Error::input(format!(
            "not a safetensors file: {} bytes are too short to hold a header",
            file.len()
        ))
        .remedy(FETCH_AGAIN));
    };
    let length = u64::from_le_bytes(*length);
    let header_len = match usize::try_from(length) {
        Ok(len) if len <= MAX_HEADER_BYTES => len,
        _ => {
            return Err(Error::input(format!(
                "not a safetensors file: its first 8 bytes announce a header of {length} bytes, \
                 the limit is {MAX_HEADER_BYTES}"
            ))
            .remedy("give a .safetensors file; convert other weight formats first"));
        }
    };
    let Some((header, data)) = rest.split_at_checked(header_len) else {
        return Err(Error::input(format!(
            "truncated: the header should be {header_len} bytes long but only {} follow",
            rest.len()
        ))
        .remedy(FETCH_AGAIN));
    };

    // Not `SafeTensors::read_metadata`: that adds up untrusted lengths unchecked before comparing them with
    // the length of the file. The same crate's `Metadata` does all other checks while it is deserialised.
    let parsed: Metadata = match serde_json::from_slice(header) {
        Ok(parsed) => parsed,
        Err(error) => return Err(diagnose(header, error)),
    };
    let announced = parsed.data_len();
    if announced != data.len() {
        let problem = if announced > data.len() { "truncated" } else { "surplus bytes at the end" };
        return Err(Error::input(format!(
            "{problem}: the header describes {announced} bytes of values but the file holds {}",
            data.len()
        ))
        .remedy(FETCH_AGAIN));
    }

    let mut infos: Vec<(String, &TensorInfo)> = parsed.tensors().into_iter().collect();
    // Tensors without elements share their offset with a neighbour. The order in which the crate itself
    // writes tensors decides then, so that the result does not depend on the seed of a hash map.
    infos.sort_by(|(a_name, a), (b_name, b)| {
        (a.data_offsets, Reverse(a.dtype), a_name).cmp(&(b.data_offsets, Reverse(b.dtype), b_name))
    });
    let start = LENGTH_BYTES + header_len;
    let mut entries = Vec::with_capacity(infos.len());
    for (name, info) in infos {
        let Some(dtype) = super::dtype::from_safetensors(info.dtype) else {
            return Err(unsupported(&info.dtype.to_string()).tensor(name));
        };
        // No overflow: every offset is at most `data.len()` after the check above.
        let range = start + info.data_offsets.0..start + info.data_offsets.1;
        entries.push(Entry { name, dtype, shape: info.shape.clone(), range });
    }
    let metadata =
        parsed.metadata().as_ref().map(|map| map.iter().map(|(k, v)| (k.clone(), v.clone())).collect());
    Ok(Header { metadata, entries })
}

fn unsupported(dtype: &str) -> Error {
    Error::input(format!("data type {dtype} is not supported"))
        .remedy("convert the tensor to one of F32, F16, BF16, F64, an integer type, BOOL, F8_E4M3, F8_E5M2")
}

/// The entries of a header in file order, duplicates included.
struct RawEntries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for RawEntries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = RawEntries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawEntries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(RawEntries(entries))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// Finds the tensor because of which the safetensors crate refused a header with `error`.
///
/// The crate's own errors mostly do not name it, and give columns of a line of many thousand.
fn diagnose(header: &[u8], error: serde_json::Error) -> Error {
    let verdict = match serde_json::from_slice::<RawEntries>(header) {
        Ok(RawEntries(entries)) => blame(entries),
        Err(_) => None,
    };
    verdict
        .unwrap_or_else(|| {
            Error::input(format!("the safetensors header is invalid: {error}")).remedy(FETCH_AGAIN)
        })
        .source(error)
}

/// The first thing wrong with the entries of a header that is well-formed JSON.
fn blame(entries: Vec<(String, Value)>) -> Option<Error> {
    let bad = |name: String, problem: String| Some(Error::input(problem).tensor(name).remedy(FETCH_AGAIN));
    let mut seen = HashSet::new();
    let mut infos = Vec::new();
    for (name, value) in entries {
        if name == METADATA_KEY {
            if let Err(error) = serde_json::from_value::<Option<HashMap<String, String>>>(value) {
                let problem =
                    format!("{METADATA_KEY} in the safetensors header does not map text to text: {error}");
                return Some(Error::input(problem).remedy("export the file again with text values only"));
            }
            continue;
        }
        if !seen.insert(name.clone()) {
            return bad(name, "occurs twice in the safetensors header".to_owned());
        }
        if let Some(Value::String(dtype)) = value.get("dtype")
            && serde_json::from_value::<safetensors::Dtype>(Value::from(dtype.as_str())).is_err()
        {
            return Some(unsupported(dtype).tensor(name));
        }
        let info: TensorInfo = match serde_json::from_value(value) {
            Ok(info) => info,
            Err(error) => return bad(name, format!("bad entry in the safetensors header: {error}")),
        };
        let elements = info.shape.iter().try_fold(1_usize, |elements, &extent| elements.checked_mul(extent));
        let bits = elements.and_then(|elements| elements.checked_mul(info.dtype.bitsize()));
        let (start, end) = info.data_offsets;
        let span = end.checked_sub(start);
        if bits.is_none() || span.and_then(|bytes| bytes.checked_mul(8)) != bits {
            let TensorInfo { dtype, shape, .. } = info;
            return bad(
                name,
                format!("shape {shape:?} of {dtype} does not fit the data offsets {start}..{end}"),
            );
        }
        infos.push((info.data_offsets, name));
    }
    infos.sort();
    let mut expected = 0;
    for ((start, end), name) in infos {
        if start != expected {
            return bad(name, format!("the values start at byte {start}, not at {expected} as they should"));
        }
        expected = end;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::parse;

    /// A file with this header text and this many bytes of values.
    fn file(header: &str, values: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + values, 0);
        bytes
    }

    fn problem(bytes: &[u8]) -> String {
        parse(bytes).expect_err("must be refused").to_string()
    }

    #[test]
    fn reads_entries_in_order_of_offset() {
        let header = r#"{"b":{"dtype":"U8","shape":[2],"data_offsets":[4,6]},
            "a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":{"format":"pt"}}"#;
        let bytes = file(header, 6);
        let parsed = parse(&bytes).unwrap();
        let start = 8 + header.len();
        let found: Vec<_> = parsed.entries.iter().map(|e| (e.name.as_str(), e.range.clone())).collect();
        assert_eq!(found, [("a", start..start + 4), ("b", start + 4..start + 6)]);
        assert_eq!(parsed.metadata.unwrap()["format"], "pt");
    }

    #[test]
    fn order_of_empty_tensors_is_fixed() {
        let header = r#"{"z":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},
            "y":{"dtype":"F64","shape":[0,3],"data_offsets":[0,0]},
            "x":{"dtype":"F64","shape":[0],"data_offsets":[0,0]}}"#;
        for _ in 0..20 {
            let names: Vec<_> =
                parse(&file(header, 0)).unwrap().entries.into_iter().map(|e| e.name).collect();
            assert_eq!(names, ["x", "y", "z"]);
        }
    }

    #[test]
    fn framing_errors() {
        assert!(problem(b"").contains("too short"));
        assert!(problem(b"PK\x03\x04").contains("too short"));
        assert!(problem(b"PK\x03\x04zipfile-and-more").contains("not a safetensors file"));
        assert!(problem(&u64::MAX.to_le_bytes()).contains("not a safetensors file"));
        assert!(problem(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
        assert!(problem(&[64, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']).contains("truncated: the header"));
        assert!(problem(&file("{not json}", 0)).contains("header is invalid"));
        assert!(problem(&file("[]", 0)).contains("header is invalid"));
        assert!(problem(&file("\"\u{e9}", 0)).contains("header is invalid"));
        assert!(problem(&file("{}", 3)).contains("surplus bytes"));
    }

    #[test]
    fn tensor_errors_name_the_tensor() {
        let cases = [
            (r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, "does not fit"),
            (r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, "does not fit"),
            (r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, "start at byte 4, not at 0"),
            (
                r#"{"w":{"dtype":"F32","shape":[18446744073709551615,4],"data_offsets":[0,4]}}"#,
                "does not fit",
            ),
            (r#"{"w":{"dtype":"I4","shape":[2],"data_offsets":[0,1]}}"#, "data type I4 is not supported"),
            (r#"{"w":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#, "data type F4 is not supported"),
            (r#"{"w":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]}}"#, "F8_E8M0 is not supported"),
            (r#"{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, "bad entry"),
            (r#"{"w":{"dtype":"F32","data_offsets":[0,4]}}"#, "bad entry"),
            (
                r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                    "w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
                "occurs twice",
            ),
        ];
        for (header, expected) in cases {
            let text = problem(&file(header, 1));
            assert!(text.contains("tensor \"w\"") && text.contains(expected), "{header}: {text}");
        }
        let text = problem(&file(r#"{"__metadata__":{"a":1}}"#, 0));
        assert!(text.contains("__metadata__"), "{text}");
    }

    #[cfg(target_pointer_width = "64")]
    #[test]
    fn lengths_near_the_end_of_the_address_space_do_not_overflow() {
        // Each as long as the format allows, in bits; together they end 8 bytes before the last address.
        const LENGTH: usize = usize::MAX / 8;
        let tensors: Vec<String> = (0..8)
            .map(|i| {
                let (start, end) = (i * LENGTH, (i + 1) * LENGTH);
                format!(r#""{i}":{{"dtype":"U8","shape":[{LENGTH}],"data_offsets":[{start},{end}]}}"#)
            })
            .collect();
        let text = problem(&file(&format!("{{{}}}", tensors.join(",")), 0));
        assert!(text.contains("truncated"), "{text}");
    }
}
