//! How a firmware's flash divides, by the sections, symbols and line tables of its ELF file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use addr2line::Loader;
use anyhow::{Context, Result, anyhow};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind};

/// A Thumb instruction has one or two of these.
const HALFWORD: u64 = 2;
/// Files of the decoder that make its range decoder: from stored tables and words to symbols.
const RANGE_DECODER: [&str; 3] = ["engine", "rans", "tables"];
/// With the walk over a tile: all that is left when the container around it is not counted.
const WITH_WALK: [&str; 4] = ["engine", "rans", "tables", "tile"];
const DECODER: &str = "decoder, ";

/// Prints the bytes of each part of the flash.
pub fn report(path: &Path, elf: &[u8]) -> Result<()> {
    let file = object::File::parse(elf)?;
    let in_flash = |kind| {
        matches!(
            kind,
            SectionKind::Text | SectionKind::Data | SectionKind::ReadOnlyData | SectionKind::ReadOnlyString
        )
    };
    let all: u64 =
        file.sections().filter(|section| in_flash(section.kind())).map(|section| section.size()).sum();
    let model = file
        .symbols()
        .find(|symbol| symbol.name().is_ok_and(|name| name == "MODEL"))
        .context("the firmware has no MODEL")?
        .size();
    let text = file.section_by_name(".text").context("the firmware has no code")?;
    let vectors = file.section_by_name(".vector_table").map_or(0, |section| section.size());

    let parts = code_parts(path, text.address(), text.size())?;
    let sum = |chosen: &dyn Fn(&str) -> bool| {
        parts.iter().filter(|(part, _)| chosen(part)).map(|(_, bytes)| bytes).sum::<u64>()
    };
    println!("flash: in all {all}");
    println!("flash: model {model}");
    println!("flash: code {}", text.size());
    println!("flash: constants {}", all - model - vectors - text.size());
    println!("flash: vector table {vectors}");
    for (part, bytes) in &parts {
        println!("flash: code, {part} {bytes}");
    }
    println!("flash: code, decoder in all {}", sum(&|part| part.starts_with(DECODER)));
    for (name, files) in [("range decoder", &RANGE_DECODER[..]), ("range decoder and walk", &WITH_WALK)] {
        let in_files = |part: &str| part.strip_prefix(DECODER).is_some_and(|file| files.contains(&file));
        println!("flash: code, {name} ({}) {}", files.join(", "), sum(&in_files));
    }
    Ok(())
}

/// Bytes of code of each part.
fn code_parts(path: &Path, start: u64, size: u64) -> Result<BTreeMap<String, u64>> {
    let loader = Loader::new(path).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    let mut parts = BTreeMap::new();
    let mut current = String::from("runtime");
    for address in (start..start + size).step_by(usize::try_from(HALFWORD)?) {
        // What no line belongs to is the constants of the code before it, or assembly of the runtime.
        if let Some(part) = part(&loader, address)? {
            current = part;
        }
        *parts.entry(current.clone()).or_default() += HALFWORD;
    }
    Ok(parts)
}

/// The part that the code at an address belongs to: by the innermost function that is not of the core library. So inlined code counts
/// where its source is.
fn part(loader: &Loader, address: u64) -> Result<Option<String>> {
    let mut frames = loader.find_frames(address).map_err(|error| anyhow!("{error}"))?;
    let mut part = None;
    while let Some(frame) = frames.next().map_err(|error| anyhow!("{error}"))? {
        let Some(file) = frame.location.and_then(|location| location.file) else { continue };
        part = Some(String::from("core library"));
        if !file.contains("/library/core/") {
            let function = frame.function.map(|name| name.raw_name().map(Cow::into_owned)).transpose()?;
            return Ok(Some(part_of(file, function.as_deref().unwrap_or_default())));
        }
    }
    Ok(part)
}

fn part_of(file: &str, function: &str) -> String {
    let within = |folder: &str| file.contains(folder);
    if let Some((_, file)) = file.split_once("/nwc-decode-core/src/") {
        return match file.trim_end_matches(".rs") {
            // Scaling, rounding and storing.
            "num" => format!("{DECODER}output"),
            "tile" if ["write", "saturate"].contains(&function) => format!("{DECODER}output"),
            file => format!("{DECODER}{file}"),
        };
    }
    let part = if within("/half-") {
        "decoder, output"
    } else if within("/defmt-") || within("/semihosting-") {
        "log"
    } else if within("/cortex-m") && !within("firmware-examples") {
        "runtime"
    } else if within("compiler-builtins") {
        "compiler's library (copy, clear, divide)"
    } else {
        "firmware"
    };
    part.into()
}
