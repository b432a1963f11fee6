//! The layout of images, and what the device functions keep, for C and C++, from the kernels' own source.

use anyhow::{Context, Result, ensure};
use cbindgen::{Builder, Config, DocumentationStyle, ExportConfig, Language, LayoutConfig, Style};

use crate::shell::root;

/// Where it is committed.
pub(crate) const PATH: &str = "nwc-decode-cuda/include/nwc_image.h";

const SOURCES: [&str; 2] =
    ["nwc-decode-cuda/kernels/src/layout.rs", "nwc-decode-cuda/kernels/src/device/view.rs"];

/// What is declared, and its name in C, which has no modules.
const NAMES: [(&str, &str); 22] = [
    ("UNIT", "NWC_UNIT"),
    ("LANES", "NWC_LANES"),
    ("CHUNK", "NWC_CHUNK"),
    ("GROUP", "NWC_GROUP"),
    ("RING_BYTES", "NWC_RING_BYTES"),
    ("AHEAD_BYTES", "NWC_AHEAD_BYTES"),
    ("MAGIC", "NWC_MAGIC"),
    ("CAREFUL", "NWC_FLAG_CAREFUL"),
    ("PLAIN_COLUMNS", "NWC_FLAG_PLAIN_COLUMNS"),
    ("END", "NWC_PATCH_END"),
    ("Header", "NwcHeader"),
    ("TensorRecord", "NwcTensorRecord"),
    ("ItemRecord", "NwcItemRecord"),
    ("LaneRecord", "NwcLaneRecord"),
    ("Patch", "NwcPatch"),
    ("BlockRecord", "NwcBlockRecord"),
    ("Tensor", "NwcTensor"),
    ("Item", "NwcItem"),
    ("WalkState", "NwcWalkState"),
    ("RingParts", "NwcRingParts"),
    ("Rows", "NwcRows"),
    ("Pairs", "NwcPairs"),
];

const TOP: &str = "\
// The layout of an image, and what the device functions of nwc_decode.cuh keep in their callers' memory.
//
// Offsets count units of 16 bytes from the image's start; all is little-endian. Made by `cargo xtask ptx` from
// nwc-decode-cuda/kernels/src: do not edit.";

const ALIGNED: &str = "
#ifdef __cplusplus
#define NWC_ALIGNED(bytes) alignas(bytes)
#else
#define NWC_ALIGNED(bytes) __attribute__((aligned(bytes)))
#endif";

/// Its text.
pub(crate) fn text() -> Result<String> {
    let config = Config {
        header: Some(TOP.to_owned()),
        pragma_once: true,
        after_includes: Some(ALIGNED.to_owned()),
        no_includes: true,
        sys_includes: vec!["stddef.h".to_owned(), "stdint.h".to_owned()],
        line_length: 150,
        style: Style::Both,
        documentation_style: DocumentationStyle::C99,
        language: Language::C,
        layout: LayoutConfig { aligned_n: Some("NWC_ALIGNED".to_owned()), ..LayoutConfig::default() },
        export: ExportConfig {
            include: NAMES.map(|(rust, _)| rust.to_owned()).into(),
            rename: NAMES.map(|(rust, c)| (rust.to_owned(), c.to_owned())).into(),
            ..ExportConfig::default()
        },
        ..Config::default()
    };
    let sources = SOURCES.iter().fold(Builder::new(), |builder, path| builder.with_src(root().join(path)));
    let bindings = sources.with_config(config).generate().context("the layout cannot be said in C")?;
    let mut text = Vec::new();
    bindings.write(&mut text);
    let text = without_links(&String::from_utf8(text)?)
        .replace("NwcHeader_MAGIC", "NWC_MAGIC")
        .replace("NwcPatch_END", "NWC_PATCH_END");
    let defined = text.lines().filter_map(|line| line.strip_prefix("#define "));
    for name in defined {
        ensure!(name.starts_with("NWC_"), "{name} is defined without NWC_");
    }
    for (rust, c) in NAMES {
        ensure!(text.contains(&format!(" {c} ")), "{rust} is not declared as {c}:\n{text}");
    }
    Ok(text)
}

/// Rustdoc's links as the names that things have in C.
fn without_links(text: &str) -> String {
    let mut parts = text.split("[`");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (link, rest) = part.split_once("`]").unwrap_or((part, ""));
        let name = link.rsplit("::").next().unwrap_or(link);
        let in_c = NAMES.iter().find(|(rust, _)| *rust == name).map(|(_, c)| (*c).to_owned());
        // A module stands for its constants.
        plain += &in_c.unwrap_or_else(|| format!("NWC_{}_*", name.to_uppercase()));
        plain += rest;
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_become_names_of_c() {
        let rust = "Some of [`flag`], say [`flag::CAREFUL`], in a [`TensorRecord`]: `x`.";
        assert_eq!(
            without_links(rust),
            "Some of NWC_FLAG_*, say NWC_FLAG_CAREFUL, in a NwcTensorRecord: `x`."
        );
    }
}
